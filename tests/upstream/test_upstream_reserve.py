"""The part of the connections to an upstream server that is for clients which are no strangers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import attrs
import pytest
from fakes import Conversation, FakeFilter, Guard
from logins import Checker, plain
from mailserver import Behind, MailServer, silence
from zope.interface.verify import verifyObject

from twisted_smtpguard import AcceptedDomains, DiscardDelivery, Limits
from twisted_smtpguard.interfaces import IReservingDelivery
from twisted_smtpguard.limits.units import Part
from twisted_smtpguard.upstream.places import Places
from twisted_smtpguard.values import PASS, TRUST

MAIL = "MAIL FROM:<a@example.com>"
QUEUED = "250 2.0.0 Queued as 4711"
BUSY = "451 4.3.2 Too many connections to the upstream server, try again later\r\n"
KNOWN = "198.51.100.7"
FIFTH = {"reserved_connections": Part(20, percent=True)}

ANNOUNCED = pytest.mark.parametrize(
    "arguments",
    [{}, {"announce": "xclient"}, {"announce": "proxy"}, {"lmtp": True}],
    ids=["smtp", "xclient", "proxy", "lmtp"],
)


def guarded(limits: Any = FIFTH, *, server: MailServer | None = None, **arguments: Any) -> Behind:
    """A guard with ten connections to its upstream server, of which two are reserved, and a known client."""
    server = server or MailServer("PIPELINING", "8BITMIME", "XCLIENT ADDR")
    behind = Behind(server, **{"connections": 10, "limits": limits, **arguments})
    behind.factory.known.accepted(KNOWN)
    return behind


def stuck(behind: Behind, number: int, first: int = 1) -> list[Conversation]:
    """So many strangers that have said MAIL, and nothing since."""
    clients = [behind.greeted(f"192.0.2.{first + each}") for each in range(number)]
    for client in clients:
        client.say(MAIL)
    return clients


def states(behind: Behind) -> dict[str, int]:
    return {state: number for state, number in behind.proxy.connections_by_state.items() if number}


@ANNOUNCED
def test_strangers_that_stop_after_mail_leave_the_reserve_to_a_known_client(arguments: Any) -> None:
    behind = guarded(**arguments)
    crowd = stuck(behind, 60)
    for _ in range(20):
        assert behind.sends(behind.greeted(KNOWN)) == QUEUED
    assert states(behind)["in_use"] == 8
    behind.clock.pump([1] * 10)
    assert [client.heard() for client in crowd].count(BUSY) == 52
    # The next of the crowd take nothing more.
    stuck(behind, 60, 61)
    assert behind.sends(behind.greeted(KNOWN)) == QUEUED
    for client in crowd:
        client.disconnect()


def test_without_a_reserve_a_crowd_takes_them_all_and_all_wait_in_their_order() -> None:
    behind = guarded({})
    crowd = stuck(behind, 11)
    known = behind.greeted(KNOWN)
    assert known.say(MAIL) == ""
    assert states(behind) == {"in_use": 10}
    crowd[0].say("RSET")
    assert (crowd[10].heard()[:4], known.heard()) == ("250 ", "")
    crowd[1].say("RSET")
    assert known.heard().startswith("250 ")


def test_trusted_clients_and_users_have_the_reserve_too() -> None:
    limits = {
        **FIFTH,
        "ip_filters": [FakeFilter(lambda peer: TRUST if peer.address.packed[3] > 250 else PASS)],
    }
    behind = guarded({**limits, "checkers": [Checker(b"ann")], "auth_without_tls": True})
    stuck(behind, 8)
    assert behind.greeted("192.0.2.9").say(MAIL) == ""
    assert behind.sends(behind.greeted("192.0.2.251")) == QUEUED
    user = behind.greeted("192.0.2.10")
    user.say(f"AUTH PLAIN {plain()}")
    assert behind.sends(user) == QUEUED


def test_the_first_mail_of_a_session_that_is_accepted_opens_the_reserve_to_it() -> None:
    behind = guarded()
    client = behind.greeted("192.0.2.200")
    assert behind.sends(client) == QUEUED
    stuck(behind, 8)
    assert behind.sends(client) == QUEUED


@ANNOUNCED
def test_who_is_no_stranger_is_served_before_strangers_that_came_first(arguments: Any) -> None:
    behind = guarded(**arguments)
    crowd = stuck(behind, 8)
    waiting = stuck(behind, 3, 20)
    # The reserve is taken too.
    others = [behind.greeted(KNOWN) for _ in range(4)]
    assert [client.say(MAIL)[:4] for client in others] == ["250 ", "250 ", "", ""]
    crowd[0].say("RSET", "QUIT")
    crowd[1].say("RSET", "QUIT")
    assert [client.heard()[:4] for client in (*others, *waiting)] == ["", "", "250 ", "250 ", "", "", ""]
    served = []
    for other in others:
        other.say("RSET", "QUIT")
        behind.clock.advance(0)
        served.append([client.heard()[:4] for client in waiting].count("250 "))
    # Six of the crowd are left, and a stranger is served when no more than seven places are taken.
    assert served == [0, 0, 1, 1]


def test_an_idle_connection_is_not_given_to_a_stranger_if_it_is_the_last_that_is_left() -> None:
    behind = guarded(connections=2)
    known = [behind.greeted(KNOWN) for _ in range(2)]
    for client in known:
        client.say(MAIL)
    for client in known:
        client.say("RSET")
    assert states(behind) == {"idle": 2, "reserved": 1}
    first, second = stuck(behind, 2)
    assert (first.heard(), second.heard()) == ("", "")
    assert states(behind) == {"in_use": 1, "idle": 1, "reserved": 1}
    assert behind.sends(known[0]) == QUEUED
    first.say("RSET")
    assert second.heard().startswith("250 ")


def test_a_parked_connection_of_a_stranger_makes_room_for_a_known_client() -> None:
    behind = guarded(connections=2, announce="proxy")
    known = [behind.greeted(KNOWN) for _ in range(2)]
    stranger = behind.greeted("192.0.2.9")
    assert behind.sends(stranger) == QUEUED
    assert states(behind) == {"parked": 1, "reserved": 1}
    for client in known:
        assert client.say(MAIL).startswith("250 ")
    assert states(behind) == {"in_use": 2}


@pytest.mark.parametrize("ends", ["down", "stop"])
def test_whoever_waits_is_told_at_once_that_no_connection_comes(ends: str) -> None:
    server = MailServer()
    behind = guarded(server=server, connections=2)
    known = [behind.greeted(KNOWN) for _ in range(3)]
    strangers = stuck(behind, 2)
    said = [client.say(MAIL)[:4] for client in known]
    assert said == ["250 ", "", ""]
    if ends == "stop":
        behind.proxy.stopService()
    else:
        server.reachable = False
        for link in list(server.open_links):
            link.close()
    told = [client.heard() for client in (strangers[1], *known[1:])]
    assert [each[:9] for each in told] == ["451 4.4.1"] * 3


@pytest.mark.parametrize("leaves", ["while it waits", "while the server is silent", "after MAIL"])
def test_a_place_is_given_back_however_often_strangers_leave(leaves: str) -> None:
    server = MailServer()
    behind = guarded(server=server)
    if leaves == "while it waits":
        holds = stuck(behind, 8)
    elif leaves == "while the server is silent":
        holds = []
        server.links[0].close()
        server.answers["EHLO"] = silence
    for _ in range(5):
        for client in stuck(behind, 20, 100):
            client.disconnect()
        behind.clock.advance(1)
    if leaves == "while it waits":
        for client in holds:
            client.disconnect()
    server.answers.clear()
    behind.clock.pump([1] * 70)
    assert behind.sends(behind.greeted("192.0.2.9")) == QUEUED
    behind.assert_nothing_is_left()


# How many.


@pytest.mark.parametrize(
    ("most", "share", "reserved"),
    [
        (10, Fraction(1, 5), 2),
        (10, Fraction(0), 0),
        (10, Fraction(29, 100), 2),
        (100, Fraction(29, 100), 29),
        (3, Fraction(1, 2000), 1),
        (2, Fraction(1, 5), 1),
        (2, Fraction(1), 1),
        (10, Fraction(1), 9),
        (1, Fraction(1, 2), 0),
    ],
)
def test_each_side_has_a_place_where_there_are_two(most: int, share: Fraction, reserved: int) -> None:
    places = Places(most)
    places.reserve(share)
    places.divide(0, 1)
    assert places.reserved == reserved


@pytest.mark.parametrize(("connections", "parts"), [(10, 2), (7, 3), (50, 8), (4, 2)])
def test_each_worker_reserves_its_part_and_all_together_no_less_than_the_share(
    connections: int, parts: int
) -> None:
    reserved = 0
    for part in range(parts):
        delivery = guarded({}, connections=connections).proxy
        delivery.reserve(Fraction(1, 5), "guard")
        delivery.divide(part, parts)
        places = delivery._pool.places
        assert 1 <= places.reserved < places.most
        reserved += places.reserved
    assert reserved == max(connections // 5, parts)


def test_the_share_follows_the_limits_of_a_running_guard() -> None:
    behind = guarded()
    crowd = stuck(behind, 11)

    def served() -> int:
        return sum(client.heard().startswith("250 ") for client in crowd)

    # What was heard before is gone.
    served()
    assert states(behind) == {"in_use": 8, "reserved": 2}
    behind.factory.set_limits(attrs.evolve(behind.factory.limits, reserved_connections=1))
    # A number is a share of the cap, and there is none.
    assert served() == 2
    assert states(behind) == {"in_use": 10}


@pytest.mark.parametrize("reserves", [True, False])
def test_those_that_wait_are_served_by_the_share_of_now_and_not_by_that_when_they_came(
    reserves: bool,
) -> None:
    behind = guarded({} if reserves else FIFTH)
    crowd = stuck(behind, 11)
    changed = FIFTH if reserves else {"reserved_connections": Part(0, percent=True)}
    behind.factory.set_limits(attrs.evolve(behind.factory.limits, **changed))
    known = behind.greeted(KNOWN)
    assert known.say(MAIL) == ""
    assert states(behind)["in_use"] == 10
    crowd[0].say("RSET")
    assert (known.heard()[:4], crowd[10].heard()[:4]) == (("250 ", "") if reserves else ("", "250 "))


def test_a_number_is_the_same_share_of_the_cap_and_a_dry_run_reserves_nothing() -> None:
    limits = {"max_connections": 2000, "reserved_connections": 600}
    assert states(guarded(limits))["reserved"] == 3
    assert "reserved" not in states(guarded({**limits, "dry_run": ["reserved_connections"]}))
    assert "reserved" not in states(guarded({"max_connections": 2000}))
    assert Limits.for_profile("edge").reserved_connections == Part(20, percent=True)


def test_what_restricts_a_delivery_to_domains_hands_the_share_on() -> None:
    proxy = guarded({}).proxy
    restricted = AcceptedDomains(proxy, ["example.org"])
    verifyObject(IReservingDelivery, proxy)
    verifyObject(IReservingDelivery, restricted)
    restricted.reserve(Fraction(1, 2), "guard")
    assert proxy.connections_by_state["reserved"] == 5
    AcceptedDomains(DiscardDelivery(), ["example.org"]).reserve(Fraction(1, 2), "guard")


def test_of_guards_that_share_a_delivery_the_one_that_reserves_most_decides() -> None:
    edge = guarded()
    other = Guard(edge.proxy, edge.clock)
    assert edge.proxy.connections_by_state["reserved"] == 2
    other.factory.set_limits(Limits(reserved_connections=Part(50, percent=True)))
    assert edge.proxy.connections_by_state["reserved"] == 5
    other.factory.set_limits(Limits())
    assert edge.proxy.connections_by_state["reserved"] == 2
