"""The end of a connection that data precede, over real sockets: plain, from a proxy, under TLS."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from certificates import AUTHORITY, certificate
from fakes import SlowFilter, codes
from loopback import Client, Loopback, reactor
from tlsclient import TLSClient, client_hello
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString

from twisted_smtpguard import Limits
from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.tls.files import CertificateFiles
from twisted_smtpguard.transport import endwatcher

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x12\x67\x00\x19"
HELLO = client_hello()
COMMANDS = b"EHLO a\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<b@c.example>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"
HIDDEN = b"NOOP\r\n" * 12_000
"""Somewhat more than is read while nothing can be done with it: the end stays in the kernel, after the rest."""

NO_TIME_LIMITS = {
    "read_timeout": 0,
    "write_timeout": 0,
    "proxy_header_timeout": 0,
    "tls_handshake_timeout": 0,
    "ip_filter_timeout": 0,
    "linger_timeout": 0,
}
EDGE = {"early_talker": "log", "greet_delay": 2}


def started(
    *,
    tls: bool = False,
    slow: bool | SlowFilter = False,
    proxied: bool = False,
    asks: bool = False,
    **limits: Any,
) -> Loopback:
    """A guard with one listener, of implicit TLS if `tls`; with a filter that never answers if `slow`."""
    options: dict[str, Any] = {
        "tls": CertificateFiles(str(certificate()), client_authorities=str(AUTHORITY) if asks else "")
    }
    if slow:
        options["ip_filters"] = [slow if isinstance(slow, SlowFilter) else SlowFilter()]
    if proxied:
        options["proxy_protocol_from"] = ["127.0.0.0/8"]
    guard = Loopback(0 if tls else 1, tls_listeners=int(tls), options=options, **NO_TIME_LIMITS | limits)
    guard.start()
    return guard


def close(client: Client) -> None:
    client.close()


def half_close(client: Client) -> None:
    client.socket.shutdown(socket.SHUT_WR)


def reset(client: Client) -> None:
    client.reset()


ENDS: list[Callable[[Client], None]] = [close, half_close, reset]
each_end = pytest.mark.parametrize("end", ENDS)

STAGES: dict[str, tuple[dict[str, Any], bytes]] = {
    "filter": ({"slow": True}, COMMANDS),
    "filter, hidden": ({"slow": True}, HIDDEN),
    "greet delay": (EDGE, COMMANDS),
    "greet delay, hidden": (EDGE, HIDDEN),
    "half a v1 header": ({"proxied": True}, V1[:20]),
    "half a v2 header": ({"proxied": True}, V2[:14]),
    "filter after a v1 header": ({"proxied": True, "slow": True}, V1 + COMMANDS),
    "filter after a v2 header, hidden": ({"proxied": True, "slow": True}, V2 + HIDDEN),
    "greet delay after a header": ({"proxied": True, **EDGE}, V2 + COMMANDS),
    "TLS: half a v1 header": ({"tls": True, "proxied": True}, V1[:20]),
    "TLS: filter, half a hello": ({"tls": True, "slow": True}, HELLO[:50]),
    "TLS: filter, a hello": ({"tls": True, "slow": True}, HELLO),
    "TLS: filter, hidden": ({"tls": True, "slow": True}, HELLO + HIDDEN),
    "TLS: greet delay, half a hello": ({"tls": True, **EDGE}, HELLO[:50]),
    "TLS: greet delay, a hello": ({"tls": True, **EDGE}, HELLO),
    "TLS: filter after a header, a hello": ({"tls": True, "slow": True, "proxied": True}, V1 + HELLO),
    "TLS: half a hello": ({"tls": True}, HELLO[:50]),
    "TLS: a hello": ({"tls": True}, HELLO),
    "TLS: a hello after a header": ({"tls": True, "proxied": True}, V2 + HELLO),
    "TLS: half a hello, certificates asked for": ({"tls": True, "asks": True}, HELLO[:50]),
}


@each_end
@pytest.mark.parametrize("together", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize(("setting", "octets"), STAGES.values(), ids=STAGES)
@pytest_twisted.ensureDeferred
async def test_before_the_greeting_it_is_a_hangup_and_the_place_is_free_at_once(
    setting: dict[str, Any], octets: bytes, together: bool, end: Callable[[Client], None]
) -> None:
    guard = started(**setting)
    client = guard.client()
    if together:
        # As much as the kernel takes, before the guard has seen the connection.
        client.send(octets)
        end(client)
        await guard.until(lambda: guard.factory.statistics.hangups)
    else:
        await guard.until(lambda: guard.factory.connections == 1)
        client.send(octets)
        for _ in range(5):
            await guard.turn()
        end(client)
    await guard.until(lambda: guard.factory.connections == 0)
    assert guard.factory.statistics.hangups == 1
    assert guard.factory.statistics.refusals == {}
    assert guard.factory.statistics.connections_accepted == 0
    if end is half_close:
        await client.hears_the_end()
    assert b"220" not in client.heard
    await guard.until(lambda: not guard.protocols)
    await guard.close()


@each_end
@pytest.mark.parametrize("hidden", [b"", b"EHLO a\r\n"], ids=["silent", "commands"])
@pytest_twisted.ensureDeferred
async def test_a_filter_after_the_handshake_does_not_hide_it(
    hidden: bytes, end: Callable[[Client], None]
) -> None:
    slow = SlowFilter()
    guard = started(tls=True, asks=True, slow=slow)
    client = TLSClient(guard)
    await client.shake_hands()
    await guard.until(lambda: slow.asked)
    client.send(hidden)
    end(client)
    await guard.until(lambda: guard.factory.connections == 0)
    assert (guard.factory.statistics.hangups, guard.factory.statistics.refusals) == (1, {})
    assert slow.cancelled == 1
    await guard.until(lambda: not guard.protocols)
    await guard.close()


# In a session.


async def upgrading(octets: bytes) -> tuple[Loopback, Client]:
    """A client in clear that has been told to begin TLS, and has sent `octets` then."""
    guard = started()
    client = await guard.greeted()
    await client.says(b"STARTTLS\r\n")
    await client.hears(b"220 2.0.0 ")
    client.heard = b""
    await client.says(octets)
    for _ in range(3):
        await guard.turn()
    return guard, client


@each_end
@pytest.mark.parametrize("octets", [b"", HELLO[:50], HELLO], ids=["nothing", "half a hello", "a hello"])
@pytest_twisted.ensureDeferred
async def test_in_the_handshake_of_starttls_it_ends_the_session(
    octets: bytes, end: Callable[[Client], None]
) -> None:
    guard, client = await upgrading(octets)
    end(client)
    await guard.until(lambda: guard.factory.connections == 0)
    assert guard.factory.statistics.refusals == {}
    await guard.until(lambda: not guard.protocols)
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_no_handshake_begins_for_a_client_that_has_half_closed_after_starttls() -> None:
    guard = started()
    verdict: Deferred[None] = Deferred()
    guard.delivery.answers["recipient"] = lambda _: verdict
    client = await guard.greeted()
    await client.says(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<b@c.example>\r\nRSET\r\nSTARTTLS\r\n")
    client.half_close()
    await guard.until(lambda: "recipient" in guard.delivery.calls)
    for _ in range(5):
        await guard.turn()
    verdict.callback(None)
    assert await client.hears_the_end() == "FIN"
    assert codes(client.heard.decode()) == [250, 250, 250, 220]
    assert guard.factory.connections == 0
    await guard.close()


HOOKS: dict[str, tuple[str, bytes]] = {
    "begin": ("begin", b"MAIL FROM:<a@b.example>\r\n"),
    "recipient": ("recipient", b"MAIL FROM:<a@b.example>\r\nRCPT TO:<b@c.example>\r\n"),
    "data": ("data", COMMANDS[8:-12]),
    "write": ("write", COMMANDS[8:-9]),
    "finish": ("finish", COMMANDS[8:-6]),
}


def pending(guard: Loopback, hook: str) -> list[Deferred[None]]:
    asked: list[Deferred[None]] = []

    def ask(*_: object) -> Deferred[None]:
        asked.append(Deferred())
        return asked[-1]

    guard.delivery.answers[hook] = ask
    return asked


async def plain(guard: Loopback) -> Client:
    return await guard.greeted()


async def starttls(guard: Loopback) -> Client:
    client = await TLSClient.upgraded(guard)
    await client.says(b"EHLO client.example\r\n")
    await client.hears(b"250 ")
    client.heard = b""
    return client


async def implicit(guard: Loopback) -> Client:
    client = TLSClient(guard)
    await client.shake_hands()
    await client.says(b"EHLO client.example\r\n")
    await client.hears(b"250 ")
    client.heard = b""
    return client


WAYS: dict[str, Callable[[Loopback], Awaitable[Client]]] = {
    "plain": plain,
    "STARTTLS": starttls,
    "implicit TLS": implicit,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hidden", [0, 300_000])
@pytest.mark.parametrize(("hook", "octets"), HOOKS.values(), ids=HOOKS)
@pytest_twisted.ensureDeferred
async def test_a_reset_while_a_hook_is_pending_frees_the_place_whatever_is_unread(
    hook: str, octets: bytes, hidden: int, way: str
) -> None:
    guard = started(tls=way == "implicit TLS", delivery_timeout=0)
    asked = pending(guard, hook)
    client = await WAYS[way](guard)
    await client.says(octets)
    await guard.until(lambda: asked)
    client.send(b"x" * hidden)
    for _ in range(5):
        await guard.turn()
    client.reset()
    await guard.until(lambda: guard.factory.connections == 0)
    await guard.until(lambda: not guard.protocols)
    for each in asked:
        if not each.called:
            each.callback(None)
    await guard.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("more", [0, 100, 20_000])
@pytest_twisted.ensureDeferred
async def test_data_that_end_while_a_write_is_pending_are_a_lost_connection_at_once(
    more: int, way: str
) -> None:
    guard = started(tls=way == "implicit TLS", delivery_timeout=0)
    asked = pending(guard, "write")
    client = await WAYS[way](guard)
    await client.says(COMMANDS[8:-9])
    await client.hears(b"354 ")
    await guard.until(lambda: asked)
    await client.says(b"x" * more)
    for _ in range(3):
        await guard.turn()
    half_close(client)
    await guard.until(lambda: guard.factory.connections == 0)
    assert asked[0].called
    assert guard.delivery.calls[-1] == "sink.abort"
    await guard.until(lambda: not guard.protocols)
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_reset_is_noticed_of_a_client_that_has_half_closed_and_waits() -> None:
    guard = started(delivery_timeout=0)
    asked = pending(guard, "recipient")
    client = await guard.greeted()
    await client.says(HOOKS["recipient"][1])
    await guard.until(lambda: asked)
    half_close(client)
    (protocol,) = guard.protocols
    await guard.until(lambda: protocol.engine.input_ended)
    assert guard.factory.connections == 1
    client.reset()
    await guard.until(lambda: guard.factory.connections == 0)
    assert asked[0].called
    await guard.close()


# Other sockets, other systems.


@each_end
@pytest.mark.parametrize("octets", [COMMANDS, HIDDEN], ids=["commands", "hidden"])
@pytest_twisted.ensureDeferred
async def test_it_is_noticed_over_a_unix_socket_too(
    tmp_path: Path, octets: bytes, end: Callable[[Client], None]
) -> None:
    guard = Loopback(0)
    path = str(tmp_path / "guard.sock")
    guard.service = SMTPGuardService(
        guard.clock,
        [serverFromString(reactor, f"unix:{path}")],
        guard.delivery,
        limits=Limits(**NO_TIME_LIMITS),
        hostname="guard.example",
        ip_filters=[SlowFilter()],
    )
    guard.factory = guard.service.factory
    guard.service.startService()
    client = Client.__new__(Client)
    client.guard, client.heard, client.ended = guard, b"", ""
    client.socket = socket.socket(socket.AF_UNIX)
    client.socket.connect(path)
    client.socket.setblocking(False)
    await guard.until(lambda: guard.factory.connections == 1)
    client.send(octets)
    for _ in range(5):
        await guard.turn()
    end(client)
    await guard.until(lambda: guard.factory.connections == 0)
    assert guard.factory.statistics.hangups == 1
    await guard.until(lambda: not guard.protocols)
    client.close()
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_without_epoll_it_is_noticed_when_reading_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = started(delivery_timeout=0)
    monkeypatch.delattr(endwatcher.select, "epoll")
    asked = pending(guard, "write")
    client = await guard.greeted()
    await client.says(COMMANDS[8:-9])
    await guard.until(lambda: asked)
    client.reset()
    for _ in range(5):
        await guard.turn()
    assert guard.factory.connections == 1
    asked[0].callback(None)
    await guard.until(lambda: guard.factory.connections == 0)
    await guard.close()
