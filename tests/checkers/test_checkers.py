"""What `--auth` may name: each that is listed logs in once, and those of others work as they are."""

from __future__ import annotations

import sys
from base64 import b64encode
from collections.abc import Callable
from hmac import compare_digest
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from commandline import mistake, parsed, printed, twist
from fakes import Guard, codes
from logbook import logbook
from manual_threads import ManualThreads
from twisted.cred import strcred
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError

from twisted_smtpguard import CheckerUnavailable
from twisted_smtpguard.checkers import unixusers
from twisted_smtpguard.cli.options import make_service
from twisted_smtpguard.testing import Clients

YES, NO, LATER = 235, 535, 454


def plain(user: str | bytes, password: str | bytes) -> str:
    octets = [each.encode() if isinstance(each, str) else each for each in ("", user, password)]
    return "AUTH PLAIN " + b64encode(b"\0".join(octets)).decode()


class Reactor(ManualThreads, MemoryReactorClock):
    """On which a service can be made, and whose threads work when the test says so."""


def guard_with(*auth: str) -> Clients:
    """A guard as the command line makes it."""
    reactor = Reactor()
    options = parsed("--deliver=discard", "--auth-without-tls", *(f"--auth={each}" for each in auth))
    return Clients(make_service(options, reactor).factory, reactor)


def tried(guard: Clients, user: str | bytes, password: str | bytes) -> int:
    """The code of the reply to these credentials."""
    client = guard.greeted()
    client.heard()
    said = client.say(plain(user, password))
    if isinstance(guard.clock, ManualThreads):
        guard.clock.work()
    (code,) = codes(said + client.heard())
    return code


