"""Connections that are closing: the guard has sent QUIT, and the server has a few seconds to close its side.

Under TLS a close waits for the server's close_notify, which may never come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from twisted_smtpguard.upstream.connection import Connection, stop_timer

CLOSE_SECONDS = 5.0
FAST_CLOSE_SECONDS = 1.0
"""How long the server has to close a connection after QUIT: usually, and when its place is needed or the guard
stops."""


class ClosingConnections:
    """The connections that are closing. `closed()` is called for each one when its transport has been closed."""

    def __init__(self, clock: IReactorTime, closed: Callable[[], None]) -> None:
        self._clock = clock
        self._on_closed = closed
        self._calls: dict[Connection, IDelayedCall] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._calls

    def add(self, connection: Connection, seconds: float = CLOSE_SECONDS) -> None:
        """Send QUIT. The connection will have been closed at most `seconds` later."""
        if not connection.closed.called:
            self._calls[connection] = self._clock.callLater(seconds, connection.abandon)
            connection.closed.addCallback(lambda _: self._forget(connection))
            connection.quit()

    def hurry(self) -> None:
        """Shorten the time of all, since a transaction waits for the place of one of them."""
        soon = self._clock.seconds() + FAST_CLOSE_SECONDS
        for call in self._calls.values():
            if call.active() and call.getTime() > soon:
                call.reset(FAST_CLOSE_SECONDS)

    def stop(self, others: list[Connection]) -> Deferred[Any]:
        """Abort the connections that are closing, and close `others` fast. Fires when all have been closed."""
        closing = list(self._calls)
        for connection in closing:
            connection.abandon()
        for connection in others:
            self.add(connection, FAST_CLOSE_SECONDS)
        return gatherResults([connection.closed for connection in [*closing, *others]])

    def _forget(self, connection: Connection) -> None:
        stop_timer(self._calls.pop(connection))
        self._on_closed()
