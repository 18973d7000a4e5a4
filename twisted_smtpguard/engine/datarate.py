"""Whether message data comes fast enough."""

from __future__ import annotations

from collections.abc import Callable

from twisted_smtpguard.engine.context import ServerContext
from twisted_smtpguard.engine.port import Cancellable

_ROUNDING_SECONDS = 0.001
"""A deadline never comes early, but the sum of what is left of a window is rounded."""


class DataRate:
    """Watches one message at a time: after a window of grace every further window needs its octets.

    `too_slow()` is called once. A deadline is set once a window, not once a message: most messages are over before
    it comes.
    """

    __slots__ = (
        "_began_at",
        "_context",
        "_deadline",
        "_demand",
        "_in_grace",
        "_left",
        "_runs",
        "_too_slow",
        "_watching",
        "_window",
        "octets",
    )

    def __init__(
        self, context: ServerContext, octets_a_second: int, window: float, too_slow: Callable[[], None]
    ) -> None:
        self._context = context
        self._window = window
        self._demand = octets_a_second * window
        self._too_slow = too_slow
        self._deadline: Cancellable | None = None
        self._runs = False
        self._began_at = 0.0
        self._watching = False
        """Between the first `run` and the `end` of a message."""
        self._begin()

    def _begin(self) -> None:
        self._in_grace = True
        self.octets = 0
        """Octets of message data in this window."""
        self._left = self._window

    def run(self) -> None:
        """It is the client's turn: time counts."""
        if not self._runs:
            self._runs = self._watching = True
            self._began_at = self._context.seconds()
            if self._deadline is None:
                self._deadline = self._context.call_later(self._left, self._window_over)

    def watch(self, *, in_message: bool, held: bool) -> None:
        """Called when either has changed: message data is due, and the client is held back."""
        if not in_message:
            self.end()
        elif held:
            self.hold()
        else:
            self.run()

    def hold(self) -> None:
        """The client is held back, which is not its fault: the window stands still. It does not start again, or a
        client that is held back often would never see the end of one."""
        if self._runs:
            self._runs = False
            self._left = max(0.0, self._left - (self._context.seconds() - self._began_at))

    def end(self) -> None:
        """The message is over; the next one gets its own grace. May be called when none is watched."""
        if self._watching:
            self._runs = self._watching = False
            self._begin()

    def stop(self) -> None:
        """Nothing more is watched."""
        self._runs = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _window_over(self) -> None:
        """The window may be over, if it has not stood still since, and is that of the same message."""
        self._deadline = None
        if not self._runs:
            return
        self.hold()
        if self._left < _ROUNDING_SECONDS:
            if not self._in_grace and self.octets < self._demand:
                self._too_slow()
                return
            self._begin()
            self._in_grace = False
        self.run()
