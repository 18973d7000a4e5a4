"""Wrong passwords of a client, over all its sessions: which are checked, at once and one after the other, and whom a
guesser locks out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import Conversation, FakeFilter, Guard
from logbook import Logbook, logbook
from logins import PASSWORD, plain
from tellingstore import Store, each_fault, each_way
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.records.recordtables import LOGIN
from twisted_smtpguard.values import TRUST, CheckerUnavailable

FAILED = "535 5.7.8 Authentication credentials invalid\r\n"
LATER = "454 4.7.0 Temporary authentication failure\r\n"
YES = "235 2.7.0 Authentication successful\r\n"
HERE, THERE = "192.0.2.1", "198.51.100.7"
WRONG = b"wrong"
DAY = 86400


class Passwords:
    """Every user has the same password. Answers at once; with `later` when a test says so; with `down` it cannot
    judge."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, *, later: bool = False) -> None:
        self.later = later
        self.down = False
        self.asked: list[bytes] = []
        self.pending: list[tuple[Deferred[Any], Any]] = []

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        self.asked.append(bytes(credentials.username))
        outcome: Any = UnauthorizedLogin()
        if self.down:
            outcome = CheckerUnavailable("down")
        elif credentials.password == PASSWORD:
            outcome = bytes(credentials.username)
        if not self.later:
            return fail(outcome) if isinstance(outcome, Exception) else succeed(outcome)
        self.pending.append((Deferred(), outcome))
        return self.pending[-1][0]

    def answer(self, number: int = 1) -> None:
        """So many that are being checked are answered, the earliest first."""
        for _ in range(number):
            deferred, outcome = self.pending.pop(0)
            if not deferred.called:
                deferred.callback(outcome) if isinstance(outcome, bytes) else deferred.errback(outcome)


class Served(Guard):
    """A guard with users, whose sessions end at no number of failures."""

    def __init__(self, *, later: bool = False, **settings: Any) -> None:
        self.passwords = Passwords(later=later)
        settings.setdefault("max_auth_failures", 0)
        super().__init__(checkers=[self.passwords], **settings)

    def tries(
        self, password: bytes = WRONG, user: bytes = b"ann", host: str = HERE, times: int = 1
    ) -> list[str]:
        """What one client hears of so many tries, each in its own session."""
        heard = []
        for _ in range(times):
            client = self.session(password, user, host)
            heard.append(client.heard())
            client.disconnect()
        return heard

    def session(self, password: bytes = WRONG, user: bytes = b"ann", host: str = HERE) -> Conversation:
        """A session that has just sent a password, and has heard nothing of that yet."""
        client = self.greeted(host)
        client.heard()
        client.protocol.dataReceived(f"AUTH PLAIN {plain(password, user)}\r\n".encode())
        return client

    @property
    def logins(self) -> Any:
        return self.factory.records[LOGIN]


@pytest.fixture
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


# Over sessions.


@pytest.mark.parametrize("profile", ["base", "edge"])
def test_the_rate_is_on_in_each_profile(profile: str) -> None:
    assert Limits.for_profile(profile).auth_failure_rate == Rate(10, 600)
    assert not Limits.for_profile(profile).auth_failure_rate_per_user


def test_ten_wrong_passwords_of_a_client_are_checked_and_no_more(log: Logbook) -> None:
    guard = Served()
    assert guard.tries(times=12) == [FAILED] * 10 + [LATER] * 2
    assert guard.tries(PASSWORD) == [LATER]
    assert len(guard.passwords.asked) == 10
    assert guard.tries(PASSWORD, host=THERE) == [YES]
    refused = [line for line in log.take("reject") if "auth_failure_rate" in line]
    assert len(refused) == 3
    for line in refused:
        assert line.startswith("reject peer=192.0.2.1 reason=auth_failure_rate session=")
        assert " limit=10/600 value=11 code=454 command=AUTH user=ann helo=client.example" in line
    assert guard.factory.statistics.refusals == {"auth_failed": 10, "auth_failure_rate": 3}


def test_they_are_counted_in_a_session_too_and_it_goes_on() -> None:
    guard = Served()
    client = guard.greeted()
    assert client.codes(*[f"AUTH PLAIN {plain(WRONG)}"] * 12, "NOOP") == [535] * 10 + [454] * 2 + [250]
    assert client.protocol.engine.failures == 10


@pytest.mark.parametrize("seconds", [599.9, 600])
def test_the_window_ends_ten_minutes_after_its_first_wrong_password(seconds: float) -> None:
    guard = Served()
    guard.tries()
    guard.clock.advance(300)
    assert guard.tries(times=10)[-1] == LATER
    guard.clock.advance(seconds - 300)
    assert guard.tries(PASSWORD) == [YES if seconds == 600 else LATER]


