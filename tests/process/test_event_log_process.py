"""`twist smtpguard --event-log`: the file beside the log of twist, SIGHUP, and a disk that is full."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import subprocess
from pathlib import Path

import pytest
from commandline import twist
from processes import PATIENCE_SECONDS, GuardProcess, command, eventually
from rawclient import RawClient


def events(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_it_has_each_event_of_the_log_once_from_the_first_on(log_format: str, tmp_path: Path) -> None:
    path = tmp_path / "events"
    with GuardProcess(tmp_path, f"--event-log={path}", log_format=log_format) as guard:
        with RawClient(guard.address) as client:
            client.ask("NOOP")
        eventually(lambda: "disconnect" in events(path), "it is not told")
    found = [event for event in events(path) if event not in ("setup_warning", "no_connection_cap")]
    assert found == ["delivering", "listening", "connect", "disconnect", "stopped"]
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_it_has_what_the_log_level_lets_through(tmp_path: Path) -> None:
    path = tmp_path / "events"
    words = command(f"--event-log={path}", "--dry-run=max-errors", log_level="warn")
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL) as guard:
        eventually(lambda: path.exists() and "dry_run" in events(path), "it is not told")
        guard.terminate()
        assert guard.wait(PATIENCE_SECONDS) == -signal.SIGTERM
    assert {json.loads(line)["level"] for line in path.read_text().splitlines()} == {"warn"}


def test_a_session_has_one_id_from_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "events"
    for name in ("upstream", "guard"):
        (tmp_path / name).mkdir()
    with GuardProcess(tmp_path / "upstream") as upstream:
        deliver = f"--deliver=smtp:tcp:127.0.0.1:{upstream.port}"
        with (
            GuardProcess(tmp_path / "guard", deliver, f"--event-log={path}") as guard,
            smtplib.SMTP(*guard.address) as client,
        ):
            client.sendmail("a@example.com", "b@example.org", "Subject: hello\n\nHello.\n")
            client.docmd("MAIL", "nonsense")
        eventually(lambda: "disconnect" in events(path), "it is not told")
        (message,) = (upstream.maildir / "new").iterdir()
    told = [json.loads(line) for line in path.read_text().splitlines()]
    ids = {event["event"]: event["session"] for event in told if "session" in event}
    assert ids.keys() == {"connect", "accept", "reject", "disconnect"}
    (session,) = set(ids.values())
    assert f" id {session}" in message.read_text()


def test_sighup_opens_it_anew_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with GuardProcess(tmp_path, f"--event-log={path}") as guard:
        path.rename(tmp_path / "events.1")
        os.kill(guard.pid, signal.SIGHUP)
        guard.wait_for(rf"\] reloaded what=event-log option=--event-log file={path}$")
        with RawClient(guard.address) as client:
            client.ask("NOOP")
        eventually(lambda: "disconnect" in events(path), "it is not told")
    assert "listening" in events(tmp_path / "events.1")


def test_where_it_cannot_be_opened_anew_sighup_says_so_and_the_guard_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with GuardProcess(tmp_path, f"--event-log={path}") as guard:
        path.rename(tmp_path / "events.1")
        path.mkdir()
        os.kill(guard.pid, signal.SIGHUP)
        guard.wait_for(rf"\] reload_failed what=event-log option=--event-log file={path} Is a directory$")
        with RawClient(guard.address) as client:
            assert client.ask("NOOP").startswith("250 ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_stops_no_mail(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--event-log=/dev/full") as guard:
        for number in range(5):
            with smtplib.SMTP(*guard.address) as client:
                client.sendmail("a@example.com", "b@example.org", f"Subject: {number}\n\nHello.\n")
        told = guard.wait_for(r"\] event_log_failed ")
        assert told.endswith(" event_log_failed file=/dev/full No space left on device")
        assert len(list((guard.maildir / "new").iterdir())) == 5
        eventually(lambda: sum("] disconnect " in line for line in guard.lines) == 5, "they are not told")
        assert sum("event_log_" in line for line in guard.lines) == 1


@pytest.mark.parametrize(
    ("path", "problem"),
    [("nowhere/events", "No such file or directory"), (".", "Is a directory"), ("a\x1bb/c", "No such file")],
)
def test_a_file_that_cannot_be_written_at_the_start_is_one_sentence(
    path: str, problem: str, tmp_path: Path
) -> None:
    status, out, errors = twist(f"--event-log={path}", cwd=tmp_path)
    assert (status, out) == (64, "")
    assert errors.startswith(f"--event-log: cannot write to {path}: {problem}")
    assert errors.count("\n") == 1
    # Nor is a Maildir left.
    assert list(tmp_path.iterdir()) == []
