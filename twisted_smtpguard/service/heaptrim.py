"""The return of free memory to the operating system, so that the guard does not keep what a flood needed.

Received octets come in blocks of 64 KiB, and objects that outlive them leave holes in the heap, which the C library
keeps: after an attack a third of the heap. glibc returns whole pages of such holes when it is asked to.
"""

from __future__ import annotations

import ctypes
from typing import Any

from twisted.application.internet import TimerService

TRIM_SECONDS = 30


def trim_heap() -> None:
    """Return free memory to the operating system. Without malloc_trim (musl, and systems other than Linux) it does
    nothing."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


def heap_trimmer(clock: Any) -> TimerService:
    """A service that trims the heap every TRIM_SECONDS, by `clock`. `twist smtpguard` has one, since the heap belongs
    to the whole process."""
    service = TimerService(TRIM_SECONDS, trim_heap)
    service.clock = clock
    return service
