"""What a process costs, and a message that it has to hold, as the tests read it; and what this machine allows."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUPPORT = Path(__file__).parent.parent / "tests" / "support"
sys.path.append(str(SUPPORT))

from held_upstream import SlowServer, octets_a_session  # noqa: E402 - tests/support is no package
from vitals import Vitals  # noqa: E402 - as above

CORES = sorted(os.sched_getaffinity(0))
"""As this process began, before it was kept to one."""

__all__ = [
    "CORES",
    "Family",
    "SlowServer",
    "Vitals",
    "group_runs",
    "octets_a_session",
    "pin",
    "raise_descriptor_limit",
    "sharing",
]

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Family(Vitals):
    """Of the process `pid`; its processor time is that of the processes that it has started, too."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self._pid = pid

    @property
    def seconds(self) -> float:
        """Those that are there by their own clocks. Those that have ended, and were waited for, by the parent's count,
        which is told in ticks: of all together that is less than 20 ms too little."""
        while True:
            before = self._children(), self._ended()
            try:
                those_there = sum(Vitals(child).seconds for child in before[0])
            except OSError:
                continue
            # One that ends meanwhile would be counted twice, or not at all.
            if (self._children(), self._ended()) == before:
                return super().seconds + those_there + before[1]

    def _children(self) -> list[int]:
        parents = {int(path.name): _fields(path) for path in Path("/proc").glob("[0-9]*")}
        return [pid for pid, fields in parents.items() if fields[1:2] == [str(self._pid)]]

    def _ended(self) -> float:
        user, system = _fields(self._proc)[13:15]
        return (int(user) + int(system)) / TICKS_A_SECOND


def group_runs(leader: int) -> bool:
    """Whether any process is left of those that `leader` was the first of."""
    found = map(_fields, Path("/proc").glob("[0-9]*"))
    return any(fields[2] == str(leader) and fields[0] != "Z" for fields in found if fields)


def _fields(process: Path) -> list[str]:
    """Of /proc/PID/stat, from the state on; none if the process is gone. See proc_pid_stat(5)."""
    try:
        # The name of the program may hold anything.
        return (process / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


_shared: list[int] = []
"""How many cores the servers and the load share. The last is in force; where there is none, each has one of its own."""


def pin(core: int) -> None:
    """Keep this thread to one core: 0 is that of the servers, 1 that of the load. What is measured does not wander."""
    os.sched_setaffinity(0, CORES[: _shared[-1]] if _shared else {CORES[core % len(CORES)]})


@contextmanager
def sharing(cores: int) -> Iterator[None]:
    """While the block runs, what is pinned is kept to the first so many cores."""
    _shared.append(cores)
    try:
        yield
    finally:
        _shared.pop()


def raise_descriptor_limit() -> int:
    """To the hard limit, for this process and those it starts; what that is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
