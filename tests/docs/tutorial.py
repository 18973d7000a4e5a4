"""The tutorial as a user follows it: its commands, and whether the shell prints what the page says."""

from __future__ import annotations

import re

from documents import ROOT, Command, commands
from processes import eventually
from shell import Shell

PORT = "2525"
"""In the page and its examples. A test uses one that is free."""

_VARIES = [
    (r"^\[\d+\].*\n", ""),  # what bash says of its jobs
    (r"^\[twisted_smtpguard#warn\] setup_warning what=root .*\n", ""),  # the tests of a container are root's
    (r"\b[0-9a-f]{8}-([0-9a-f]+)\b", r"SESSION-\1"),
    (r"\w{3}, \d\d? \w{3} \d{4} [\d:]{8} [+-]\d{4}", "DATE"),
    (r"\bseconds=[\d.]+", "seconds=N"),
    (r"\bport=\d+", "port=N"),
    (r"\bdescriptors=\d+", "descriptors=N"),
]
"""What no two runs have in common, and what the page leaves out."""


def tutorial() -> list[Command]:
    """The commands of the page, in their order."""
    return commands(ROOT / "docs/tutorial/cut-off-a-first-abuser.md")


def alike(text: str) -> str:
    """`text` without what may differ from run to run."""
    for pattern, stands_for in _VARIES:
        text = re.sub(pattern, stands_for, text, flags=re.MULTILINE)
    return text


def shows(shell: Shell, command: Command) -> None:
    """Run a command until it prints what the page says. What looks at a log may come too early, as a user
    who types fast does; anything else is run once."""
    printed: list[str] = []

    def looks() -> bool:
        printed[:] = [shell.run(command.words)]
        return alike(printed[0]) == alike(command.output)

    if command.words.startswith("grep "):
        eventually(looks, f"{command.words}\n{command.output}")
    else:
        assert looks(), f"$ {command.words}\n{printed[0]}\nis not\n{command.output}"
