"""`why`: what would happen to an address, what has happened to it, and what would let it in."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from fakes import FakeFilter, SlowFilter
from logins import Checker, plain
from operated import Operated
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.interfaces import CounterStoreUnavailable, ICounterStore, IExplainingFilter
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.operations.verbs import VERBS
from twisted_smtpguard.policies.policyentry import PolicyEntry
from twisted_smtpguard.testing import FakePolicy
from twisted_smtpguard.values import PASS, TRUST, Peer, refuse

ADDRESS = "192.0.2.1"
ENVELOPE = ("MAIL FROM:<a@b>", "RCPT TO:<c@d>")


def asked(guard: Operated, address: str = ADDRESS) -> dict[str, Any]:
    """The answer, which JSON can hold."""
    answers: list[Any] = []
    guard.operator.carry_out("why", {"address": address}).addCallback(answers.append)
    (answer,) = answers
    assert json.loads(json.dumps(answer)) == answer
    found: dict[str, Any] = answer
    return found


def carry_out(guard: Operated, command: str) -> None:
    """Do what a command line of smtpguardctl says."""
    program, name, *words = shlex.split(command)
    assert program == "smtpguardctl"
    arguments = {}
    places = [argument.name for argument in VERBS[name].arguments if not argument.option]
    while words:
        word = words.pop(0)
        arguments[word.removeprefix("--") if word.startswith("--") else places.pop(0)] = (
            words.pop(0) if word.startswith("--") else word
        )
    guard.operator.carry_out(name, arguments)


def test_a_stranger_is_accepted() -> None:
    answer = asked(Operated())
    assert (answer["outcome"], answer["client"], answer["would_help"]) == ("accepted", ADDRESS, [])
    assert answer["replies"] == {
        "connection": "220 guard.example ESMTP ready",
        "MAIL": "250 2.1.0 Sender OK",
        "RCPT": "250 2.1.5 Recipient OK",
    }
    assert (answer["recent_refusals"], answer["recent_sessions"]) == ([], [])


def test_a_count_that_clears_after_the_end_of_the_calendar_is_shown_too() -> None:
    guard = Operated()
    guard.operator.set("connection-rate", "1/999999999d")
    guard.connect(ADDRESS)
    (row,) = (row for row in asked(guard)["counts"] if row["limit"] == "connection-rate")
    assert (row["count"], row["clears"]) == (1, "9999-12-31T23:59:59Z")


@pytest.mark.parametrize(
    "text",
    ["", "192.0.2", "192.0.2.0/24", "mx.example", "\x1b[2J" * 100, "fe80::1%\x1b", "fe80::1%" + "x" * 99],
)
def test_what_is_no_address_is_refused_with_a_sentence(text: str) -> None:
    failures: list[Any] = []
    try:
        Operated().operator.why(text).addErrback(failures.append)
    except ValueError as error:
        failures.append(error)
    assert "is no address; one such as 192.0.2.1 or 2001:db8::1 is expected, or unix" in str(failures[0])


def test_an_address_of_an_interface_is_let_in_by_what_would_help() -> None:
    guard = Operated()
    guard.operator.networks.configure({"fe80::/64": "file guard.conf line 3"}, {})
    (command,) = asked(guard, "fe80::1%eth0")["would_help"]
    assert command == "smtpguardctl allow fe80::1 --for 1h"
    carry_out(guard, command)
    assert asked(guard, "fe80::1%eth0")["outcome"] == "accepted"


def test_each_limit_on_the_client_is_told_with_its_count_and_when_it_clears() -> None:
    guard = Operated(
        max_connections=9,
        max_connections_per_client=5,
        connection_rate=Rate(6, 60),
        message_rate=Rate(7, 3600),
    )
    guard.greeted().say(*ENVELOPE)
    guard.greeted("198.51.100.1")
    guard.clock.advance(10)
    assert asked(guard)["counts"] == [
        {"limit": "max-connections", "of": "all clients", "allowed": 9, "count": 2, "dry_run": False},
        {
            "limit": "max-connections-per-client",
            "of": "this client",
            "allowed": 5,
            "count": 1,
            "dry_run": False,
        },
        {
            "limit": "connection-rate",
            "of": "this client",
            "allowed": "6/60",
            "count": 1,
            "clears": "1970-01-01T00:01:00Z",
            "dry_run": False,
        },
        {
            "limit": "message-rate",
            "of": "this client",
            "allowed": "7/3600",
            "count": 1,
            "clears": "1970-01-01T01:00:00Z",
            "dry_run": False,
        },
    ]


def test_each_network_of_the_client_is_told_with_what_it_may_and_when_it_clears() -> None:
    guard = Operated(
        max_connections_per_client=5,
        message_rate=Rate(7, 3600),
        ipv6_networks=(56, 48),
        network_factor=2,
    )
    guard.greeted("2001:db8::1").say(*ENVELOPE)
    guard.clock.advance(10)
    guard.greeted("2001:db8:0:1::1").say(*ENVELOPE)
    guard.greeted("2001:db8:0:100::1").say(*ENVELOPE)
    told = [
        (row["limit"], row["of"], row["allowed"], row["count"], row.get("clears"))
        for row in asked(guard, "2001:db8:0:1::2")["counts"][1:]
    ]
    first, later = "1970-01-01T01:00:00Z", "1970-01-01T01:00:10Z"
    assert told == [
        ("max-connections-per-client", "this client", 5, 1, None),
        ("max-connections-per-client", "2001:db8::/56", 10, 2, None),
        ("max-connections-per-client", "2001:db8::/48", 20, 3, None),
        ("message-rate", "this client", "7/3600", 1, later),
        ("message-rate", "2001:db8::/56", "14/3600", 2, first),
        ("message-rate", "2001:db8::/48", "28/3600", 3, first),
    ]
    assert [row["of"] for row in asked(guard, "unix")["counts"]] == ["all clients", *["this client"] * 2]


@pytest.mark.parametrize(
    ("limit", "command"),
    [
        ({"max_connections_per_client": 2}, "smtpguardctl set max-connections-per-client 3"),
        ({"connection_rate": Rate(2, 60)}, "smtpguardctl set connection-rate 3/60"),
        ({"message_rate": Rate(1, 60)}, "smtpguardctl set message-rate 2/60"),
    ],
)
def test_a_network_that_is_full_is_named_and_what_would_let_the_client_in_does(
    limit: dict[str, Any], command: str
) -> None:
    guard = Operated(**limit, ipv4_networks=(24,), network_factor=2)
    for number in range(1, 6):
        guard.greeted(f"192.0.2.{number}").say(*ENVELOPE)
    for _ in range(3):
        # Looking changes nothing.
        answer = asked(guard, "192.0.2.9")
        assert (answer["outcome"] != "accepted", answer["network"]) == (True, "192.0.2.0/24")
    assert answer["limit"] in (4, "4/60", "2/60")
    assert asked(guard, "192.0.3.9")["outcome"] == "accepted"
    assert answer["would_help"] == [command, "smtpguardctl trust 192.0.2.9 --for 1h"]
    for each in answer["would_help"][:1]:
        carry_out(guard, each)
    assert asked(guard, "192.0.2.9")["outcome"] == "accepted"


def test_a_limit_has_cleared_at_the_time_that_was_told() -> None:
    guard = Operated(connection_rate=Rate(1, 60))
    guard.connect()
    guard.clock.advance(59)
    assert asked(guard)["counts"][1]["clears"] == "1970-01-01T00:01:00Z"
    assert asked(guard)["outcome"] == "refused"
    guard.clock.advance(1)
    assert asked(guard)["outcome"] == "accepted"
    assert guard.tries() == 220


def test_what_has_happened_to_the_client_is_told_the_latest_first() -> None:
    guard = Operated(max_recipients=1)
    client = guard.greeted()
    name = client.protocol.engine.name
    client.say(*ENVELOPE, ENVELOPE[1], "BREW coffee", "QUIT")
    guard.clock.advance(100)
    answer = asked(guard)
    assert [(row["reason"], row["session"], row["time"]) for row in answer["recent_refusals"]] == [
        ("unrecognized_command", name, "1970-01-01T00:00:00Z"),
        ("max_recipients", name, "1970-01-01T00:00:00Z"),
    ]
    (session,) = answer["recent_sessions"]
    assert (session["session"], session["reason"], session["helo"]) == (name, "quit", "client.example")


def test_an_address_finds_what_its_64_has_done() -> None:
    guard = Operated(max_connections_per_client=1)
    guard.connect("2001:db8::1")
    guard.connect("2001:db8::2")
    answer = asked(guard, "2001:db8::3")
    assert answer["client"] == "2001:db8::/64"
    assert [row["address"] for row in answer["recent_refusals"]] == ["2001:db8::2"]
    assert answer["outcome"] == "refused"


# What would help does help.


def _full(guard: Operated) -> None:
    guard.connect("192.0.2.9")


def _busy(guard: Operated) -> None:
    guard.greeted().say(*ENVELOPE)


def _deferred(guard: Operated) -> None:
    guard.operator.defer("on")


def _denied(guard: Operated) -> None:
    guard.operator.deny("192.0.2.0/24")


def _configured(guard: Operated) -> None:
    guard.operator.networks.configure({"192.0.2.0/24": "--deny"}, {})


SITUATIONS: list[tuple[str, dict[str, Any], Any, list[str]]] = [
    ("max_connections", {"max_connections": 1}, _full, ["smtpguardctl set max-connections 2"]),
    (
        "max_connections_per_client",
        {"max_connections_per_client": 1},
        _busy,
        ["smtpguardctl set max-connections-per-client 2", "smtpguardctl trust 192.0.2.1 --for 1h"],
    ),
    (
        "connection_rate",
        {"connection_rate": Rate(1, 60)},
        _busy,
        ["smtpguardctl set connection-rate 2/60", "smtpguardctl trust 192.0.2.1 --for 1h"],
    ),
    (
        "message_rate",
        {"message_rate": Rate(1, 60)},
        _busy,
        ["smtpguardctl set message-rate 2/60", "smtpguardctl trust 192.0.2.1 --for 1h"],
    ),
    (
        "recipient_rate",
        {"recipient_rate": Rate(1, 60)},
        _busy,
        ["smtpguardctl set recipient-rate 2/60", "smtpguardctl trust 192.0.2.1 --for 1h"],
    ),
    ("deferred", {}, _deferred, ["smtpguardctl defer off"]),
    ("ip_filter", {}, _denied, ["smtpguardctl remove 192.0.2.0/24"]),
    ("ip_filter", {}, _configured, ["smtpguardctl allow 192.0.2.1 --for 1h"]),
    (
        "ip_filter",
        {"ip_filters": [FakeFilter(refuse())]},
        lambda _: None,
        ["smtpguardctl trust 192.0.2.1 --for 1h"],
    ),
    (
        "ip_filter",
        {"ip_filters": [FakeFilter(refuse())]},
        _configured,
        ["smtpguardctl trust 192.0.2.1 --for 1h"],
    ),
    (
        "internal_error",
        {"ip_filters": [FakeFilter("no verdict")]},
        lambda _: None,
        ["smtpguardctl trust 192.0.2.1 --for 1h"],
    ),
]


@pytest.mark.parametrize(("reason", "arguments", "situation", "commands"), SITUATIONS)
def test_each_command_that_would_help_lets_the_client_in(
    reason: str, arguments: dict[str, Any], situation: Any, commands: list[str]
) -> None:
    for command in commands:
        guard = Operated(**arguments)
        situation(guard)
        answer = asked(guard)
        assert (answer["reason"], answer["would_help"]) == (reason, commands)
        assert answer["outcome"] == ("refused" if answer["step"] == "connection" else "deferred")
        carry_out(guard, command)
        assert (asked(guard)["outcome"], asked(guard)["would_help"]) == ("accepted", [])
        client = guard.greeted()
        assert client.codes(*ENVELOPE) == [250, 250]


def test_a_configured_deny_of_the_very_address_has_to_go() -> None:
    guard = Operated()
    guard.operator.networks.configure({ADDRESS: "file /etc/smtpguard/guard.conf line 7"}, {})
    assert asked(guard)["would_help"] == [
        "the deny of 192.0.2.1 in file /etc/smtpguard/guard.conf line 7 must go, and then: smtpguardctl reload"
    ]


def test_the_filters_are_told_in_their_order_with_what_they_say() -> None:
    slow = SlowFilter()
    guard = Operated(ip_filters=[FilterEntry(slow, "slow"), FilterEntry(FakeFilter(TRUST), "last")])
    guard.operator.deny("198.51.100.0/24")
    answers: list[Any] = []
    guard.operator.why(ADDRESS).addCallback(answers.append)
    assert answers == []
    slow.asked[0].callback(refuse(rule="list 3"))
    (answer,) = answers
    rows = [(row["filter"], row["asked"], row["verdict"], row.get("rule")) for row in answer["filters"]]
    assert rows == [
        ("deny/trust", True, "pass", None),
        ("slow", True, "refuse", "list 3"),
        ("last", False, "trust", None),
    ]


def test_what_is_in_dry_run_is_told_apart() -> None:
    guard = Operated(connection_rate=Rate(1, 60), dry_run={"connection_rate"})
    guard.connect()
    answer = asked(guard)
    assert answer["outcome"] == "accepted"
    assert [row["reason"] for row in answer["in_dry_run"]] == ["connection_rate"]
    assert answer["counts"][1]["dry_run"]


def test_a_refusal_that_a_filter_has_in_dry_run_is_told_apart() -> None:
    guard = Operated(ip_filters=[FakeFilter(refuse(rule="bl:127.0.0.2", dry_run=True))])
    answer = asked(guard)
    assert answer["outcome"] == "accepted"
    assert [(row["reason"], row["rule"]) for row in answer["in_dry_run"]] == [("ip_filter", "bl:127.0.0.2")]
    (row,) = [row for row in answer["filters"] if row["filter"] == "FakeFilter"]
    assert (row["verdict"], row["dry_run"]) == ("refuse", True)
    assert answer["would_help"] == []


@implementer(ICounterStore)
class AwayStore:
    lease_seconds = 0

    def take(self, *_: object) -> Any:
        raise CounterStoreUnavailable("no store")

    give_back = look = renew = take


def test_while_the_counter_store_is_away_the_counts_are_those_of_this_guard() -> None:
    guard = Operated(counters=AwayStore(), max_connections=9, connection_rate=Rate(1, 60))
    assert not asked(guard)["counts_alone"]
    guard.connect()
    answer = asked(guard)
    assert answer["counts_alone"]
    assert (answer["outcome"], answer["reason"]) == ("refused", "connection_rate")
    counts = [(row["limit"], row["of"], row["allowed"], row["count"]) for row in answer["counts"]]
    assert counts == [
        ("max-connections", "all clients", 9, 1),
        ("connection-rate", "this client", "1/60", 1),
    ]


def test_what_a_client_has_to_do_first_is_told() -> None:
    guard = Operated()
    guard.factory.context.require_auth = True
    assert asked(guard)["demands"] == ["auth"]


def test_the_verb_answers_with_a_deferred() -> None:
    assert isinstance(Operated().operator.carry_out("why", {"address": "unix"}), Deferred)
    assert asked(Operated(), "unix")["client"] == "unix"


# What gives a verdict.


@implementer(IExplainingFilter)
class Explaining(FakeFilter):
    """Says what a test sets."""

    def __init__(self, answer: Any, because: Any) -> None:
        super().__init__(answer)
        self._because = because

    def explain(self, peer: Peer) -> Any:
        return self._because() if callable(self._because) else self._because


def test_the_line_that_refuses_is_told_and_has_to_go() -> None:
    guard = Operated(
        ip_filters=[
            Explaining(PASS, ""),
            FilterEntry(
                Explaining(refuse(rule="192.0.2.0/24"), "/etc/x line 7: deny 192.0.2.0/24"), "networks"
            ),
            Explaining(TRUST, succeed("/etc/y line 1: trust \x1b")),
        ]
    )
    answer = asked(guard)
    assert [row.get("because") for row in answer["filters"]] == [
        None,
        "/etc/x line 7: deny 192.0.2.0/24",
        "/etc/y line 1: trust \\x1b",
    ]
    assert answer["would_help"] == [
        "smtpguardctl trust 192.0.2.1 --for 1h",
        "/etc/x line 7: deny 192.0.2.0/24 must go, and then: smtpguardctl reload",
    ]


def _raise() -> None:
    raise OSError("no \x1b file")


@pytest.mark.parametrize("because", [_raise, lambda: fail(ValueError("it cannot be read"))])
def test_a_filter_that_cannot_explain_itself_is_told_of(because: Any) -> None:
    guard = Operated(ip_filters=[FilterEntry(Explaining(refuse(), because), "networks")])
    answer = asked(guard)
    assert answer["outcome"] == "refused"
    (problem,) = answer["problems"]
    assert problem.startswith("networks: ")
    assert problem.isprintable()


def test_an_explanation_that_never_comes_has_the_time_of_a_filter() -> None:
    guard = Operated(ip_filters=[Explaining(refuse(), Deferred)], ip_filter_timeout=10)
    answers: list[Any] = []
    guard.operator.why(ADDRESS).addCallback(answers.append)
    guard.clock.advance(11)
    assert len(answers[0]["problems"]) == 1


def test_the_rule_of_an_operator_is_told_with_who_made_it() -> None:
    guard = Operated()
    guard.operator.networks.configure({"192.0.2.0/24": "file /etc/guard.conf line 3"}, {})
    guard.operator.trust("192.0.2.1", 60)
    assert asked(guard)["filters"][0]["because"] == (
        "trust 192.0.2.1, application until 1970-01-01T00:01:00Z"
    )
    assert asked(guard, "192.0.2.2")["filters"][0]["because"] == (
        "deny 192.0.2.0/24, file /etc/guard.conf line 3"
    )
    assert "because" not in asked(guard, "2001:db8::1")["filters"][0]
    assert "because" not in asked(guard, "unix")["filters"][0]


def test_wrong_passwords_are_told_with_when_they_clear_and_refuse_where_mail_needs_a_login() -> None:
    guard = Operated(checkers=[Checker(UnauthorizedLogin())], require_auth=True, max_auth_failures=0)
    answer = asked(guard)
    assert (answer["outcome"], answer["replies"]["AUTH"][:3]) == ("accepted", "235")
    guard.clock.advance(60)
    assert guard.greeted().codes(*[f"AUTH PLAIN {plain()}"] * 12) == [535] * 10 + [454] * 2
    answer = asked(guard)
    (row,) = [each for each in answer["counts"] if each["limit"] == "auth-failure-rate"]
    assert (row["count"], row["allowed"], row["clears"]) == (10, "10/600", "1970-01-01T00:11:00Z")
    assert (answer["outcome"], answer["step"], answer["reason"]) == ("deferred", "AUTH", "auth_failure_rate")
    assert (answer["limit"], answer["value"]) == ("10/600", 11)
    assert answer["reply"] == "454 4.7.0 Temporary authentication failure"
    assert answer["would_help"] == [
        "smtpguardctl set auth-failure-rate 15/600",
        "smtpguardctl trust 192.0.2.1 --for 1h",
    ]
    for command in answer["would_help"]:
        carry_out(guard, command)
        assert asked(guard)["outcome"] == "accepted"
        guard.operator.set("auth-failure-rate", "10/600")


def test_wrong_passwords_refuse_no_mail_that_needs_no_login() -> None:
    guard = Operated(checkers=[Checker(UnauthorizedLogin())], auth_failure_rate=Rate(1, 60))
    guard.greeted().say(*[f"AUTH PLAIN {plain()}"] * 2)
    answer = asked(guard)
    assert (answer["outcome"], "AUTH" in answer["replies"]) == ("accepted", False)


def test_passwords_that_are_being_checked_are_not_waited_for() -> None:
    guard = Operated(checkers=[Checker(Deferred())], require_auth=True, auth_failure_rate=Rate(1, 60))
    guard.greeted().say(f"AUTH PLAIN {plain()}")
    assert asked(guard)["outcome"] == "accepted"


def test_policies_are_told_and_not_asked() -> None:
    grey, spf = FakePolicy(None, "rcpt", "mail"), FakePolicy(None, "connect")
    guard = Operated(
        ip_filters=[FakeFilter(TRUST)],
        policies=[
            PolicyEntry(grey, "grey", strangers_only=True, fail_open=True),
            PolicyEntry(spf, "spf\x1b"),
        ],
        dry_run=frozenset({"policy:grey"}),
    )
    assert asked(guard)["policies"] == [
        {
            "policy": "grey",
            "stages": ["mail", "rcpt"],
            "asks_this_client": False,
            "fail_open": True,
            "dry_run": True,
        },
        {
            "policy": "spf\\x1b",
            "stages": ["connect"],
            "asks_this_client": True,
            "fail_open": False,
            "dry_run": False,
        },
    ]
    assert grey.requests == spf.requests == []
