"""The queue of connections that have used up their share of the reactor's turn, so that busy clients do not keep a new
one waiting. The engine decides how large a share is.

Twisted delivers up to 64 KiB of every readable connection in one turn. As pipelined commands these are 30 ms of work,
and with a hundred such connections a turn would take seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

_CONNECTIONS_A_TURN = 8
"""The number of waiting connections that are served in one turn."""


class FairScheduler:
    """Serves the connections that have more input than their share, first come, first served, `most` in one turn."""

    def __init__(self, clock: IReactorTime, most: int = _CONNECTIONS_A_TURN) -> None:
        self._clock = clock
        self._most = most
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def wait(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` in a later turn. It may call `wait` again."""
        self._waiting.append(go_on)
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._serve)

    def _serve(self) -> None:
        self._scheduled = False
        try:
            for _ in range(min(len(self._waiting), self._most)):
                self._waiting.popleft()()
        finally:
            self._schedule()
