"""Signals to a real `twist smtpguard`, from its first moment on, that must not end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from processes import PATIENCE_SECONDS, TWIST, GuardProcess, eventually
from rawclient import RawClient

HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LISTEN = ("smtpguard", "--listen", "tcp:0:interface=127.0.0.1")


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether the kernel drops the signal for the process."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigIgn:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def survives(process: subprocess.Popen[bytes], log: Path) -> None:
    """Send it every signal over and over until it listens, then stop it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    sent = 0
    while b"listening" not in log.read_bytes():
        assert process.poll() is None, f"{log.read_text()} after {sent} signals"
        assert time.monotonic() < deadline
        for number in HARMLESS:
            process.send_signal(number)
            sent += 1
        time.sleep(0.002)
    process.terminate()
    assert process.wait(PATIENCE_SECONDS) == -signal.SIGTERM
    assert b"Traceback" not in log.read_bytes()
    assert sent > 3


def start(tmp_path: Path, *words: str) -> tuple[subprocess.Popen[bytes], Path]:
    log = tmp_path / "log"
    with log.open("wb") as output:
        return subprocess.Popen(words, cwd=tmp_path, stdout=output, stderr=output), log


def test_from_the_moment_when_twist_has_found_the_guard_they_are_ignored(tmp_path: Path) -> None:
    process, log = start(tmp_path, str(TWIST), "--log-format", "text", *LISTEN)
    try:
        eventually(
            lambda: ignores(process.pid, signal.SIGUSR2) or process.poll() is not None, "it never does"
        )
        # Most of the time that a start takes is still to come.
        assert b"listening" not in log.read_bytes()
        survives(process, log)
    finally:
        process.kill()
        process.wait()


def test_a_process_that_is_started_with_them_ignored_survives_them_from_the_first_moment(
    tmp_path: Path,
) -> None:
    words = " ".join((str(TWIST), "--log-format=text", *LISTEN))
    # The shell says when it has taken its precautions.
    process, log = start(tmp_path, "sh", "-c", f"trap '' HUP USR1 USR2; echo ready; exec {words}")
    try:
        eventually(lambda: b"ready" in log.read_bytes(), "it never does")
        survives(process, log)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
def test_a_running_guard_reloads_at_one_tells_its_statistics_at_one_and_does_nothing_at_the_third(
    tmp_path: Path, reactor: str
) -> None:
    (tmp_path / "networks").write_text("deny 192.0.2.1\n")
    option = f"--ip-filter=networks:{tmp_path}/networks"
    with GuardProcess(tmp_path, option, reactor=reactor) as guard, RawClient(guard.address) as client:
        os.kill(guard.pid, signal.SIGUSR1)
        os.kill(guard.pid, signal.SIGUSR2)
        assert client.ask("NOOP").startswith("250 ")
        os.kill(guard.pid, signal.SIGHUP)
        guard.wait_for(r"\] reloaded what=networks")
        assert client.ask("NOOP").startswith("250 ")
        assert not [line for line in guard.lines if "SIGUSR" in line]
        statistics = guard.wait_for(r"\] statistics ")
        assert " connections_accepted=1 connections_refused=0 live_connections=1 " in statistics
        # And nothing else has come of it.
        kinds = [line.split()[2] for line in guard.lines]
        assert kinds[-3:] == ["connect", "statistics", "reloaded"]


@pytest.mark.parametrize(
    ("words", "ignored"),
    [
        (["smtpguard"], True),
        (["--log-format=text", "--reactor", "asyncio", "smtpguard", "--hostname", "web"], True),
        (["--log-level", "warn", "smtpguard", "--listen", "tcp:25"], True),
        (["--help"], False),
        ([], False),
        (["web", "--path", "smtpguard"], False),
        (["--log-file", "smtpguard", "web"], False),
    ],
)
def test_another_subcommand_keeps_its_signals(words: list[str], ignored: bool) -> None:
    code = (
        f"import sys, signal; sys.argv[1:] = {words!r}; numbers = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2];"
        # The process that started it may ignore them (nohup does), and it would inherit that.
        "[signal.signal(number, signal.SIG_DFL) for number in numbers]; import twisted.plugins.twisted_smtpguard;"
        "print([signal.getsignal(number) is signal.SIG_IGN for number in numbers],"
        "'twisted_smtpguard' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == f"{[ignored] * 3} False\n"
