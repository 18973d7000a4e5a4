"""Seats: the last part is for known and trusted clients, and an idle stranger makes room for a newcomer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakes import Conversation, FakeFilter, Guard, SlowFilter, codes
from logbook import Logbook, logbook
from twisted.internet.address import UNIXAddress

from twisted_smtpguard import NetworksFilter, Rate
from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.interfaces import PASS, TRUST, refuse
from twisted_smtpguard.limits.units import Part

FULL = "421 4.7.0 Too many connections, try again later\r\n"
ROOM = "421 4.3.2 Server busy, closing idle connection\r\n"
GREETING = "220 guard.example ESMTP ready\r\n"
KNOWN = "198.51.100.1"
PROXY = "203.0.113.1"
ENVELOPE = ("MAIL FROM:<a@b>", "RCPT TO:<c@d>")


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


@pytest.fixture(params=["alone", "shared"])
def full(request: Any) -> Guard:
    """A guard with 10 seats, 2 of them reserved, whose seats of strangers have just been taken. In one case others
    might count in its store."""
    return crowded(request.param == "shared")


def crowded(shared: bool = False, **arguments: Any) -> Guard:
    limits = {"max_connections": 10, "reserved_connections": Part(20, percent=True), **arguments}
    guard = Guard(**limits)
    if shared:
        guard = Guard(
            guard.delivery, guard.clock, counters=LocalCounterStore(0, guard.clock.seconds), **limits
        )
    guard.factory.known.accepted(KNOWN)
    for number in range(8):
        client = guard.greeted(stranger(number))
        assert not client.closed, client.heard()
    return guard


def stranger(number: int) -> str:
    return f"192.0.{number}.1"


def session(guard: Guard, number: int) -> Conversation:
    """That of a stranger."""
    (found,) = (each for each in guard.factory._open if each.engine.peer_name == stranger(number))
    return Conversation(guard, found, found.transport)


# The reserve.


def test_a_stranger_is_refused_where_a_known_client_is_not(full: Guard, log: Logbook) -> None:
    refused = full.connect("198.51.100.9")
    assert (refused.heard(), refused.closed) == (FULL, True)
    (line,) = log.take("reject")
    assert " reason=reserved_connections limit=20% value=9 code=421" in line
    assert full.connect(KNOWN).heard() == full.connect(KNOWN).heard() == GREETING
    assert full.factory.connections == 10
    assert full.connect(KNOWN).heard() == FULL
    (line,) = log.take("reject")
    assert " reason=max_connections limit=10 value=11 code=421" in line
    assert full.connect("198.51.100.9").heard() == FULL
    (line,) = log.take("reject")
    assert full.factory.connections == 10


def test_a_seat_that_a_stranger_leaves_is_anothers(full: Guard) -> None:
    assert full.connect(KNOWN).heard() == GREETING
    # 9 are taken, and a stranger may be the 8th.
    session(full, 0).disconnect()
    assert full.connect("198.51.100.9").heard() == FULL
    session(full, 1).disconnect()
    assert full.connect("198.51.100.9").heard() == GREETING


@pytest.mark.parametrize("shared", [False, True])
def test_a_trusted_client_may_take_it_and_who_is_passed_may_not(shared: bool) -> None:
    guard = crowded(shared, ip_filters=[NetworksFilter(trust=["198.51.100.7"])])
    assert guard.connect("198.51.100.8").heard() == FULL
    assert guard.connect("198.51.100.7").heard() == GREETING
    assert guard.connect(KNOWN).heard() == GREETING
    assert guard.connect("198.51.100.7").heard() == FULL
    assert guard.factory.connections == 10


@pytest.mark.parametrize("shared", [False, True])
def test_a_client_whose_filter_answers_later_is_a_stranger_and_holds_no_reserved_seat(shared: bool) -> None:
    slow = SlowFilter()
    guard = crowded(shared, ip_filters=[NetworksFilter(trust=[stranger(n) for n in range(8)]), slow])
    assert guard.connect("198.51.100.9").heard() == FULL
    known = guard.connect(KNOWN)
    assert (known.heard(), len(slow.asked)) == ("", 2)
    slow.asked[1].callback(PASS)
    assert known.heard() == GREETING


def test_what_a_filter_refuses_is_refused_by_it_whoever_it_is(full: Guard) -> None:
    guard = crowded(ip_filters=[NetworksFilter(deny=[KNOWN])])
    assert guard.connect(KNOWN).heard() == "421 4.7.0 Connection refused\r\n"


@pytest.mark.parametrize("shared", [False, True])
def test_behind_a_balancer_the_client_of_the_header_counts(shared: bool) -> None:
    guard = crowded(shared, proxy_protocol_from=[PROXY])

    def comes(client: str) -> str:
        connection = guard.connect(PROXY)
        return connection.send(f"PROXY TCP4 {client} 203.0.113.9 1000 25\r\n".encode(), bytewise=True)

    assert comes("198.51.100.9") == FULL
    assert comes(KNOWN) == GREETING
    # Its own connections are not those of strangers.
    assert guard.connect(PROXY).send(b"PROXY UNKNOWN\r\n") == GREETING
    assert guard.connect(PROXY).heard() == FULL


def test_a_balancer_holds_a_reserved_seat_no_longer_than_its_header_may_take(full: Guard) -> None:
    guard = crowded(proxy_protocol_from=[PROXY])
    silent = [guard.connect(PROXY) for _ in range(3)]
    assert [each.closed for each in silent] == [False, False, True]
    assert guard.connect(KNOWN).heard() == FULL
    for number in range(8):
        session(guard, number).say("NOOP")
    guard.clock.advance(5.1)
    assert [each.transport.aborted for each in silent[:2]] == [True, True]
    assert guard.connect(KNOWN).heard() == GREETING


def test_a_unix_socket_is_a_stranger_until_its_mail_is_accepted() -> None:
    guard = crowded()
    protocol = guard.factory.buildProtocol(UNIXAddress(None))
    assert not hasattr(protocol, "engine")
    guard.factory.known.accepted("unix")
    assert hasattr(guard.factory.buildProtocol(UNIXAddress(None)), "engine")


def test_a_client_is_turned_away_at_accept_where_nobody_could_let_it_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = crowded()
    monkeypatch.setattr("twisted_smtpguard.engine.engine.Engine.__init__", lambda *_: 1 / 0)
    assert guard.connect("198.51.100.9").heard() == FULL


def test_the_reserve_in_dry_run_is_only_logged(log: Logbook) -> None:
    for shared in (False, True):
        guard = crowded(shared, dry_run=["reserved_connections"])
        assert log.take("reject") == []
        assert guard.connect("198.51.100.9").heard() == GREETING
        (line,) = log.take("reject")
        assert " reason=reserved_connections dry_run=true limit=20% value=9" in line
        assert guard.connect(KNOWN).heard() == GREETING
        assert log.take("reject") == []
        assert guard.connect("198.51.100.9").heard() == FULL
        assert " reason=max_connections limit=10 value=11 code=421" in log.take("reject")[0]


# Room for a newcomer.


def test_the_one_that_has_been_idle_longest_makes_room(full: Guard, log: Logbook) -> None:
    for number in range(8):
        session(full, number).say("NOOP")
        full.clock.advance(1)
    newcomer = full.connect("198.51.100.9")
    assert newcomer.heard() == GREETING
    gone = full.factory.connections
    assert gone == 8
    (line,) = log.take("reject")
    assert f"reject peer={stranger(0)} reason=made_room session=" in line
    (line,) = log.take("disconnect")
    assert " reason=made_room " in line
    assert full.factory.statistics.refusals == {"made_room": 1}


def test_the_one_that_makes_room_is_told(full: Guard) -> None:
    first = session(full, 0)
    full.clock.advance(5)
    for number in range(1, 8):
        session(full, number).say("NOOP")
    assert full.connect("198.51.100.9").heard() == GREETING
    assert first.heard().endswith(ROOM)
    assert first.closed
    # Nobody else is idle.
    assert full.connect("198.51.100.10").heard() == FULL
    assert full.factory.connections == 8


@pytest.mark.parametrize(
    ("before", "ended"),
    [
        (("NOOP",), True),
        (ENVELOPE[:1], False),
        (ENVELOPE, False),
        ((*ENVELOPE, "DATA"), False),
        ((*ENVELOPE, "DATA", "x"), False),
        ((*ENVELOPE, "DATA", "x", "."), True),
        ((*ENVELOPE, "RSET"), True),
        ((*ENVELOPE, "BDAT 5"), False),
    ],
)
def test_nobody_is_ended_in_a_mail_transaction(full: Guard, before: tuple[str, ...], ended: bool) -> None:
    first = session(full, 0)
    full.delivery.answers.clear()
    first.say(*before)
    # A stranger whose mail was accepted is none any more.
    full.factory.known.forget(stranger(0))
    full.clock.advance(6)
    for number in range(1, 8):
        session(full, number).say("NOOP")
    newcomer = full.connect("198.51.100.9")
    assert newcomer.heard() == (GREETING if ended else FULL)
    assert first.closed == ended


def test_who_is_known_or_trusted_or_waits_for_a_hook_makes_no_room() -> None:
    guard = crowded(ip_filters=[NetworksFilter(trust=[stranger(0)])])
    slow = guard.connect(KNOWN)
    guard.factory.known.accepted(stranger(1))
    slow.heard()
    for number in range(2, 8):
        session(guard, number).say(ENVELOPE[0])
    guard.clock.advance(20)
    assert guard.connect("198.51.100.9").heard() == FULL


def test_a_byte_a_second_does_not_keep_a_session_busy(full: Guard) -> None:
    drips = session(full, 0)
    for number in range(1, 8):
        session(full, number).say(ENVELOPE[0])
    for _ in range(6):
        drips.send(b"N")
        full.clock.advance(1)
    assert full.connect("198.51.100.9").heard() == GREETING
    assert drips.closed


def test_a_newcomer_over_its_own_limits_ends_nobody(full: Guard) -> None:
    for shared in (False, True):
        guard = crowded(
            shared,
            max_connections_per_client=1,
            connection_rate=Rate(2, 3600),
            reserved_connections=0,
            max_connections=8,
        )
        guard.clock.advance(6)
        same = guard.connect(stranger(0)).heard()
        # Where all decide together, the cap is told first.
        assert same == (
            FULL if shared else "421 4.7.0 Too many connections from your address, try again later\r\n"
        )
        assert guard.factory.connections == 8
        assert guard.connect("198.51.100.9").heard() == GREETING
        assert guard.factory.connections == 8


def test_a_newcomer_that_a_filter_refuses_ends_nobody() -> None:
    guard = crowded(
        ip_filters=[FakeFilter(lambda peer: refuse() if str(peer.address) == "198.51.100.9" else PASS)]
    )
    guard.clock.advance(6)
    assert guard.connect("198.51.100.9").heard() == "421 4.7.0 Connection refused\r\n"
    assert guard.factory.connections == 8
    assert guard.connect("198.51.100.8").heard() == GREETING
    assert guard.factory.connections == 8


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("reserve", [0, 2])
def test_a_flood_of_newcomers_never_takes_one_seat_more(shared: bool, reserve: int) -> None:
    guard = crowded(shared, max_connections=8 + reserve, reserved_connections=reserve)
    most = 0
    for number in range(250):
        guard.connect(f"198.50.{number}.1")
        most = max(most, guard.factory.connections)
        guard.clock.advance(0.25)
    assert most == 8
    assert guard.factory.statistics.refusals["made_room"] >= 60
    assert reserve == 0 or guard.connect(KNOWN).heard() == GREETING


def test_at_the_cap_the_idle_session_of_a_stranger_makes_room_for_a_known_client(full: Guard) -> None:
    known = [full.connect(KNOWN) for _ in range(2)]
    assert [each.heard() for each in known] == [GREETING] * 2
    assert full.connect(KNOWN).heard() == FULL
    full.clock.advance(5)
    assert full.connect(KNOWN).heard() == GREETING
    assert full.factory.connections == 10
    assert not any(each.closed for each in known)


def test_of_networks_the_one_that_holds_most_gives_a_seat() -> None:
    guard = Guard(max_connections=10, ipv4_networks=(24,))
    few = [guard.greeted(f"192.0.{n}.1") for n in range(4)]
    guard.clock.advance(1)
    many = [guard.greeted(f"203.0.113.{n}") for n in range(6)]
    guard.clock.advance(5)
    newcomers = [guard.connect(f"198.51.{n}.1").heard() for n in range(5)]
    assert newcomers == [GREETING] * 5
    assert [each.closed for each in few] == [False] * 4
    assert [each.closed for each in many].count(True) == 5
    # A network that holds no less than others gets a seat from its own.
    assert guard.connect("203.0.113.99").heard() == GREETING
    assert all(each.closed for each in many)


def test_a_client_that_does_not_read_makes_no_room_before_it_has_its_replies() -> None:
    guard = Guard(max_connections=1)
    client = guard.greeted("192.0.2.1")
    client.transport.reads = False
    client.say("NOOP")
    guard.clock.advance(6)
    assert guard.connect("198.51.100.9").heard() == FULL
    assert guard.factory.connections == 1


def test_a_service_that_stops_makes_no_room(full: Guard) -> None:
    full.clock.advance(6)
    full.factory.drain()
    assert full.connect("198.51.100.9").heard() == "421 4.3.2 Server shutting down\r\n"


def test_a_trusted_newcomer_at_the_cap_gets_room_too() -> None:
    guard = Guard(
        max_connections=2, ip_filters=[FakeFilter(lambda peer: TRUST if str(peer.address) == KNOWN else PASS)]
    )
    strangers = [guard.greeted(stranger(n)) for n in range(2)]
    guard.clock.advance(5)
    assert codes(guard.connect(KNOWN).heard()) == [220]
    assert [each.closed for each in strangers] == [True, False]
