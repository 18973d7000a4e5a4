"""Connections that were said goodbye to, until they are gone: not for ever.

Under TLS closing waits for the server's own goodbye, which may never come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from twisted_smtpguard.upstream.connection import Connection

LEAVING_SECONDS = 5.0
STOPPING_SECONDS = 1.0
"""How long a server has to close a connection."""


class Leaving:
    """`gone()` is called for each that is gone."""

    def __init__(self, clock: IReactorTime, gone: Callable[[], None]) -> None:
        self._clock = clock
        self._gone = gone
        self._calls: dict[Connection, IDelayedCall] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._calls

    def add(self, connection: Connection, seconds: float = LEAVING_SECONDS) -> Deferred[None]:
        """Say goodbye. Fires when the connection is gone, `seconds` later at most."""
        if connection.lost:
            return succeed(None)
        self._calls[connection] = self._clock.callLater(seconds, connection.abandon)
        gone: Deferred[None] = Deferred()
        gone.addCallback(lambda _: self._forget(connection))
        connection.gone.append(gone)
        connection.quit()
        return gone

    def hurry(self) -> None:
        """Somebody waits for their places: they have no longer than at a stop."""
        soon = self._clock.seconds() + STOPPING_SECONDS
        for call in self._calls.values():
            if call.active() and call.getTime() > soon:
                call.reset(STOPPING_SECONDS)

    def stop(self, others: list[Connection]) -> Deferred[Any]:
        """Wait no longer for those that are leaving, and a little for `others`, which are added. Fires when all are
        gone."""
        gone: list[Deferred[None]] = []
        for connection in self._calls:
            gone.append(Deferred())
            connection.gone.append(gone[-1])
        for connection in list(self._calls):
            connection.abandon()
        gone += [self.add(connection, STOPPING_SECONDS) for connection in others]
        return gatherResults(gone)

    def _forget(self, connection: Connection) -> None:
        call = self._calls.pop(connection, None)
        if call is not None:
            if call.active():
                call.cancel()
            self._gone()
