"""A clone in which a reader types what the pages say, and the files that git sees afterwards."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from documents import ROOT

NOT_SOURCE = shutil.ignore_patterns(
    ".*", "*.egg-info", "__pycache__", "dropin.cache", "build", "dist", "Maildir"
)
"""What a copy of the source leaves out, for `shutil.copytree`."""


def track(clone: Path) -> None:
    """From now on, what is in `clone` is tracked."""
    shutil.copy(ROOT / ".gitignore", clone)
    _git(clone, "init", "-q")
    _git(clone, "add", "-A")


def untracked(clone: Path) -> str:
    """The files that are in the way of the next commit."""
    return _git(clone, "ls-files", "--others", "--exclude-standard", "--directory")


def _git(clone: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=clone, capture_output=True, text=True, check=True)
    return done.stdout
