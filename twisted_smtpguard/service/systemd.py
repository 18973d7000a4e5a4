"""The notifications by which the process tells systemd its state, if systemd has started it: sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from twisted.logger import Logger

READY = "READY=1"
"""Every listener accepts connections. After RELOADING it says that the new data are in force."""
STOPPING = "STOPPING=1"
"""The listeners are closed, and sessions are being ended."""

WATCHDOG = "WATCHDOG=1"
"""The reactor is alive. systemd kills a service that does not say so in the time of its WatchdogSec=."""

_log = Logger()


def watchdog_seconds(environment: Mapping[str, str] = os.environ) -> float:
    """How often systemd wants to hear that this process is alive: twice in its time; 0: it does not want to."""
    microseconds, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    meant = not pid or pid == str(os.getpid())
    return int(microseconds) / 2_000_000 if meant and microseconds.isdecimal() else 0.0


def reloading() -> str:
    """The state of a process that begins to reload its data. It contains the time, by the kernel's monotonic clock, by
    which systemd tells the answer to its signal from an earlier one (`Type=notify-reload`)."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def notify(state: str) -> None:
    """Tell systemd `state`, if it has set the variable NOTIFY_SOCKET.

    This never blocks and never raises; a failure is logged.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # An @ stands for the NUL that an abstract address begins with.
    address = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.setblocking(False)
            notified.sendto(state.encode(), address)
    except OSError as error:
        _log.warn("cannot tell systemd {state!r}: {error}", state=state, error=error)
