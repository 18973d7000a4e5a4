"""A connection's place among those of its client is given back exactly once, however the connection ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from fakes import Conversation, FakeFilter, Guard, SlowFilter
from logbook import Logbook, logbook
from test_protocol_ends import ENDS, ENVELOPE
from twisted.internet.defer import Deferred

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.counters.decision import fits
from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.interfaces import PASS, TRUST, refuse
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.values import Wanted

GREETING = "220 guard.example ESMTP ready\r\n"
End = Callable[[Conversation], object]


class Ledger(LocalCounterStore):
    """A counter store that keeps account of places."""

    def __init__(self) -> None:
        super().__init__(0)
        self.taken = 0
        self.returned = 0

    def take(self, owner: str, wanted: Sequence[Wanted]) -> list[int]:
        counts = super().take(owner, wanted)
        self.taken += fits(wanted, counts)
        return counts

    def give_back(self, owner: str, taken: Iterable[Wanted]) -> None:
        self.returned += 1
        super().give_back(owner, taken)


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def guarded(places: int = 1, **limits: Any) -> tuple[Guard, Ledger]:
    """A guard that lets each client have so many connections."""
    ledger = Ledger()
    guard = Guard(counters=ledger, max_connections_per_client=places, **limits)
    ledger._seconds = guard.clock.seconds
    return guard, ledger


def lingers(client: Conversation) -> bool:
    """Whether the guard has said its last line and is still there for a client that may be still sending."""
    return client.transport.half_closed and not client.transport.lost


# Sessions. Each returns the last that the client hears.


def errs(client: Conversation) -> str:
    return client.say(*["EXPN x"] * 20)


def drips(client: Conversation) -> str:
    client.say(*ENVELOPE, "DATA")
    for _ in range(120):
        client.send(b"x\r\n")
        client.guard.clock.advance(1)
    return client.heard()


def stays_too_long(client: Conversation) -> str:
    for _ in range(9):
        client.say("NOOP")
        client.guard.clock.advance(200)
    return client.heard()


def sends_too_many_messages(client: Conversation) -> str:
    return client.say(*[ENVELOPE[0], "RSET"] * 2)


def sends_data_without_end(client: Conversation) -> str:
    client.say(*ENVELOPE, "DATA")
    return client.send(b"x" * 3_000_000)


def loses_track_of_chunks(client: Conversation) -> str:
    return client.say("BDAT x")


def cannot_wait(client: Conversation) -> str:
    return client.say("EHLO x", "NOOP")


SESSION_ENDS = [
    (errs, "Too many errors, closing connection"),
    (drips, "Data transfer too slow, closing connection"),
    (stays_too_long, "Session time limit reached, closing connection"),
    (sends_too_many_messages, "Too many messages, please reconnect"),
    (sends_data_without_end, "Message too large, closing connection"),
    (loses_track_of_chunks, "Protocol error: malformed BDAT"),
    (cannot_wait, "Protocol error: unexpected pipelined input"),
]


@pytest.mark.parametrize("end", ENDS)
def test_a_place_is_given_back_however_the_connection_ends(end: End) -> None:
    guard, ledger = guarded(2)
    client = guard.greeted()
    end(client)
    assert ledger.returned == ledger.taken > 0
    guard.clock.advance(6)
    client.disconnect()
    assert ledger.returned == ledger.taken
    guard.factory.reopen()
    assert [guard.connect().closed for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(("end", "text"), SESSION_ENDS)
def test_a_place_is_given_back_by_whatever_limit_the_connection_ends(
    end: Callable[[Conversation], str], text: str
) -> None:
    guard, ledger = guarded(
        max_errors=20,
        max_messages=1,
        max_message_size=1_000_000,
        min_data_rate=500,
        max_session_time=1800,
        unexpected_pipelining="refuse",
    )
    client = guard.greeted()
    assert end(client).endswith(f" {text}\r\n")
    assert lingers(client)
    assert (ledger.taken, ledger.returned) == (1, 1)
    assert guard.connect().heard() == GREETING
    guard.clock.advance(6)
    assert client.transport.aborted
    assert (ledger.taken, ledger.returned) == (2, 1)


# Before the greeting.


def test_who_is_refused_above_the_cap_has_no_place_to_give_back() -> None:
    guard, ledger = guarded()
    client = guard.connect()
    guard.connect()
    assert (ledger.taken, ledger.returned) == (1, 0)
    client.disconnect()
    assert (ledger.taken, ledger.returned) == (1, 1)


def test_a_client_refused_by_the_rate_takes_no_place() -> None:
    guard, ledger = guarded(2, connection_rate=Rate(1, 60))
    first = guard.connect()
    for _ in range(5):
        assert guard.connect().heard() == "421 4.7.0 Connection rate exceeded, try again later\r\n"
    assert (ledger.taken, ledger.returned) == (1, 0)
    guard.clock.advance(60)
    assert guard.connect().heard() == GREETING
    first.disconnect()
    assert (ledger.taken, ledger.returned) == (2, 1)


@pytest.mark.parametrize("end", [Conversation.disconnect, Conversation.half_close])
@pytest.mark.parametrize("waits_for", ["filter", "greeting"])
def test_who_leaves_while_it_waits_gives_its_place_back(end: End, waits_for: str) -> None:
    slow = SlowFilter()
    guard, ledger = guarded(ip_filters=[slow] if waits_for == "filter" else [], greet_delay=2)
    client = guard.connect()
    assert (ledger.taken, ledger.returned) == (1, 0)
    assert guard.connect().heard().startswith("421 4.7.0 Too many connections from your address")
    end(client)
    assert (ledger.taken, ledger.returned) == (1, 1)
    guard.clock.advance(20)
    assert (ledger.taken, ledger.returned) == (1, 1)
    assert guard.factory.connections == 0


def is_refused(guard: Guard, asked: Deferred[Any]) -> None:
    asked.callback(refuse())


def meets_a_fault(guard: Guard, asked: Deferred[Any]) -> None:
    asked.errback(ValueError())


def is_kept_waiting(guard: Guard, asked: Deferred[Any]) -> None:
    guard.clock.advance(10.1)


@pytest.mark.parametrize(
    ("fate", "text"),
    [
        (is_refused, "Connection refused"),
        (meets_a_fault, "Internal error, try again later"),
        (is_kept_waiting, "Internal error, try again later"),
    ],
)
def test_who_is_refused_after_a_wait_gives_its_place_back(
    fate: Callable[[Guard, Deferred[Any]], None], text: str, log: Logbook
) -> None:
    slow = SlowFilter()
    guard, ledger = guarded(ip_filters=[slow])
    client = guard.connect()
    fate(guard, slow.asked[0])
    log.take("failure")
    assert client.heard().endswith(f" {text}\r\n")
    assert lingers(client)
    assert (ledger.taken, ledger.returned) == (1, 1)
    guard.connect()
    assert len(slow.asked) == 2, "not refused by the cap"
    guard.clock.advance(6)
    assert client.transport.aborted
    assert (ledger.taken, ledger.returned) == (2, 1)


def test_an_early_talker_gives_its_place_back() -> None:
    guard, ledger = guarded(greet_delay=2, early_talker="refuse")
    client = guard.connect()
    client.send(b"E")
    assert (ledger.taken, ledger.returned) == (1, 1)
    guard.clock.advance(6)
    assert (ledger.taken, ledger.returned) == (1, 1)


def test_who_waits_when_the_service_stops_gives_its_place_back() -> None:
    guard, ledger = guarded(2, ip_filters=[SlowFilter()])
    guard.connect()
    guard.connect()
    stopped = guard.factory.drain()
    assert (ledger.taken, ledger.returned) == (2, 2)
    guard.clock.advance(6)
    assert stopped.called
    assert (ledger.taken, ledger.returned) == (2, 2)


def test_a_refusal_that_is_not_read_holds_no_place() -> None:
    slow = SlowFilter()
    guard, ledger = guarded(ip_filters=[slow])
    client = guard.connect()
    client.transport.reads = False
    slow.asked[0].callback(refuse())
    assert not client.closed
    assert (ledger.taken, ledger.returned) == (1, 1)
    guard.clock.advance(300.1)
    assert client.transport.aborted
    assert (ledger.taken, ledger.returned) == (1, 1)


def test_who_turns_out_to_be_trusted_gives_its_place_back_at_once() -> None:
    slow = SlowFilter()
    guard, ledger = guarded(ip_filters=[slow])
    client = guard.connect()
    assert (ledger.taken, ledger.returned) == (1, 0)
    slow.asked[0].callback(TRUST)
    assert client.heard() == GREETING
    assert (ledger.taken, ledger.returned) == (1, 1)
    client.say("QUIT")
    assert (ledger.taken, ledger.returned) == (1, 1)


def test_a_filter_that_lets_a_waiting_client_in_leaves_it_its_place() -> None:
    slow = SlowFilter()
    guard, ledger = guarded(ip_filters=[FilterEntry(slow, fail_open=True), FakeFilter(PASS)])
    client = guard.connect()
    guard.clock.advance(10.1)
    assert client.heard() == GREETING
    assert (ledger.taken, ledger.returned) == (1, 0)
    client.say("QUIT")
    assert (ledger.taken, ledger.returned) == (1, 1)


def test_a_thousand_visits_leave_no_client_in_the_table() -> None:
    guard, ledger = guarded(connection_rate=Rate(500, 60))
    for number in range(1000):
        client = guard.connect()
        if number % 3:
            client.disconnect()
        else:
            client.say("QUIT")
    assert ledger.taken == ledger.returned == 500, "the others were refused by the rate, and took none"
    assert not ledger._tables["max_connections_per_client"]
