"""The how-to for existing twisted.mail code: its example, in its own process, with a real client."""

from __future__ import annotations

import re
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "twisted_mail.py"
HOW_TO = (ROOT / "docs" / "how-to" / "use-twisted-mail-code.md").read_text()


def test_the_example_that_is_shown_is_the_one_that_is_run_below() -> None:
    shown = HOW_TO.split("<!-- docs/examples/twisted_mail.py -->\n```python\n")[1].split("```")[0]
    assert shown == EXAMPLE.read_text()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[smtplib.SMTP]:
    """A client of the example, run by the command that is shown, on its own port and in another folder."""
    shown = HOW_TO.split("<!-- run command -->\n```sh\n")[1].split("```")[0].split()
    assert shown[0] == "python"
    assert (ROOT / shown[1]).samefile(EXAMPLE)
    assert re.fullmatch(r"tcp:2525:interface=127\.0\.0\.1", shown[2])
    command = [sys.executable, shown[1], "tcp:0:interface=127.0.0.1", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline().rsplit(maxsplit=1)[1])
            with smtplib.SMTP("127.0.0.1", port, "client.example", timeout=30) as client:
                yield client
        finally:
            process.terminate()


def mail(tmp_path: Path, user: str, folder: str = "new") -> list[bytes]:
    return [path.read_bytes() for path in (tmp_path / user / folder).iterdir()]


def test_the_example_delivers_to_each_user_and_refuses_others(client: smtplib.SMTP, tmp_path: Path) -> None:
    refused = client.sendmail("a@b.example", ["alice@x", "carol@x", "bob@x"], b"Subject: Hi\r\n\r\n.x\r\n")
    assert refused == {"carol@x": (550, b"5.0.0 No such user")}
    for user in ("alice", "bob"):
        (message,) = mail(tmp_path, user)
        assert re.fullmatch(
            rb"Received: from client\.example \(\[127\.0\.0\.1\]\); [^\n]+\nSubject: Hi\n\n\.x\n", message
        )
        assert mail(tmp_path, user, "tmp") == []


def test_the_example_keeps_nothing_of_a_message_that_the_guard_refuses(
    client: smtplib.SMTP, tmp_path: Path
) -> None:
    client.ehlo()
    client.mail("a@b.example")
    client.rcpt("alice@x")
    assert client.docmd("DATA")[0] == 354
    assert [path.stat().st_size for path in (tmp_path / "alice" / "tmp").iterdir()] == [0]
    client.send(b"Subject: bare\nnewline\r\n.\r\n")
    assert client.getreply()[0] == 550
    assert [mail(tmp_path, "alice", folder) for folder in ("tmp", "new", "cur")] == [[], [], []]
