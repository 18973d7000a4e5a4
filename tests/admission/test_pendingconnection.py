"""Between accept and the greeting: early talkers, the greet delay, and what a client counts for while it waits."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import pytest_twisted
from fakes import FakeFilter, FakeTransport, Guard, SlowFilter
from loopback import Loopback
from twisted.internet import address
from twisted.internet.interfaces import ISSLTransport
from twisted.logger import capturedLogs
from zope.interface import directlyProvides

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.interfaces import PASS, TRUST, refuse
from twisted_smtpguard.limits.units import Rate

GREETING = "220 guard.example ESMTP ready\r\n"
EARLY = "421 4.7.0 Protocol error: client spoke before the greeting\r\n"
TOO_MANY = "421 4.7.0 Too many connections from your address, try again later\r\n"


def told(guard: Guard) -> dict[str, int]:
    return guard.factory.statistics.dry_run_refusals


# Greet delay.


def test_the_greeting_comes_after_the_delay() -> None:
    guard = Guard(greet_delay=2)
    client = guard.connect()
    guard.clock.advance(1.9)
    assert client.heard() == ""
    guard.clock.advance(0.2)
    assert client.heard() == GREETING
    assert client.codes("EHLO a") == [250]


def test_the_delay_begins_when_the_filters_are_through() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow], greet_delay=2)
    client = guard.connect()
    guard.clock.advance(9)
    slow.asked[0].callback(PASS)
    guard.clock.advance(1.9)
    assert client.heard() == ""
    guard.clock.advance(0.2)
    assert client.heard() == GREETING


def test_there_is_no_greet_delay_when_more_than_four_fifths_of_the_slots_are_taken() -> None:
    guard = Guard(greet_delay=2, max_connections=10)
    assert [guard.connect().heard() for _ in range(10)] == [""] * 8 + [GREETING] * 2


def test_a_cap_in_dry_run_makes_no_crowd() -> None:
    guard = Guard(greet_delay=2, max_connections=2, dry_run=["max_connections"])
    assert [guard.connect().heard() for _ in range(4)] == [""] * 4


def test_the_read_timeout_begins_with_the_greeting() -> None:
    guard = Guard(greet_delay=20, read_timeout=10)
    client = guard.connect()
    guard.clock.advance(20.1)
    assert client.heard() == GREETING
    guard.clock.advance(9.8)
    assert not client.closed
    guard.clock.advance(0.3)
    assert client.heard() == "421 4.4.2 Timeout waiting for client, closing connection\r\n"


@pytest.mark.parametrize("close", ["disconnect", "half_close"])
def test_a_client_that_leaves_within_the_delay_leaves_no_state(close: str) -> None:
    guard = Guard(greet_delay=2)
    client = guard.connect()
    getattr(client, close)()
    assert guard.factory.connections == 0
    assert guard.clock.getDelayedCalls() == []
    assert guard.factory.statistics.hangups == 1


def test_who_waits_for_the_greeting_when_the_service_stops_is_told_so() -> None:
    guard = Guard(greet_delay=2)
    client = guard.connect()
    guard.factory.drain()
    assert client.heard() == "421 4.3.2 Server shutting down\r\n"
    guard.clock.advance(5.1)
    assert guard.factory._open == set()


# Early talkers.


def test_an_early_talker_is_refused_at_its_first_octet_within_the_delay() -> None:
    guard = Guard(greet_delay=2, early_talker="refuse")
    client = guard.connect()
    assert client.send(b"E") == EARLY
    assert client.transport.half_closed
    assert client.send(b"HLO a\r\n") == ""
    assert guard.factory.connections == 0
    assert guard.factory.statistics.refusals == {"early_talker": 1}


def test_while_a_filter_is_pending_an_early_talker_may_turn_out_to_be_trusted() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow], early_talker="refuse")
    trusted, other = guard.connect(), guard.connect()
    assert trusted.say("HELO a") == other.say("HELO a") == ""
    slow.asked[0].callback(TRUST)
    slow.asked[1].callback(PASS)
    assert trusted.heard() == f"{GREETING}250 guard.example\r\n"
    assert other.heard() == EARLY


def test_a_filter_that_refuses_is_heard_before_the_early_talker_rule() -> None:
    slow = SlowFilter()
    client = Guard(ip_filters=[slow], early_talker="refuse").connect()
    client.send(b"E")
    slow.asked[0].callback(refuse())
    assert client.heard() == "421 4.7.0 Connection refused\r\n"


@pytest.mark.parametrize("bytewise", [False, True])
def test_where_it_is_only_logged_what_came_early_is_served(bytewise: bool) -> None:
    guard = Guard(greet_delay=2)
    client = guard.connect()
    with capturedLogs() as events:
        assert client.send(b"HELO a\r\nNOOP\r\nQUI", bytewise=bytewise) == ""
        guard.clock.advance(2)
        assert client.heard() == f"{GREETING}250 guard.example\r\n250 2.0.0 OK\r\n"
    assert client.codes("T") == [221]
    lines = [event["text"] for event in events if event.get("event") == "reject"]
    assert lines == ["reject peer=192.0.2.1 reason=early_talker dry_run=true limit=log port=4711"]
    assert told(guard) == {"early_talker": 1}
    assert guard.factory.statistics.refusals == {}


def test_early_input_is_held_in_a_bounded_buffer() -> None:
    guard = Guard(greet_delay=2)
    client = guard.connect()
    client.send(b"NOOP\r\n" * 11_000)
    assert client.transport.producerState == "paused"
    guard.clock.advance(2)
    guard.clock.pump([0] * 2000)
    assert client.transport.producerState == "producing"
    assert client.heard().count("250 2.0.0 OK\r\n") == 11_000


def test_under_tls_the_first_input_is_the_handshake_and_no_client_is_early() -> None:
    guard = Guard(greet_delay=2, early_talker="refuse")
    transport = FakeTransport()
    directlyProvides(transport, ISSLTransport)
    transport.setTcpNoDelay = lambda _: None  # type: ignore[attr-defined]
    protocol: Any = guard.factory.buildProtocol(address.IPv4Address("TCP", "192.0.2.1", 4711))
    transport.protocol = protocol
    protocol.makeConnection(transport)
    transport.getPeerCertificate = lambda: None  # type: ignore[attr-defined]
    transport.getHandle = Mock  # type: ignore[attr-defined]
    protocol.handshakeCompleted()
    protocol.dataReceived(b"HELO a\r\n")
    guard.clock.advance(2)
    assert transport.value() == f"{GREETING}250 guard.example\r\n".encode()


@pytest_twisted.ensureDeferred
async def test_what_came_with_the_connection_is_early_too() -> None:
    guard = Loopback(early_talker="refuse")
    guard.start()
    early, patient = guard.client(), guard.client()
    early.send(b"EHLO a\r\n")
    await patient.hears(GREETING.encode())
    await early.hears_the_end()
    assert early.heard == EARLY.encode()
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_the_base_profile_serves_and_logs_what_came_with_the_connection() -> None:
    guard = Loopback()
    guard.start()
    early = guard.client()
    early.send(b"EHLO a\r\n")
    await early.hears(b"250 ENHANCEDSTATUSCODES")
    assert guard.factory.statistics.dry_run_refusals == {"early_talker": 1}
    await guard.close()


# What counts while a filter takes its time.


def test_the_cap_of_a_client_holds_while_its_filters_are_pending() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow], max_connections_per_client=2)
    waiting = [guard.connect(), guard.connect()]
    assert guard.connect().heard() == TOO_MANY
    assert slow.cancelled == 1
    assert guard.connect("192.0.2.2").heard() == ""
    slow.asked[0].callback(PASS)
    assert [client.heard() for client in waiting] == [GREETING, ""]
    assert guard.connect().heard() == TOO_MANY
    waiting[1].disconnect()
    assert guard.connect().heard() == ""


def test_who_turns_out_to_be_trusted_counts_no_more() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow], max_connections_per_client=2)
    guard.connect()
    for n in range(5):
        guard.connect()
        slow.asked[n + 1].callback(TRUST)
    assert guard.factory.connections == 6


def test_the_connections_of_who_turns_out_to_be_trusted_are_taken_back_from_its_rate() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow], connection_rate=Rate(2, 60))
    for n in range(5):
        client = guard.connect()
        slow.asked[n].callback(TRUST)
        assert client.heard() == GREETING


def test_a_client_is_counted_once_however_many_of_its_filters_are_slow() -> None:
    first, second = SlowFilter(), SlowFilter()
    guard = Guard(ip_filters=[first, FakeFilter(), second], max_connections_per_client=1)
    client = guard.connect()
    first.asked[0].callback(PASS)
    second.asked[0].callback(PASS)
    assert client.heard() == GREETING


def test_a_client_that_a_filter_refuses_at_once_is_not_counted() -> None:
    guard = Guard(ip_filters=[FakeFilter(refuse())], connection_rate=Rate(1, 60))
    for _ in range(3):
        assert guard.connect().heard() == "421 4.7.0 Connection refused\r\n"


def test_one_that_fails_open_after_a_wait_is_counted_once() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[FilterEntry(slow, fail_open=True)], max_connections_per_client=1)
    client = guard.connect()
    guard.clock.advance(10.1)
    assert client.heard() == GREETING
    assert guard.connect().heard() == TOO_MANY
