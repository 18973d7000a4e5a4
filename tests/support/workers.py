"""A real guard of several processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import PATIENCE_SECONDS, TWIST, ExecutedGuard, eventually


class Workers(ExecutedGuard):
    """A guard of several workers, all of which accept connections."""

    def __init__(self, directory: Path, count: int, *options: str, **more: Any) -> None:
        super().__init__(directory, f"--workers={count}", *options, **more)
        try:
            eventually(lambda: len(self.pids) == count, f"there are no {count} workers")
        except BaseException:
            self.kill()
            raise

    @property
    def pids(self) -> dict[int, int]:
        """The process of each worker that runs, by its number."""
        found: dict[int, int] = {}
        for line in self.lines:
            event = re.search(r"\bworker_(started|died|retired) worker=(\d+) pid=(\d+)", line)
            if event is None:
                continue
            number, pid = int(event[2]), int(event[3])
            if event[1] == "started":
                found[number] = pid
            else:
                found.pop(number, None)
        return found

    @contextmanager
    def alone(self, number: int) -> Iterator[None]:
        """Only this worker accepts connections meanwhile: else one of them may take all, or none."""
        others = [pid for each, pid in self.pids.items() if each != number]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)

    def count(self, event: str) -> int:
        """How many events of a name the log has."""
        return sum(bool(re.search(rf"#\w+\] {event}\b", line)) for line in self.lines)


def told(directory: Path, *words: str, status: int = 0) -> list[dict[str, Any]]:
    """The rows that `smtpguardctl` tells, or the one object; where it fails, its sentence."""
    command = [
        str(TWIST.with_name("smtpguardctl")),
        "--json",
        "--socket",
        str(directory / "control.sock"),
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE_SECONDS, check=False)
    assert done.returncode == status, (done.stdout, done.stderr)
    return [{"error": done.stderr}] if status else [json.loads(line) for line in done.stdout.splitlines()]
