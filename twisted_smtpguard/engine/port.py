"""What the engine asks of its host, and what the host hands over of answers that come later.

A host moves octets, keeps time and speaks TLS. The Twisted protocol is one, a test's list of effects another.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Protocol

from twisted_smtpguard.values import Address, Peer


class Close(enum.Enum):
    """How the host ends a connection."""

    LINGER = "linger"
    """When everything said has left: shut down our side only, and go on reading. `Engine.all_sent` is called."""
    PLAIN = "plain"
    """When everything said has left: close. `Engine.all_sent` is called."""
    ABORT = "abort"
    """At once, with all that has not left."""


class Cancelled(Exception):  # noqa: N818 - it is what has happened
    """A hook that answers later has been cancelled, in whatever way its kind of answer says so."""


class Cancellable(Protocol):
    """A call to come, or an answer to come."""

    def cancel(self) -> object:
        """Let it never come. Raises nothing."""


class Timer(Protocol):
    """A deadline that runs."""

    when: float
    """When it comes, by the clock. It may be set to a later time."""


Answered = Callable[[Any, BaseException | None], None]
"""Called once with what a hook has answered, or with None and what it has raised (`Cancelled`, if it was)."""


class Host(Protocol):
    """One connection, as its engine sees it."""

    half_closed: bool
    """Our side is shut down: the last line and our FIN have left. `Engine.half_closed` was called."""

    @property
    def idle(self) -> bool:
        """Everything that was written has left."""

    def write(self, octets: bytes) -> bool:
        """Send these octets after those before them. True: so many wait for the client now that no further command is
        to be executed. `Engine.drained` follows."""

    def pause(self) -> None:
        """Stop reading the client."""

    def resume(self) -> None:
        """Read the client again."""

    def close(self, how: Close) -> None:
        """End the connection. Nothing is written afterwards."""

    def turn_away(self, line: bytes) -> None:
        """Say one line to a connection that gets no session, and close it, as cheaply as can be."""

    def start_tls(self, octets: bytes) -> None:
        """Speak only TLS from here on. `octets` of the handshake have come already. `Engine.secured` follows."""

    def deadline(self, seconds: float) -> Timer | None:
        """Call `Engine.timed_out` so many seconds from now, instead of at any time set before. 0: never, and None."""

    def wait(self, later: Any, answered: Answered) -> Cancellable:
        """Call `answered` when `later` (a Deferred, coroutine or future) is there; within this call if it is now."""

    def next_turn(self) -> None:
        """Call `Engine.take_turn` when the other connections have had their turn."""

    def input_waits(self) -> bool:
        """Whether the client has sent something that has not been read yet. False where that cannot be known."""

    def waiting_octets(self, most: int) -> bytes:
        """The first octets of what `input_waits` has found, which stay where they are."""

    def address(self) -> Address | None:
        """The IP address at the other end of the transport; None for a UNIX socket."""

    def peer(self) -> Peer:
        """Who is at the other end of the transport. Costs a system call."""

    def is_own(self, header: Any) -> bool:
        """Whether a PROXY header says that the connection is the proxy's own, such as a health check."""


class NoHost:
    """The host of a connection that is gone: nothing has any effect."""

    idle = True
    half_closed = False

    def write(self, octets: bytes) -> bool:
        return False

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def close(self, how: Close) -> None:
        pass

    def turn_away(self, line: bytes) -> None:
        pass

    def start_tls(self, octets: bytes) -> None:
        pass

    def deadline(self, seconds: float) -> Timer | None:
        return None

    def wait(self, later: Any, answered: Answered) -> Cancellable:
        raise RuntimeError("a connection that is gone waits for nothing")

    def next_turn(self) -> None:
        pass

    def input_waits(self) -> bool:
        return False

    def waiting_octets(self, most: int) -> bytes:
        return b""

    def is_own(self, header: Any) -> bool:
        return False

    def address(self) -> Address | None:
        return None

    def peer(self) -> Peer:
        raise RuntimeError("a connection that is gone has no peer")
