"""The templates of plug-ins that anybody can copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from documents import ROOT

EXAMPLES = ROOT / "docs" / "examples"


def copied(name: str, to: Path) -> Path:
    """A copy of a template: Twisted writes a cache beside the plugins that it sees."""
    unwanted = shutil.ignore_patterns("__pycache__", "dropin.cache")
    return Path(shutil.copytree(EXAMPLES / name, to / "template", ignore=unwanted))


def python(template: Path, *words: str, status: int = 0) -> str:
    """What a Python that sees the source of `template` says."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=template,
        env={**os.environ, "PYTHONPATH": str(template / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr
