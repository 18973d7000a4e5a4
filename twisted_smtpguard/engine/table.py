"""The table of stages, with a row for each: the stages it may follow, what takes its input, and its time limit."""

from __future__ import annotations

from functools import partial

from twisted_smtpguard import replies
from twisted_smtpguard.engine.arrival import (
    handshake_timed_out,
    proxy_failed,
    start_tls,
    take_early_input,
    take_proxy_header,
)
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.lines import take_commands, take_first_line, take_line, take_skipped_line
from twisted_smtpguard.engine.receiving import take_message
from twisted_smtpguard.engine.stages import Stage, StageRow

_S = Stage
_BEFORE_GREETING = {_S.ACCEPTED, _S.PROXY_HEADER, _S.TLS_HANDSHAKE, _S.ADMISSION, _S.GREET_DELAY}
_LINES = {_S.FIRST_LINE, _S.COMMAND, _S.SKIPPED_LINE, _S.AUTH_RESPONSE}
_MESSAGE = {_S.DATA, _S.CHUNK}


def _discard(engine: Engine) -> bool:
    engine.buffer, engine.offset = b"", 0
    return False


def _linger_timed_out(engine: Engine) -> None:
    if engine.lingers and engine.host.is_sending():
        engine.set_deadline("linger")
    else:
        engine.abort()


def _read_timed_out(engine: Engine) -> None:
    engine.hang_up(replies.READ_TIMED_OUT)


def _go_on_waiting(engine: Engine) -> None:
    engine.set_deadline(engine.row.timeout)


_read = partial(StageRow, timed_out=_read_timed_out, timeout="read")
"""Makes the row of a stage that has the read timeout."""

STAGES: dict[Stage, StageRow] = {
    _S.ACCEPTED: StageRow(frozenset()),
    _S.PROXY_HEADER: StageRow({_S.ACCEPTED}, take_proxy_header, proxy_failed, "proxy_header"),
    _S.TLS_HANDSHAKE: StageRow(
        {_S.ACCEPTED, _S.PROXY_HEADER, _S.ADMISSION, _S.GREET_DELAY, _S.STARTING_TLS},
        timed_out=handshake_timed_out,
        timeout="tls_handshake",
    ),
    # A TLS handshake that the endpoint has begun may be under way in these two stages, and may time out.
    _S.ADMISSION: StageRow(
        {_S.ACCEPTED, _S.PROXY_HEADER, _S.TLS_HANDSHAKE, _S.ADMISSION}, timed_out=handshake_timed_out
    ),
    _S.GREET_DELAY: StageRow({_S.ADMISSION}, take_early_input, handshake_timed_out),
    _S.FIRST_LINE: _read(
        {_S.ADMISSION, _S.GREET_DELAY, _S.TLS_HANDSHAKE, _S.SKIPPED_LINE, _S.COMMAND}, take_first_line
    ),
    _S.COMMAND: _read((_LINES | _MESSAGE | {_S.ANSWER, _S.TLS_HANDSHAKE}) - {_S.COMMAND}, take_commands),
    _S.SKIPPED_LINE: _read(_LINES - {_S.SKIPPED_LINE}, take_skipped_line),
    _S.AUTH_RESPONSE: _read({_S.COMMAND}, take_line),
    _S.DATA: _read({_S.COMMAND, _S.SINK}, take_message, in_message=True),
    _S.CHUNK: _read({_S.COMMAND, _S.SINK}, take_message, in_message=True),
    _S.ANSWER: StageRow({_S.COMMAND}, timed_out=_go_on_waiting, timeout="read", awaits_hook=True),
    _S.SINK: StageRow(_MESSAGE | {_S.COMMAND}, reads=False, in_message=True),
    _S.STARTING_TLS: StageRow({_S.COMMAND}, start_tls),
    _S.CLOSING: StageRow(
        _BEFORE_GREETING | _LINES | _MESSAGE | {_S.ANSWER, _S.SINK, _S.STARTING_TLS}, _discard
    ),
    _S.LINGERING: StageRow({_S.CLOSING}, _discard, _linger_timed_out, "linger"),
    _S.CLOSED: StageRow(set(_S) - {_S.CLOSED}, _discard),
}