def problem_of(*auth: str) -> str:
    with pytest.raises(UsageError) as error:
        guard_with(*auth)
    return str(error.value)


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The accounts of the host: ann, with the password `pw`. Hashes are computed as crypt() would, a little simpler."""
    kept = {"ann": "$6$s$pw", "locked": "!$6$s$pw", "none": "*", "strange": "$99$s$pw"}
    crypt, spwd = ModuleType("crypt"), ModuleType("spwd")

    def hashed(word: str, salt: str) -> str:
        if not salt.startswith("$6$"):
            raise OSError(22, "Invalid argument")
        return f"$6$s${word}"

    crypt.crypt = hashed  # type: ignore[attr-defined]
    spwd.getspnam = lambda name: SimpleNamespace(sp_pwdp=kept[name])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "crypt", crypt)
    monkeypatch.setitem(sys.modules, "spwd", spwd)
    shadow = tmp_path / "shadow"
    shadow.write_text("ann\n")
    monkeypatch.setattr(unixusers, "_SHADOW", str(shadow))
    return kept


# The list.


def listed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split()[0] for line in printed(capsys, "--help-auth").splitlines()]


@pytest.mark.usefixtures("accounts")
def test_each_checker_that_is_listed_lets_in_only_users_with_the_password(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    users = tmp_path / "users"
    users.write_text("ann:pw\n")
    hashes = tmp_path / "hashes"
    hashes.write_text("ann:{SSHA256}/lAC46G6SKmC98Mf7HIGXRtFFUfOIpCnZrpHe/7DIYJzYWx0\n")
    ways = {
        "file": f"file:{users}",
        "memory": "memory:bob:x:ann:pw",
        "unix": "unix",
        "passwd": f"passwd:{hashes}",
    }
    names = listed(capsys)
    # Dovecot is logged in through in tests/clients/test_dovecot_auth.py.
    assert sorted(names) == sorted([*ways, "dovecot"]), "one that is listed is logged in through here"
    for name, way in ways.items():
        guard = guard_with(way)
        assert (tried(guard, "ann", "pw"), tried(guard, "ann", "no"), tried(guard, "eve", "pw")) == (
            YES,
            NO,
            NO,
        ), name
        assert printed(capsys, "--help-auth-type", name).startswith(f"{name}: ")


def test_what_a_password_may_have_in_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    told = printed(capsys, "--help-auth-type", "file")
    for word in ("colons", "blanks", "UTF-8", "NUL, CR and LF", "BOM", "454"):
        assert word in told


# file and memory, by the option.


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"ann:pw\nsecret\n", " line 2: a line `user:password` is expected, and there is no colon"),
        (b"", " there is no user in it"),
        (b"ann:pw\nann:secret\n", " line 2: the user 'ann' is on line 1 already"),
    ],
)
def test_a_password_file_with_a_wrong_line_is_a_mistake(tmp_path: Path, octets: bytes, problem: str) -> None:
    users = tmp_path / "users"
    users.write_bytes(octets)
    assert problem_of(f"file:{users}") == f"--auth: {users}{problem}"


def test_such_a_mistake_ends_the_process_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("ann:pw\nsecret\n")
    status, out, errors = twist("--auth-without-tls", "--auth=file:users", cwd=tmp_path)
    assert (status, out) == (64, "")
    assert errors == "--auth: users line 2: a line `user:password` is expected, and there is no colon\n"


def test_a_path_may_begin_with_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("ann:pw\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tried(guard_with("file:~/users"), "ann", "pw") == YES


@pytest.mark.parametrize("argument", ["", ":", ":ann", ":ann:", "::pw", ":ann:with:colon", ":ann:pw:"])
def test_memory_takes_pairs_and_nothing_is_empty(argument: str) -> None:
    assert problem_of(f"memory{argument}").startswith(
        "--auth: memory: the argument after the colon must be: A colon-separated list"
    )


def test_memory_takes_each_user_once_and_letters_beyond_ascii() -> None:
    assert problem_of("memory:ann:pw:ann:pw") == "--auth: memory: a user is given twice"
    assert tried(guard_with("memory:jörg:päss"), "jörg", "päss") == YES


# unix.


def test_an_account_without_a_password_lets_no_user_log_in(accounts: dict[str, str]) -> None:
    guard = guard_with("unix")
    assert [tried(guard, name, "pw") for name in accounts] == [YES, NO, NO, LATER]
    assert tried(guard, "ann", b"p\xe4ss") == NO
    assert problem_of("unix:x") == "--auth: unix: the argument after the colon must be: Nothing."


def test_a_hash_of_an_unknown_kind_is_ours_to_log(accounts: dict[str, str]) -> None:
    with logbook() as book:
        assert tried(guard_with("unix"), "strange", "pw") == LATER
        (line,) = book.take("checker_failed")
    assert "the password of 'strange' has a format that this host does not know" in line


@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize("missing", ["crypt", "spwd", "shadow"])
def test_where_unix_cannot_work_it_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    if missing == "shadow":
        monkeypatch.setattr(unixusers, "_SHADOW", "/no/such/shadow")
        why = "/no/such/shadow: No such file or directory; only a process that can read it"
    else:
        monkeypatch.setitem(sys.modules, missing, None)
        why = f"this Python has no module {missing}, which Python 3.13 removed"
    assert problem_of("unix").startswith(f"--auth: unix: {why}")
    assert f"unix     Not here: {why}" in printed(capsys, "--help-auth")
    assert f"It cannot be used here: {why}" in printed(capsys, "--help-auth-type", "unix")


def test_a_shadow_file_that_has_become_unreadable_is_the_guards_fault(
    accounts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = guard_with("unix")

    def refuse(name: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sys.modules["spwd"], "getspnam", refuse)
    with logbook() as book:
        assert [tried(guard, name, "pw") for name in accounts] == [LATER] * 4
        assert all(line.endswith("shadow: Permission denied") for line in book.take("checker_failed"))


# Those of others.


class Keeps:
    """A third party's checker, which keeps what it was given, and asks in one of the ways that people write."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, ask: Callable[[Any, dict[Any, Any]], bool], users: dict[Any, Any]) -> None:
        self.asked = 0
        self._ask = ask
        self._users = users

    def requestAvatarId(self, credentials: Any) -> Any:
        self.asked += 1
        if self._ask(credentials, self._users):
            return credentials.username
        raise UnauthorizedLogin


