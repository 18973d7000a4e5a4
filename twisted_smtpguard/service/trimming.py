"""Free memory goes back to the operating system: what a crowd needed is not kept when it is gone.

Received octets come in blocks of 64 KiB, and what outlives them leaves holes in the heap of the C library, which keeps
them: after an attack a third of the heap. glibc gives back whole pages of such holes when it is asked to.
"""

from __future__ import annotations

import ctypes
from typing import Any

from twisted.application.internet import TimerService

TRIM_SECONDS = 30


def trim() -> None:
    """Give back what is free. Nothing where the C library knows no way (musl, and other systems than Linux)."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


def trimming(clock: Any) -> TimerService:
    """A service that does so every TRIM_SECONDS, by `clock`. For a process of its own: `twist smtpguard` has one."""
    service = TimerService(TRIM_SECONDS, trim)
    service.clock = clock
    return service
