"""What a process costs: memory, processor time and descriptors, as Linux tells."""

from __future__ import annotations

import time
from pathlib import Path

# What clock_getcpuclockid(3) makes of a process's number: see include/linux/posix-timers.h of Linux.
_SCHEDULED = 2


class Vitals:
    """Of the process `pid`."""

    def __init__(self, pid: int) -> None:
        self._proc = Path("/proc", str(pid))
        self._clock = ~pid << 3 | _SCHEDULED

    @property
    def resident(self) -> int:
        """Octets of memory that are in use now."""
        return self._status("VmRSS")

    @property
    def peak(self) -> int:
        """Octets of memory that were in use at once, since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        (self._proc / "clear_refs").write_text("5")

    @property
    def seconds(self) -> float:
        """Processor time, of the process and of the kernel in its name, of all its threads and those that have ended.

        From the clock that the kernel keeps for each process, in nanoseconds: /proc/PID/stat counts in 10 ms, and
        /proc/PID/schedstat the first thread alone.
        """
        return time.clock_gettime(self._clock)

    @property
    def descriptors(self) -> int:
        return len(list((self._proc / "fd").iterdir()))

    def _status(self, name: str) -> int:
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise LookupError(name)
