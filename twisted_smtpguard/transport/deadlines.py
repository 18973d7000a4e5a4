"""One coarse timer for the deadlines of thousands of connections, with a single call on the clock.

A deadline is extended at every command and is hardly ever reached. Extending it is therefore one assignment: it is
moved in the table only when the time at which it stood there has come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from itertools import takewhile
from typing import Any

import attrs
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

TICKS_A_SECOND = 10
"""The resolution of deadlines: each is called at the first tick that is not before it, at most 0.1 s late."""

_STALE_TICKS = 64
_log = Logger()


@attrs.define(eq=False, weakref_slot=False)
class Deadline:
    """A call scheduled by `Deadlines.call_later()`, with the part of IDelayedCall that `TimeoutMixin` needs."""

    _deadlines: Deadlines
    when: float
    """The time of the call, by the clock. It may be set to a later time, which costs less than `reset`."""
    _function: Callable[[], object] | None
    _tick: int | None = None
    """Its tick in the table, which may be earlier than `when`; None: it is not in the table."""
    _called: bool = False

    def active(self) -> bool:
        """Whether the function has been neither called nor cancelled."""
        return self._function is not None

    def reset(self, seconds: float) -> None:
        """Move the call to `seconds` from now. Raises AlreadyCalled or AlreadyCancelled if it is no longer active."""
        if self._function is None:
            raise self._over()
        when = self._deadlines.seconds() + seconds
        # Nearly always it is extended, and is then moved in the table when its old time comes.
        earlier = when < self.when
        self.when = when
        if earlier and self._tick is not None and _tick_of(when) < self._tick:
            self._deadlines._remove(self)
            self._deadlines._insert(self)

    def cancel(self) -> None:
        """Cancel the call. Raises AlreadyCalled or AlreadyCancelled if it is no longer active."""
        if self._function is None:
            raise self._over()
        self._function = None
        self._deadlines._remove(self)

    def _over(self) -> Exception:
        return AlreadyCalled() if self._called else AlreadyCancelled()

    def _call(self) -> None:
        function = self._function
        assert function is not None
        self._called = True
        self._function = None
        try:
            function()
        except BaseException:  # noqa: BLE001 - as in the reactor, the other deadlines must still be called
            _log.failure("A deadline's function failed")


class Deadlines:
    """All deadlines of one guard, on one clock. Without deadlines nothing is scheduled on the clock."""

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self.seconds = clock.seconds
        """Returns the time of the clock, in seconds."""
        self._table: dict[int, dict[Deadline, None]] = {}
        """The deadlines by tick. A cancelled one is removed at once, and so is an empty tick, so that ten thousand
        connections that came and went leave nothing."""
        self._ticks: list[int] = []
        """A heap of every tick in the table, and of a bounded number of ticks that are no longer in it."""
        self._wake_up: IDelayedCall | None = None
        self._wake_tick: float = math.inf

    def call_later(self, seconds: float, function: Callable[[], object]) -> Deadline:
        """Call `function` without arguments after `seconds`: never early, and at most 0.1 s late.

        What it raises is logged. It may make, move and cancel any deadlines, those of the same tick too.
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

    def _schedule(self) -> None:
        """Schedule the call on the clock for the earliest tick in the table, or cancel it if the table is empty."""
        ticks = self._ticks
        while ticks and ticks[0] not in self._table:
            heappop(ticks)
        if self._wake_up is not None:
            self._wake_up.cancel()
            self._wake_up = None
        self._wake_tick = math.inf
        if ticks:
            self._wake_tick = ticks[0]
            delay = max(0.0, ticks[0] / TICKS_A_SECOND - self.clock.seconds())
            self._wake_up = self.clock.callLater(delay, self._wake)

    def _wake(self) -> None:
        # `_wake_tick` stays set, so that deadlines made by the functions are scheduled once, after all were called.
        self._wake_up = None
        now = self.clock.seconds()
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
    # The floating-point product may have been rounded down to a whole number.
    return tick if tick / TICKS_A_SECOND >= when else tick + 1


def _began_at(begun: tuple[float, Any]) -> float:
    return begun[0]


def _time_over(each: Any) -> None:
    each.time_over()


class ExpiryQueue:
    """Calls `time_over()` of each object, or `tell` with it, `seconds` after it was added, unless it was removed. 0
    seconds: never.

    The one that was added first is always the next to expire, so a single deadline serves thousands of sessions.
    """

    def __init__(
        self, deadlines: Deadlines, seconds: float, tell: Callable[[Any], object] = _time_over
    ) -> None:
        self._deadlines = deadlines
        self._tell = tell
        self._seconds = seconds
        self._ends: dict[Any, float] = {}
        """The time at which each object expires, the earliest first."""
        self._deadline: Deadline | None = None

    def restart(self, seconds: float, begun: Iterable[tuple[float, Any]]) -> None:
        """Swap the time limit. `begun` has each object that it is to hold for, with the time at which its own time
        began: one whose time is over already expires at the next tick."""
        self._seconds = seconds
        self._ends = {each: at + seconds for at, each in sorted(begun, key=_began_at)} if seconds else {}
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._wait_for_next()

    def _wait_for_next(self) -> None:
        if self._ends:
            seconds = next(iter(self._ends.values())) - self._deadlines.seconds()
            self._deadline = self._deadlines.call_later(max(0.0, seconds), self._expire_due)

    def add(self, new: Any) -> None:
        """Start the time limit of `new`."""
        if self._seconds:
            self._ends[new] = self._deadlines.seconds() + self._seconds
            if self._deadline is None:
                self._deadline = self._deadlines.call_later(self._seconds, self._expire_due)

    def remove(self, gone: Any) -> None:
        """Drop the time limit of `gone`. May be called twice."""
        self._ends.pop(gone, None)
        if not self._ends and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire_due(self) -> None:
        self._deadline = None
        now = self._deadlines.seconds()
        over = list(takewhile(lambda each: self._ends[each] <= now, self._ends))
        for each in over:
            del self._ends[each]
        self._wait_for_next()
        for each in over:
            try:
                self._tell(each)
            except Exception:  # noqa: BLE001 - the other objects must still be told
                _log.failure("A session whose time is over could not be ended")
