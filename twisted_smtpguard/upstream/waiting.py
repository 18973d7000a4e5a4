"""Those who wait for a connection to the mail server behind: first come, first served, and none for ever."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply


class Waiting:
    """True while there is anybody."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._queue: deque[Deferred[None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    async def turn(self, seconds: float, *, again: bool) -> None:
        """Wait for a turn. `again`: there was one, and it was of no use; the next comes first of all. `Refused`: none
        came in `seconds`, or all were sent away. May be cancelled."""
        turn: Deferred[None] = Deferred(self._queue.remove)
        if again:
            self._queue.appendleft(turn)
        else:
            self._queue.append(turn)

        def expire() -> None:
            self._queue.remove(turn)
            turn.errback(Refused(replies.UPSTREAM_BUSY))

        call = self._clock.callLater(max(0.0, seconds), expire)
        try:
            await turn
        finally:
            if call.active():
                call.cancel()

    def call_first(self) -> None:
        """It is the turn of the first. What it does is done at once, as far as it comes without waiting."""
        self._queue.popleft().callback(None)

    def send_away(self, reply: Reply) -> None:
        """Those who wait now would wait for nothing."""
        queue, self._queue = self._queue, deque()
        for turn in queue:
            turn.errback(Refused(reply))
