"""Whatever a connection to the upstream server raises at its end, its place is given back and a stop goes on."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Conversation
from mailserver import Behind, Link, MailServer, silence

MAIL, RCPT = "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>"
QUEUED = "250 2.0.0 Queued as 4711"


def faulty(*_: object) -> Any:
    raise ZeroDivisionError


each_fault = pytest.mark.parametrize(
    "faults",
    [
        ["abortConnection"],
        ["loseConnection"],
        ["unregisterProducer"],
        ["abortConnection", "loseConnection", "unregisterProducer"],
    ],
    ids=" ".join,
)


def breaks(link: Link, faults: list[str]) -> None:
    for name in faults:
        setattr(link, name, faulty)


def behind(**options: Any) -> Behind:
    server = MailServer("8BITMIME")
    return Behind(server, connections=1, wait=10, **options)


@each_fault
@pytest.mark.parametrize("amid", [[MAIL], [MAIL, RCPT, "DATA", "text"]], ids=["envelope", "message"])
def test_the_place_of_a_client_that_leaves_is_free(faults: list[str], amid: list[str]) -> None:
    guard = behind()
    # The connection is not to be used again, whichever way it is left.
    client = guard.greeted()
    client.say(*amid[:-1])
    guard.server.answers["RCPT"] = silence
    client.say(*amid[-1:], *([RCPT] if len(amid) == 1 else []))
    breaks(guard.server.links[-1], faults)
    client.disconnect()
    assert guard.factory.connections == 0
    del guard.server.answers["RCPT"]
    guard.clock.advance(1)
    assert guard.sends(guard.greeted()) == QUEUED


@each_fault
def test_a_server_that_is_silent_is_given_up(faults: list[str]) -> None:
    guard = behind(timeout=20)
    client = guard.greeted()
    guard.server.answers["RCPT"] = silence
    client.say(MAIL)
    breaks(guard.server.links[-1], faults)
    client.say(RCPT)
    guard.clock.advance(20)
    assert client.heard().startswith("451 4.4.")
    del guard.server.answers["RCPT"]
    client.say("RSET")
    assert guard.sends(client) == QUEUED


@each_fault
@pytest.mark.parametrize("number", [1, 3])
def test_a_stop_sends_quit_on_every_connection_and_is_over(faults: list[str], number: int) -> None:
    server = MailServer("8BITMIME")
    guard = Behind(server, connections=5)
    clients: list[Conversation] = [guard.greeted() for _ in range(5)]
    for client in clients:
        client.say(MAIL)
    # Three connections are idle, and two are in use.
    for client in clients[:3]:
        client.say("RSET")
    assert len(server.open_links) == 5
    for link in server.links[:number]:
        breaks(link, faults)
    stopped: list[object] = []
    guard.proxy.stopService().addBoth(stopped.append)
    guard.clock.advance(1)
    assert stopped == [[None] * 3]
    assert [link for link in server.links[number:] if not link.closed] == []
    assert guard.proxy._pool.places.in_use == 0
