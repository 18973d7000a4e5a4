"""The how-to about the log, followed with a guard and a logrotate that keeps to the directory of the test."""

from __future__ import annotations

import json
import os
import re
import sys
from getpass import getuser
from grp import getgrgid
from pathlib import Path

import pytest
from documents import DOCS, ROOT
from excepted import to_be_run
from follow import Reader, follow
from processes import eventually
from programs import run
from rawclient import RawClient

PAGE = ROOT / "docs/how-to/keep-the-log.md"
EXAMPLE = DOCS / "examples" / "logrotate" / "twisted-smtpguard"


def test_the_file_that_is_shown_is_the_example() -> None:
    assert f"```text\n{EXAMPLE.read_text()}```" in PAGE.read_text()


@pytest.mark.clients
def test_what_the_page_tells_to_type_works_and_a_rotated_file_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "opt/guard").mkdir(parents=True)
    (tmp_path / "opt/guard/bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / "etc/logrotate.d").mkdir(parents=True)
    (tmp_path / "var/log/smtpguard").mkdir(parents=True)
    rules = tmp_path / "etc/logrotate.d" / EXAMPLE.name
    log = tmp_path / "var/log/smtpguard/events"
    # logrotate does not trust a directory that others may write into, unless it is told whose it is.
    text = EXAMPLE.read_text().replace("/var/log", f"{tmp_path}/var/log")
    rules.write_text(text.replace("{\n", f"{{\n    su {getuser()} {getgrgid(os.getgid()).gr_name}\n", 1))

    def connects(reader: Reader, sessions: int) -> None:
        """Until one more is in the file: the guard looks once a second whether the file was moved."""

        def is_told() -> bool:
            with RawClient(("127.0.0.1", port[0])):
                pass
            return log.exists() and log.read_text().count('"event": "connect"') >= sessions

        eventually(is_told, "nothing is logged")

    def rotates(reader: Reader, printed: str) -> None:
        assert "error:" not in printed
        assert str(log) in printed
        connects(reader, 1)
        done = run("logrotate", "--force", "--state", str(tmp_path / "state"), str(rules))
        assert done.returncode == 0, done.stderr.decode()
        connects(reader, 1)
        rotated = (log.parent / f"{log.name}.1").read_text()
        events = [json.loads(line) for line in (rotated + log.read_text()).splitlines()]
        assert '"event": "listening"' in rotated
        # None was lost on the way.
        sessions = [event["session"] for event in events if event["event"] == "connect"]
        assert len(sessions) == len(re.findall(r"\] connect session=", reader.log))

    port: list[int] = []
    reader = Reader(tmp_path, tmp_path)
    follow(
        reader,
        to_be_run(ROOT / "docs/how-to/keep-the-log.md"),
        {"--event-log": lambda reader, _: port.append(reader.port), "logrotate --debug": rotates},
    )