def test_no_limit_is_no_limit() -> None:
    guard = Served(auth_failure_rate=0)
    assert guard.tries(times=100) == [FAILED] * 100


def test_what_is_no_wrong_password_is_not_counted() -> None:
    guard = Served(auth_failure_rate=Rate(1, 600))
    for line in ("AUTH", "AUTH X", "AUTH PLAIN !", "AUTH PLAIN AAAA"):
        guard.greeted().say(*[line] * 3)
    guard.greeted().say("AUTH LOGIN", "*")
    guard.passwords.down = True
    assert guard.tries(times=3) == [LATER] * 3
    guard.passwords.down = False
    assert guard.tries(PASSWORD, times=20) == [YES] * 20
    assert guard.tries(times=2) == [FAILED, LATER]


def test_a_checker_that_takes_too_long_does_not_count() -> None:
    guard = Served(later=True, auth_failure_rate=Rate(1, 600), delivery_timeout=100)
    client = guard.session()
    guard.clock.advance(100.2)
    assert client.heard() == LATER
    assert guard.factory.statistics.refusals == {"auth_unavailable": 1}
    guard.passwords.later = False
    assert guard.tries() == [FAILED]


def test_a_refusal_is_an_error_of_the_client_and_one_of_the_checker_is_not() -> None:
    guard = Served(auth_failure_rate=Rate(1, 600), max_errors=3)
    guard.tries()
    said = guard.greeted().codes(*[f"AUTH PLAIN {plain(WRONG)}"] * 4)
    assert said == [454, 454, 454, 421]
    guard.clock.advance(600)
    guard.passwords.down = True
    assert guard.greeted().codes(*[f"AUTH PLAIN {plain(WRONG)}"] * 4) == [454] * 4


def test_a_client_that_a_filter_trusts_is_not_limited() -> None:
    guard = Served(ip_filters=[FakeFilter(TRUST)])
    assert guard.tries(times=30) == [FAILED] * 30


def test_in_dry_run_it_is_logged_and_checked(log: Logbook) -> None:
    guard = Served(dry_run={"auth_failure_rate"}, auth_failure_rate=Rate(2, 600))
    assert guard.tries(times=4) == [FAILED] * 4
    lines = [line for line in log.take("reject") if "dry_run=true" in line]
    assert [line.partition(" value=")[2].split()[0] for line in lines] == ["3", "4"]
    assert all(" reason=auth_failure_rate " in line and " limit=2/600 " in line for line in lines)
    assert guard.factory.statistics.dry_run_refusals == {"auth_failure_rate": 2}


def test_in_dry_run_passwords_that_are_being_checked_are_not_taken_for_wrong_ones() -> None:
    guard = Served(later=True, dry_run={"auth_failure_rate"}, auth_failure_rate=Rate(2, 600))
    clients = [guard.session(PASSWORD) for _ in range(5)]
    guard.passwords.answer(5)
    assert [client.heard() for client in clients] == [YES] * 5
    assert guard.factory.statistics.dry_run_refusals == {}


def test_it_can_be_changed_while_the_guard_runs() -> None:
    guard = Served()
    guard.tries(times=10)
    assert guard.tries() == [LATER]
    guard.factory.set_limits(Limits(auth_failure_rate=Rate(11, 600), max_auth_failures=0))
    assert guard.tries(times=2) == [FAILED, LATER]


# At once.


def test_of_fifty_guesses_at_once_ten_are_checked() -> None:
    guard = Served(later=True)
    clients = [guard.session(user=f"user{number}".encode()) for number in range(50)]
    guard.clock.pump([0.1] * 50)
    assert len(guard.passwords.asked) == 10
    assert {client.heard() for client in clients} == {""}
    guard.passwords.answer(10)
    guard.clock.advance(0.5)
    assert [client.heard() for client in clients] == [FAILED] * 10 + [LATER] * 40
    assert len(guard.passwords.asked) == 10


def test_of_fifty_right_passwords_at_once_all_are_right_in_the_order_in_which_they_came() -> None:
    guard = Served(later=True)
    clients = [guard.session(PASSWORD, f"user{number}".encode()) for number in range(50)]
    for tens in range(5):
        assert len(guard.passwords.asked) == 10 * tens + 10
        guard.passwords.answer(10)
        guard.clock.advance(0.5)
    assert [client.heard() for client in clients] == [YES] * 50
    assert guard.passwords.asked == [f"user{number}".encode() for number in range(50)]


