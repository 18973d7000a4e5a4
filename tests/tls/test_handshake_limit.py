"""The limit on handshakes under way: whose is ended above it, and which are counted. Stalled ones keep nobody out."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_twisted
from certificates import AUTHORITY, certificate
from fakes import SlowFilter
from logbook import logbook
from loopback import Loopback, reactor
from tlsclient import TLSClient
from twisted.internet.endpoints import serverFromString
from twisted.logger import capturedLogs

from twisted_smtpguard.interfaces import PASS
from twisted_smtpguard.tls.files import CertificateFiles

OLD_SECONDS = 1.0
WAYS = ("STARTTLS", "implicit TLS", "ssl: endpoint")
each_way = pytest.mark.parametrize("way", WAYS)


def started(way: str, **limits: Any) -> Loopback:
    options: dict[str, Any] = {"tls": CertificateFiles(str(certificate()))}
    if way == "STARTTLS":
        guard = Loopback(options=options, **limits)
    elif way == "implicit TLS":
        guard = Loopback(0, tls_listeners=1, options=options, **limits)
    else:
        pem = str(certificate()).replace(":", "\\:")
        endpoint = serverFromString(reactor, f"ssl:0:interface=127.0.0.1:privateKey={pem}")
        guard = Loopback(endpoints=[endpoint], **limits)
    guard.start()
    return guard


async def beginning(guard: Loopback, way: str) -> TLSClient:
    """A client whose handshake the guard has begun, and which has said nothing of it."""
    client = TLSClient(guard)
    if way == "STARTTLS":
        await client.ask_for_tls()
    await guard.until(lambda: client.socket.getsockname()[1] in ports(guard))
    return client


def ports(guard: Loopback) -> list[int | None]:
    """Of the clients whose handshakes are under way, the oldest first."""
    return [engine.port for engine in guard.factory.context.handshakes]


def ports_of(*clients: TLSClient) -> list[int]:
    return [client.socket.getsockname()[1] for client in clients]


async def is_served(client: TLSClient) -> None:
    await client.shake_hands()
    await client.says(b"NOOP\r\n")
    await client.hears(b"250 2.0.0 OK\r\n")


async def is_out(client: TLSClient) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.shake_hands()
    assert client.heard == b""


@each_way
@pytest_twisted.ensureDeferred
async def test_above_it_the_oldest_is_ended_so_that_stalled_ones_keep_nobody_out(way: str) -> None:
    guard = started(way, max_tls_handshakes=2)
    first, second = await beginning(guard, way), await beginning(guard, way)
    guard.clock.advance(OLD_SECONDS)
    with logbook() as log:
        third = await beginning(guard, way)
        assert ports(guard) == ports_of(second, third)
        await is_out(first)
        (line,) = log.take("reject")
    assert " reason=max_tls_handshakes " in line
    assert " limit=2 value=3" in line
    await is_served(third)
    await is_served(second)
    assert guard.factory.statistics.refusals == {"max_tls_handshakes": 1}
    await guard.close()


@each_way
@pytest_twisted.ensureDeferred
async def test_while_the_oldest_is_young_the_newcomer_is_ended(way: str) -> None:
    guard = started(way, max_tls_handshakes=2)
    first, second = await beginning(guard, way), await beginning(guard, way)
    guard.clock.advance(OLD_SECONDS - 0.01)
    third = TLSClient(guard)
    if way == "STARTTLS":
        await third.ask_for_tls()
    await is_out(third)
    for client in (first, second):
        await is_served(client)
    assert guard.factory.statistics.refusals == {"max_tls_handshakes": 1}
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_listeners_and_ways_have_one_limit() -> None:
    guard = Loopback(
        tls_listeners=1, options={"tls": CertificateFiles(str(certificate()))}, max_tls_handshakes=1
    )
    guard.start()
    first = await beginning(guard, "STARTTLS")
    guard.clock.advance(OLD_SECONDS)
    second = TLSClient(guard, 1)
    await is_served(second)
    await is_out(first)
    assert guard.factory.statistics.connections_refused == 0, "the first had its greeting"
    await guard.close()


async def completes(guard: Loopback, client: TLSClient) -> None:
    await is_served(client)


async def leaves(guard: Loopback, client: TLSClient) -> None:
    client.close()


async def resets(guard: Loopback, client: TLSClient) -> None:
    client.reset()


async def half_closes(guard: Loopback, client: TLSClient) -> None:
    client.half_close()


async def talks_nonsense(guard: Loopback, client: TLSClient) -> None:
    await client.says(b"EHLO client.example\r\n")


async def lets_time_pass(guard: Loopback, client: TLSClient) -> None:
    guard.clock.advance(31)


ENDS = (completes, leaves, resets, half_closes, talks_nonsense, lets_time_pass)


@each_way
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@pytest_twisted.ensureDeferred
async def test_a_handshake_that_has_ended_is_not_counted(
    way: str, end: Callable[[Loopback, TLSClient], Awaitable[None]]
) -> None:
    guard = started(way, max_tls_handshakes=1)
    await end(guard, await beginning(guard, way))
    await guard.until(lambda: not guard.factory.context.handshakes)
    await is_served(await beginning(guard, way))
    assert "max_tls_handshakes" not in guard.factory.statistics.refusals
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_filter_that_is_being_asked_is_cancelled_with_the_handshake_of_an_ssl_endpoint() -> None:
    slow = SlowFilter()
    pem = str(certificate()).replace(":", "\\:")
    endpoint = serverFromString(reactor, f"ssl:0:interface=127.0.0.1:privateKey={pem}")
    guard = Loopback(endpoints=[endpoint], options={"ip_filters": [slow]}, max_tls_handshakes=1)
    guard.start()
    first = await beginning(guard, "ssl: endpoint")
    guard.clock.advance(OLD_SECONDS)
    second = await beginning(guard, "ssl: endpoint")
    await is_out(first)
    assert slow.cancelled == 1
    slow.asked[1].callback(PASS)
    await is_served(second)
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_client_whose_address_is_still_looked_at_has_no_handshake() -> None:
    slow = SlowFilter()
    tls = CertificateFiles(str(certificate()))
    guard = Loopback(0, tls_listeners=1, options={"tls": tls, "ip_filters": [slow]}, max_tls_handshakes=1)
    guard.start()
    waiting = [TLSClient(guard) for _ in range(3)]
    await guard.until(lambda: len(slow.asked) == 3)
    assert ports(guard) == []
    slow.asked[2].callback(PASS)
    await is_served(waiting[2])
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_where_clients_are_asked_for_certificates_the_handshake_before_the_filters_is_counted() -> None:
    tls = CertificateFiles(str(certificate()), client_authorities=str(AUTHORITY))
    guard = Loopback(0, tls_listeners=1, options={"tls": tls}, max_tls_handshakes=1)
    guard.start()
    first = await beginning(guard, "implicit TLS")
    guard.clock.advance(OLD_SECONDS)
    await is_served(await beginning(guard, "implicit TLS"))
    await is_out(first)
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_cannot_begin_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = started("STARTTLS", max_tls_handshakes=1)
    client = TLSClient(guard)
    await client.hears(b"220 ")
    (protocol,) = guard.protocols
    with monkeypatch.context() as patch, capturedLogs() as events:
        patch.delattr(type(protocol), "_tls_begins")
        await client.says(b"EHLO client.example\r\nSTARTTLS\r\n")
        await guard.until(lambda: client.read() or client.ended)
    assert [event["log_failure"].type for event in events if "log_failure" in event] == [AttributeError]
    assert ports(guard) == []
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_handshake_after_a_proxy_header_is_counted() -> None:
    options = {"tls": CertificateFiles(str(certificate())), "proxy_protocol_from": ["127.0.0.0/8"]}
    guard = Loopback(0, tls_listeners=1, options=options, max_tls_handshakes=1)
    guard.start()
    first, second = TLSClient(guard), TLSClient(guard)
    await first.says(b"PROXY TCP4 192.0.2.1 192.0.2.9 1001 25\r\n")
    await guard.until(lambda: ports(guard) == [1001])
    guard.clock.advance(OLD_SECONDS)
    await second.says(b"PROXY TCP4 192.0.2.2 192.0.2.9 1002 25\r\n")
    await guard.until(lambda: ports(guard) == [1002])
    await is_out(first)
    await is_served(second)
    await guard.close()


ENDS_OF_SESSIONS: dict[str, Callable[[Loopback], object]] = {
    "a stop": lambda guard: guard.service.stopService(),
    "the end of the session time": lambda guard: guard.clock.advance(10),
}


@pytest.mark.parametrize("end", ENDS_OF_SESSIONS.values(), ids=ENDS_OF_SESSIONS)
@pytest_twisted.ensureDeferred
async def test_what_ends_an_idle_session_does_not_prolong_its_handshake(
    end: Callable[[Loopback], object],
) -> None:
    guard = started("STARTTLS", max_session_time=10, tls_handshake_timeout=15)
    client = await beginning(guard, "STARTTLS")
    end(guard)
    assert ports(guard) == ports_of(client)
    with logbook() as log:
        guard.clock.advance(15)
        await guard.until(lambda: not guard.protocols)
        (line,) = log.take("reject")
    assert " reason=tls_handshake_timeout " in line
    await guard.close()


@pytest.mark.parametrize("end", ENDS_OF_SESSIONS.values(), ids=ENDS_OF_SESSIONS)
@pytest_twisted.ensureDeferred
async def test_what_ends_an_idle_session_waits_for_the_first_command_after_a_handshake(
    end: Callable[[Loopback], object],
) -> None:
    guard = started("STARTTLS", max_session_time=10)
    client = await beginning(guard, "STARTTLS")
    end(guard)
    await client.shake_hands()
    await client.says(b"EHLO client.example\r\n")
    await client.hears(b"421 ")
    await guard.close()