WAYS: dict[str, Callable[[Any, dict[Any, Any]], bool]] = {
    "checkPassword": lambda c, users: c.username in users and c.checkPassword(users[c.username]),
    "get and ==": lambda c, users: users.get(c.username) == c.password,
    "an item": lambda c, users: users[c.username] == c.password,
    "each": lambda c, users: any(c.username == u and c.password == p for u, p in users.items()),
    "compare_digest": lambda c, users: compare_digest(users.get(c.username, users["ann"]), c.password),
    "joined": lambda c, users: f"{c.username.casefold()}" in users and users[c.username] == c.password,
}
OCTET_WAYS: dict[str, Callable[[Any, dict[Any, Any]], bool]] = {
    "decode": lambda c, users: users.get(c.username.decode()) == c.password.decode(),
    "get": lambda c, users: users.get(c.username.decode("utf-8", "replace")) == c.password.decode("latin-1"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_checker_that_keeps_text_lets_its_users_in(way: str) -> None:
    guard = Guard(checkers=[Keeps(WAYS[way], {"ann": "pw", "jorg": "päss"})])
    for _ in range(2):
        assert tried(guard, "ann", "pw") == YES
        assert tried(guard, "ann", "no") == NO
        # compare_digest() takes no other text than ASCII.
        if way != "compare_digest":
            assert tried(guard, "jorg", "päss") == YES
        assert tried(guard, "jorg", b"p\xe4ss") == NO


@pytest.mark.parametrize("way", ["checkPassword", "get and ==", "each"])
def test_so_does_one_whose_first_user_is_not_ascii(way: str) -> None:
    guard = Guard(checkers=[Keeps(WAYS[way], {"jörg": "päss"})])
    assert [tried(guard, "jörg", "päss"), tried(guard, "jörg", "pw")] == [YES, NO]


@pytest.mark.parametrize("way", ["checkPassword", "get and ==", "each"])
def test_one_that_keeps_octets_is_asked_once(way: str) -> None:
    checker = Keeps(WAYS[way], {b"ann": b"pw", "jörg".encode(): b"p\xe4ss"})
    guard = Guard(checkers=[checker])
    replies = [tried(guard, *each) for each in (("ann", "pw"), ("ann", "no"), ("eve", "pw"))]
    assert (replies, checker.asked) == ([YES, NO, NO], 3)
    assert tried(guard, "jörg", b"p\xe4ss") == YES


@pytest.mark.parametrize("way", OCTET_WAYS)
def test_so_is_one_that_makes_text_of_them_itself(way: str) -> None:
    checker = Keeps(OCTET_WAYS[way], {"ann": "pw"})
    guard = Guard(checkers=[checker])
    replies = [tried(guard, *each) for each in (("ann", "pw"), ("ann", "no"), ("ann", b"p\xe4"))]
    assert (replies, checker.asked) == ([YES, NO, NO], 3)


def test_twisteds_own_memory_works_with_either() -> None:
    for user, password in ((b"ann", b"pw"), ("ann", "pw"), (b"ann", "pw"), ("ann", b"pw")):
        checker = InMemoryUsernamePasswordDatabaseDontUse()
        checker.addUser(user, password)  # type: ignore[arg-type]
        guard = Guard(checkers=[checker])
        assert [tried(guard, "ann", "pw"), tried(guard, "ann", "no")] == [YES, NO]


def test_a_factory_of_another_distribution_is_listed_and_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    factory = SimpleNamespace(
        authType="house",
        authHelp="\nAll who live here.\n",
        argStringFormat="user=password",
        credentialInterfaces=(IUsernamePassword,),
        generateChecker=lambda text: Keeps(WAYS["get and =="], dict([text.split("=")])),
    )
    monkeypatch.setattr(strcred, "findCheckerFactories", lambda: [factory])
    assert "house" in listed(capsys)
    assert printed(capsys, "--help-auth-type", "house") == "house: user=password\nAll who live here.\n"
    assert tried(guard_with("house:ann=pw"), "ann", "pw") == YES
    assert "o-so-secret" not in problem_of("house:o-so-secret")
    assert mistake("--help-auth-type", "x") == (
        "--help-auth-type: one of dovecot, file, house, memory, passwd, unix is expected, not 'x'"
    )


# Several.


class Fails:
    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def requestAvatarId(self, credentials: Any) -> Any:
        raise self._error


DOWN = CheckerUnavailable("the database is down")


def test_a_checker_that_cannot_judge_does_not_keep_a_user_from_another() -> None:
    others = Keeps(WAYS["get and =="], {b"ann": b"pw"})
    with logbook() as book:
        for checkers in ([Fails(DOWN), others], [others, Fails(DOWN)]):
            guard = Guard(checkers=checkers)
            # Whether the first would know the user by the other password nobody can say.
            assert [tried(guard, "ann", "pw"), tried(guard, "ann", "no")] == [YES, LATER]
        lines = book.take("checker_failed")
    assert len(lines) == 3
    assert all(line.endswith(" the database is down") for line in lines)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_so_does_one_that_raises_what_is_no_exception(kind: type[BaseException]) -> None:
    others = Keeps(WAYS["get and =="], {b"ann": b"pw"})
    with logbook() as book:
        guard = Guard(checkers=[Fails(kind()), others])
        assert [tried(guard, "ann", "pw"), tried(guard, "ann", "no")] == [YES, LATER]
        assert len(book.take("failure")) == 2


def test_what_a_checker_says_in_its_exception_is_logged_only_where_it_promises_no_password() -> None:
    with logbook() as book:
        assert tried(Guard(checkers=[Fails(OSError("o-so-secret"))]), "ann", "pw") == LATER
        (line,) = book.take("failure")
    assert "o-so-secret" not in line


def test_a_checker_that_cannot_judge_does_not_end_the_session() -> None:
    guard = Guard(checkers=[Fails(DOWN)], max_errors=2, max_auth_failures=1)
    client = guard.greeted()
    client.heard()
    with logbook() as book:
        assert client.codes(*[plain("ann", "pw")] * 5, "NOOP") == [LATER] * 5 + [250]
        assert len(book.take("checker_failed")) == 5
        assert client.codes("MAIL", "MAIL") == [501, 501, 421]
