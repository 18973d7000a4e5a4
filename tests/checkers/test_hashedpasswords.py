"""A password file with hashes, as a checker."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import attrs
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


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The hashes that have been compared."""
    compared: list[bytes] = []
    real = hashedpasswords._fits
    monkeypatch.setattr(
        hashedpasswords, "_fits", lambda kept, word: (compared.append(kept), real(kept, word))[1]
    )
    return compared


def test_a_user_who_is_locked_or_unknown_has_always_the_same_decoy_which_is_the_hash_of_any(
    tmp_path: Path, compared: list[bytes]
) -> None:
    hashes = "".join(f"user{number}:{{PLAIN}}{number}\n" for number in range(50))
    checker, threads = file_of(tmp_path, f"first:*\n{hashes}last:!x\n")
    for user in (b"first", b"last", b"eve"):
        for _ in range(2):
            # Not even with the password of the decoy.
            for word in (b"x", *(str(number).encode() for number in range(50))):
                assert isinstance(judged(checker, threads, user, word), UnauthorizedLogin)
        assert len(compared) == 2 * 51
        (decoy,) = {*compared}
        assert decoy.startswith(b"{PLAIN}")
        compared.clear()
    for number in range(500):
        judged(checker, threads, b"unknown%d" % number, b"x")
    assert len({*compared}) > 40


def test_where_all_are_locked_nobody_logs_in(tmp_path: Path) -> None:
    checker, threads = file_of(tmp_path, "ann:*\nbob:!\n")
    for user in (b"ann", b"eve"):
        assert isinstance(judged(checker, threads, user, RIGHT), UnauthorizedLogin)


@pytest.mark.parametrize("octets", [1025, 4097, 9000])
def test_a_password_that_is_too_long_is_wrong_and_costs_nothing(
    tmp_path: Path, compared: list[bytes], octets: int
) -> None:
    checker, threads = file_of(tmp_path, f"ann:{{PLAIN}}{'x' * octets}\n")
    for user in (b"ann", b"eve"):
        assert isinstance(judged(checker, threads, user, b"x" * octets), UnauthorizedLogin)
    assert compared == []
    checker, threads = file_of(tmp_path, f"ann:{{PLAIN}}{'x' * 1024}\n")
    assert judged(checker, threads, b"ann", b"x" * 1024) == b"ann"


@pytest.mark.parametrize("known", [False, True])
def test_an_honest_login_waits_for_two_hashes_at_most_and_not_for_those_of_all_guessers(
    tmp_path: Path, compared: list[bytes], known: bool
) -> None:
    checker, threads = file_of(tmp_path)
    checker._threads.most = 1
    done: list[str] = []

    def log_in(key: str, password: bytes, *, known: bool = False) -> None:
        who = attrs.evolve(client(), key=key, known=known)
        attempt = Deferred.fromCoroutine(checker.judge(b"ann", password, who))
        attempt.addBoth(lambda _: done.append(key))

    for rounds in (1, 10):
        for number in range(30):
            for _ in range(rounds):
                log_in(f"guesser{number}", WRONG)
        if rounds == 1:
            threads.work()
            done.clear()
    log_in("honest", RIGHT, known=known)
    threads.work()
    # One is being computed when it comes, and one may begin until the file has been looked at.
    assert done.index("honest") <= 2
    assert len(done) == 301


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
