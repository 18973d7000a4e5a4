"""Users log in with tokens of OAuth 2, which Debian's Dovecot judges by a server of tokens: by curl, and by a client
that does not play by the rules."""

from __future__ import annotations

import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from dovecot import Dovecot
from processes import GuardProcess, eventually
from programs import run
from rawclient import RawClient
from test_dovecot_auth import OPTIONS, offered
from test_guessing import LATER, WRONG, YES
from tokenserver import BROKEN, TokenServer, token_server

pytestmark = [pytest.mark.clients, pytest.mark.timeout(240)]

MECHANISMS = ("OAUTHBEARER", "XOAUTH2")


@pytest.fixture(scope="module")
def tokens() -> Iterator[TokenServer]:
    with token_server() as server:
        yield server


@pytest.fixture(scope="module")
def both(tokens: TokenServer) -> Iterator[Dovecot]:
    with Dovecot(logins=True, tokens=tokens.url) as dovecot:
        yield dovecot


@pytest.fixture
def guard(both: Dovecot, tokens: TokenServer, tmp_path: Path) -> Iterator[GuardProcess]:
    with guard_of(both, tmp_path) as guard:
        yield guard
        assert b"token-of" not in guard.log


def guard_of(dovecot: Dovecot, directory: Path) -> GuardProcess:
    return GuardProcess(directory, f"--auth=dovecot:unix:{dovecot.socket}", *OPTIONS)


def wait_for_tokens(guard: GuardProcess) -> None:
    eventually(lambda: "XOAUTH2" in offered(guard), "the guard has not asked what is offered")


def message(mechanism: str, user: str, token: str) -> str:
    """The base64 of what a client says first (RFC 7628 3.1, and the older form)."""
    text = f"n,a={user},\1" if mechanism == "OAUTHBEARER" else f"user={user}\1"
    return b64encode(f"{text}auth=Bearer {token}\1\1".encode()).decode()


def curl(guard: GuardProcess, user: str, token: str) -> subprocess.CompletedProcess[bytes]:
    """Sends a message. Of the two mechanisms curl takes OAUTHBEARER, if both are offered."""
    words = ("-sv", f"smtp://{user}@127.0.0.1:{guard.port}", "--oauth2-bearer", token, "--max-time", "60")
    mail = ("--mail-from", "a@example.org", "--mail-rcpt", "b@example.org", "--upload-file", "-")
    return run("curl", *words, *mail, text=b"Subject: x\r\n\r\nx\r\n")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_curl_logs_in_with_a_token(tokens: TokenServer, tmp_path: Path, mechanism: str) -> None:
    with (
        Dovecot(f"auth_mechanisms = plain {mechanism}\n", logins=True, tokens=tokens.url) as dovecot,
        guard_of(dovecot, tmp_path) as guard,
    ):
        eventually(lambda: offered(guard) == f"250-AUTH PLAIN LOGIN {mechanism}", "it is not offered")
        shown = curl(guard, "ann", "token-of-ann").stderr.decode()
        assert f"> AUTH {mechanism}" in shown
        assert f"< {YES}" in shown
        assert "< 250 2.0.0 Message accepted" in shown
        assert f" user=ann mechanism={mechanism}" in guard.wait_for(" login ")
        for user, token, reply in (
            ("ann", "bad", WRONG),
            ("ann", "token-of-eve", WRONG),
            ("nobody", "token-of-ann", WRONG),
            ("ann", BROKEN, LATER),
        ):
            shown = curl(guard, user, token).stderr.decode()
            # What is wrong is told as JSON. To that of OAUTHBEARER curl answers, and to that of XOAUTH2 it just leaves.
            leaves = reply == WRONG and mechanism == "XOAUTH2"
            assert ("< 334 eyJ" in shown) is (reply == WRONG), (user, token)
            assert (f"< {reply}" in shown) is not leaves, (user, token)
            assert YES not in shown


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_token_may_come_with_auth_or_after_it_and_octet_by_octet(
    guard: GuardProcess, mechanism: str
) -> None:
    wait_for_tokens(guard)
    with RawClient(guard.address) as client:
        client.ask("EHLO a")
        for octet in f"AUTH {mechanism} {message(mechanism, 'ann', 'token-of-ann')}\r\n".encode():
            client.send(bytes([octet]))
        assert client.reply() == YES
    with RawClient(guard.address) as client:
        client.ask("EHLO a")
        assert client.ask(f"AUTH {mechanism}") == "334 "
        assert client.ask(message(mechanism, "ann", "token-of-ann")) == YES


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("answer", ["", "AQ==", "*", None, "another token"])
def test_a_wrong_token_is_counted_whatever_is_answered_and_no_second_one_is_judged(
    guard: GuardProcess, tokens: TokenServer, mechanism: str, answer: str | None
) -> None:
    wait_for_tokens(guard)
    source = (
        f"127.8.{MECHANISMS.index(mechanism)}.{('', 'AQ==', '*', None, 'another token').index(answer) + 1}"
    )
    if answer == "another token":
        answer = message(mechanism, "ann", "token-of-ann")
    tokens.asked.clear()
    for _ in range(10):
        with RawClient(guard.address, source) as client:
            client.ask("EHLO a")
            assert client.ask(f"AUTH {mechanism} {message(mechanism, 'ann', 'bad')}").startswith("334 eyJ")
            if answer is not None:
                assert client.ask(answer) == WRONG
    with RawClient(guard.address, source) as client:
        client.ask("EHLO a")
        assert client.ask(f"AUTH {mechanism} {message(mechanism, 'ann', 'token-of-ann')}") == LATER
    assert tokens.asked == ["bad"] * 10
