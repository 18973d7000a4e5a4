"""Whether message data comes fast enough."""

from __future__ import annotations

from collections.abc import Callable

from twisted_smtpguard.wire.deadlines import Deadline, Deadlines


class DataRate:
    """Watches one message at a time: after a window of grace every further window needs its octets.

    `seconds()` is the clock of `deadlines`. `octets_a_second` or `window` 0: nothing is demanded. `too_slow()` is
    called once.
    """

    def __init__(
        self,
        deadlines: Deadlines,
        seconds: Callable[[], float],
        octets_a_second: int,
        window: float,
        too_slow: Callable[[], None],
    ) -> None:
        self._deadlines = deadlines
        self._seconds = seconds
        self._window = window if octets_a_second else 0
        self._demand = octets_a_second * window
        self._too_slow = too_slow
        self._deadline: Deadline | None = None
        self._began_at = 0.0
        self._begin()

    def _begin(self) -> None:
        self._spared = True
        self._octets = 0
        self._left = self._window

    def run(self) -> None:
        """It is the client's turn: time counts."""
        if self._window and self._deadline is None:
            self._began_at = self._seconds()
            self._deadline = self._deadlines.call_later(self._left, self._window_over)

    def count(self, octets: int) -> None:
        """Octets of message data have come."""
        self._octets += octets

    def hold(self) -> None:
        """The client is held back, which is not its fault: the window stands still. It does not start again, or a
        client that is held back often would never see the end of one."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self._left = max(0.0, self._left - (self._seconds() - self._began_at))

    def end(self) -> None:
        """The message is over; the next one gets its own grace."""
        self.hold()
        self._begin()

    def _window_over(self) -> None:
        self._deadline = None
        if not self._spared and self._octets < self._demand:
            self._too_slow()
            return
        self._begin()
        self._spared = False
        self.run()
