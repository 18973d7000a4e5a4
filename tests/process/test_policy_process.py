"""`twist smtpguard --policy` and a policy server that is killed, slow, or mad: the client gets what on-error says
within the time limit, and the next question finds the server again."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from processes import GuardProcess, command
from rawclient import RawClient
from recordingpolicy import RecordingPolicy, Request

MAIL, RCPT = "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>"
LIMIT = 3


class MadPolicy(RecordingPolicy):
    """As `answer` says, but about a recipient that begins with `mad` it does what `madness` does to the connection."""

    def __init__(self, madness: Callable[[socket.socket], object]) -> None:
        super().__init__(lambda request: "REJECT asked" if "refused" in request["recipient"] else "DUNNO")
        self.madness = madness

    def _serve(self, connection: socket.socket) -> None:
        answer = self.answer

        def mad(request: Request) -> str:
            if request["recipient"].startswith("mad"):
                self.madness(connection)
                raise OSError
            return answer(request)

        self.answer = mad
        super()._serve(connection)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _flood(connection: socket.socket) -> None:
    for _ in range(160):
        connection.sendall(b"x" * 65536)


MADNESS: dict[str, Callable[[socket.socket], object]] = {
    "killed before an octet": lambda connection: None,
    "killed in mid-answer": lambda connection: connection.sendall(b"action=REJ"),
    "garbage": lambda connection: connection.sendall(b"\x00\xff 220 hello\n\n"),
    "10 MB without an end": _flood,
    "silent": lambda connection: time.sleep(LIMIT * 2),
    "a drip": lambda connection: [(connection.sendall(b"a"), time.sleep(0.2)) for _ in range(LIMIT * 10)],
}


@pytest.mark.parametrize("on_error", ["defer", "pass"])
@pytest.mark.parametrize("madness", MADNESS)
def test_a_mad_server(tmp_path: Path, madness: str, on_error: str) -> None:
    with (
        MadPolicy(MADNESS[madness]) as policy,
        GuardProcess(
            tmp_path,
            f"--policy=rcpt=tcp:127.0.0.1:{policy.port},timeout={LIMIT},on-error={on_error},name=mad",
        ) as guard,
        RawClient(guard.address) as client,
    ):
        for line in ("EHLO client.example", MAIL, RCPT):
            assert client.ask(line).startswith("250")
        began = time.monotonic()
        told = client.ask("RCPT TO:<mad@example.org>")
        assert told == (
            "451 4.3.0 Policy check failed, try again later"
            if on_error == "defer"
            else "250 2.1.5 Recipient OK"
        )
        assert time.monotonic() - began < LIMIT + 5
        guard.wait_for(
            f"policy_failed .*policy=mad .*outcome={'refused' if on_error == 'defer' else 'passed'}"
        )
        # The next question finds it again.
        assert client.ask("RCPT TO:<refused@example.org>") == "554 5.7.1 asked"
        assert client.ask(RCPT).startswith("250")


def test_a_server_that_is_not_there_is_asked_again_once_it_is(tmp_path: Path) -> None:
    with RecordingPolicy() as gone:
        port = gone.port
    with (
        GuardProcess(tmp_path, f"--policy=rcpt=tcp:127.0.0.1:{port}") as guard,
        RawClient(guard.address) as client,
    ):
        for line in ("EHLO client.example", MAIL):
            client.ask(line)
        assert client.ask(RCPT).startswith("451")
        guard.wait_for("policy_failed .*problem=unavailable .*refused")


def test_the_log_at_the_start_names_the_policies(tmp_path: Path) -> None:
    with GuardProcess(
        tmp_path, "--policy=rcpt=unix:/nowhere,name=grey", "--policy=data=tcp:127.0.0.1:1"
    ) as guard:
        guard.wait_for("policing policy=grey stages=rcpt")
        guard.wait_for("policing policy=tcp:127.0.0.1:1 stages=data")


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("rcpt", "STAGE=ENDPOINT such as"),
        ("quit=unix:/x", "with one of connect, helo, mail, rcpt, data, end-of-data"),
        ("rcpt=unix:/x,timeout=soon", "timeout: "),
        ("rcpt=unix:/x,on-error=refuse", "on-error: "),
        ("rcpt=unix:/x,name=a b", "name: "),
        (
            "rcpt=unix:/x,retries=3",
            "after the endpoint each of timeout, on-error, name, strangers-only may stand once",
        ),
        ("rcpt=unix:/x,timeout=1,timeout=2", "may stand once, not 'timeout=2'"),
        ("rcpt=nonsense", "nonsense"),
        ("rcpt=", "--policy"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(tmp_path: Path, option: str, told: str) -> None:
    done = subprocess.run(
        command(f"--policy={option}"), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 64, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("--policy: ")
    assert told in line


def test_a_check_tells_of_servers_that_are_not_there(tmp_path: Path) -> None:
    with RecordingPolicy() as policy:
        words = [
            f"--policy=rcpt=tcp:127.0.0.1:{policy.port}",
            f"--policy=rcpt=unix:{tmp_path}/none,name=grey",
        ]
        words += [f"--policy=data=unix:{tmp_path}/none", "--deliver=discard", "--check"]
        done = subprocess.run(
            command(*words), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stdout.splitlines() if "cannot be reached" in line]
    assert len(warned) == 1
    assert warned[0].startswith("warning: grey: the policy server cannot be reached: ")


def test_a_dry_run_of_a_policy_that_there_is_not_is_a_mistake(tmp_path: Path) -> None:
    words = command("--policy=rcpt=unix:/x,name=grey", "--dry-run=policy:gray")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 64
    assert (
        "--dry-run: one of the policies is expected after policy:, not 'policy:gray' (policy:grey)"
        in done.stderr
    )


def test_help_policies_says_that_there_is_none(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--help-policies"), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "session polic" in done.stdout
