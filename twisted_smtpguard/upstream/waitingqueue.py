"""The queue of transactions that wait for a connection to the upstream server: first come, first served, with a time
limit for each."""

from __future__ import annotations

from bisect import insort
from itertools import count

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from twisted_smtpguard import replies
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Refused


class WaitingQueue:
    """The queue. Its length is the number of waiting transactions."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._numbers = count()
        self._queue: list[tuple[int, Deferred[None]]] = []
        """The waiters, ordered by their numbers."""

    def __len__(self) -> int:
        return len(self._queue)

    def next_number(self) -> int:
        """The number of a new transaction. It keeps the number, and so its place, until it has a connection."""
        return next(self._numbers)

    async def wait(self, number: int, seconds: float) -> None:
        """Wait to be woken. `Refused`: the wait took `seconds`, or `refuse_all` was called. A cancelled waiter leaves
        the queue."""
        turn: Deferred[None] = Deferred(lambda _: self._queue.remove(waiter))
        waiter = number, turn
        insort(self._queue, waiter)
        await turn.addTimeout(max(0.0, seconds), self._clock, _busy)

    def wake_first(self) -> None:
        """Wake the first waiter. It runs at once, up to its next wait."""
        _, turn = self._queue.pop(0)
        turn.callback(None)

    def refuse_all(self, reply: Reply) -> None:
        """Refuse all waiters that are in the queue now with `reply`, since no connection will come."""
        last = self.next_number()
        while self._queue and self._queue[0][0] < last:
            _, turn = self._queue.pop(0)
            turn.errback(Refused(reply))


def _busy(*_: object) -> None:
    raise Refused(replies.UPSTREAM_BUSY)
