"""The port between an engine and its host: what the engine asks for, and how answers that come later are passed.

A host moves octets, keeps time and speaks TLS. The Twisted protocol is one host, a test's list of effects another.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Protocol

from twisted_smtpguard.engine.timers import Timer
from twisted_smtpguard.values import Address, Peer


class Close(enum.Enum):
    """How the host ends a connection."""

    LINGER = "linger"
    """Send everything that was written, call `Engine.all_sent`, shut down our side only, and go on reading."""
    PLAIN = "plain"
    """Send everything that was written, call `Engine.all_sent`, and close."""
    ABORT = "abort"
    """Close at once and drop what has not been sent."""


class Cancelled(Exception):  # noqa: N818 - the name says what has happened
    """Stands for the cancellation of a Deferred, coroutine or future, each of which has its own exception for it."""


class Expired(Exception):  # noqa: N818 - the name says what has happened
    """Replaces the answer of a hook whose time limit is over. `at_work`: the hook ignored its cancellation and goes
    on."""

    def __init__(self, *, at_work: bool) -> None:
        super().__init__()
        self.at_work = at_work


class Cancellable(Protocol):
    """A scheduled call, or an answer that comes later."""

    def cancel(self) -> object:
        """Cancel the call or the answer. Raises nothing."""


Answered = Callable[[Any, BaseException | None], None]
"""Called once: with a hook's answer and None, or with None and its exception (`Cancelled` if it was cancelled)."""


class Host:
    """One connection, as its engine sees it. What stands here is the host of a connection that is gone, where nothing
    has any effect; the host of a live connection overrides all of it."""

    gone = True
    """Whether the connection is gone in both directions."""
    half_closed = False
    """Whether our side is shut down: the last reply and our FIN have left, and `Engine.half_closed` was called."""

    @property
    def idle(self) -> bool:
        """Whether everything that was written has been sent."""
        return True

    def is_sending(self) -> bool:
        """Whether replies are still on their way after the close, and the client has taken some since the last call."""
        return False

    def write(self, octets: bytes) -> bool:
        """Send these octets after earlier ones. Returns whether so many wait for the client that the engine must carry
        out no further command until `Engine.drained` is called."""
        return False

    def pause(self) -> None:
        """Stop reading the client."""

    def resume(self) -> None:
        """Read the client again."""

    def close(self, how: Close) -> None:
        """End the connection in the way `how`. The engine writes nothing afterwards."""

    def turn_away(self, line: bytes) -> None:
        """Send one line to a connection that is refused at accept, and close it, as cheaply as possible."""

    def start_tls(self, octets: bytes) -> None:
        """Begin TLS; nothing is sent in clear afterwards. `octets` are input that belongs to the handshake.
        `arrival.secured` is called when the handshake is complete."""

    def deadline(self, seconds: float) -> Timer | None:
        """Call `Engine.timed_out` after `seconds`, replacing the earlier deadline. 0: remove that, and return None."""
        return None

    def wait(self, later: Any, answered: Answered) -> Cancellable:
        """Call `answered` when `later` (a Deferred, coroutine or future) has its result: at once if it has it now."""
        raise NotImplementedError

    def next_turn(self) -> None:
        """Call `Engine.take_turn` when the other connections have had their turn."""

    def waiting_octets(self, most: int) -> bytes:
        """Return at most `most` of the octets that the client has sent and that have not been read yet, and leave them
        unread. b"" where that cannot be known."""
        return b""

    def cipher_bits(self) -> int:
        """The size of the key of the TLS cipher, in bits; 0 if it is unknown."""
        return 0

    def address(self) -> Address | None:
        """The IP address at the other end of the transport; None for a UNIX socket."""
        return None

    def peer(self) -> Peer:
        """Return the peer at the other end of the transport. Costs a system call."""
        raise NotImplementedError

    def is_own(self, header: Any) -> bool:
        """Whether a PROXY header says that the connection is the proxy's own, such as a health check."""
        return False
