"""The minimum rate of message data."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from twisted_smtpguard.engine.context import ServerContext
from twisted_smtpguard.engine.port import Cancellable

_ROUNDING_SECONDS = 0.001
"""A window with less time left than this is over: a deadline is never early, but sums of its parts are rounded."""


@attrs.define(eq=False, weakref_slot=False)
class DataRate:
    """Measures one message at a time. The first window is grace; each later one must bring its minimum of octets.

    `too_slow()` is called once. The deadline of a window stays set when a message ends, and the next message uses it:
    most messages end within a window, and a deadline for each would cost more than they do.
    """

    _context: ServerContext
    _octets_a_second: int
    _window: float
    _too_slow: Callable[[], None]
    octets: int = 0
    """Octets of message data in this window."""
    outdated: bool = False
    """Whether the limit has changed. The next message is measured by another object."""
    _in_grace: bool = True
    _left: float = attrs.field(init=False)
    """The seconds that this window had left when its time began to run."""
    _deadline: Cancellable | None = None
    _runs: bool = False
    _began_at: float = 0.0
    _watching: bool = False
    """Whether a message is being measured: `run` was called for it, and `end` was not."""

    def __attrs_post_init__(self) -> None:
        self._left = self._window

    def _begin(self, *, in_grace: bool) -> None:
        self._in_grace = in_grace
        self.octets = 0
        self._left = self._window

    def run(self) -> None:
        """Let the time of the window run, because message data is due."""
        if not self._runs:
            self._runs = self._watching = True
            self._began_at = self._context.seconds()
            if self._deadline is None:
                self._deadline = self._context.call_later(self._left, self._window_over)

    def watch(self, *, in_message: bool, held: bool) -> None:
        """Called when a flag may have changed. `in_message`: a message is being received. `held`: the guard is not
        taking its data, or a hook is pending."""
        if not in_message:
            self.end()
        elif held:
            self.hold()
        else:
            self.run()

    def hold(self) -> None:
        """Stop the time of the window while the guard holds the client back. The window is not restarted, or it would
        never end for a client that is held back often."""
        if self._runs:
            self._runs = False
            self._left = max(0.0, self._left - (self._context.seconds() - self._began_at))

    def end(self) -> None:
        """End the measurement of a message; the next one has its own grace. May be called when there is none."""
        if self._watching:
            self._runs = self._watching = False
            self._begin(in_grace=True)

    def stop(self) -> None:
        """Cancel the deadline, because the session has ended."""
        self._runs = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _window_over(self) -> None:
        """Called at the deadline. The window is not over yet if it was held, or belongs to a later message."""
        self._deadline = None
        if not self._runs:
            return
        self.hold()
        if self._left < _ROUNDING_SECONDS:
            if not self._in_grace and self.octets < self._octets_a_second * self._window:
                self._too_slow()
                return
            self._begin(in_grace=False)
        self.run()
