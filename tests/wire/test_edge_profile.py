"""The profile edge as a whole: conversations with a guard that strangers reach."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest
from fakes import Conversation, FakeFilter, Guard, codes, delivery_without_nobody
from logbook import Logbook, logbook

from twisted_smtpguard.interfaces import TRUST
from twisted_smtpguard.limits.limits import Limits

GREETING = "220 guard.example ESMTP ready\r\n"
EARLY = "421 4.7.0 Protocol error: client spoke before the greeting\r\n"
PIPELINED = "421 4.7.0 Protocol error: unexpected pipelined input\r\n"
ERRORS = "421 4.7.0 Too many errors, closing connection\r\n"
MAIL, RCPT, NOBODY = "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "RCPT TO:<nobody@d>"
MESSAGE = (MAIL, RCPT, "DATA", "Subject: x", "", ".")


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def edge(**explicit: Any) -> Guard:
    """A guard with the profile edge, and a delivery that does not know nobody@."""
    limits = Limits.for_profile("edge", **explicit)
    values = {spec.name: getattr(limits, spec.name) for spec in Limits.specs()}
    return Guard(delivery_without_nobody(), **values)


def greeted(guard: Guard, host: str = "192.0.2.1") -> Conversation:
    """A client that waits for its greeting."""
    client = guard.connect(host)
    guard.clock.advance(2.1)
    assert client.heard() == GREETING
    return client


def introduced(guard: Guard) -> Conversation:
    client = greeted(guard)
    assert codes(client.say("EHLO client.example")) == [250]
    return client


def hangs_up(client: Conversation, said: str, last: str) -> bool:
    """Whether that was the last line, and the only 421."""
    return said.endswith(last) and said.count("421") == 1 and client.closed


# A client that behaves.


def test_a_mail_server_that_pipelines_as_it_may_notices_nothing() -> None:
    guard = edge()
    client = introduced(guard)
    assert client.codes(MAIL, RCPT, RCPT, "DATA") == [250, 250, 250, 354]
    assert client.codes("Subject: x", "", "text", ".", MAIL, RCPT, "DATA") == [250, 250, 250, 354]
    assert client.codes("Subject: y", "", "text", ".", "QUIT") == [250, 221]
    assert len(guard.delivery.messages) == 2
    assert guard.factory.statistics.refusals == {}


def test_ehlo_announces_the_profiles_limits() -> None:
    assert "250-LIMITS RCPTMAX=100 MAILMAX=100\r\n" in greeted(edge()).say("EHLO x")


# Before the greeting.


def test_the_greeting_comes_after_two_seconds() -> None:
    guard = edge()
    client = guard.connect()
    guard.clock.advance(1.9)
    assert client.heard() == ""
    guard.clock.advance(0.2)
    assert client.heard() == GREETING


def test_above_80_percent_of_the_cap_there_is_no_greet_delay() -> None:
    guard = edge()
    # The last fifth of the seats is for those who are known.
    guard.factory.known.is_listed = lambda address: address >= IPv4Address("198.51.32.0")
    clients = [guard.connect(f"198.51.{number // 50}.{number % 50}") for number in range(2001)]
    assert [client.heard() for client in clients] == [
        *[""] * 1600,
        *[GREETING] * 400,
        "421 4.7.0 Too many connections, try again later\r\n",
    ]
    guard.clock.advance(2.1)
    assert {client.heard() for client in clients[:1600]} == {GREETING}


@pytest.mark.parametrize("octets", [b"E", b"EHLO x\r\n", b"EHLO x\r\nMAIL FROM:<a@b>\r\n", b"\x16\x03\x01"])
def test_a_client_that_cannot_wait_for_the_greeting_is_refused_at_its_first_octet(
    octets: bytes, log: Logbook
) -> None:
    guard = edge()
    client = guard.connect()
    guard.clock.advance(1)
    assert client.send(octets, bytewise=True) == EARLY
    assert client.closed
    assert log.take("reject") == [
        "reject peer=192.0.2.1 reason=early_talker limit=refuse code=421 port=4711",
    ]
    guard.clock.advance(6)
    assert client.heard() == ""
    assert guard.delivery.calls == []


def test_a_client_has_twenty_connections_at_once_and_sixty_a_minute() -> None:
    guard = edge()
    clients = [guard.connect() for _ in range(21)]
    heard = clients[20].heard()
    assert heard == "421 4.7.0 Too many connections from your address, try again later\r\n"
    for client in clients:
        client.disconnect()
    for _ in range(40):
        guard.connect().disconnect()
    assert guard.connect().heard() == "421 4.7.0 Connection rate exceeded, try again later\r\n"
    guard.clock.advance(60)
    assert not guard.connect().closed
    assert not guard.connect("192.0.2.2").closed


# What is sent before it may be.


@pytest.mark.parametrize("command", ["EHLO x", "HELO x"])
@pytest.mark.parametrize("behind", [b"MAIL FROM:<a@b>\r\n", b"M", b"QUIT\r\n"])
def test_input_after_a_hello_ends_the_session(command: str, behind: bytes) -> None:
    client = greeted(edge())
    assert client.send(command.encode() + b"\r\n" + behind) == PIPELINED
    assert client.closed


def test_a_message_sent_before_the_354_ends_the_session_and_is_not_delivered() -> None:
    client = introduced(edge())
    said = client.say(MAIL, RCPT, "DATA", "Subject: x", "", "text", ".")
    assert codes(said) == [250, 250, 421]
    assert hangs_up(client, said, PIPELINED)
    assert client.guard.delivery.messages == []
    assert client.guard.delivery.calls == ["begin", "recipient", "transaction.abort"]


# Errors.


def test_the_twentieth_error_ends_the_session() -> None:
    client = introduced(edge())
    for _ in range(19):
        assert client.codes("EXPN list") == [502]
    said = client.say("EXPN list")
    assert codes(said) == [502, 421]
    assert hangs_up(client, said, ERRORS)


def test_the_tenth_invalid_command_ends_the_session_sooner() -> None:
    client = introduced(edge())
    said = client.say(*["BREW"] * 20)
    assert codes(said) == [500] * 10 + [421]
    assert hangs_up(client, said, "421 4.4.0 Too many errors, closing connection\r\n")


def test_an_accepted_message_makes_up_for_errors_and_junk() -> None:
    client = introduced(edge())
    for _ in range(10):
        assert client.codes(*["EXPN list"] * 15) == [502] * 15
        assert client.codes(*MESSAGE[:3])[-1] == 354
        assert client.codes(*MESSAGE[3:]) == [250]


def test_past_twenty_junk_commands_each_counts_as_an_error() -> None:
    client = introduced(edge())
    junk = ["NOOP", "RSET", "VRFY a", "HELP"] * 10
    assert client.codes(*junk[:39]) == ([250, 250, 252, 214] * 10)[:39]
    said = client.say("NOOP")
    assert codes(said) == [250, 421]
    assert hangs_up(client, said, ERRORS)


def test_saying_hello_again_is_junk() -> None:
    client = introduced(edge())
    said = "".join(client.say("EHLO x") for _ in range(39))
    assert "421" not in said
    said = client.say("HELO x")
    assert codes(said) == [250, 421]
    assert hangs_up(client, said, ERRORS)


def test_the_tenth_unknown_recipient_ends_the_session() -> None:
    client = introduced(edge())
    assert client.codes(MAIL, *[NOBODY] * 5, "RSET", MAIL, RCPT, *[NOBODY] * 4)[-4:] == [550] * 4
    said = client.say(NOBODY)
    assert codes(said) == [550, 421]
    assert hangs_up(client, said, "421 4.7.0 Too many unknown recipients, closing connection\r\n")


# Much and long.


def test_the_hundred_and_first_message_of_a_session_ends_it() -> None:
    client = introduced(edge())
    for _ in range(100):
        assert client.codes(*MESSAGE[:3])[-1] == 354
        assert client.codes(*MESSAGE[3:]) == [250]
    said = client.say(MAIL)
    assert hangs_up(client, said, "421 4.7.0 Too many messages, please reconnect\r\n")
    assert len(client.guard.delivery.messages) == 100


@pytest.mark.parametrize(("octets", "fast_enough"), [(499, False), (501, True)])
def test_message_data_slower_than_500_octets_a_second_ends_the_session(
    octets: int, fast_enough: bool
) -> None:
    client = introduced(edge())
    client.say(MAIL, RCPT, "DATA")
    heard = ""
    for _ in range(125):
        heard += client.send(b"x" * (octets - 2) + b"\r\n")
        client.guard.clock.advance(1)
    if fast_enough:
        assert client.codes(".") == [250]
    else:
        assert heard == "421 4.4.2 Data transfer too slow, closing connection\r\n"
        assert client.guard.delivery.messages == []


def test_half_an_hour_ends_a_session_between_transactions() -> None:
    client = introduced(edge())
    for _ in range(7):
        client.guard.clock.advance(250)
        assert client.codes("RSET") == [250]
    client.say(MAIL, RCPT)
    client.guard.clock.advance(60)
    assert client.heard() == ""
    assert client.codes("DATA") == [354]
    said = client.say("Subject: x", "", ".")
    assert codes(said) == [250, 421]
    assert hangs_up(client, said, "421 4.4.2 Session time limit reached, closing connection\r\n")
    assert len(client.guard.delivery.messages) == 1


# An explicit value wins.


def test_an_explicit_0_switches_a_protection_of_the_profile_off() -> None:
    guard = edge(greet_delay=0, max_errors=0, unexpected_pipelining="serve")
    client = guard.connect()
    assert client.heard() == GREETING
    assert client.codes("EHLO x", *["EXPN list"] * 50) == [250] + [502] * 50


def test_a_trusted_client_may_err_but_not_smuggle() -> None:
    limits = {spec.name: spec.edge for spec in Limits.specs()}
    client = Guard(ip_filters=[FakeFilter(TRUST)], **limits).connect()
    assert client.heard() == GREETING
    assert client.codes("EHLO x") == [250]
    assert client.codes(*["EXPN list"] * 50) == [502] * 50
    assert client.codes(MAIL, RCPT, "DATA", ".") == [250, 250, 421]
