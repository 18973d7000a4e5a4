"""Whether message data comes fast enough."""

from __future__ import annotations

from collections.abc import Callable

from twisted_smtpguard.wire.deadlines import Deadline, Deadlines


class DataRate:
    """Watches one message at a time: after a window of grace every further window needs its octets.

    `octets_a_second` or `window` 0: nothing is demanded. `too_slow()` is called once.
    """

    def __init__(
        self, deadlines: Deadlines, octets_a_second: int, window: float, too_slow: Callable[[], None]
    ) -> None:
        self._deadlines = deadlines
        self._window = window if octets_a_second else 0
        self._demand = octets_a_second * window
        self._too_slow = too_slow
        self._deadline: Deadline | None = None
        self._spared = True
        self._octets = 0

    def run(self) -> None:
        """The client can send: time counts."""
        if self._window and self._deadline is None:
            self._octets = 0
            self._deadline = self._deadlines.call_later(self._window, self._window_over)

    def count(self, octets: int) -> None:
        """Octets of message data have come."""
        self._octets += octets

    def hold(self) -> None:
        """The client is held back, or its chunk is complete: that is not its fault, the window starts again."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def end(self) -> None:
        """The message is over; the next one gets its own grace."""
        self.hold()
        self._spared = True

    def _window_over(self) -> None:
        self._deadline = None
        if not self._spared and self._octets < self._demand:
            self._too_slow()
            return
        self._spared = False
        self.run()
