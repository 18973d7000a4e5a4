"""The tutorial, followed word for word in one shell."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from clones import track, untracked
from documents import ROOT, Command
from shell import Shell, free_port
from tutorial import PORT, shows, tutorial

INSTALL = 2
"""How many commands of the page install the guard, which needs a package index."""

NOT_SOURCE = shutil.ignore_patterns(
    ".*", "*.egg-info", "__pycache__", "dropin.cache", "build", "dist", "Maildir"
)


def follow(clone: Path, installation: list[Command], commands: list[Command]) -> None:
    """Type all commands in a clone, on a port that is free. No word of them but the port is changed."""
    port = free_port()
    for example in (clone / "docs" / "examples" / "tutorial").iterdir():
        if example.is_file():
            example.write_text(example.read_text().replace(PORT, port))
    track(clone)
    with Shell(clone) as shell:
        for command in installation:
            shell.succeeds(command.words)
        for command in commands:
            shows(shell, Command(command.words.replace(PORT, port), command.output.replace(PORT, port)))
    assert untracked(clone) == ""


def test_the_tutorial_installs_first_and_needs_nothing_else() -> None:
    words = [command.words for command in tutorial()]
    assert words[:INSTALL] == ["python3 -m venv .venv", ".venv/bin/pip install ."]
    assert {word.split()[0] for word in words[INSTALL:]} == {
        ".venv/bin/twist", "cat", "echo", "grep", "kill", "python3", "touch", "wait"
    }  # fmt: skip


def test_the_tutorial_shows_what_happens(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs" / "examples" / "tutorial", tmp_path / "docs" / "examples" / "tutorial")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    follow(tmp_path, [], tutorial()[INSTALL:])


@pytest.mark.packaging
@pytest.mark.timeout(600)
def test_the_tutorial_shows_what_happens_from_the_installation_on(tmp_path: Path) -> None:
    clone = shutil.copytree(ROOT, tmp_path / "clone", ignore=NOT_SOURCE)
    follow(Path(clone), tutorial()[:INSTALL], tutorial()[INSTALL:])
