"""What users have written against an earlier state of the package goes on working.

The files in written_earlier, beside this one, are the examples as they were at commit 1fadc2b, before the package had
rooms. Only the greeting in inbox_tests.py is that of now. A test that fails here has found a broken promise.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EARLIER = Path(__file__).parent / "written_earlier"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A copy: Twisted writes a cache beside the plugins that it sees."""
    unwanted = shutil.ignore_patterns("__pycache__", "dropin.cache")
    return Path(shutil.copytree(EARLIER, tmp_path / "earlier", ignore=unwanted))


def python(earlier: Path, *words: str) -> str:
    """The output of a Python that can import the files in `earlier`. It has to succeed."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=earlier,
        env={**os.environ, "PYTHONPATH": str(earlier)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_a_plugin_pass(earlier: Path) -> None:
    told = python(earlier, "-m", "twisted.trial", "known_clients_tests")
    assert re.search(r"^PASSED \(successes=[1-9]", told, re.MULTILINE), told


def test_the_tests_of_an_application_pass(earlier: Path) -> None:
    told = python(earlier, "-m", "pytest", "-q", "-p", "no:cacheprovider", "inbox_tests.py")
    assert re.search(r"^9 passed", told, re.MULTILINE), told


def test_an_application_of_two_guards_can_be_imported(earlier: Path) -> None:
    python(earlier, "-c", "import two_guards")


def test_twist_finds_the_plugin(earlier: Path) -> None:
    told = python(earlier, "-m", "twisted", "smtpguard", "--help-ip-filters")
    assert re.search(r"^ *known-clients\b", told, re.MULTILINE), told
