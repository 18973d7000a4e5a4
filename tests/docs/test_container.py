"""The page about containers: what its Dockerfile starts, and the guard as process 1."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from commandline import parsed
from documents import DOCS
from processes import LOCAL, PATIENCE_SECONDS, command, eventually, listening

DOCKERFILE = DOCS / "examples" / "container" / "Dockerfile"
PAGE = DOCS / "how-to" / "run-in-a-container.md"


def words(instruction: str) -> list[str]:
    (found,) = re.findall(rf"^{instruction} (\[.*\])$", DOCKERFILE.read_text(), re.MULTILINE)
    return [str(word) for word in json.loads(found)]


def test_the_file_that_is_shown_is_the_example() -> None:
    assert f"```text\n{DOCKERFILE.read_text()}```" in PAGE.read_text()


def test_what_it_starts_is_understood() -> None:
    program, *options = words("ENTRYPOINT")
    assert (program, options[-1]) == ("twist", "smtpguard")
    limits = parsed(*words("CMD")).limits
    # The last column of the table of engines.
    assert limits.shutdown_grace == 20
    grace = [int(number) for number in re.findall(r"\| `?(\d+)s?`? \|$", PAGE.read_text(), re.MULTILINE)]
    assert grace == [35] * 4
    # Five seconds for verdicts, and five for a delivery that is a service.
    assert all(seconds > limits.shutdown_grace + 10 for seconds in grace)


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs a process namespace")
def test_as_process_1_it_heeds_sigterm_and_ends_with_status_0(tmp_path: Path) -> None:
    log = tmp_path / "log"
    namespace = ["unshare", "--pid", "--fork", "--mount-proc"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*namespace, *command("--deliver=discard", listen=(LOCAL,))],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: listening(log.read_text()), f"it does not listen, see {log}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (guard,) = map(int, children)
        status = Path(f"/proc/{guard}/status").read_text()
        assert re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE)
        os.kill(guard, signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert " stopped connections_accepted=0 " in log.read_text()
    finally:
        process.kill()