def test_a_try_waits_only_while_it_depends_on_others() -> None:
    guard = Served(later=True, auth_failure_rate=Rate(2, 600))
    first, second, third = (guard.session() for _ in range(3))
    guard.passwords.answer()
    guard.clock.advance(0.5)
    assert (first.heard(), third.heard()) == (FAILED, "")
    guard.passwords.answer()
    guard.clock.advance(0.5)
    assert (second.heard(), third.heard()) == (FAILED, LATER)


def test_nothing_is_left_of_tries_that_waited_when_their_clients_leave() -> None:
    guard = Served(later=True, auth_failure_rate=Rate(1, 600))
    clients = [guard.session() for _ in range(4)]
    guard.clock.advance(0.3)
    for client in clients[1:]:
        client.disconnect()
    assert guard.factory.context.attempts._queues == {}
    clients[0].disconnect()
    guard.passwords.later = False
    assert guard.tries(times=2) == [FAILED, LATER]
    guard.clock.advance(1000)
    assert guard.clock.getDelayedCalls() == []


def test_a_try_that_waits_too_long_is_told_so(log: Logbook) -> None:
    guard = Served(later=True, auth_failure_rate=Rate(1, 600), delivery_timeout=100)
    guard.session()
    guard.clock.advance(50)
    client = guard.session()
    guard.clock.pump([1] * 49)
    assert client.heard() == ""
    guard.clock.pump([1] * 52)
    # The first has timed out, and now this one is being checked.
    assert len(guard.passwords.asked) == 2
    guard.passwords.answer(2)
    assert client.heard() == FAILED


def test_a_client_that_leaves_before_the_answer_takes_its_try_back() -> None:
    guard = Served(later=True, auth_failure_rate=Rate(1, 600))
    for _ in range(5):
        guard.session().disconnect()
    assert len(guard.passwords.asked) == 5
    guard.passwords.later = False
    assert guard.tries(times=2) == [FAILED, LATER]


def test_a_wrong_password_whose_client_has_left_is_counted_where_the_checker_tells_it() -> None:
    guard = Served(auth_failure_rate=Rate(1, 600))
    kept: list[Any] = []
    guard.factory.context.identify = lambda login: _Uncancellable(kept)
    guard.session().disconnect()
    kept[0](_Wrong(), None)
    assert guard.tries() == [LATER]


class _Wrong:
    user, failures = None, ()


class _Uncancellable(Deferred[Any]):
    """An answer that comes, although nobody waits for it any more."""

    def __init__(self, kept: list[Any]) -> None:
        super().__init__()
        kept.append(lambda value, error: self.callback(value))

    def cancel(self) -> None:
        pass


# Whom a guesser locks out.


def test_a_neighbours_guesses_do_not_lock_out_a_user_who_has_logged_in_from_there() -> None:
    guard = Served()
    guard.tries(PASSWORD, b"ann")
    guard.tries(user=b"bob", times=15)
    assert guard.tries(PASSWORD, b"bob") == [LATER]
    assert guard.tries(PASSWORD, b"ann") == [YES]
    # With whatever letters it writes its name.
    assert guard.tries(PASSWORD, b"ANN") == [YES]


def test_that_users_password_can_be_guessed_no_faster_from_there() -> None:
    guard = Served()
    guard.tries(PASSWORD, b"ann")
    assert guard.tries(user=b"ann", times=15) == [FAILED] * 10 + [LATER] * 5
    # Nobody else is locked out by that.
    assert guard.tries(PASSWORD, b"bob") == [YES]
    guard.clock.advance(600)
    assert guard.tries(PASSWORD, b"ann") == [YES]


def test_a_user_is_known_for_thirty_days_after_its_latest_login() -> None:
    guard = Served()
    guard.tries(PASSWORD)
    guard.clock.advance(29 * DAY)
    guard.tries(PASSWORD)
    guard.clock.advance(29 * DAY)
    guard.tries(user=b"bob", times=10)
    assert guard.tries(PASSWORD) == [YES]
    guard.clock.advance(30 * DAY)
    guard.tries(user=b"bob", times=10)
    assert guard.tries(PASSWORD) == [LATER]


def test_a_user_is_known_as_long_as_a_client_is() -> None:
    guard = Served(known_for=100)
    guard.tries(PASSWORD)
    guard.clock.advance(60)
    guard.tries(PASSWORD)
    guard.clock.advance(99)
    guard.tries(user=b"bob", times=10)
    assert guard.tries(PASSWORD) == [YES]
    guard = Served(known_for=0)
    guard.tries(PASSWORD)
    assert len(guard.logins) == 0


