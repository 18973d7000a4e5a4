"""How far a connection has come (Stage), how far its session has come (Phase), and what a row of their table says."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import attrs


class Stage(enum.Enum):
    """Where a connection stands. Exactly one at a time; `Engine.enter` is the only function that changes it."""

    # In C: a stage is looked up for every arrival.
    __hash__ = object.__hash__

    ACCEPTED = "accepted"
    """Nothing has been decided yet."""
    PROXY_HEADER = "PROXY header"
    """The PROXY header of a trusted proxy is due; nothing is known of the client before it is whole."""
    TLS_HANDSHAKE = "TLS handshake"
    """What arrives belongs to the TLS handshake."""
    ADMISSION = "admission"
    """IP filters and the limits per client are asked."""
    GREET_DELAY = "greet delay"
    """The connection is admitted, and its greeting is held back for a while."""
    FIRST_LINE = "first line"
    """The client has been greeted and has not sent a whole line."""
    COMMAND = "command"
    """The next line is a command."""
    SKIPPED_LINE = "skipped line"
    """The rest of a malformed or over-long line is thrown away, up to its CRLF."""
    AUTH_RESPONSE = "AUTH response"
    """The next line answers a challenge of AUTH."""
    DATA = "message data"
    """Message data comes, up to CRLF . CRLF."""
    CHUNK = "chunk"
    """So many octets of message data come as the last BDAT has announced."""
    ANSWER = "answer"
    """A hook or a checker has been asked and has not answered. Input is kept."""
    SINK = "sink"
    """The delivery has not taken the last piece of message data. The client is not read."""
    STARTING_TLS = "starting TLS"
    """STARTTLS was granted. The handshake begins as soon as the client has taken the reply."""
    CLOSING = "closing"
    """The last line has been said, and has not left yet."""
    LINGERING = "lingering"
    """Our side is shut down. What arrives is thrown away, so that the last line reaches the client."""
    CLOSED = "closed"
    """The connection is gone."""


@attrs.frozen
class StageRow:
    """A row of the table of stages in table.py."""

    follows: frozenset[Stage]
    """The stages from which it may be entered."""
    take: Callable[[Any], bool]
    """Called with the engine: takes some of the input, and returns whether there may be more to take."""
    timed_out: Callable[[Any], object]
    """Called with the engine when the time limit of the stage is over."""
    timeout: str = ""
    """The name in `ServerContext.timeouts` of the time limit; "" for none."""
    reads: bool = True
    """Whether the client is read. Input that is not taken is kept, up to the bound of the input buffer."""
    in_message: bool = False
    """Whether the input is message data and not a command."""
    needs: tuple[str, bool] = attrs.field(init=False)
    """What the host has to be told when the stage is entered from one with other needs: `timeout` and `reads`."""

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "needs", (self.timeout, self.reads))


class Phase(enum.Enum):
    """How far a session has come (RFC 5321 4.1.4): which commands are in sequence."""

    # In C: every command asks whether its phases hold the session's.
    __hash__ = object.__hash__

    CONNECTED = "connected"
    """Greeted, no HELO or EHLO yet."""
    READY = "ready"
    """Between mail transactions."""
    SENDER = "sender"
    """MAIL was accepted, no RCPT has been tried."""
    REFUSED = "refused"
    """Every RCPT so far was refused."""
    RECIPIENTS = "recipients"
    """A recipient was accepted."""
    CHUNKS = "chunks"
    """Between two BDATs of a message (RFC 3030)."""


ANY = frozenset(Phase)
IN_TRANSACTION = ANY - {Phase.CONNECTED, Phase.READY}
"""Between MAIL and the verdict."""

ENDED = frozenset({Stage.CLOSING, Stage.LINGERING, Stage.CLOSED})
"""Nothing more is said, and no command is executed."""
