"""Users log in against Debian's Dovecot: by swaks, by Python's smtplib and by GNU SASL's own client."""

from __future__ import annotations

import shutil
import smtplib
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from commandline import twist
from dovecot import Dovecot
from processes import PATIENCE_SECONDS, GuardProcess, eventually
from programs import missing, run
from rawclient import RawClient
from test_guessing import LATER, WRONG, YES, plain
from workers import Workers

pytestmark = [pytest.mark.clients, pytest.mark.timeout(240)]

OPTIONS = ("--auth-without-tls", "--deliver=discard", "--max-auth-failures=0")


@pytest.fixture
def dovecot() -> Iterator[Dovecot]:
    with Dovecot(logins=True) as dovecot:
        yield dovecot


@pytest.fixture
def guard(dovecot: Dovecot, tmp_path: Path) -> Iterator[GuardProcess]:
    with GuardProcess(tmp_path, f"--auth=dovecot:unix:{dovecot.socket}", *OPTIONS) as guard:
        eventually(lambda: "SCRAM" in offered(guard), "the guard has not asked what is offered")
        yield guard
        assert b"correct-horse" not in guard.log


def offered(guard: GuardProcess) -> str:
    with RawClient(guard.address) as client:
        return next(line for line in client.ask("EHLO a").split("\n") if "AUTH" in line)


def said(guard: GuardProcess, user: str, password: str) -> str:
    with RawClient(guard.address) as client:
        client.ask("EHLO client.example")
        return client.ask(plain(user, password))


def test_what_dovecot_offers_is_offered_and_not_what_needs_a_certificate_or_no_name(
    guard: GuardProcess,
) -> None:
    assert offered(guard) == "250-AUTH PLAIN LOGIN SCRAM-SHA-256 XOAUTH2 OAUTHBEARER"


def test_right_wrong_unknown_and_a_temporary_failure(guard: GuardProcess, dovecot: Dovecot) -> None:
    assert said(guard, "ann", "correct-horse") == YES
    assert said(guard, "ann", "wrong") == WRONG
    assert said(guard, "nobody", "wrong") == WRONG
    assert said(guard, "down", "correct-horse") == LATER
    assert said(guard, "ann", "") == WRONG
    failed = guard.wait_for(" checker_failed ")
    assert f" unix:{dovecot.socket}: " in failed
    refused = [line for line in guard.lines if " reason=auth_" in line]
    assert [line.split(" reason=")[1].split()[0] for line in refused] == [
        "auth_failed",
        "auth_failed",
        "auth_unavailable",
        "auth_failed",
    ]


def test_no_octet_in_a_name_makes_it_another_users(guard: GuardProcess) -> None:
    names = ("ann\n", "ann\t", "ann\r\nOK\t1\tuser=eve", "ann\1", "\1t", "*", "ann*", "\u00e4" * 500, "%u")
    for number, name in enumerate(names):
        with RawClient(guard.address, f"127.0.5.{number + 1}") as client:
            client.ask("EHLO client.example")
            assert client.ask(plain(name, "correct-horse")) == WRONG, name
    assert said(guard, "ann", "correct-horse") == YES


def test_a_temporary_failure_does_not_count_as_a_guess(guard: GuardProcess) -> None:
    assert [said(guard, "down", "wrong") for _ in range(12)] == [LATER] * 12
    assert said(guard, "ann", "wrong") == WRONG


def test_swaks_and_smtplib_log_in(guard: GuardProcess) -> None:
    for mechanism in ("PLAIN", "LOGIN"):
        words = (f"--auth={mechanism}", "--auth-user=ann", "--quit-after=AUTH")
        shown = run("swaks", f"--server=127.0.0.1:{guard.port}", *words, "--auth-password=correct-horse")
        assert YES in shown.stdout.decode()
    with smtplib.SMTP(*guard.address, timeout=30) as client:
        client.login("ann", "correct-horse")
    with smtplib.SMTP(*guard.address, timeout=30) as client, pytest.raises(smtplib.SMTPAuthenticationError):
        client.login("ann", "wrong")