def test_a_busy_client_is_not_noted_again_and_again() -> None:
    guard = Served()
    noted: list[str] = []
    guard.logins.on_change(lambda key, record: noted.append(key))
    guard.tries(PASSWORD, times=100)
    assert len(noted) == 1
    guard.clock.advance(DAY)
    guard.tries(PASSWORD, times=100)
    assert len(noted) == 2


def test_strangers_make_no_records_whatever_they_try_and_no_name_is_in_a_record() -> None:
    guard = Served(auth_failure_rate=Rate(2000, 600), auth_failure_rate_per_user=Rate(10, 600))
    client = guard.greeted()
    for number in range(1000):
        client.say(f"AUTH PLAIN {plain(WRONG, b'stranger%d' % number)}")
    assert len(guard.logins) == 0
    guard.tries(PASSWORD, b"ann@guard.example")
    guard.tries(PASSWORD, b"\xff" * 300, host="2001:db8::1")
    keys = [key for key, _ in guard.logins.items()]
    assert [key.partition("#")[0] for key in keys] == [HERE, "2001:db8::/64"]
    assert "ann" not in repr(keys)
    assert max(map(len, keys)) < 100


def test_the_tables_of_a_flood_of_names_and_addresses_are_bounded() -> None:
    guard = Served(max_tracked_clients=100, auth_failure_rate_per_user=Rate(10, 600))
    for number in range(300):
        guard.tries(user=b"stranger%d" % number, host=f"10.0.{number // 100}.{number % 100}")
    sizes = guard.factory.own_counters.sizes()
    assert sizes["auth_failure_rate"] == sizes["auth_failure_rate_per_user"] == 100
    assert sizes["auth_checks"] == 0


# One user, guessed by many clients.


def test_a_thousand_guessers_of_a_user_are_each_stopped_at_the_tenth_and_the_user_logs_in() -> None:
    guard = Served()
    guard.tries(PASSWORD)
    for number in range(1000):
        host = f"10.0.{number // 250}.{number % 250}"
        client = guard.greeted(host)
        assert client.codes(*[f"AUTH PLAIN {plain(WRONG)}"] * 11)[-11:] == [535] * 10 + [454]
    assert guard.tries(PASSWORD) == [YES]
    assert len(guard.passwords.asked) == 10_002


def test_a_limit_per_user_stops_them_together_and_not_where_the_user_has_logged_in(log: Logbook) -> None:
    guard = Served(auth_failure_rate_per_user=Rate(20, 3600))
    guard.tries(PASSWORD)
    heard = [guard.tries(host=f"10.0.0.{number}")[0] for number in range(25)]
    assert heard == [FAILED] * 20 + [LATER] * 5
    assert guard.tries(PASSWORD, host=THERE) == [LATER]
    assert guard.tries(PASSWORD) == [YES]
    assert guard.tries(user=b"bob", host=THERE) == [FAILED]
    refused = [line for line in log.take("reject") if "auth_failure_rate_per_user" in line]
    assert len(refused) == 6
    assert all(" limit=20/3600 value=21 code=454 command=AUTH user=ann " in line for line in refused)
    guard.clock.advance(3600)
    assert guard.tries(PASSWORD, host=THERE) == [YES]


def test_the_limit_per_user_holds_without_that_of_clients() -> None:
    guard = Served(auth_failure_rate=0, auth_failure_rate_per_user=Rate(2, 600))
    assert guard.tries(times=3) == [FAILED, FAILED, LATER]


def test_what_one_limit_refuses_is_not_counted_by_the_other() -> None:
    guard = Served(auth_failure_rate=Rate(2, 600), auth_failure_rate_per_user=Rate(3, 600))
    assert guard.tries(times=9)[-1] == LATER
    assert guard.tries(host=THERE) == [FAILED]


# Guards that count together.


def test_two_guards_that_count_together_check_no_more_than_one_and_wait_for_each_other() -> None:
    clock = Clock()
    store = LocalCounterStore(0, clock.seconds)
    one, other = (Served(later=True, clock=clock, counters=store) for _ in range(2))
    clients = [guard.session() for guard in (one, other) for _ in range(8)]
    clock.pump([0.1] * 20)
    assert (len(one.passwords.asked), len(other.passwords.asked)) == (8, 2)
    one.passwords.answer(8)
    clock.pump([0.1] * 10)
    assert len(other.passwords.asked) == 2
    other.passwords.answer(2)
    clock.pump([0.1] * 10)
    assert Counter(client.heard() for client in clients) == {FAILED: 10, LATER: 6}


