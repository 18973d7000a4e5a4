"""A password file with hashes, as a checker."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from logins import plain
from manual_threads import ManualThreads
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.checkers import hashedpasswords
from twisted_smtpguard.checkers.hashedpasswords import HashedPasswordFile
from twisted_smtpguard.testing import Guard
from twisted_smtpguard.values import CheckerUnavailable, LoggedIn, LoginClient, Peer

ANN = "ann:$2y$05$.VRisv9OhGiX6S2HJu54VO8AkkgKtYjwLDVo4OeM67qoC7Lp1BC2y\n"
RIGHT, WRONG = b"correct-horse", b"wrong"


def file_of(directory: Path, text: str = ANN) -> tuple[HashedPasswordFile, ManualThreads]:
    path = directory / "hashes"
    path.write_text(text)
    threads = ManualThreads()
    return HashedPasswordFile(path, threads), threads


def client(address: str | None = "192.0.2.1") -> LoginClient:
    return LoginClient(Peer(None if address is None else ip_address(address), None, None, None), "s-1")


def judged(checker: HashedPasswordFile, threads: ManualThreads, user: bytes, password: bytes) -> Any:
    outcomes: list[Any] = []
    checker.requestAvatarId(UsernamePassword(user, password)).addBoth(outcomes.append)
    threads.work()
    (outcome,) = outcomes
    return outcome.value if isinstance(outcome, Failure) else outcome


def test_right_wrong_unknown_and_locked(tmp_path: Path) -> None:
    checker, threads = file_of(tmp_path, f"{ANN}locked:*\n")
    assert judged(checker, threads, b"ann", RIGHT) == b"ann"
    for user, password in ((b"ann", WRONG), (b"eve", RIGHT), (b"locked", RIGHT), (b"Ann", RIGHT)):
        assert isinstance(judged(checker, threads, user, password), UnauthorizedLogin)


def test_it_logs_in_by_a_session_and_the_hash_is_computed_in_a_thread(tmp_path: Path) -> None:
    checker, threads = file_of(tmp_path)
    guard = Guard(clock=threads, checkers=[checker])
    for password, code in ((WRONG, 535), (RIGHT, 235)):
        session = guard.greeted()
        session.heard()
        assert session.say(f"AUTH PLAIN {plain(password)}") == ""
        assert threads.waiting == 1
        threads.work()
        assert session.heard().startswith(f"{code} ")
    assert "250-AUTH PLAIN LOGIN\r\n" in guard.connect().say("EHLO a")


def test_a_new_user_is_known_at_the_next_login_and_a_wrong_line_leaves_the_old_users(tmp_path: Path) -> None:
    checker, threads = file_of(tmp_path)
    (tmp_path / "hashes").write_text(f"{ANN}bob:{{PLAIN}}pw\n")
    assert judged(checker, threads, b"bob", b"pw") == b"bob"
    (tmp_path / "hashes").write_text("bob:no hash\n")
    assert judged(checker, threads, b"bob", b"pw") == b"bob"
    (tmp_path / "hashes").unlink()
    assert isinstance(judged(checker, threads, b"bob", b"pw"), CheckerUnavailable)


def test_an_unknown_user_costs_as_much_as_a_known_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker, threads = file_of(tmp_path)
    compared: list[bytes] = []
    real = hashedpasswords._fits
    monkeypatch.setattr(
        hashedpasswords, "_fits", lambda kept, word: (compared.append(kept), real(kept, word))[1]
    )
    judged(checker, threads, b"ann", WRONG)
    judged(checker, threads, b"eve", WRONG)
    assert compared[0] == compared[1]


def test_a_hash_that_cannot_be_compared_cannot_be_judged_and_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker, threads = file_of(tmp_path)

    def fits(kept: bytes, password: bytes) -> bool:
        raise ValueError(f"{kept!r} {password!r}")

    monkeypatch.setattr(hashedpasswords, "_fits", fits)
    outcome = judged(checker, threads, b"ann", RIGHT)
    assert str(outcome) == f"{tmp_path}/hashes: the hash of 'ann' cannot be compared"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        (None, None, True),
    ],
)
def test_who_shares_the_threads_as_one(one: str | None, other: str | None, same: bool) -> None:
    names = [hashedpasswords._name_of(client(each)) for each in (one, other)]
    assert (names[0] == names[1]) is same


def test_an_exchange_of_its_own(tmp_path: Path) -> None:
    checker, threads = file_of(tmp_path)
    outcomes: list[Any] = []

    Deferred.fromCoroutine(checker.begin("PLAIN", client()).respond(b"\0ann\0" + RIGHT)).addBoth(
        outcomes.append
    )
    threads.work()
    assert outcomes == [LoggedIn("ann")]


def test_without_libpass_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashedpasswords, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install twisted_smtpguard\[auth\]"):
        file_of(tmp_path)


@pytest.mark.parametrize("text", ["", "ann:secret\n"])
def test_a_file_with_a_mistake_is_not_taken(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"hashes (line 1: |there is no user in it)") as error:
        file_of(tmp_path, text)
    assert "secret" not in str(error.value)
