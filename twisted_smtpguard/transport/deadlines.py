"""One coarse timer for all deadlines: thousands of connections, each with its own, and one call on the clock.

A deadline is set back at every command and hardly ever comes. So setting it back to a later time is two
assignments; the deadline is moved only when the time at which it stood has come.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

TICKS_A_SECOND = 10
"""A deadline comes at the first tick that is not before it: never early, at most 0.1 s late."""

_STALE_TICKS = 64
_NO_TICK = math.inf
_log = Logger()


class Deadline:
    """A call to come, made by `Deadlines.call_later()`: what `TimeoutMixin` needs of an IDelayedCall."""

    __slots__ = ("_called", "_deadlines", "_function", "_tick", "when")

    def __init__(self, deadlines: Deadlines, when: float, function: Callable[[], object]) -> None:
        self._deadlines = deadlines
        self._function: Callable[[], object] | None = function
        self.when = when
        """When it comes. It may be set to a later time, which costs less than `reset`."""
        # Where it stands in the table, at or before its time; None: not in the table.
        self._tick: int | None = None
        self._called = False

    def active(self) -> bool:
        """Whether the call is still to come."""
        return self._function is not None

    def reset(self, seconds: float) -> None:
        """Let it come `seconds` from now instead. AlreadyCalled or AlreadyCancelled when it is over."""
        if self._function is None:
            self._check_active()
        when = self._deadlines.seconds() + seconds
        # Later, as nearly always: it is moved when the time comes at which it stands.
        if when < self.when:
            self._deadlines._move(self, when)
        self.when = when

    def cancel(self) -> None:
        """Let it never come. AlreadyCalled or AlreadyCancelled when it is over."""
        if self._function is None:
            self._check_active()
        self._function = None
        self._deadlines._remove(self)

    def _check_active(self) -> None:
        if self._function is None:
            raise AlreadyCalled() if self._called else AlreadyCancelled()

    def _call(self) -> None:
        function = self._function
        assert function is not None
        self._called = True
        self._function = None
        try:
            function()
        except BaseException:  # noqa: BLE001 - as the reactor does: the others are still to be called
            _log.failure("A deadline's function failed")


class Deadlines:
    """All deadlines of one guard, on one clock. While there is none, nothing is scheduled on the clock."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.seconds = clock.seconds
        """The time by this clock."""
        self._table: dict[int, dict[Deadline, None]] = {}
        """By tick. A table within the table has no empty entry and forgets a deadline at once, so that ten
        thousand connections that came and went leave nothing behind."""
        self._ticks: list[int] = []
        """A heap of every tick in the table, and of a bounded number that no longer are."""
        self._wake_up: IDelayedCall | None = None
        self._wake_tick: float = _NO_TICK

    def call_later(self, seconds: float, function: Callable[[], object]) -> Deadline:
        """Call `function` without arguments, not before `seconds` from now and at most 0.1 s after.

        What it raises is logged. It may make, move and cancel deadlines, its own slot's too.
        """
        deadline = Deadline(self, self.seconds() + seconds, function)
        self._insert(deadline)
        return deadline

    def _insert(self, deadline: Deadline) -> None:
        tick = deadline._tick = _tick_of(deadline.when)
        slot = self._table.get(tick)
        if slot is not None:
            slot[deadline] = None
            return
        self._table[tick] = {deadline: None}
        heappush(self._ticks, tick)
        if len(self._ticks) > 2 * len(self._table) + _STALE_TICKS:
            self._ticks = list(self._table)
            heapify(self._ticks)
        if tick < self._wake_tick:
            self._schedule()

    def _remove(self, deadline: Deadline) -> None:
        tick = deadline._tick
        if tick is None:
            return
        deadline._tick = None
        slot = self._table[tick]
        del slot[deadline]
        if slot:
            return
        del self._table[tick]
        if not self._table and self._wake_up is not None:
            self._schedule()

    def _move(self, deadline: Deadline, when: float) -> None:
        deadline.when = when
        if deadline._tick is not None and _tick_of(when) < deadline._tick:
            self._remove(deadline)
            self._insert(deadline)

    def _schedule(self) -> None:
        """Have the clock call at the earliest tick in the table, or not at all."""
        ticks = self._ticks
        while ticks and ticks[0] not in self._table:
            heappop(ticks)
        if self._wake_up is not None:
            self._wake_up.cancel()
            self._wake_up = None
        self._wake_tick = _NO_TICK
        if ticks:
            self._wake_tick = ticks[0]
            delay = max(0.0, ticks[0] / TICKS_A_SECOND - self._clock.seconds())
            self._wake_up = self._clock.callLater(delay, self._wake)

    def _wake(self) -> None:
        # `_wake_tick` stays: what the functions set is scheduled once, when all have been called.
        self._wake_up = None
        now = self._clock.seconds()
        due: list[Deadline] = []
        while self._ticks and self._ticks[0] / TICKS_A_SECOND <= now:
            due.extend(self._table.pop(heappop(self._ticks), ()))
        for deadline in due:
            deadline._tick = None
        for deadline in due:
            if not deadline.active():
                continue
            if deadline.when > now:
                self._insert(deadline)
            else:
                deadline._call()
        self._schedule()


def _tick_of(when: float) -> int:
    """The first tick that is not before `when`."""
    tick = math.ceil(when * TICKS_A_SECOND)
    # The product is rounded, and may be rounded down to a whole number.
    return tick if tick / TICKS_A_SECOND >= when else tick + 1
