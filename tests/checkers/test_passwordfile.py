"""`--auth file:PATH` while the guard runs: what is read when, and what becomes of clients while it cannot be read."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Conversation, Guard
from logbook import logbook
from manual_threads import ManualThreads
from processes import GuardProcess
from rawclient import RawClient
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock

from twisted_smtpguard import PasswordFile
from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.testing import FakeDelivery

YES = "235 2.7.0 Authentication successful\r\n"
NO = "535 5.7.8 Authentication credentials invalid\r\n"
LATER = "454 4.7.0 Temporary authentication failure\r\n"
OLD_SECONDS = 1_000_000_000


def plain(user: bytes, password: bytes) -> str:
    return "AUTH PLAIN " + b64encode(b"\0".join((b"", user, password))).decode()


def written(path: Path, octets: bytes, seconds: int = OLD_SECONDS) -> Path:
    """A file that was last written so long ago that its time tells it apart."""
    path.write_bytes(octets)
    os.utime(path, (seconds, seconds))
    return path


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return written(tmp_path / "users", b"ann:right\nbob:with:colon\ncarl:p\xe4ss\n")


@pytest.fixture
def threads() -> ManualThreads:
    return ManualThreads()


@pytest.fixture
def guard(users: Path, threads: ManualThreads) -> Guard:
    return Guard(clock=threads, checkers=[PasswordFile(users, threads)], max_errors=3)


def try_to_log_in(guard: Guard, password: bytes = b"right", user: bytes = b"ann") -> str:
    client = asking(guard, password, user)
    guard.clock.work()  # type: ignore[attr-defined]
    return client.heard()


def asking(guard: Guard, password: bytes = b"right", user: bytes = b"ann") -> Conversation:
    client = guard.greeted()
    client.heard()
    client.say(plain(user, password))
    return client


@pytest.mark.parametrize(
    ("user", "password", "reply"),
    [
        (b"ann", b"right", YES),
        (b"bob", b"with:colon", YES),
        (b"bob", b"with", NO),
        (b"carl", b"p\xe4ss", YES),
        (b"carl", "päss".encode(), NO),
        (b"ann", b"righ", NO),
        (b"ann", b"right ", NO),
        (b"Ann", b"right", NO),
        (b"eve", b"right", NO),
        (b"\xff", b"right", NO),
        (b"ann", b"\xe4", NO),
    ],
)
def test_a_password_is_compared_octet_for_octet(
    guard: Guard, user: bytes, password: bytes, reply: str
) -> None:
    assert try_to_log_in(guard, password, user) == reply


def test_the_user_is_known_to_the_delivery(guard: Guard) -> None:
    client = asking(guard)
    guard.clock.work()  # type: ignore[attr-defined]
    client.say("MAIL FROM:<a@b.example>", "RCPT TO:<b@c.example>", "DATA", "x", ".")
    (message,) = guard.delivery.messages
    assert (message.client.identity, message.client.avatar_id) == ("ann", b"ann")
    assert type(message.client.avatar_id) is bytes


# Reading it again.


def test_it_is_read_again_when_it_has_changed_and_only_then(
    guard: Guard, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    original = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(path) or original(path, *rest))
    for _ in range(3):
        assert try_to_log_in(guard) == YES
    assert opened == []
    written(users, b"ann:other\n", OLD_SECONDS + 1)
    assert try_to_log_in(guard) == NO
    assert try_to_log_in(guard, b"other") == YES
    assert len(opened) == 1


@pytest.mark.parametrize("change", ["replaced", "written over", "linked elsewhere"])
def test_no_change_goes_unnoticed(guard: Guard, users: Path, change: str) -> None:
    octets = users.read_bytes().replace(b"right", b"wrong")
    if change == "written over":
        written(users, octets)
    else:
        other = written(users.with_name("other"), octets)
        if change == "replaced":
            other.replace(users)
        else:
            users.unlink()
            users.symlink_to(other)
    assert try_to_log_in(guard) == NO
    assert try_to_log_in(guard, b"wrong") == YES


def test_a_file_that_was_written_just_now_is_read_until_its_time_tells_it_apart(
    threads: ManualThreads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Within one tick of the disk's clock two writings have one time.
    path = tmp_path / "users"
    path.write_bytes(b"ann:right\n")
    times = path.stat()
    guard = Guard(clock=threads, checkers=[PasswordFile(path, threads)])
    monkeypatch.setattr(os, "stat", lambda _: times)
    path.write_bytes(b"ann:wrong\n")
    assert try_to_log_in(guard, b"wrong") == YES


def test_one_look_answers_all_who_asked_before_it_and_another_those_who_asked_later(
    guard: Guard, users: Path, threads: ManualThreads
) -> None:
    first = asking(guard)
    others = [asking(guard, password) for password in (b"right", b"new", b"new")]
    assert threads.trips == 1
    threads._jobs.popleft()()
    assert first.heard() == YES
    # They may have come after the file was looked at, and it may have changed since.
    written(users, b"ann:new\n", OLD_SECONDS + 1)
    threads.work()
    assert [client.heard() for client in others] == [NO, YES, YES]
    assert threads.trips == 2


@pytest.mark.parametrize("octets", [b"ann:right\nbob\n", b"", b"ann:$6$salt$0123456789012345\n"])
def test_with_a_wrong_line_in_it_the_users_of_before_stay_and_the_log_says_so_once(
    guard: Guard, users: Path, octets: bytes
) -> None:
    written(users, octets, OLD_SECONDS + 1)
    with logbook() as book:
        assert [try_to_log_in(guard) for _ in range(3)] == [YES] * 3
        (line,) = book.take("reload_failed")
    assert line.startswith(f"reload_failed what=checker option=--auth file={users} ")
    assert line.endswith("; the old users stay in force")
    written(users, b"ann:new\n", OLD_SECONDS + 2)
    assert try_to_log_in(guard, b"new") == YES


@pytest.mark.parametrize("octets", [b"ann:new\n", b"ann\n"])
def test_a_reload_reads_it_too_and_says_what_is_wrong(
    users: Path, threads: ManualThreads, octets: bytes
) -> None:
    file = PasswordFile(users, threads)
    service = SMTPGuardService(
        threads, [], FakeDelivery(), checkers=[file], auth_without_tls=True, hostname="guard.example"
    )
    written(users, octets, OLD_SECONDS + 1)
    with logbook() as book:
        done = service.reload()
        threads.work()
        assert done.called
        good, bad = book.take("reloaded"), book.take("reload_failed")
    if octets == b"ann\n":
        problem = "line 1: a line `user:password` is expected, and there is no colon"
        assert bad == [f"reload_failed what=checker option=--auth file={users} {problem}"]
    else:
        assert good == [f"reloaded what=checker option=--auth file={users}"]
    assert bool(good) != bool(bad)


# While it cannot be read.


def _removed(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _socket_folder(path: Path) -> None:
    """A part of its path is a file."""
    path.unlink()
    path.symlink_to("/dev/null/users")


BREAKS = [
    (_removed, "No such file or directory"),
    (_directory, "Is a directory"),
    (_pipe, "Not a regular file"),
    (_socket_folder, "Not a directory"),
]


@pytest.mark.parametrize(("breaks", "problem"), BREAKS)
def test_a_file_that_cannot_be_read_is_the_guards_fault_and_counts_against_no_client(
    guard: Guard, users: Path, threads: ManualThreads, breaks: Callable[[Path], None], problem: str
) -> None:
    octets = users.read_bytes()
    breaks(users)
    client = guard.greeted()
    client.heard()
    with logbook() as book:
        # More than what ends a session: three wrong passwords, or three errors.
        for password in (b"right", b"wrong") * 3:
            client.say(plain(b"ann", password))
            threads.work()
            assert client.heard() == LATER
        lines = book.take("checker_failed")
    assert len(lines) == 6
    assert all(line.startswith("checker_failed session=") for line in lines)
    assert all(line.endswith(f"peer=192.0.2.1 {users}: {problem}") for line in lines)
    assert guard.factory.statistics.failures == 6
    assert "auth_failed" not in guard.factory.statistics.refusals
    if users.is_dir():
        users.rmdir()
    users.unlink(missing_ok=True)
    written(users, octets)
    client.say(plain(b"ann", b"right"))
    threads.work()
    assert client.heard() == YES


def test_a_file_whose_read_permission_is_withdrawn_is_the_guards_fault_too(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, users: Path
) -> None:
    # Root may read it whatever its mode is.
    written(users, b"ann:right\n", OLD_SECONDS + 1)

    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert try_to_log_in(guard) == LATER


def test_a_disk_that_hangs_delays_only_logins_and_those_for_five_seconds(
    guard: Guard, threads: ManualThreads
) -> None:
    waiting = [asking(guard), asking(guard)]
    assert guard.greeted().codes("NOOP")[-1] == 250
    threads.advance(4.9)
    assert [client.heard() for client in waiting] == ["", ""]
    with logbook() as book:
        threads.advance(0.2)
        assert [client.heard() for client in waiting] == [LATER, LATER]
        assert all("no answer from the disk in 5 seconds" in line for line in book.take("checker_failed"))
    # A client that logs in now is told at once, and takes no other thread.
    client = guard.greeted()
    client.heard()
    assert client.say(plain(b"ann", b"right")) == LATER
    assert threads.trips == 1
    threads.work()
    assert try_to_log_in(guard) == YES


def test_who_leaves_meanwhile_is_forgotten(guard: Guard, threads: ManualThreads) -> None:
    first, second = asking(guard), asking(guard)
    for client in (first, second):
        client.disconnect()
    threads.work()
    assert guard.factory.connections == 0
    assert threads.getDelayedCalls() == []
    assert threads.trips == 1
    assert try_to_log_in(guard) == YES


def test_nothing_is_left_to_happen_when_all_have_been_answered(guard: Guard, threads: ManualThreads) -> None:
    client = asking(guard)
    threads.work()
    assert client.heard() == YES
    client.disconnect()
    assert threads.getDelayedCalls() == []


@pytest.mark.parametrize("breaks", [_pipe, _directory, _removed])
def test_a_real_guard_serves_others_while_its_file_cannot_be_read(
    users: Path, tmp_path: Path, breaks: Callable[[Path], None]
) -> None:
    octets = users.read_bytes()
    with GuardProcess(tmp_path, f"--auth=file:{users}", "--auth-without-tls") as guard:
        breaks(users)
        with RawClient(guard.address) as client, RawClient(guard.address) as other:
            client.ask("EHLO client.example")
            for _ in range(4):
                assert client.ask(plain(b"ann", b"right")) == LATER.rstrip()
            assert other.ask("NOOP").startswith("250 ")
            guard.wait_for(rf"\] checker_failed session=\S+ peer=127\.0\.0\.1 {users}: ")
            if users.is_dir():
                users.rmdir()
            users.unlink(missing_ok=True)
            users.write_bytes(octets)
            assert client.ask(plain(b"bob", b"with:colon")) == YES.rstrip()


# At start.


@pytest.mark.parametrize(("breaks", "problem"), BREAKS[1:])
def test_one_that_cannot_be_read_at_start_is_a_mistake(
    users: Path, breaks: Callable[[Path], None], problem: str
) -> None:
    breaks(users)
    with pytest.raises(ValueError, match=f"^{users}: {problem}$"):
        PasswordFile(users, MemoryReactorClock())  # type: ignore[arg-type]


def test_so_is_one_that_is_not_there_or_has_a_wrong_line(users: Path) -> None:
    with pytest.raises(ValueError, match=r"^there is no file '/no/such/file'$"):
        PasswordFile("/no/such/file", MemoryReactorClock())  # type: ignore[arg-type]
    users.write_bytes(b"ann:right\nwrong\n")
    with pytest.raises(ValueError, match=f"^{users} line 2: .* there is no colon$"):
        PasswordFile(users, MemoryReactorClock())  # type: ignore[arg-type]


def test_an_application_may_ask_it_itself(users: Path, threads: ManualThreads) -> None:
    from twisted.cred.credentials import UsernamePassword

    asked: Deferred[Any] = PasswordFile(users, threads).requestAvatarId(UsernamePassword(b"ann", b"right"))
    answers: list[Any] = []
    asked.addCallback(answers.append)
    threads.work()
    assert answers == [b"ann"]


@pytest.mark.parametrize("time_limit", [False, True])
def test_an_answer_to_one_may_cancel_the_question_of_another(
    users: Path, threads: ManualThreads, time_limit: bool
) -> None:
    from twisted.cred.credentials import UsernamePassword

    file = PasswordFile(users, threads)
    outcomes: list[str] = []

    def answered(outcome: Any) -> None:
        outcomes.append(type(getattr(outcome, "value", outcome)).__name__)
        for each in asked:
            each.cancel()

    # The first is answered by the look that it began, the others by the next one. Nobody cancels the last.
    first, *asked, last = [file.requestAvatarId(UsernamePassword(b"ann", b"right")) for _ in range(4)]
    for each in asked:
        each.addBoth(answered)
    last.addBoth(answered)
    first.addErrback(lambda _: None)
    if time_limit:
        threads.advance(5)
    threads.work()
    answer = "CheckerUnavailable" if time_limit else "bytes"
    assert outcomes == [answer, "CancelledError", answer]