def test_one_guard_lets_in_by_right_passwords_as_soon_as_the_other_has_checked_its_own() -> None:
    clock = Clock()
    store = LocalCounterStore(0, clock.seconds)
    one, other = (Served(later=True, clock=clock, counters=store) for _ in range(2))
    clients = [guard.session(PASSWORD) for guard in (one, other) for _ in range(10)]
    assert len(other.passwords.asked) == 0
    one.passwords.answer(10)
    clock.pump([0.1] * 10)
    other.passwords.answer(10)
    assert [client.heard() for client in clients] == [YES] * 20


@each_way
def test_no_password_is_checked_before_the_store_has_answered(wrapped: Any) -> None:
    for failures, heard in ((10, FAILED), (11, LATER)):
        store = Store(lambda failures=failures: wrapped([failures, 1]))  # type: ignore[misc]
        assert Served(counters=store).tries() == [heard]
    store = Store()
    guard = Served(counters=store)
    client = guard.session()
    assert (client.heard(), guard.passwords.asked) == ("", [])
    store.asked[0].callback([1, 1])
    assert client.heard() == FAILED
    assert store.calls[-1] == ("give_back", "auth_checks")


@each_fault
def test_a_store_that_fails_refuses_nobody_and_the_guard_counts_alone(fault: Any) -> None:
    guard = Served(counters=Store(fault))
    assert guard.tries(times=11) == [FAILED] * 10 + [LATER]


def test_a_store_that_does_not_answer_in_time_refuses_nobody() -> None:
    guard = Served(counters=Store())
    client = guard.session()
    guard.clock.advance(0.04)
    assert client.heard() == ""
    guard.clock.pump([0.02, 0])
    assert client.heard() == FAILED


def test_a_client_that_leaves_before_the_store_has_answered_takes_its_try_back() -> None:
    store = Store()
    guard = Served(counters=store)
    guard.session().disconnect()
    store.asked[0].callback([1, 1])
    assert store.calls == [
        ("take", "auth_failure_rate", "auth_checks"),
        ("give_back", "auth_failure_rate", "auth_checks"),
    ]
    assert guard.passwords.asked == []


def test_a_client_that_leaves_while_the_store_is_asked_again_takes_its_try_back() -> None:
    store = Store(lambda: [12, 12])
    guard = Served(counters=store)
    client = guard.session()
    store.answer = None
    guard.clock.advance(0.02)
    assert len(store.asked) == 1
    client.disconnect()
    store.asked[0].callback([1, 1])
    assert store.calls[-1] == ("give_back", "auth_failure_rate", "auth_checks")
    assert (guard.passwords.asked, guard.factory.context.attempts._queues) == ([], {})


# Networks of clients.


def test_a_network_may_guess_as_often_as_its_factor_says_and_a_known_user_of_it_logs_in(log: Logbook) -> None:
    guard = Served(ipv4_networks=(24, 16), network_factor=3, auth_failure_rate=Rate(2, 600))
    guard.tries(PASSWORD, host="192.0.2.99")
    heard = [guard.tries(host=f"192.0.2.{number}", times=2) for number in range(1, 5)]
    assert heard == [[FAILED] * 2] * 3 + [[LATER] * 2]
    assert guard.tries(PASSWORD, b"bob", host="192.0.2.99") == [LATER]
    assert guard.tries(PASSWORD, b"ann", host="192.0.2.99") == [YES]
    assert guard.tries(host="192.0.3.1") == [FAILED]
    refused = [line for line in log.take("reject") if " reason=auth_failure_rate " in line]
    assert len(refused) == 3
    assert all(" network=192.0.2.0/24 limit=6/600 value=7 " in line for line in refused)


def test_what_a_known_user_tries_is_not_counted_for_its_network() -> None:
    guard = Served(ipv4_networks=(24,), network_factor=1, auth_failure_rate=Rate(2, 600))
    guard.tries(PASSWORD)
    assert guard.tries(times=3) == [FAILED, FAILED, LATER]
    assert guard.tries(user=b"bob", host="192.0.2.2", times=3) == [FAILED, FAILED, LATER]


def test_passwords_that_are_being_checked_for_the_neighbours_of_a_client_are_waited_for() -> None:
    guard = Served(later=True, ipv4_networks=(24,), network_factor=1, auth_failure_rate=Rate(2, 600))
    clients = [guard.session(PASSWORD, host=f"192.0.2.{number}") for number in range(6)]
    for _ in range(3):
        assert len(guard.passwords.pending) == 2
        guard.passwords.answer(2)
        guard.clock.pump([0.1] * 10)
    assert [client.heard() for client in clients] == [YES] * 6
