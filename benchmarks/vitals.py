"""What a process costs, and a message that it has to hold, as the tests read it; and what this machine allows."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

SUPPORT = Path(__file__).parent.parent / "tests" / "support"
sys.path.append(str(SUPPORT))

from held_upstream import SlowServer, octets_a_session  # noqa: E402 - tests/support is no package
from vitals import Vitals  # noqa: E402 - as above

CORES = sorted(os.sched_getaffinity(0))
"""As this process began, before it was kept to one."""

__all__ = ["CORES", "SlowServer", "Vitals", "octets_a_session", "pin", "raise_descriptor_limit"]


def pin(core: int) -> None:
    """Keep this process to one core: 0 is that of the servers, 1 that of the load. What is measured does not wander."""
    os.sched_setaffinity(0, {CORES[core % len(CORES)]})


def raise_descriptor_limit() -> int:
    """To the hard limit, for this process and those it starts; what that is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
