"""A bash in which a test types what a document tells its reader to type."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from processes import PATIENCE_SECONDS


def free_port() -> str:
    """A port that can be listened on at every address: no connection is left there, of whatever address. It is none of
    those that Linux gives to connections and to port 0, or one of these could take it before it is used."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    while True:
        port = random.randrange(10000, 32768)
        with suppress(OSError):
            socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
            return str(port)


class Shell:
    """A bash that stays, in `directory`, with jobs as in a terminal. What it started is ended with it."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=directory,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.status = 0
        """The exit status of the last command."""
        self.run("set -m")

    def run(self, words: str) -> str:
        """What a command prints."""
        assert self._process.stdin is not None and self._process.stdout is not None
        # Not its input: that is what is typed next.
        print(
            f"{{ {words}\n}} </dev/null 2>&1; status=$?; echo; echo the end $status",
            file=self._process.stdin,
            flush=True,
        )
        lines: list[str] = []
        for line in self._process.stdout:
            # Apart from the output, in which bash may tell of its jobs at any time.
            if end := re.fullmatch(r"the end (\d+)\n", line):
                self.status = int(end[1])
                return "".join(lines).removesuffix("\n")
            lines.append(line)
        raise AssertionError(f"the shell has ended after {words!r}: {lines}")

    def succeeds(self, words: str) -> str:
        """What a command prints that has to succeed."""
        printed = self.run(words)
        assert self.status == 0, f"$ {words}\n{printed}exit status {self.status}"
        return printed

    def begin(self, words: str, log: Path) -> int:
        """Start a program that goes on, and let it write into `log`. Its process id."""
        return int(re.findall(r"^\d+$", self.run(f"{words} >{log} 2>&1 &\necho $!"), re.MULTILINE)[-1])

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
