"""Connections that were said goodbye to, until they are gone: not for ever, and not any number of them.

Under TLS closing waits for the server's own goodbye, which may never come.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from twisted_smtpguard.upstream.connection import Connection

LEAVING_SECONDS = 5.0
STOPPING_SECONDS = 1.0
"""How long a server has to close a connection."""


class Leaving:
    """No more than `most` at once: the one that has waited longest is aborted then."""

    def __init__(self, clock: IReactorTime, most: int) -> None:
        self._clock = clock
        self._most = most
        self._calls: dict[Connection, IDelayedCall] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, connection: Connection, seconds: float = LEAVING_SECONDS) -> Deferred[None]:
        """Say goodbye. Fires when the connection is gone, `seconds` later at most."""
        if connection.lost:
            return succeed(None)
        if len(self._calls) >= self._most:
            oldest = next(iter(self._calls))
            self._forget(oldest)
            oldest.abandon()
        self._calls[connection] = self._clock.callLater(seconds, connection.abandon)
        gone: Deferred[None] = Deferred()
        gone.addCallback(lambda _: self._forget(connection))
        connection.gone.append(gone)
        connection.quit()
        return gone

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
        if call is not None and call.active():
            call.cancel()
