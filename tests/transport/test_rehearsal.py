"""A rehearsal tells what would happen to a client, by the code that makes it happen, and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import attrs
import pytest
from fakes import FakeDelivery, FakeFilter, Guard, SlowFilter, delivery_without_nobody
from logins import Checker, plain
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs
from zope.interface import implementer

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.filters.networks import NetworksFilter
from twisted_smtpguard.interfaces import ICounterStore
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.log.measurements import Histogram
from twisted_smtpguard.records.recordtables import LOGIN
from twisted_smtpguard.replies import Reply, deferral
from twisted_smtpguard.transport.rehearsal import Outcome, rehearse
from twisted_smtpguard.values import PASS, TRUST, Wanted, refuse

ADDRESS = "192.0.2.1"
GREETING = "220 guard.example ESMTP ready"


def outcome_of(guard: Guard, address: str = ADDRESS) -> Outcome:
    outcomes: list[Outcome] = []
    rehearse(guard.factory, None if address == "unix" else ip_address(address)).addCallback(outcomes.append)
    (outcome,) = outcomes
    return outcome


def counted(guard: Guard) -> str:
    """All that a connection or a mail may change, in order."""
    store: Any = guard.factory.counting.store
    context = guard.factory.context
    tables = store._tables.values()
    return repr(
        (
            [list(table.items()) for table in tables if table],
            context.events.statistics,
            attrs.asdict(context.events.measured, recurse=False),
            [
                (name, each.counts)
                for name, each in context.events.measured.filters.items()
                if isinstance(each, Histogram)
            ],
            list(context.events.history.refusals._rows.items()),
            list(context.events.history.sessions._rows.items()),
            context.pending_deliveries,
            len(context.handshakes),
            guard.factory.connections,
            len(guard.factory._open),
            guard.delivery.calls,
            [call.getTime() for call in guard.clock.getDelayedCalls()],
        )
    )


def test_a_stranger_would_be_let_in_and_could_send_a_mail() -> None:
    outcome = outcome_of(Guard())
    assert outcome.refused is None
    assert outcome.replies["connection"] == GREETING
    assert outcome.replies["MAIL"] == "250 2.1.0 Sender OK"
    assert outcome.replies["RCPT"] == "250 2.1.5 Recipient OK"
    assert (outcome.filters, outcome.problems, outcome.trusted) == ([], [], False)


def test_the_cap_of_all_connections_refuses() -> None:
    guard = Guard(max_connections=1)
    guard.connect("192.0.2.9")
    outcome = outcome_of(guard)
    assert outcome.refused == {
        "step": "connection",
        "reason": "max_connections",
        "limit": 1,
        "value": 2,
        "reply": "421 4.7.0 Too many connections, try again later",
        "dry_run": False,
    }
    assert outcome.replies == {"connection": "421 4.7.0 Too many connections, try again later"}


def test_a_stopping_guard_refuses() -> None:
    guard = Guard()
    guard.connect()
    guard.factory.drain()
    refused = outcome_of(guard).refused
    assert refused is not None
    assert refused["reason"] == "shutdown"


LIMITS: list[tuple[str, dict[str, Any], str, str, int]] = [
    ("max_connections_per_client", {"max_connections_per_client": 1}, "connection", "421", 2),
    ("connection_rate", {"connection_rate": Rate(1, 60)}, "connection", "421", 2),
    ("message_rate", {"message_rate": Rate(1, 60)}, "MAIL", "450", 2),
    ("recipient_rate", {"recipient_rate": Rate(1, 60)}, "RCPT", "450", 2),
]


@pytest.mark.parametrize(("name", "limits", "step", "code", "value"), LIMITS)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_limit_of_the_client_refuses_as_it_would_refuse_a_connection(
    name: str, limits: dict[str, Any], step: str, code: str, value: int, dry_run: bool
) -> None:
    guard = Guard(**limits, dry_run={name} if dry_run else set())
    guard.greeted().say("MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    before = counted(guard)
    outcome = outcome_of(guard)
    assert counted(guard) == before
    (refused,) = outcome.refusals
    assert (refused["step"], refused["reason"], refused["value"]) == (step, name, value)
    assert refused["dry_run"] is dry_run
    assert (outcome.refused is None) is dry_run
    assert outcome.replies[step].startswith("2" if dry_run else code)
    # The next real one is refused by the same words.
    client = guard.connect()
    client.say("EHLO x", "MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    history = guard.factory.context.events.history.refusals.of(ADDRESS)
    row = next(each for each in history if each["reason"] == name)
    del refused["step"]
    assert refused == {key: row[key] for key in row if key not in ("time", "address", "session")}


def test_a_login_that_mail_needs_is_rehearsed_and_counts_nothing() -> None:
    guard = Guard(checkers=[Checker(UnauthorizedLogin())], require_auth=True, auth_failure_rate=Rate(1, 60))
    before = counted(guard)
    outcome = outcome_of(guard)
    assert outcome.refused is None
    assert [*outcome.replies] == ["connection", "EHLO", "AUTH", "MAIL", "RCPT", "QUIT"]
    assert counted(guard) == before
    assert len(guard.factory.records[LOGIN]) == 0
    guard.greeted().say(f"AUTH PLAIN {plain()}")
    before = counted(guard)
    outcome = outcome_of(guard)
    assert outcome.refused is not None
    assert (outcome.refused["step"], outcome.refused["reason"]) == ("AUTH", "auth_failure_rate")
    assert counted(guard) == before


def test_another_client_would_be_let_in() -> None:
    guard = Guard(max_connections_per_client=1)
    guard.greeted()
    assert outcome_of(guard, "192.0.2.2").refused is None
    assert outcome_of(guard, "unix").refused is None


def test_one_client_is_a_network_as_the_limits_say() -> None:
    guard = Guard(max_connections_per_client=1, ipv4_client_prefix=24)
    guard.greeted()
    assert outcome_of(guard, "192.0.2.2").refused is not None
    assert outcome_of(guard, "192.0.3.2").refused is None


def test_a_rehearsal_counts_nothing_logs_nothing_and_asks_no_delivery() -> None:
    limits = {"connection_rate": Rate(5, 60), "message_rate": Rate(5, 60), "recipient_rate": Rate(5, 60)}
    guard = Guard(
        FakeDelivery(),
        ip_filters=[NetworksFilter(deny=["198.51.100.0/24"])],
        max_connections_per_client=5,
        max_session_time=100,
        **limits,
    )
    guard.greeted().say("MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    guard.connect("198.51.100.1")
    before = counted(guard)
    assert "'pass'" in before
    with capturedLogs() as logged:
        for _ in range(20):
            assert outcome_of(guard).refused is None
            assert outcome_of(guard, "198.51.100.1").refused is not None
    assert counted(guard) == before
    assert logged == []


def test_each_filter_says_what_it_would_answer_and_who_decides() -> None:
    own = Reply(521, "5.7.1", ("Go \x1b[2J away",))
    filters = [
        FilterEntry(FakeFilter(PASS), "first"),
        FilterEntry(FakeFilter(refuse(own, "list 7")), "second", fail_open=True),
        FilterEntry(FakeFilter(TRUST), "third"),
    ]
    guard = Guard(ip_filters=filters)
    outcome = outcome_of(guard)
    reply = "521 5.7.1 Go \\x1b[2J away"
    assert outcome.filters == [
        {"filter": "first", "asked": True, "fail_open": False, "dry_run": False, "verdict": "pass"},
        {
            "filter": "second",
            "asked": True,
            "fail_open": True,
            "dry_run": False,
            "verdict": "refuse",
            "rule": "list 7",
            "reply": reply,
        },
        {"filter": "third", "asked": False, "fail_open": False, "dry_run": False, "verdict": "trust"},
    ]
    assert not outcome.trusted
    assert outcome.refused is not None
    assert outcome.refused["reason"] == "ip_filter"
    assert outcome.refused["filter"] == "second"
    assert outcome.refused["rule"] == "list 7"
    assert outcome.replies == {"connection": reply}


def test_a_trusted_client_is_above_its_limits() -> None:
    guard = Guard(ip_filters=[NetworksFilter(trust=[ADDRESS])], max_connections_per_client=1)
    guard.greeted()
    guard.greeted()
    outcome = outcome_of(guard)
    assert outcome.trusted
    assert outcome.refused is None


def test_filters_in_dry_run_are_told_and_let_in() -> None:
    guard = Guard(ip_filters=[NetworksFilter(deny=[ADDRESS])], dry_run={"ip_filter"})
    outcome = outcome_of(guard)
    assert outcome.refused is None
    assert [each["dry_run"] for each in outcome.filters] == [True]
    assert [each["reason"] for each in outcome.refusals] == ["ip_filter"]


def test_a_filter_that_answers_later_is_waited_for() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow, NetworksFilter(deny=[ADDRESS])])
    outcomes: list[Outcome] = []
    rehearse(guard.factory, ip_address(ADDRESS)).addCallback(outcomes.append)
    assert outcomes == []
    slow.asked[0].callback(TRUST)
    (outcome,) = outcomes
    assert [each["verdict"] for each in outcome.filters] == ["trust", "refuse"]
    assert outcome.trusted


def test_a_filter_that_does_not_answer_has_its_time_limit() -> None:
    slow, late = SlowFilter(), SlowFilter()
    guard = Guard(ip_filters=[NetworksFilter(deny=[ADDRESS]), slow, late], ip_filter_timeout=10)
    outcomes: list[Outcome] = []
    rehearse(guard.factory, ip_address(ADDRESS)).addCallback(outcomes.append)
    # Those that come after the one that decides are asked together.
    assert (len(slow.asked), len(late.asked)) == (1, 1)
    guard.clock.advance(11)
    assert [each.get("problem") for each in outcomes[0].filters] == [None, "timeout", "timeout"]
    assert (slow.cancelled, late.cancelled) == (1, 1)


def _raise(_: object) -> None:
    raise OSError("no \x1b[2J such list")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [(_raise, "exception"), (lambda _: fail(OSError("gone")), "exception"), ("yes", "no_verdict")],
)
@pytest.mark.parametrize("fail_open", [False, True])
def test_a_filter_that_fails_is_told_of(answer: Any, problem: str, fail_open: bool) -> None:
    guard = Guard(ip_filters=[FilterEntry(FakeFilter(answer), "lists", fail_open)])
    with capturedLogs() as logged:
        outcome = outcome_of(guard)
    assert [(each["verdict"], each["problem"]) for each in outcome.filters] == [("failed", problem)]
    assert len(outcome.problems) == 1
    assert outcome.problems[0].isprintable()
    assert (outcome.refused is None) is fail_open
    assert guard.factory.statistics.failures == 0
    assert logged == []


def test_a_filter_that_a_limit_has_cut_off_is_asked_alone() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow], max_connections_per_client=1)
    guard.connect()
    slow.asked[0].callback(PASS)
    outcomes: list[Outcome] = []
    rehearse(guard.factory, ip_address(ADDRESS)).addCallback(outcomes.append)
    assert slow.cancelled == 1
    slow.asked[-1].callback(TRUST)
    (outcome,) = outcomes
    assert outcome.refused is not None
    assert outcome.refused["reason"] == "max_connections_per_client"
    assert [(each["asked"], each["verdict"]) for each in outcome.filters] == [(False, "trust")]


@implementer(ICounterStore)
class LateStore:
    """Looks when a test says so, or never, and takes nothing."""

    lease_seconds = 0

    def __init__(self) -> None:
        self.asked: list[Deferred[Any]] = []

    def look(self, wanted: Sequence[Wanted]) -> Any:
        answer: Deferred[Any] = Deferred()
        self.asked.append(answer.addCallback(lambda count: [(count, 0.0) for _ in wanted]))
        return answer

    def take(self, *_: object) -> Any:
        raise AssertionError("counted")

    give_back = renew = take


LIMITS = {"max_connections": 5, "max_connections_per_client": 1, "message_rate": Rate(1, 60)}


@pytest.mark.parametrize(
    ("count", "reason"), [(0, None), (1, "max_connections_per_client"), (5, "max_connections")]
)
def test_a_store_that_answers_later_is_waited_for(count: int, reason: str | None) -> None:
    store = LateStore()
    guard = Guard(counters=store, **LIMITS)
    outcomes: list[Outcome] = []
    rehearse(guard.factory, ip_address("192.0.2.2")).addCallback(outcomes.append)
    while not outcomes:
        store.asked[-1].callback(count)
    refused = outcomes[0].refused
    assert (refused and refused["reason"]) == reason


def test_a_store_that_never_answers_is_waited_for_for_a_second() -> None:
    guard = Guard(counters=LateStore(), **LIMITS)
    outcomes: list[Outcome] = []
    rehearse(guard.factory, ip_address("192.0.2.2")).addCallback(outcomes.append)
    guard.clock.pump([0.9, 0.2])
    assert outcomes == []
    guard.clock.pump([0.9, 0.2])
    assert outcomes[0].refused is None
    assert guard.clock.getDelayedCalls() == []


def test_a_deferral_of_all_mail_is_told() -> None:
    guard = Guard()
    guard.factory.context.defer(deferral("Moving house"))
    outcome = outcome_of(guard)
    assert outcome.refused is not None
    assert (outcome.refused["step"], outcome.refused["reason"]) == ("MAIL", "deferred")
    assert outcome.replies["MAIL"] == "451 4.3.2 Moving house"


def test_demands_and_the_answers_of_the_delivery_are_not_part_of_it() -> None:
    guard = Guard(delivery_without_nobody())
    guard.factory.context.require_tls = guard.factory.context.demands = True
    assert outcome_of(guard).refused is None