def gsasl(
    guard: GuardProcess, password: str, mechanism: str = "SCRAM-SHA-256"
) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("gsasl")
    if program is None:
        missing("gsasl")
    words = (f"--mechanism={mechanism}", "--authentication-id=ann", f"--password={password}")
    return subprocess.run(
        [program, "--smtp", "--client", "--no-starttls", f"--connect=127.0.0.1:{guard.port}", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_gnu_sasl_logs_in_by_scram_and_believes_that_the_server_knows_the_password(
    guard: GuardProcess,
) -> None:
    done = gsasl(guard, "correct-horse")
    assert YES.encode() in done.stdout
    assert b"server trusted" in done.stdout + done.stderr
    assert " user=ann mechanism=SCRAM-SHA-256" in guard.wait_for(" login ")
    assert WRONG.encode() in gsasl(guard, "wrong").stdout
    assert " user=ann " in guard.wait_for(" reason=auth_failed ")


def test_a_mechanism_that_is_bound_to_tls_is_not_offered_and_not_begun(guard: GuardProcess) -> None:
    assert "-PLUS" not in offered(guard)
    with RawClient(guard.address) as client:
        client.ask("EHLO client.example")
        for mechanism in ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-1"):
            assert client.ask(f"AUTH {mechanism} biwsbj1hbm4scj14").startswith("504 5.5.4 ")
        # Nor is a binding taken that a client claims by another mechanism.
        claim = b64encode(b"p=tls-unique,,n=ann,r=x").decode()
        assert client.ask(f"AUTH SCRAM-SHA-256 {claim}") in (WRONG, LATER)
    assert YES.encode() not in gsasl(guard, "correct-horse", "SCRAM-SHA-256-PLUS").stdout


def test_dovecot_may_be_started_again_in_between(guard: GuardProcess, dovecot: Dovecot) -> None:
    assert said(guard, "ann", "correct-horse") == YES
    dovecot.stop()
    # The process with the connections ends a little later than the one that has started it.
    eventually(lambda: said(guard, "ann", "correct-horse") == LATER, "it goes on to answer")
    dovecot.start()
    assert said(guard, "ann", "correct-horse") == YES
    dovecot.stop()
    dovecot.start()
    eventually(lambda: said(guard, "ann", "correct-horse") == YES, "it does not connect again")


def test_a_password_that_is_longer_than_dovecot_takes_ends_nobody_elses_login(guard: GuardProcess) -> None:
    with RawClient(guard.address) as client:
        client.ask("EHLO client.example")
        client.send(b"AUTH SCRAM-SHA-256\r\n")
        assert client.reply().startswith("334")
        assert said(guard, "ann", "x" * 8000) == WRONG
        client.send(f"{b64encode(b'n,,n=ann,r=x' + bytes(8000)).decode()}\r\n".encode())
        assert client.reply().startswith("501 ")
    assert said(guard, "ann", "correct-horse") == YES


def test_many_log_in_at_once(guard: GuardProcess) -> None:
    clients = [RawClient(guard.address, f"127.0.3.{number}") for number in range(1, 101)]
    for client in clients:
        client.ask("EHLO client.example")
    for number, client in enumerate(clients):
        client.send(f"{plain('ann', 'wrong' if number % 2 else 'correct-horse')}\r\n".encode())
    assert [client.reply() for client in clients] == [YES, WRONG] * 50
    for client in clients:
        client.close()


def test_who_begins_more_logins_than_there_are_places_keeps_out_nobody_else(guard: GuardProcess) -> None:
    begin = f"AUTH SCRAM-SHA-256 {b64encode(b'n,,n=ann,r=x').decode()}"
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(guard.address, "127.0.4.1")) for _ in range(1010)]
        for client in clients:
            client.send(f"EHLO client.example\r\n{begin}\r\n".encode())
        for client in clients:
            client.reply()
        replies = [client.reply() for client in clients]
        assert [reply[:3] for reply in replies] == ["334"] * 1000 + ["454"] * 10
        for _ in range(5):
            assert said(guard, "ann", "correct-horse") == YES
        # Those that had to end for it are told when they go on.
        assert clients[0].ask("AAAA") == LATER
        assert clients[900].ask("*").startswith("501 ")


def test_each_worker_asks_dovecot(dovecot: Dovecot, tmp_path: Path) -> None:
    with Workers(tmp_path, 2, f"--auth=dovecot:unix:{dovecot.socket}", *OPTIONS) as guard:
        for number in guard.pids:
            with guard.alone(number):
                assert said(guard, "ann", "correct-horse") == YES


def test_check_tells_whether_it_can_be_reached(dovecot: Dovecot, tmp_path: Path) -> None:
    words = ("--check", f"--auth=dovecot:unix:{dovecot.socket}", "--auth-without-tls")
    status, told, _ = twist(*words, cwd=tmp_path)
    assert (status, "warning: unix:" in told) == (0, False)
    dovecot.stop()
    status, told, _ = twist(*words, cwd=tmp_path)
    assert status == 0
    assert f"warning: unix:{dovecot.socket}: " in told
