"""What a process costs: memory, processor time and descriptors, as Linux tells."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Vitals:
    """Of the process `pid`."""

    def __init__(self, pid: int) -> None:
        self._proc = Path("/proc", str(pid))

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
        """Processor time, of the process and of the kernel in its name."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND

    @property
    def descriptors(self) -> int:
        return len(list((self._proc / "fd").iterdir()))

    def _status(self, name: str) -> int:
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise LookupError(name)
