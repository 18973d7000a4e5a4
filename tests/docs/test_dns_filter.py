"""The example of an IP filter that asks the DNS: its own tests pass, a name server on this machine included."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from documents import DOCS

EXAMPLE = DOCS / "examples" / "dns_filter"


def test_its_own_tests_pass_when_they_are_run_as_they_say(tmp_path: Path) -> None:
    first_line = (EXAMPLE / "test_dnslist.py").read_text("utf-8").splitlines()[0]
    command = re.fullmatch(r'"""Run with: python -m twisted\.trial (\S+)"""', first_line)
    assert command is not None, first_line
    done = subprocess.run(
        [sys.executable, "-B", "-m", "twisted.trial", f"--temp-directory={tmp_path}/trial", command[1]],
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^PASSED \(successes=1[0-9]\)", done.stdout, re.MULTILINE), done.stdout


def test_a_plugin_file_that_imports_it_chooses_no_reactor() -> None:
    check = "import sys, dnslist; print('twisted.internet.reactor' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-B", "-c", check], cwd=EXAMPLE, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
