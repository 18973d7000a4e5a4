"""Connections that get no session: they are told why, and cost nothing."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import pytest_twisted
from fakes import FakeTransport, Guard
from loopback import Loopback
from twisted.internet.address import IPv6Address
from twisted.internet.interfaces import ISSLTransport
from zope.interface import directlyProvides

from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.replies import TOO_MANY_CONNECTIONS
from twisted_smtpguard.transport.peers import peer_name
from twisted_smtpguard.transport.turnaway import TurnAway

FULL = b"421 4.7.0 Too many connections, try again later\r\n"


def test_it_says_why_and_closes() -> None:
    transport = FakeTransport()
    transport.protocol = TurnAway(TOO_MANY_CONNECTIONS)
    transport.protocol.makeConnection(transport)
    assert transport.value() == FULL
    assert transport.lost
    assert not transport.aborted


def test_it_looks_at_nothing_that_comes() -> None:
    transport = FakeTransport()
    transport.reads = False
    transport.protocol = TurnAway(TOO_MANY_CONNECTIONS)
    transport.protocol.makeConnection(transport)
    transport.protocol.dataReceived(b"EHLO x\r\n" * 1000)
    transport.reads = True
    transport.drain()
    assert transport.value() == FULL


def test_under_tls_it_aborts_for_without_a_handshake_nothing_can_be_said() -> None:
    transport = FakeTransport()
    directlyProvides(transport, ISSLTransport)
    transport.protocol = TurnAway(TOO_MANY_CONNECTIONS)
    transport.protocol.makeConnection(transport)
    assert transport.aborted
    assert transport.writes == []


def test_a_refused_connection_has_no_session_and_its_address_is_not_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = Guard(max_connections=1)
    guard.connect()

    def no(*_: object) -> None:
        raise AssertionError("not for a refused connection")

    monkeypatch.setattr(Engine, "__init__", no)
    monkeypatch.setattr("twisted_smtpguard.transport.peers.ipaddress.ip_address", no)
    assert guard.connect().transport.lost


@pytest_twisted.async_yield_fixture
async def full() -> Any:
    """A guard with one slot, and that one is taken."""
    guard = Loopback(listeners=2, max_connections=1)
    guard.start()
    await guard.greeted()
    yield guard
    await guard.close()


@pytest.mark.parametrize("said", [b"", b"EHLO x\r\n", b"x" * 50_000])
@pytest_twisted.ensureDeferred
async def test_a_refused_client_gets_the_line_though_it_has_sent_something(
    full: Loopback, said: bytes
) -> None:
    client = full.client()
    assert client.send(said) == len(said)
    assert await client.hears_the_end() == "FIN"
    assert client.heard == FULL
    # No reset after it, which on other systems than this would destroy the line.
    await full.turn()
    assert client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest_twisted.ensureDeferred
async def test_a_thousand_refused_connections_leave_no_state(full: Loopback) -> None:
    protocols = set(full.protocols)
    scheduled = len(full.clock.getDelayedCalls())
    for n in range(20):
        clients = [full.client(listener=n % 2) for _ in range(50)]
        for client in clients:
            assert await client.hears_the_end() == "FIN"
            assert client.heard == FULL
            client.close()
        full.clients = full.clients[:1]
    statistics = full.factory.statistics
    assert statistics.refusals == {"max_connections": 1000}
    assert statistics.connections_refused == 1000
    assert statistics.connections_accepted == statistics.live_connections == 1
    assert full.factory.connections == 1
    assert set(full.protocols) == protocols
    assert len(full.clock.getDelayedCalls()) == scheduled


@pytest_twisted.ensureDeferred
async def test_a_refused_client_that_resets_at_once_harms_no_other(full: Loopback) -> None:
    for _ in range(50):
        full.client().reset()
    client = full.client()
    assert await client.hears_the_end() == "FIN"
    assert client.heard == FULL


def test_a_mapped_address_is_logged_as_the_ipv4_address_that_it_is() -> None:
    peer = IPv6Address("TCP", "::ffff:192.0.2.1", 4711)
    assert peer_name(peer) == "192.0.2.1"
    assert peer_name(IPv6Address("TCP", "2001:db8::1", 4711)) == "2001:db8::1"
