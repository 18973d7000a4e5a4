"""A reactor of which a delivery uses only clock and threads, and whose threads work when the test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure


class ManualThreads(Clock):
    """Reactor and thread pool at once. `trips` counts the jobs that were ever handed to a thread, and `wakes`
    how often a thread has called the reactor."""

    max = 10
    """How many threads it might have."""

    def __init__(self) -> None:
        super().__init__()
        self.trips = 0
        self.wakes = 0
        self._jobs: deque[Callable[[], None]] = deque()

    def getThreadPool(self) -> ManualThreads:
        return self

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        self.wakes += 1
        function(*args)

    def callInThreadWithCallback(self, on_result: Any, function: Any, *args: Any, **kwargs: Any) -> None:
        def job() -> None:
            try:
                outcome = True, function(*args, **kwargs)
            except BaseException:  # noqa: BLE001 - as a thread pool does
                outcome = False, Failure()
            on_result(*outcome)

        self.trips += 1
        self._jobs.append(job)

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    def work(self) -> None:
        """Do every job that waits, and those that come of it."""
        while self._jobs:
            self._jobs.popleft()()
