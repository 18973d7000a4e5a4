"""Those who wait for a connection to the mail server behind: first come, first served, and none for ever."""

from __future__ import annotations

from bisect import insort
from itertools import count

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply


class Waiting:
    """Has the length of the queue."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._numbers = count()
        self._queue: list[tuple[int, Deferred[None]]] = []
        """By number."""

    def __len__(self) -> int:
        return len(self._queue)

    def number(self) -> int:
        """For who comes now. It keeps it until it is served, however many turns are of no use to it."""
        return next(self._numbers)

    async def turn(self, number: int, seconds: float) -> None:
        """Wait for a turn. `Refused`: none came in `seconds`, or all were sent away. May be cancelled."""
        turn: Deferred[None] = Deferred(lambda _: self._queue.remove(waiter))
        waiter = number, turn
        insort(self._queue, waiter)

        def expire() -> None:
            self._queue.remove(waiter)
            turn.errback(Refused(replies.UPSTREAM_BUSY))

        call = self._clock.callLater(max(0.0, seconds), expire)
        try:
            await turn
        finally:
            if call.active():
                call.cancel()

    def call_first(self) -> None:
        """It is the turn of the first. What it does is done at once, as far as it comes without waiting."""
        _, turn = self._queue.pop(0)
        turn.callback(None)

    def send_away(self, reply: Reply) -> None:
        """Those who wait now would wait for nothing."""
        last = self.number()
        while self._queue and self._queue[0][0] < last:
            _, turn = self._queue.pop(0)
            turn.errback(Refused(reply))
