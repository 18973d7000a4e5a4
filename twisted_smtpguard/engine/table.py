"""The table of stages, with a row for each: the stages it may follow, what takes its input, and its time limit."""

from __future__ import annotations

from twisted_smtpguard import replies
from twisted_smtpguard.engine.arrival import (
    handshake_timed_out,
    proxy_timed_out,
    start_tls,
    take_early_input,
    take_proxy_header,
)
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.lines import (
    take_commands,
    take_first_line,
    take_line,
    take_skipped_line,
)
from twisted_smtpguard.engine.receiving import take_message
from twisted_smtpguard.engine.stages import Stage, StageRow

_S = Stage
_BEFORE_GREETING = frozenset({_S.ACCEPTED, _S.PROXY_HEADER, _S.TLS_HANDSHAKE, _S.ADMISSION, _S.GREET_DELAY})
_LINES = frozenset({_S.FIRST_LINE, _S.COMMAND, _S.SKIPPED_LINE, _S.AUTH_RESPONSE})
_MESSAGE = frozenset({_S.DATA, _S.CHUNK})
_WAITING = frozenset({_S.ANSWER, _S.SINK})


def _keep(engine: Engine) -> bool:
    return False


def _discard(engine: Engine) -> bool:
    engine.buffer = b""
    engine.offset = 0
    return False


def _never(engine: Engine) -> None:
    raise AssertionError(f"{engine.stage} has no time limit")


def _read_timed_out(engine: Engine) -> None:
    engine.hang_up(replies.READ_TIMED_OUT)


STAGES: dict[Stage, StageRow] = {
    _S.ACCEPTED: StageRow(frozenset(), _keep, _never),
    _S.PROXY_HEADER: StageRow(frozenset({_S.ACCEPTED}), take_proxy_header, proxy_timed_out, "proxy_header"),
    _S.TLS_HANDSHAKE: StageRow(
        frozenset({_S.ACCEPTED, _S.PROXY_HEADER, _S.ADMISSION, _S.GREET_DELAY, _S.STARTING_TLS}),
        _keep,
        handshake_timed_out,
        "tls_handshake",
    ),
    # A TLS handshake that the endpoint has begun may be under way in these two stages, and may time out.
    _S.ADMISSION: StageRow(
        frozenset({_S.ACCEPTED, _S.PROXY_HEADER, _S.TLS_HANDSHAKE, _S.ADMISSION}), _keep, handshake_timed_out
    ),
    _S.GREET_DELAY: StageRow(frozenset({_S.ADMISSION}), take_early_input, handshake_timed_out),
    _S.FIRST_LINE: StageRow(
        frozenset({_S.ADMISSION, _S.GREET_DELAY, _S.TLS_HANDSHAKE, _S.SKIPPED_LINE, _S.COMMAND}),
        take_first_line,
        _read_timed_out,
        "read",
    ),
    _S.COMMAND: StageRow(
        (_LINES | _MESSAGE | {_S.ANSWER, _S.TLS_HANDSHAKE}) - {_S.COMMAND},
        take_commands,
        _read_timed_out,
        "read",
    ),
    _S.SKIPPED_LINE: StageRow(_LINES - {_S.SKIPPED_LINE}, take_skipped_line, _read_timed_out, "read"),
    _S.AUTH_RESPONSE: StageRow(frozenset({_S.COMMAND}), take_line, _read_timed_out, "read"),
    _S.DATA: StageRow(
        frozenset({_S.COMMAND, _S.SINK}), take_message, _read_timed_out, "read", in_message=True
    ),
    _S.CHUNK: StageRow(
        frozenset({_S.COMMAND, _S.SINK}), take_message, _read_timed_out, "read", in_message=True
    ),
    _S.ANSWER: StageRow(frozenset({_S.COMMAND}), _keep, _never),
    _S.SINK: StageRow(_MESSAGE | {_S.COMMAND}, _keep, _never, reads=False, in_message=True),
    _S.STARTING_TLS: StageRow(frozenset({_S.COMMAND}), start_tls, _never),
    _S.CLOSING: StageRow(
        _BEFORE_GREETING | _LINES | _MESSAGE | _WAITING | {_S.STARTING_TLS}, _discard, _never
    ),
    _S.LINGERING: StageRow(frozenset({_S.CLOSING}), _discard, Engine.abort, "linger"),
    _S.CLOSED: StageRow(frozenset(_S) - {_S.CLOSED}, _discard, _never),
}
