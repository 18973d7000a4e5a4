"""How far a session has come."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """How far a session has come (RFC 5321 4.1.4)."""

    # In C: every command asks whether its phases hold the session's.
    __hash__ = object.__hash__

    CONNECTED = "connected"
    """Greeted, no HELO or EHLO yet."""
    READY = "ready"
    """Between transactions."""
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
