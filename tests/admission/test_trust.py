"""Whom an IP filter trusts: which limits do not hold for it, and which still do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakes import Conversation, FakeFilter, Guard, SlowFilter, delivery_without_nobody
from logbook import Logbook, logbook
from twisted.internet.defer import succeed

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.interfaces import PASS, TRUST, Peer, Verdict, refuse
from twisted_smtpguard.limits.limits import Limits, dry_runnable
from twisted_smtpguard.limits.units import Rate

GREETING = "220 guard.example ESMTP ready\r\n"
MAIL, RCPT, NOBODY = "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "RCPT TO:<nobody@d>"
FRIEND, STRANGER = "192.0.2.1", "198.51.100.7"


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def judge(peer: Peer) -> Verdict:
    return TRUST if str(peer.address) == FRIEND else PASS


def guarded(**limits: Any) -> Guard:
    """A guard that trusts FRIEND and nobody else, with a delivery that does not know nobody@."""
    return Guard(delivery_without_nobody(), ip_filters=[FakeFilter(judge)], **limits)


def codes_of(client: Conversation, *lines: str) -> list[int]:
    """The codes of the replies to these lines, which follow an EHLO."""
    client.say("EHLO x")
    return client.codes(*lines)


# What does not hold.


@pytest.mark.parametrize(
    ("limit", "value"), [("max_connections_per_client", 1), ("connection_rate", Rate(1, 60))]
)
def test_a_trusted_client_has_any_number_of_connections(limit: str, value: Any) -> None:
    guard = guarded(**{limit: value})
    assert [guard.connect(FRIEND).closed for _ in range(50)] == [False] * 50
    assert [guard.connect(STRANGER).closed for _ in range(3)] == [False, True, True]


@pytest.mark.parametrize(
    ("limits", "lines", "trusted", "stranger"),
    [
        ({"message_rate": Rate(1, 60)}, [MAIL, "RSET", MAIL], [250, 250, 250], [250, 250, 450]),
        ({"recipient_rate": Rate(1, 60)}, [MAIL, RCPT, RCPT], [250, 250, 250], [250, 250, 450]),
        ({"max_invalid_commands": 2}, ["BREW", "DATA", "BREW"], [500, 503, 500], [500, 503, 421]),
        ({"max_errors": 2}, ["EXPN x", "MAIL", "NOOP"], [502, 501, 250], [502, 501, 421]),
        (
            {"max_errors": 2, "max_junk_commands": 1},
            ["NOOP", "NOOP", "RSET", "VRFY x"],
            [250, 250, 250, 252],
            [250, 250, 250, 421],
        ),
        (
            {"max_rejected_recipients": 2},
            [MAIL, NOBODY, NOBODY, NOBODY],
            [250, 550, 550, 550],
            [250, 550, 550, 421],
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_rates_and_error_limits_do_not_hold_for_a_trusted_client(
    limits: dict[str, Any], lines: list[str], trusted: list[int], stranger: list[int]
) -> None:
    guard = guarded(**limits)
    assert codes_of(guard.connect(FRIEND), *lines) == trusted
    assert codes_of(guard.connect(STRANGER), *lines) == stranger


def test_what_a_trusted_client_does_counts_against_no_client() -> None:
    answers = [TRUST, TRUST, PASS, PASS]
    guard = Guard(
        ip_filters=[FakeFilter(lambda _: answers.pop(0))],
        max_connections_per_client=1,
        connection_rate=Rate(1, 60),
        message_rate=Rate(1, 60),
    )
    assert codes_of(guard.connect(), MAIL, "RSET", MAIL) == [250] * 3
    assert codes_of(guard.connect(), MAIL, "RSET", MAIL) == [250] * 3
    assert codes_of(guard.connect(), MAIL) == [250]
    assert guard.connect().closed


def test_a_trusted_client_is_greeted_without_delay() -> None:
    guard = guarded(greet_delay=2)
    assert guard.connect(FRIEND).heard() == GREETING
    stranger = guard.connect(STRANGER)
    assert stranger.heard() == ""
    guard.clock.advance(2.1)
    assert stranger.heard() == GREETING


def test_a_trusted_client_may_speak_before_its_greeting() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow], early_talker="refuse")
    friend, stranger = guard.connect(FRIEND), guard.connect(STRANGER)
    assert friend.say("EHLO x") == stranger.say("EHLO x") == ""
    slow.asked[0].callback(TRUST)
    slow.asked[1].callback(PASS)
    assert friend.heard().startswith(GREETING + "250-guard.example\r\n")
    assert stranger.heard() == "421 4.7.0 Protocol error: client spoke before the greeting\r\n"


def test_under_the_edge_profile_a_trusted_client_is_held_to_none_of_these_and_nothing_is_logged(
    log: Logbook,
) -> None:
    guard = Guard(
        delivery_without_nobody(),
        ip_filters=[FakeFilter(TRUST)],
        **{spec.name: spec.edge for spec in Limits.specs()},
    )
    clients = [guard.connect() for _ in range(100)]
    for client in clients:
        assert 421 not in codes_of(client, *["NOOP"] * 30, *["BREW"] * 30, MAIL, *[NOBODY] * 30)
    assert guard.factory.statistics.connections_refused == 0
    assert not [line for line in log.take("reject") if "dry_run" in line]


# What still holds.


def test_a_trusted_client_counts_among_all_connections() -> None:
    guard = guarded(max_connections=2)
    assert [guard.connect(FRIEND).closed for _ in range(3)] == [False, False, True]
    assert guard.connect(STRANGER).closed


@pytest.mark.parametrize(
    ("limits", "lines", "replies"),
    [
        ({"max_recipients": 1}, [MAIL, RCPT, RCPT], [250, 250, 452]),
        ({"max_messages": 1}, [MAIL, "RSET", MAIL], [250, 250, 421]),
        ({"max_message_size": 9}, ["MAIL FROM:<> SIZE=10"], [552]),
        ({"max_message_size": 9}, [MAIL, RCPT, "DATA", "1234567890", "."], [250, 250, 354, 552]),
        ({}, [MAIL, RCPT, "DATA", "\n", "."], [250, 250, 354, 550]),
        ({"max_header_size": 9}, [MAIL, RCPT, "DATA", "a: bcdefgh", "", "."], [250, 250, 354, 552]),
        ({}, [MAIL, RCPT, "DATA", *["Received: x"] * 101, "."], [250, 250, 354, 554]),
        ({"unexpected_pipelining": "refuse"}, [MAIL, RCPT, "DATA", "."], [250, 250, 421]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_size_recipients_and_messages_hold_for_a_trusted_client_too(
    limits: dict[str, Any], lines: list[str], replies: list[int]
) -> None:
    assert codes_of(guarded(**limits).connect(FRIEND), *lines) == replies


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"read_timeout": 10}, "Timeout waiting for client"),
        ({"max_session_time": 10}, "Session time limit reached"),
    ],
)
def test_time_limits_hold_for_a_trusted_client_too(limits: dict[str, Any], text: str) -> None:
    client = guarded(**limits).greeted(FRIEND)
    client.heard()
    client.guard.clock.advance(10.1)
    assert client.heard() == f"421 4.4.2 {text}, closing connection\r\n"


def test_the_session_time_of_a_trusted_client_also_ends_after_its_transaction() -> None:
    client = guarded(max_session_time=10).greeted(FRIEND)
    client.say(MAIL, RCPT, "DATA")
    client.guard.clock.advance(10.1)
    assert client.codes(".") == [250, 421]


def test_message_data_has_to_come_fast_enough_from_a_trusted_client_too() -> None:
    client = guarded(min_data_rate=500).greeted(FRIEND)
    client.say(MAIL, RCPT, "DATA")
    for _ in range(120):
        client.send(b"x\r\n")
        client.heard()
        client.guard.clock.advance(1)
    assert client.heard() == "421 4.4.2 Data transfer too slow, closing connection\r\n"


# Who is trusted, and who is told.


@pytest.mark.parametrize(("host", "trusted"), [(FRIEND, True), (STRANGER, False)])
def test_the_delivery_and_the_log_are_told_whether_a_client_is_trusted(
    host: str, trusted: bool, log: Logbook
) -> None:
    client = guarded().greeted(host)
    client.say(MAIL, RCPT, "DATA", ".")
    assert client.guard.delivery.messages[0].client.trusted is trusted
    word = " trusted=true" if trusted else ""
    assert log.take("connect") == [
        f"connect session={client.protocol.engine.name} peer={host}{word} port=4711"
    ]


async def coroutine(verdict: Verdict) -> Verdict:
    return verdict


@pytest.mark.parametrize(
    "wrapped", [lambda verdict: verdict, succeed, coroutine], ids=["value", "Deferred", "coroutine"]
)
def test_trust_that_is_there_at_once_comes_before_the_limits_of_the_client(wrapped: Any) -> None:
    guard = Guard(
        ip_filters=[FakeFilter(PASS), FakeFilter(lambda _: wrapped(TRUST))],
        max_connections_per_client=1,
        connection_rate=Rate(1, 60),
    )
    assert [guard.connect().heard() for _ in range(10)] == [GREETING] * 10


def test_no_client_is_trusted_before_its_filter_has_answered() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow], max_connections_per_client=2)
    assert [guard.connect().closed for _ in range(3)] == [False, False, True]
    for asked in slow.asked[:2]:
        asked.callback(TRUST)
    assert not guard.connect().closed, "who is trusted holds no place"


def test_a_filter_after_the_one_that_trusts_is_not_asked() -> None:
    behind = FakeFilter(refuse())
    assert Guard(ip_filters=[FakeFilter(TRUST), behind]).connect().heard() == GREETING
    assert behind.peers == []


def test_a_filter_that_fails_open_trusts_no_client(log: Logbook) -> None:
    def check(_: Peer) -> Verdict:
        raise LookupError("no list")

    guard = Guard(ip_filters=[FilterEntry(FakeFilter(check), fail_open=True)], max_connections_per_client=1)
    assert [guard.connect().closed for _ in range(2)] == [False, True]
    assert len(log.take("failure")) == 2


def test_what_does_not_hold_for_a_trusted_client_is_not_tried_on_it_either() -> None:
    limits: dict[str, Any] = {
        "max_connections_per_client": 1,
        "connection_rate": Rate(1, 60),
        "message_rate": Rate(1, 60),
        "recipient_rate": Rate(1, 60),
        "max_invalid_commands": 1,
        "max_errors": 1,
        "max_junk_commands": 1,
        "max_rejected_recipients": 1,
        "early_talker": "refuse",
    }
    guard = guarded(**limits, dry_run=dry_runnable())
    lines = ["NOOP", "NOOP", "BREW", "BREW", MAIL, NOBODY, NOBODY, RCPT, "RSET", MAIL]
    for _ in range(2):
        codes_of(guard.connect(FRIEND), *lines)
    assert guard.factory.statistics.dry_run_refusals == {}
    for _ in range(2):
        codes_of(guard.connect(STRANGER), *lines)
    assert set(guard.factory.statistics.dry_run_refusals) == set(limits) - {"early_talker"}
