"""Workers that are asked, changed and replaced while clients come and go: nothing is refused, and no mail is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_SECONDS, eventually
from programs import missing
from rawclient import RawClient
from stored import stored, unfinished
from workers import Workers, told

import twisted_smtpguard

ENVELOPE = ("HELO a.example", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA")
SMTP_SOURCE = shutil.which("smtp-source", path=f"{os.environ['PATH']}:/usr/sbin") or ""
MAILS = 300
MARK, NEW_MARK = "ESMTP ready", "ESMTP ready, of the second build"


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def asked(directory: Path, count: int, *options: str, **more: Any) -> Workers:
    """A guard with a control socket."""
    return Workers(directory, count, f"--control={directory / 'control.sock'}", *options, **more)


def test_one_socket_asks_and_changes_all_workers_and_those_that_come_later(
    tmp_path: Path, clients: ExitStack
) -> None:
    with asked(tmp_path, 2) as guard:
        held = []
        for number in (1, 2):
            with guard.alone(number):
                held += [clients.enter_context(RawClient(guard.address)) for _ in range(10)]
        sessions = told(tmp_path, "sessions")
        assert sorted(row["worker"] for row in sessions) == [1] * 10 + [2] * 10
        told(tmp_path, "deny", "127.0.0.2", "--for", "1h")
        told(tmp_path, "set", "max-errors", "7")
        assert "expected" in told(tmp_path, "set", "max-errors", "x", status=1)[0]["error"]
        for pid in list(guard.pids.values()):
            died = guard.count("worker_died")
            os.kill(pid, signal.SIGKILL)
            eventually(lambda died=died: guard.count("worker_died") > died, "its death was not told")
            eventually(lambda: len(guard.pids) == 2, "it was not replaced")
        assert [row["rule"] for row in told(tmp_path, "rules")] == ["deny"]
        (limit,) = [row for row in told(tmp_path, "limits") if row["limit"] == "max-errors"]
        assert (limit["value"], limit["from"][:10]) == ("7", "set by uid")
        for _ in range(20):
            assert RawClient(guard.address, "127.0.0.2").greeting.startswith("421 4.7.0")
        (why,) = told(tmp_path, "why", "127.0.0.2")
        assert why["outcome"] == "refused"
        assert len(why["recent_refusals"]) == 5
        (status,) = told(tmp_path, "status")
        assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]
        assert status["pid"] == guard.pid
        assert guard.count("operator") == 2
        del held


def test_a_drained_guard_listens_again(tmp_path: Path) -> None:
    with asked(tmp_path, 2) as guard:
        told(tmp_path, "drain")
        eventually(lambda: told(tmp_path, "status")[0]["state"] == "drained", "it is not drained")
        told(tmp_path, "resume")
        eventually(lambda: len(guard.pids) == 2, "they do not come back")
        (status,) = told(tmp_path, "status")
        assert status["state"] == "listening"


class Sender(threading.Thread):
    """Sends one mail after the other, each on a connection of its own, until it is told to stop."""

    def __init__(self, guard: Workers) -> None:
        super().__init__()
        self._address = guard.address
        self.ends = threading.Event()
        self.sent = 0
        self.problem = ""

    def run(self) -> None:
        try:
            while not self.ends.is_set():
                self._send()
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not happen
            self.problem = repr(error)

    def _send(self) -> None:
        with RawClient(self._address) as client:
            replies = [client.greeting, *map(client.ask, ENVELOPE)]
            replies.append(client.ask("Subject: x\r\n\r\n" + "x" * 2000 + "\r\n."))
            self.sent += replies[-1].startswith("250")
            replies.append(client.ask("QUIT"))
        codes = [reply[:3] for reply in replies]
        assert codes == ["220", "250", "250", "250", "354", "250", "221"], replies


def build(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the guard's code, which the guards of this test run."""
    copy = directory / "build" / "twisted_smtpguard"
    shutil.copytree(
        Path(twisted_smtpguard.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setenv("PYTHONPATH", str(copy.parent))
    return copy


def with_another_greeting(copy: Path) -> None:
    """Change the code on the disk."""
    replies = copy / "replies.py"
    text = replies.read_text()
    assert MARK in text
    replies.write_text(text.replace(MARK, NEW_MARK))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["signal", "command"])
def test_a_restart_takes_the_code_on_the_disk_and_refuses_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: ExitStack, way: str
) -> None:
    if not SMTP_SOURCE:
        missing("smtp-source")
    copy = build(tmp_path, monkeypatch)
    with asked(tmp_path, 2, "--shutdown-grace=60") as guard:
        before = set(guard.pids.values())
        idle = [clients.enter_context(RawClient(guard.address)) for _ in range(10)]
        sending = clients.enter_context(RawClient(guard.address))
        for line in ENVELOPE:
            sending.ask(line)
        senders = [Sender(guard) for _ in range(50)]
        for sender in senders:
            sender.start()
        words = ("-s", "5", "-m", str(MAILS), "-f", "s@example.org", "-t", "r@example.org")
        source = subprocess.Popen([SMTP_SOURCE, *words, f"127.0.0.1:{guard.port}"])
        try:
            with_another_greeting(copy)
            if way == "signal":
                os.kill(guard.pid, signal.SIGUSR2)
            else:
                (done,) = told(tmp_path, "restart")
                assert (done["workers"], done["state"]) == (2, "listening")
            eventually(lambda: guard.count("worker_started") == 4, "there are no new workers")
            eventually(lambda: told(tmp_path, "status")[0]["workers"][0]["state"] == "retiring", "it goes on")
            assert "still have sessions" in told(tmp_path, "restart", status=1)[0]["error"]
            assert RawClient(guard.address).greeting.endswith(NEW_MARK)
            # Sessions of the old workers go on as if nothing had happened.
            assert all(client.ask("NOOP").startswith("250") for client in idle)
            assert sending.ask("Subject: x\r\n\r\nx\r\n.").startswith("250")
        finally:
            for sender in senders:
                sender.ends.set()
            for sender in senders:
                sender.join(PATIENCE_SECONDS)
            status = source.wait(2 * PATIENCE_SECONDS)
        assert [sender.problem for sender in senders if sender.problem] == []
        assert status == 0
        for client in [*idle, sending]:
            assert client.ask("QUIT").startswith("221")
        clients.close()
        eventually(lambda: guard.count("worker_retired") == 2, "the old workers have not ended")
        assert not before & set(guard.pids.values())
        assert guard.count("worker_died") == 0
        assert len(stored(guard.maildir)) == 1 + MAILS + sum(sender.sent for sender in senders)
        assert unfinished(guard.maildir) == []


def test_code_that_does_not_start_leaves_the_old_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = build(tmp_path, monkeypatch)
    with asked(tmp_path, 2) as guard:
        before = guard.pids
        with (copy / "cli" / "options.py").open("a") as file:
            file.write("\nraise SystemExit('a mistake')\n")
        (refused,) = told(tmp_path, "restart", status=1)
        assert "has ended before it was ready, by status:1" in refused["error"]
        assert guard.pids == before
        assert RawClient(guard.address).greeting.startswith("220 ")
        os.kill(guard.pid, signal.SIGUSR2)
        guard.wait_for("restart_failed .* has ended before it was ready, by status:1")
        guard.terminate()
        assert guard.status() == -signal.SIGTERM
