"""The tutorial as a user follows it: its commands in one shell, and what the shell prints."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path
from types import TracebackType

import attrs
from processes import PATIENCE_SECONDS, eventually

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tutorial" / "cut-off-a-first-abuser.md"
PORT = "2525"
"""In the page and its examples. A test uses one that is free."""

_VARIES = [
    (r"^\[\d+\].*\n", ""),  # what bash says of its jobs
    (r"\b[0-9a-f]{8}-([0-9a-f]+)\b", r"SESSION-\1"),
    (r"\w{3}, \d\d? \w{3} \d{4} [\d:]{8} [+-]\d{4}", "DATE"),
    (r"\bseconds=[\d.]+", "seconds=N"),
    (r"\bdescriptors=\d+", "descriptors=N"),
]
"""What no two runs have in common, and what the page leaves out."""


@attrs.frozen
class Command:
    """One command of the page, and the lines that stand below it."""

    words: str
    output: str


def tutorial() -> list[Command]:
    """The commands of the page, in their order."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        assert block.startswith("$ ")
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            words, _, output = part.partition("\n")
            found.append(Command(words, output))
    return found


def alike(text: str) -> str:
    """`text` without what may differ from run to run."""
    for pattern, stands_for in _VARIES:
        text = re.sub(pattern, stands_for, text, flags=re.MULTILINE)
    return text


def free_port() -> str:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


class Shell:
    """A bash that stays, in `directory`, with jobs as in a terminal. What it started is ended with it."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.run("set -m")

    def run(self, words: str) -> str:
        """What a command prints."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(f"{{ {words}\n}} 2>&1; echo; echo 'the end'", file=self._process.stdin, flush=True)
        lines: list[str] = []
        for line in self._process.stdout:
            if line == "the end\n":
                return "".join(lines).removesuffix("\n")
            lines.append(line)
        raise AssertionError(f"the shell has ended behind {words!r}: {lines}")

    def succeeds(self, command: Command) -> None:
        """Run a command whose output depends on the machine."""
        printed = self.run(f"{command.words} && echo && echo it has succeeded")
        assert printed.endswith("\nit has succeeded\n"), f"$ {command.words}\n{printed}"

    def shows(self, command: Command) -> None:
        """Run a command until it prints what the page says. What looks at a log may come too early, as a user
        who types fast does; anything else is run once."""
        printed: list[str] = []

        def looks() -> bool:
            printed[:] = [self.run(command.words)]
            return alike(printed[0]) == alike(command.output)

        if command.words.startswith("grep "):
            eventually(looks, f"{command.words}\n{command.output}")
        else:
            assert looks(), f"$ {command.words}\n{printed[0]}\nis not\n{command.output}"

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("kill -KILL $(jobs -p); wait\n")
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_SECONDS)
        finally:
            self._process.kill()
            self._process.stdout.close()
