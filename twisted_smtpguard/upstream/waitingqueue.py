"""The queue of transactions that wait for a connection to the upstream server: first come, first served, with a time
limit for each. Strangers come after all others where connections are reserved for those."""

from __future__ import annotations

from bisect import insort
from itertools import count
from typing import TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from twisted_smtpguard import replies
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Refused

Turn: TypeAlias = tuple[bool, int]
"""The place of a transaction in the queue: whether it is a stranger's, and its number."""


class WaitingQueue:
    """The queue. Its length is the number of waiting transactions."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._numbers = count()
        self._queue: list[tuple[Turn, Deferred[None]]] = []
        """The waiters, in the order in which they are served."""

    def __len__(self) -> int:
        return len(self._queue)

    def next_number(self) -> int:
        """The number of a new transaction. It keeps it until it has a connection."""
        return next(self._numbers)

    def has_before(self, turn: Turn) -> bool:
        """Whether a transaction waits that is to be served before the one that has this turn."""
        return bool(self._queue) and self._queue[0][0] < turn

    @property
    def first_is_stranger(self) -> bool:
        """Whether the first is a stranger's, and so all are. There is one."""
        return self._queue[0][0][0]

    async def wait(self, turn: Turn, seconds: float) -> None:
        """Wait to be woken. `Refused`: the wait took `seconds`, or `refuse_all` was called. A cancelled waiter leaves
        the queue."""
        woken: Deferred[None] = Deferred(lambda _: self._queue.remove(waiter))
        waiter = turn, woken
        insort(self._queue, waiter)
        await woken.addTimeout(max(0.0, seconds), self._clock, _busy)

    def wake_first(self) -> None:
        """Wake the first waiter. It runs at once, up to its next wait."""
        _, woken = self._queue.pop(0)
        woken.callback(None)

    def wake_all(self) -> None:
        """Wake all waiters that are in the queue now, in their order."""
        for waiter in list(self._queue):
            # Another may have left while one was woken.
            if waiter in self._queue:
                self._queue.remove(waiter)
                waiter[1].callback(None)

    def refuse_all(self, reply: Reply) -> None:
        """Refuse all waiters that are in the queue now with `reply`, since no connection will come."""
        for waiter in list(self._queue):
            # Another may have left while one was told.
            if waiter in self._queue:
                self._queue.remove(waiter)
                waiter[1].errback(Refused(reply))


def _busy(*_: object) -> None:
    raise Refused(replies.UPSTREAM_BUSY)
