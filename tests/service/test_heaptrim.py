"""Memory that was free goes back to the operating system."""

from __future__ import annotations

import subprocess
import sys
from unittest.mock import patch

import pytest
from twisted.internet.task import Clock

from twisted_smtpguard.cli.options import Options, make_service
from twisted_smtpguard.service import process

# Blocks of an arrival, each with something small after it that stays.
HOLES = """
import os, sys
from twisted_smtpguard.service.process import trim_heap

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

blocks, kept = [], []
for number in range(500):
    blocks.append(os.urandom(65536))
    kept.append(os.urandom(8000))
del blocks
before = resident()
trim_heap()
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_holes_in_the_heap_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 500 * 65536 * 0.5


def test_a_c_library_that_cannot_is_left_alone() -> None:
    with patch.object(process.ctypes, "CDLL", return_value=object()):
        process.trim_heap()


def test_where_no_c_library_can_be_opened_nothing_is_trimmed() -> None:
    with patch.object(process.ctypes, "CDLL", side_effect=TypeError("a string is expected, not None")):
        process.trim_heap()


def test_the_process_of_twist_does_so_again_and_again_while_it_runs() -> None:
    options = Options()
    options.parseOptions(["--deliver=discard", "--listen=tcp:0:interface=127.0.0.1"])
    clock = Clock()
    times: list[float] = []
    with patch.object(process, "trim_heap", lambda: times.append(clock.seconds())):
        service = process.heap_trimmer(clock)
    service.startService()
    clock.advance(process.TRIM_SECONDS)
    assert times == [0, process.TRIM_SECONDS]
    service.stopService()
    clock.advance(process.TRIM_SECONDS)
    assert len(times) == 2
    names = [type(each).__name__ for each in make_service(options, Clock())]
    assert "TimerService" in names
