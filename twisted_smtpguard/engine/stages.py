"""The stages of a connection, the phases of its session, and the type of a row in the table of stages."""

from __future__ import annotations

import enum
from collections.abc import Callable, Set
from typing import Any

import attrs

from twisted_smtpguard.inputs.arguments import derived


class Stage(enum.Enum):
    """The stage of a connection. It is always in exactly one, and only `Engine.enter` changes it."""

    # The hash is C code, because a stage is looked up for every arrival.
    __hash__ = object.__hash__

    ACCEPTED = "accepted"
    """Nothing has been decided yet."""
    PROXY_HEADER = "PROXY header"
    """The PROXY header of a trusted proxy is due. Nothing is known of the client until it is complete."""
    TLS_HANDSHAKE = "TLS handshake"
    """What arrives belongs to the TLS handshake."""
    ADMISSION = "admission"
    """IP filters and the limits per client are asked."""
    GREET_DELAY = "greet delay"
    """The connection is admitted, and its greeting is held back for a while."""
    FIRST_LINE = "first line"
    """The client has been greeted and has not sent a complete line."""
    COMMAND = "command"
    """The next line is a command."""
    SKIPPED_LINE = "skipped line"
    """The rest of a malformed or over-long line is thrown away, up to its CRLF."""
    AUTH_RESPONSE = "AUTH response"
    """The next line answers a challenge of AUTH."""
    DATA = "message data"
    """The client sends message data, up to CRLF . CRLF."""
    CHUNK = "chunk"
    """The client sends the octets of message data that the last BDAT has announced."""
    ANSWER = "answer"
    """A hook or a checker has been asked and has not answered. Input is kept."""
    SINK = "sink"
    """The sink's `write()` has not answered for the last piece of message data. The client is not read."""
    STARTING_TLS = "starting TLS"
    """STARTTLS was granted. The handshake begins as soon as the client has read the reply."""
    CLOSING = "closing"
    """The last reply has been written and may not have been sent yet."""
    LINGERING = "lingering"
    """Our side is shut down. Input is read and thrown away: closing with unread input would reset the connection, and
    the client could lose the last reply."""
    CLOSED = "closed"
    """The connection is gone."""


def _keep(engine: Any) -> bool:
    return False


def _never(engine: Any) -> None:
    raise AssertionError(f"{engine.stage} has no time limit")


@attrs.frozen
class StageRow:
    """A row of the table of stages in table.py."""

    follows: Set[Stage]
    """The stages from which it may be entered."""
    take: Callable[[Any], bool] = _keep
    """Called with the engine; takes some of the input and returns whether there may be more to take. By default the
    input is kept."""
    timed_out: Callable[[Any], object] = _never
    """Called with the engine when the time limit of the stage is over."""
    timeout: str = ""
    """The name in `ServerContext.timeouts` of the time limit; "" for none."""
    awaits_hook: bool = False
    """Whether a hook is waited for instead of the client. The time limit is then the hook's own: that of the client
    goes on, so that it need not be stopped and begun again for every answer, and its end has no effect."""
    reads: bool = True
    """Whether the client is read. Input that is not taken is kept, up to `Limits.max_input_buffer`."""
    in_message: bool = False
    """Whether the input is message data rather than commands."""
    needs: tuple[str, bool] = derived(lambda self: (self.timeout, self.reads))
    """`timeout` and `reads`. The host has to be told of them when a stage with other needs is entered."""


class Phase(enum.Enum):
    """The phase of a session, which decides which commands are in sequence (RFC 5321 4.1.4)."""

    # The hash is C code, because the phase is looked up for every command.
    __hash__ = object.__hash__

    CONNECTED = "connected"
    """The client has not sent HELO or EHLO."""
    READY = "ready"
    """No mail transaction is open."""
    SENDER = "sender"
    """MAIL was accepted, and no well-formed RCPT has come."""
    REFUSED = "refused"
    """Every RCPT so far was refused."""
    RECIPIENTS = "recipients"
    """A recipient was accepted."""
    CHUNKS = "chunks"
    """A message comes by BDAT, and its last chunk has not been received (RFC 3030)."""


ANY = frozenset(Phase)
IN_TRANSACTION = ANY - {Phase.CONNECTED, Phase.READY}
"""The phases of a mail transaction, from MAIL to the verdict."""

ENDED = frozenset({Stage.CLOSING, Stage.LINGERING, Stage.CLOSED})
"""The final stages, in which no command is carried out and no reply is added."""
