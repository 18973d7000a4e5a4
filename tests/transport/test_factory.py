"""The cap on connections: exact, over all listeners, from accept to the end."""

from __future__ import annotations

import os
import select
from typing import Any

import pytest
import pytest_twisted
from fakes import Conversation, Guard, codes
from logbook import logbook
from loopback import Loopback
from twisted.internet.address import IPv4Address, UNIXAddress

from twisted_smtpguard.counters.sharedmemory import SharedCounterStore, create_table
from twisted_smtpguard.transport.turnaway import TurnAway
from twisted_smtpguard.values import Wanted

FULL = "421 4.7.0 Too many connections, try again later\r\n"


@pytest.mark.parametrize("cap", [1, 2, 10])
def test_as_many_connections_get_in_as_the_cap_says_and_not_one_more(cap: int) -> None:
    guard = Guard(max_connections=cap)
    for n in range(1, cap + 1):
        assert codes(guard.connect().heard()) == [220]
        assert guard.factory.connections == n
    for _ in range(3):
        refused = guard.connect()
        assert refused.heard() == FULL
        assert refused.transport.lost
    assert guard.factory.connections == cap
    assert guard.factory.statistics.refusals == {"max_connections": 3}
    assert guard.factory.statistics.live_connections == cap


def test_a_slot_that_is_freed_is_given_to_the_next() -> None:
    guard = Guard(max_connections=2)
    clients = [guard.connect(), guard.connect()]
    for _ in range(10):
        assert guard.connect().heard() == FULL
        clients.pop(0).disconnect()
        clients.append(guard.connect())
        assert codes(clients[-1].heard()) == [220]


def test_a_cap_of_0_is_no_limit() -> None:
    guard = Guard()
    clients = [guard.connect() for _ in range(3000)]
    assert {client.heard() for client in clients} == {"220 guard.example ESMTP ready\r\n"}
    assert guard.factory.connections == 3000


def test_a_slot_is_held_from_accept_before_anything_is_said() -> None:
    guard = Guard(max_connections=1)
    guard.factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
    assert guard.connect().heard() == FULL


def test_a_cap_that_other_processes_have_filled_turns_away_at_accept_as_ones_own_connections_do() -> None:
    table = create_table(100, 2)
    own, other = (SharedCounterStore(table, process) for process in range(2))
    others = [Wanted("max_connections", "", 0, events=3)]
    guard = Guard(counters=own, max_connections=3)
    tried = Guard(counters=own, max_connections=3, dry_run={"max_connections"})
    other.take("", others)
    with logbook() as log:
        assert isinstance(guard.factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1)), TurnAway)
        (event,) = log.take("reject")
        assert "reason=max_connections limit=3 value=4" in event
        # In dry run it is told once.
        assert codes(tried.connect().heard()) == [220]
        assert len(log.take("reject")) == 1
    other.give_back("", others)
    assert codes(guard.connect().heard()) == [220]
    own.close()
    other.close()
    os.close(table)


def test_clients_of_a_unix_socket_count_too() -> None:
    guard = Guard(max_connections=1)
    guard.factory.buildProtocol(UNIXAddress(None))
    assert guard.connect().heard() == FULL


def test_no_two_sessions_have_one_name() -> None:
    guards = [Guard(), Guard()]
    names = {guard.connect().protocol.engine.name for guard in guards for _ in range(100)}
    assert len(names) == 200


def test_while_the_guard_stops_no_client_is_let_in() -> None:
    guard = Guard()
    guard.factory.drain()
    refused: Conversation = guard.connect()
    assert refused.heard() == "421 4.3.2 Server shutting down\r\n"
    assert refused.transport.lost
    assert guard.factory.statistics.refusals == {"shutdown": 1}
    guard.factory.reopen()
    assert codes(guard.connect().heard()) == [220]


@pytest_twisted.async_yield_fixture
async def guard() -> Any:
    loopback = Loopback(listeners=2, max_connections=3)
    loopback.start()
    yield loopback
    await loopback.close()


@pytest_twisted.ensureDeferred
async def test_two_listeners_have_one_cap(guard: Loopback) -> None:
    clients = [guard.client(n % 2) for n in range(3)]
    for client in clients:
        await client.hears(b"220 ")
    for listener in (0, 1):
        refused = guard.client(listener)
        assert await refused.hears_the_end() == "FIN"
        assert refused.heard.decode() == FULL
    clients[0].close()
    await guard.until(lambda: guard.factory.connections == 2)
    await guard.client(1).hears(b"220 ")


@pytest_twisted.ensureDeferred
async def test_of_a_crowd_that_comes_at_once_as_many_get_in_as_the_cap_says(guard: Loopback) -> None:
    crowd = [guard.client(n % 2) for n in range(100)]
    for client in crowd:
        await client.hears(b"\r\n")
    assert sorted(client.heard[:3] for client in crowd) == [b"220"] * 3 + [b"421"] * 97


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="needs epoll")
def test_the_descriptor_that_watches_for_ends_is_there_before_a_crowd_can_take_all() -> None:
    factory = Guard().factory
    factory.doStart()
    assert factory.ends._poll is not None
    factory.doStop()


def test_a_trace_that_fails_costs_the_client_nothing() -> None:
    def fails(_: object) -> None:
        raise ZeroDivisionError

    guard = Guard(max_connections=1)
    guard.factory.on_connection = fails
    for _ in range(2):
        with logbook() as log:
            client = guard.connect()
            assert len(log.take("failure")) == 1
        assert client.codes("QUIT") == [220, 221]
        client.disconnect()
