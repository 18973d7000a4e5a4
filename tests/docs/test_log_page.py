"""The how-to about the log, followed with a guard and a logrotate that keeps to the directory of the test."""

from __future__ import annotations

import os
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
def test_what_the_page_tells_to_type_works_and_a_rotated_log_goes_on(tmp_path: Path) -> None:
    (tmp_path / "opt/guard").mkdir(parents=True)
    (tmp_path / "opt/guard/bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / "etc/logrotate.d").mkdir(parents=True)
    rules = tmp_path / "etc/logrotate.d" / EXAMPLE.name
    log = tmp_path / "var/log/twisted-smtpguard.log"
    # logrotate does not trust a directory that others may write into, unless it is told whose it is.
    text = EXAMPLE.read_text().replace("/var/log", f"{tmp_path}/var/log")
    rules.write_text(text.replace("{\n", f"{{\n    su {getuser()} {getgrgid(os.getgid()).gr_name}\n", 1))

    def understands(_: Reader, printed: str) -> None:
        assert "error:" not in printed
        assert str(log) in printed

    def rotates(reader: Reader, printed: str) -> None:
        understands(reader, printed)
        with RawClient(("127.0.0.1", reader.port)):
            eventually(lambda: b" connect " in log.read_bytes(), "nothing is logged")
        done = run("logrotate", "--force", "--state", str(tmp_path / "state"), str(rules))
        assert done.returncode == 0, done.stderr.decode()
        assert b" connect " in (log.parent / f"{log.name}.1").read_bytes()
        with RawClient(("127.0.0.1", port[0])):
            eventually(lambda: b" connect " in log.read_bytes(), "nothing is logged")
        # It goes on where the file now ends.
        assert not log.read_bytes().startswith(b"\0")

    port: list[int] = []
    reader = Reader(tmp_path, tmp_path)
    follow(
        reader,
        to_be_run(ROOT / "docs/how-to/keep-the-log.md"),
        {"--log-file": lambda reader, _: port.append(reader.port), "logrotate --debug": rotates},
    )
