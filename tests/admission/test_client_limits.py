"""What one client may have and do: at the limit, above it, after the window, and who is one client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakes import Conversation, FakeTransport, Guard, delivery_without_nobody
from logbook import Logbook, logbook
from twisted.internet.address import UNIXAddress

from twisted_smtpguard.limits.units import Rate

UNIX = "unix"
GREETING = "220 guard.example ESMTP ready\r\n"
MAIL, RCPT, NOBODY = "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "RCPT TO:<nobody@d>"
OK = {
    "max_connections_per_client": GREETING,
    "connection_rate": GREETING,
    "message_rate": "250 2.1.0 Sender OK\r\n",
    "recipient_rate": "250 2.1.5 Recipient OK\r\n",
}
REFUSED = {
    "max_connections_per_client": "421 4.7.0 Too many connections from your address, try again later\r\n",
    "connection_rate": "421 4.7.0 Connection rate exceeded, try again later\r\n",
    "message_rate": "450 4.7.1 Message rate exceeded, try again later\r\n",
    "recipient_rate": "450 4.7.1 Recipient rate exceeded, try again later\r\n",
}
RATES = ["connection_rate", "message_rate", "recipient_rate"]
each_limit = pytest.mark.parametrize("limit", OK)
each_rate = pytest.mark.parametrize("limit", RATES)


@pytest.fixture
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def guard_with(limit: str, events: int, **limits: Any) -> Guard:
    """A guard with one limit: so many connections, or so many events in 60 s."""
    return Guard(**{limit: Rate(events, 60) if limit in RATES else events}, **limits)


def connect(guard: Guard, host: str = "192.0.2.1") -> Conversation:
    if host != UNIX:
        return guard.connect(host)
    transport = FakeTransport()
    transport.peerAddr = UNIXAddress("")
    protocol = guard.factory.buildProtocol(transport.getPeer())
    transport.protocol = protocol
    protocol.makeConnection(transport)
    return Conversation(guard, protocol, transport)


def tries(guard: Guard, limit: str, host: str = "192.0.2.1") -> str:
    """A new connection of the client does once what the limit counts, and stays; what it hears of that."""
    client = connect(guard, host)
    heard = client.heard()
    for command in {"message_rate": ["EHLO x", MAIL], "recipient_rate": ["EHLO x", MAIL, RCPT]}.get(
        limit, []
    ):
        heard = client.say(command)
    return heard


def refusals(guard: Guard) -> dict[str, int]:
    return guard.factory.statistics.refusals


# At the limit, and one over it.


@each_limit
def test_at_the_limit_a_client_is_served_and_one_over_it_is_refused(limit: str) -> None:
    guard = guard_with(limit, 3)
    assert [tries(guard, limit) for _ in range(5)] == [OK[limit]] * 3 + [REFUSED[limit]] * 2
    assert refusals(guard) == {limit: 2}


@each_limit
def test_0_is_no_limit(limit: str) -> None:
    guard = Guard(**{limit: 0})
    assert [tries(guard, limit) for _ in range(200)] == [OK[limit]] * 200


@each_limit
def test_other_clients_are_unaffected(limit: str) -> None:
    guard = guard_with(limit, 1)
    assert tries(guard, limit) == OK[limit]
    for _ in range(100):
        assert tries(guard, limit) == REFUSED[limit]
    assert tries(guard, limit, "192.0.2.2") == OK[limit]


@pytest.mark.parametrize(
    ("limit", "line"),
    [
        ("max_connections_per_client", "limit=1 value=2 code=421 port=4711"),
        ("connection_rate", "limit=1/60 value=2 code=421 port=4711"),
        ("message_rate", "session={} limit=1/60 value=2 code=450 command=MAIL sender=a@b helo=x"),
        (
            "recipient_rate",
            "session={} limit=1/60 value=2 code=450 command=RCPT sender=a@b recipient=c@d helo=x",
        ),
    ],
)
def test_a_refusal_is_logged_with_the_limit_and_what_the_client_had(
    log: Logbook, limit: str, line: str
) -> None:
    guard = guard_with(limit, 1)
    tries(guard, limit)
    log.take("connect")
    tries(guard, limit)
    session = "".join(word[8:] for line in log.take("connect") for word in line.split() if "session" in word)
    assert log.take("reject") == [f"reject peer=192.0.2.1 reason={limit} {line.format(session)}"]


@pytest.mark.parametrize("limit", ["max_connections_per_client", "connection_rate"])
def test_who_is_refused_before_the_greeting_has_no_session_and_holds_no_slot(
    limit: str, log: Logbook
) -> None:
    guard = guard_with(limit, 1)
    tries(guard, limit)
    refused = connect(guard)
    assert refused.closed
    assert refused.send(b"EHLO x\r\n") == REFUSED[limit]
    assert guard.factory.connections == 1
    assert guard.factory.statistics.connections_accepted == 1
    assert guard.factory.statistics.connections_refused == 1
    assert (len(log.take("connect")), log.take("hangup"), log.take("disconnect")) == (1, [], [])


# Connections at once.


def test_a_place_that_is_given_back_is_free_for_the_next() -> None:
    guard = guard_with("max_connections_per_client", 2)
    first, _ = connect(guard), connect(guard)
    assert connect(guard).closed
    first.say("QUIT")
    assert [connect(guard).closed for _ in range(2)] == [False, True]


def test_a_connection_that_was_refused_takes_no_place_from_the_next() -> None:
    guard = guard_with("max_connections_per_client", 1)
    first = connect(guard)
    for _ in range(10):
        connect(guard)
    first.disconnect()
    assert connect(guard).heard() == GREETING


def test_a_client_has_its_places_over_all_listeners() -> None:
    guard = guard_with("max_connections_per_client", 2)
    ports = [FakeTransport(), FakeTransport(), FakeTransport()]
    for number, transport in enumerate(ports):
        transport.hostAddr.port = 25 + number
        transport.protocol = guard.factory.buildProtocol(transport.getPeer())
        transport.protocol.makeConnection(transport)
    assert [transport.value()[:3] for transport in ports] == [b"220", b"220", b"421"]


def test_the_cap_of_all_connections_is_asked_first_and_counts_nothing_against_the_client() -> None:
    guard = guard_with("max_connections_per_client", 2, max_connections=1)
    first = connect(guard)
    assert connect(guard).heard() == "421 4.7.0 Too many connections, try again later\r\n"
    first.disconnect()
    assert connect(guard).heard() == GREETING
    assert refusals(guard) == {"max_connections": 1}


# Rates.


@each_rate
def test_a_window_begins_with_its_first_event_and_refused_attempts_do_not_make_it_longer(limit: str) -> None:
    guard = guard_with(limit, 2)
    guard.clock.advance(12345)
    assert tries(guard, limit) == OK[limit]
    guard.clock.advance(50)
    assert tries(guard, limit) == OK[limit]
    for _ in range(9):
        guard.clock.advance(1)
        assert tries(guard, limit) == REFUSED[limit]
    guard.clock.advance(0.9)
    assert tries(guard, limit) == REFUSED[limit]
    guard.clock.advance(0.1)
    assert [tries(guard, limit) for _ in range(3)] == [OK[limit], OK[limit], REFUSED[limit]]


def test_a_connection_above_the_cap_of_its_client_does_not_count_in_its_rate() -> None:
    guard = guard_with("connection_rate", 2, max_connections_per_client=1)
    first = connect(guard)
    for _ in range(5):
        connect(guard)
    first.disconnect()
    assert connect(guard).heard() == GREETING
    assert refusals(guard) == {"max_connections_per_client": 5}


def test_the_message_rate_counts_all_sessions_of_the_client_and_each_transaction() -> None:
    guard = guard_with("message_rate", 3)
    one, other = guard.greeted(), guard.greeted()
    assert one.codes(MAIL, "RSET", MAIL, "RSET")[-4:] == [250] * 4
    assert other.codes(MAIL, "RSET", MAIL, "QUIT")[-4:] == [250, 250, 450, 221]
    assert one.say(MAIL) == REFUSED["message_rate"]
    assert guard.delivery.calls.count("begin") == 3


def test_what_is_refused_before_the_message_rate_does_not_count_in_it() -> None:
    client = guard_with("message_rate", 1).greeted()
    assert client.codes("MAIL", "MAIL FROM:<@>", "MAIL FROM:<> SIZE=99999999", MAIL, MAIL)[-5:] == [
        *(501, 501, 552),
        *(250, 503),
    ]


def test_refused_recipients_count_in_the_recipient_rate() -> None:
    guard = guard_with("recipient_rate", 3)
    guard.delivery.answers = delivery_without_nobody().answers
    client = guard.greeted()
    assert client.codes(MAIL, NOBODY, NOBODY, RCPT, RCPT)[-5:] == [250, 550, 550, 250, 450]
    assert guard.delivery.calls.count("recipient") == 3


def test_data_after_a_first_recipient_above_the_rate_is_no_invalid_command() -> None:
    guard = Guard(recipient_rate=Rate(1, 60), max_invalid_commands=1)
    client = guard.greeted()
    assert client.codes(MAIL, RCPT, "RSET", MAIL, RCPT, "DATA", RCPT, "DATA")[-4:] == [450, 554, 450, 554]


def test_a_recipient_above_the_recipient_rate_is_not_in_the_message_and_the_transaction_goes_on() -> None:
    guard = guard_with("recipient_rate", 1)
    client = guard.greeted()
    assert client.codes(MAIL, RCPT, "RCPT TO:<e@f>", "DATA", "text", ".")[-4:] == [250, 450, 354, 250]
    [message] = guard.delivery.messages
    assert [recipient.address for recipient in message.recipients] == ["c@d"]


def test_recipients_above_the_cap_of_a_transaction_do_not_count_in_the_recipient_rate() -> None:
    client = guard_with("recipient_rate", 3, max_recipients=2).greeted()
    assert client.codes(MAIL, *[RCPT] * 5, "RSET", MAIL, RCPT, RCPT)[-9:] == [
        *(250, 250, 452, 452, 452),
        *(250, 250, 250, 450),
    ]


def test_a_refusal_by_a_rate_is_an_error_of_the_session_and_no_invalid_command() -> None:
    client = guard_with("message_rate", 1, max_errors=3, max_invalid_commands=1).greeted()
    assert client.codes(MAIL, "RSET", *[MAIL] * 3)[-6:] == [250, 250, 450, 450, 450, 421]
    assert client.closed


# Who is one client.


@each_limit
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8::1", "2001:db8:0:0:ffff::2"),
        (UNIX, UNIX),
    ],
)
def test_these_are_one_client(limit: str, first: str, second: str) -> None:
    guard = guard_with(limit, 1)
    assert tries(guard, limit, first) == OK[limit]
    assert tries(guard, limit, second) == REFUSED[limit]


@each_limit
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("192.0.2.1", "192.0.2.2"),
        ("192.0.2.1", "::192.0.2.1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2"),
        ("2001:db8::1", "2001:db8:0:1::1"),
        (UNIX, "127.0.0.1"),
    ],
)
def test_these_are_two_clients(limit: str, first: str, second: str) -> None:
    guard = guard_with(limit, 1)
    assert tries(guard, limit, first) == OK[limit]
    assert tries(guard, limit, second) == OK[limit]


@each_limit
@pytest.mark.parametrize(
    ("bits", "first", "same", "other"),
    [
        ({"ipv4_client_prefix": 24}, "192.0.2.1", "::ffff:192.0.2.255", "192.0.3.1"),
        ({"ipv6_client_prefix": 48}, "2001:db8::1", "2001:db8:0:ffff::1", "2001:db8:1::1"),
        ({"ipv6_client_prefix": 128}, "2001:db8::1", "2001:db8::1", "2001:db8::2"),
    ],
)
def test_how_much_of_an_address_makes_a_client_can_be_set(
    limit: str, bits: dict[str, int], first: str, same: str, other: str
) -> None:
    guard = guard_with(limit, 1, **bits)
    assert tries(guard, limit, first) == OK[limit]
    assert tries(guard, limit, same) == REFUSED[limit]
    assert tries(guard, limit, other) == OK[limit]
