"""Limits are suggested from what real clients had, and what is printed starts a guard."""

from __future__ import annotations

import json
import smtplib
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from commandline import twist
from processes import TWIST, GuardProcess
from programs import run
from workers import Workers

COMMAND = TWIST.with_name("smtpguardctl")
COUNTED = (
    "--connection-rate=10000/3600",
    "--message-rate=10000/3600",
    "--recipient-rate=10000/3600",
    "--max-connections-per-client=10000",
    "--dry-run=connection-rate,message-rate,recipient-rate,max-connections-per-client",
    "--deliver=discard",
)
MESSAGE = "Subject: x\r\n\r\nx\r\n"


def suggested(directory: Path, *words: str) -> str:
    asked = [str(COMMAND), f"--socket={directory}/control.sock", "suggest", *words]
    return subprocess.run(asked, check=True, capture_output=True, text=True, timeout=60).stdout


def by_limit(directory: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in suggested(directory, "--json").splitlines()]
    return {row["limit"]: row for row in rows}


def client(guard: GuardProcess, host: str) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", guard.port, "client.example", 30, source_address=(host, 0))


def mail(guard: GuardProcess, host: str, messages: int = 1) -> None:
    with client(guard, host) as smtp:
        for _ in range(messages):
            smtp.sendmail("a@client.example", ["b@guard.example"], MESSAGE)


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[GuardProcess]:
    with GuardProcess(tmp_path, f"--control={tmp_path}/control.sock", *COUNTED) as process:
        yield process


@pytest.mark.timeout(300)
def test_what_is_suggested_is_pasted_and_starts_a_guard(guard: GuardProcess, tmp_path: Path) -> None:
    for number in range(1000):
        mail(guard, f"127.1.{number // 250}.{1 + number % 250}", {3: 9, 5: 4, 7: 4}.get(number, 1))
    swaks = ["swaks", f"--server=127.0.0.1:{guard.port}", "--from=a@client.example", "--to=b@guard.example"]
    assert run(*swaks, "--local-interface=127.2.0.1").returncode == 0
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(client(guard, "127.1.0.1"))
        with client(guard, "127.3.0.1") as stranger:
            assert stranger.docmd("FNORD")[0] == 500

    text = suggested(tmp_path)
    assert "1,001 clients whose mail was accepted, 1 others that were refused, 0 others" in text
    assert (
        "# 1 in 1,000: 4/3600 would have refused 1 of 1,001 accepted, 0 of 1 refused, 0 of 0 banned.\n"
        in text
    )
    values = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert values == [
        "max-connections-per-client = 1",
        "connection-rate = 1/3600",
        "message-rate = 4/3600",
        "recipient-rate = 4/3600",
        "auth-failure-rate = 1/600",
    ]
    rows = by_limit(tmp_path)
    assert rows["message-rate"]["peaks"] == {
        "accepted": [[0, 998], [4, 2], [9, 1]],
        "refused": [[0, 1]],
        "banned": [],
    }
    assert rows["max-connections-per-client"]["peaks"]["accepted"] == [[0, 1000], [3, 1]]

    (tmp_path / "guard.conf").write_text(text)
    status, output, errors = twist(f"--config={tmp_path}/guard.conf", "--check", cwd=tmp_path)
    assert (status, errors) == (0, ""), output
    (tmp_path / "guard.conf").write_text(f"{text}\nmessage-rate = 5\n")
    status, _, errors = twist(f"--config={tmp_path}/guard.conf", "--check", cwd=tmp_path)
    assert (status, "message-rate" in errors) == (64, True)


def test_clients_of_all_workers_are_counted(tmp_path: Path) -> None:
    with Workers(tmp_path, 2, f"--control={tmp_path}/control.sock", *COUNTED) as guard:
        with guard.alone(1):
            mail(guard, "127.1.0.1", 3)
        with guard.alone(2):
            mail(guard, "127.1.0.2", 5)
        row = by_limit(tmp_path)["message-rate"]
        assert row["peaks"] == {"accepted": [[3, 1], [5, 1]], "refused": [], "banned": []}
        assert (row["accepted"], row["value"], row["counting"]) == (2, "10000/3600", "dry run")
        assert "fewer than 1,000 clients" in suggested(tmp_path)
