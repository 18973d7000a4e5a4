"""Replies of connections that are served in the same turn of the reactor leave together, at its end.

A client that waits for its reply sleeps, and to wake it takes the kernel as long as all else that a reply costs. Sent
one right after the other, the replies of a turn find their clients awake: half of the kernel's time is saved. Where
one connection at a time is served there is nothing to be saved, and its reply leaves at once.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

_TRIAL = 32
"""Of replies that leave at once, one in so many waits for the end of its turn, to see whether others do."""

_TURNS_ALONE = 8
"""So many turns with one reply each, and replies leave at once again."""


class Sender(Protocol):
    """What has replies that can leave at any time."""

    def send_now(self) -> None:
        """Let them leave."""


class ReplyBatcher:
    """Decides for all connections of a guard when their replies leave."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: deque[Sender] = deque()
        self._scheduled = False
        self._crowded = False
        self._count = 0

    def delays(self, sender: Sender) -> bool:
        """Whether the sender's replies leave at the end of this turn: its `send_now()` is called then, once."""
        if not (self._crowded or self._waiting):
            self._count += 1
            if self._count % _TRIAL:
                return False
        self._waiting.append(sender)
        if not self._scheduled:
            self._schedule()
        return True

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._end_of_turn)

    def _end_of_turn(self) -> None:
        self._scheduled = False
        waiting = self._waiting
        if len(waiting) > 1:
            self._crowded, self._count = True, 0
        elif self._crowded:
            self._count += 1
            self._crowded = self._count < _TURNS_ALONE
        try:
            # Those that are added meanwhile wait for the next turn.
            for _ in range(len(waiting)):
                waiting.popleft().send_now()
        finally:
            self._schedule()
