"""One time limit shared by many sessions: the one that was added first is always the next to expire.

A single deadline therefore serves thousands of sessions.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from twisted.logger import Logger

from twisted_smtpguard.transport.deadlines import Deadline, Deadlines

_log = Logger()


class ExpiryQueue:
    """Calls `time_over()` of each object `seconds` after it was added, unless it was removed. 0 seconds: never."""

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._deadlines = deadlines
        self._seconds = seconds
        self._ends: dict[Any, float] = {}
        """The time at which each object expires, the earliest first."""
        self._deadline: Deadline | None = None

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
        if self._ends:
            next_end = next(iter(self._ends.values()))
            self._deadline = self._deadlines.call_later(next_end - now, self._expire_due)
        for each in over:
            try:
                each.time_over()
            except Exception:  # noqa: BLE001 - the other objects must still be told
                _log.failure("A session whose time is over could not be ended")
