"""The queues that connections wait in for the end of a turn of the reactor, or for the next turn.

Twisted delivers up to 64 KiB of every readable connection in one turn. As pipelined commands these are 30 ms of work,
and with a hundred such connections a turn would take seconds. A connection that has used up its share therefore waits,
so that busy clients do not keep a new one waiting. The engine decides how large a share is.

Connections served in the same turn send their replies together at its end. A client that waits for its reply sleeps,
and waking it takes the kernel as long as everything else that a reply costs. If the replies of a turn are sent one
right after the other, their clients are awake already, which saves half of the kernel's time. Where a turn serves one
connection only, batching saves nothing and the reply is sent at once.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime

_CONNECTIONS_A_TURN = 8
"""The number of waiting connections that are served in one turn."""

_TRIAL = 32
"""While replies are sent at once, every 32nd waits for the end of its turn, to see whether other connections reply."""

_TURNS_ALONE = 8
"""The number of turns with one sender each after which replies are sent at once again."""


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


class ReplyBatcher(FairScheduler):
    """Decides for all connections of a guard whether a reply is sent at once or at the end of the turn."""

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__(clock, most=sys.maxsize)
        self._crowded = False
        self._count = 0

    def delays(self, sender: Any) -> bool:
        """Whether the sender's replies have to wait for the end of this turn, when its `send_now()` is called once."""
        if not (self._crowded or self._waiting):
            self._count += 1
            if self._count % _TRIAL:
                return False
        # As `wait` does. This is done for every write of a crowd, and spares a call.
        self._waiting.append(sender.send_now)
        if not self._scheduled:
            self._schedule()
        return True

    def _serve(self) -> None:
        if len(self._waiting) > 1:
            self._crowded, self._count = True, 0
        elif self._crowded:
            self._count += 1
            self._crowded = self._count < _TURNS_ALONE
        # Senders that are added meanwhile wait for the next turn.
        super()._serve()
