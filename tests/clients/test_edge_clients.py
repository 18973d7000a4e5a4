"""Clients that nobody here wrote, against `--profile edge`: none that behaves meets a limit of it.

All come from one address, which may have 60 connections a minute: together they stay below that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import GuardProcess
from programs import run
from stored import empty, stored
from test_clients import PLAIN, SENDER, crlf, curl, nodemailer, smtp_source, swaks

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardProcess]:
    with GuardProcess(tmp_path_factory.mktemp("edge"), "--profile=edge") as guard:
        yield guard


@pytest.fixture
def guard(running: GuardProcess) -> Iterator[GuardProcess]:
    """The same process for every test, with an empty Maildir. It may refuse nothing."""
    empty(running.maildir)
    yield running
    assert [line for line in running.lines if "] reject " in line] == []


@pytest.mark.parametrize("words", [(), ("--pipeline",)], ids=["in turn", "pipelined"])
def test_swaks_delivers(guard: GuardProcess, tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "message").write_bytes(PLAIN.removesuffix(b"\n"))
    swaks(guard, "--to=a@example.org,b@example.org", f"--data=@{tmp_path}/message", *words)
    [mail] = stored(guard.maildir)
    assert (mail.sender, mail.recipients, mail.message) == (SENDER, ("a@example.org", "b@example.org"), PLAIN)


def test_curl_delivers(guard: GuardProcess, tmp_path: Path) -> None:
    file = tmp_path / "message"
    file.write_bytes(crlf(PLAIN))
    curl(guard, file, "a@example.org", "b@example.org")
    [mail] = stored(guard.maildir)
    assert mail.message == PLAIN


def test_nodemailer_delivers_over_pooled_connections(guard: GuardProcess) -> None:
    messages = [{"from": SENDER, "to": "a@example.org", "subject": f"{n}", "text": "x"} for n in range(40)]
    outcomes = nodemailer(guard, *messages, pool=True, maxConnections=2, maxMessages=30)
    assert outcomes == [{"response": "250 2.0.0 Message accepted", "rejected": []}] * 40


def test_smtp_source_delivers_over_as_many_connections_as_a_client_may_have(guard: GuardProcess) -> None:
    smtp_source(f"127.0.0.1:{guard.port}", "-d", "-s", "20", "-m", "1000", "-r", "2", "-N", "-l", "2000")
    assert len(stored(guard.maildir)) == 1000


def test_smtp_source_over_one_connection_more_is_told_why(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--profile=edge", "--deliver=discard") as guard:
        words = ("-d", "-s", "21", "-m", "1000", "-f", SENDER, "-t", "a@example.org")
        result = run("smtp-source", *words, f"127.0.0.1:{guard.port}")
        assert b"421 4.7.0 Too many connections from your address, try again later" in result.stderr
        guard.wait_for(
            r"\] reject peer=127\.0\.0\.1 reason=max_connections_per_client limit=20 value=21 code=421 port="
        )
