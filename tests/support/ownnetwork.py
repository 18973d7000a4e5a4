"""Programs in a network of their own, in which the loopback has whatever addresses a test needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import missing

_ENTER = ("unshare", "--map-root-user", "--net", "sh", "-ec")


def run_in_own_network(setup: str, program: str, *words: str, seconds: float) -> list[str]:
    """Run `setup`, commands of a shell, and then the Python `program`, which may import the helpers of the tests, with
    `words` as its arguments. The lines that it prints. The test is skipped where no network can be made."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        missing("unshare or ip")
    setup = f"ip link set lo up && {setup}"
    trial = subprocess.run([*_ENTER, setup], check=False)
    if trial.returncode:
        pytest.skip("networks cannot be made here")
    done = subprocess.run(
        [*_ENTER, f'{setup} && exec "$@"', "sh", sys.executable, "-c", program, *words],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
