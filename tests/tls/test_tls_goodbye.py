"""A client under TLS that ends its side right after its commands: it hears what became of them."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest
import pytest_twisted
from certificates import certificate
from fakes import FakeDelivery, codes
from loopback import Loopback, reactor
from tlsclient import TLSClient
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.ssl import PrivateCertificate

from twisted_smtpguard import Limits
from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.tls.files import CertificateFiles

ENVELOPE = b"EHLO a\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<b@c.example>\r\n"
MESSAGE = ENVELOPE + b"DATA\r\nx\r\n.\r\n"
HEARD = [250, 250, 250, 354, 250]
# An end that is never waited for shows itself where no time passes.
NO_TIME_LIMITS = {"read_timeout": 0, "write_timeout": 0, "delivery_timeout": 0, "linger_timeout": 0}

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
each_version = pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
each_way = pytest.mark.parametrize("way", ["implicit", "STARTTLS", "ssl: endpoint", "CertificateOptions"])
each_goodbye = pytest.mark.parametrize("goodbye", ["close_notify", "close_notify and FIN", "FIN"])
later = pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])


def started(way: str, **limits: Any) -> Loopback:
    tls: Any = CertificateFiles(str(certificate()))
    if way == "CertificateOptions":
        tls = PrivateCertificate.loadPEM(certificate().read_text()).options()
    limits = NO_TIME_LIMITS | limits
    guard = Loopback(int(way == "STARTTLS"), tls_listeners=1, options={"tls": tls}, **limits)
    if way == "ssl: endpoint":
        endpoint = serverFromString(reactor, f"ssl:0:interface=127.0.0.1:privateKey={certificate()}")
        guard.service = SMTPGuardService(
            guard.clock, [endpoint], FakeDelivery(), hostname="guard.example", limits=Limits(**limits)
        )
        guard.factory = guard.service.factory
        guard.delivery = guard.factory.context.delivery
    guard.start()
    return guard


async def greeted(guard: Loopback, way: str, version: ssl.TLSVersion) -> TLSClient:
    client = TLSClient(guard)
    client.context.minimum_version = client.context.maximum_version = version
    if way == "STARTTLS":
        await client.hears(b"220 ")
        await client.says(b"STARTTLS\r\n")
        await client.hears(b"220 2.0.0 ")
        client.heard = b""
    await client.shake_hands()
    if way != "STARTTLS":
        await client.hears(b"220 ")
    client.heard = b""
    return client


def says_and_leaves(client: TLSClient, octets: bytes, goodbye: str) -> None:
    """All in one segment, as far as the kernel allows."""
    assert client.tls is not None
    client.tls.write(octets)
    if goodbye != "FIN":
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
    client._flush()
    if goodbye != "close_notify":
        client.socket.shutdown(socket.SHUT_WR)


async def hears_all(client: TLSClient) -> list[int]:
    """The codes of the replies until the connection is over."""
    await client.hears_the_end()
    client.read()
    return codes(client.heard.decode())


@each_version
@each_way
@each_goodbye
@later
@pytest_twisted.ensureDeferred
async def test_who_sends_a_message_and_leaves_hears_its_verdict(
    version: ssl.TLSVersion, way: str, goodbye: str, later: bool
) -> None:
    guard = started(way)
    verdict: Deferred[None] = Deferred()
    if later:
        guard.delivery.answers["finish"] = lambda: verdict
    client = await greeted(guard, way, version)
    says_and_leaves(client, MESSAGE, goodbye)
    if later:
        await guard.until(lambda: "finish" in guard.delivery.calls)
        for _ in range(5):
            await guard.turn()
        assert guard.factory.connections == 1
        verdict.callback(None)
    assert await hears_all(client) == HEARD
    assert client.ended == "FIN"
    assert client.said_goodbye
    assert len(guard.delivery.messages) == 1
    assert guard.factory.connections == 0
    await guard.until(lambda: not guard.protocols)
    await guard.close()


@each_version
@each_way
@pytest.mark.parametrize(
    ("octets", "heard"),
    [
        (b"", []),
        (b"NOO", []),
        (b"NOOP\r\n" * 3, [250] * 3),
        (b"NOOP\r\nQUIT\r\n", [250, 221]),
        (b"NOOP\r\n" * 3000, [250] * 3000),
    ],
    ids=["nothing", "half a command", "commands", "QUIT", "a burst"],
)
@pytest_twisted.ensureDeferred
async def test_every_reply_that_is_due_comes_before_our_close_notify(
    version: ssl.TLSVersion, way: str, octets: bytes, heard: list[int]
) -> None:
    guard = started(way)
    client = await greeted(guard, way, version)
    says_and_leaves(client, octets, "close_notify")
    assert await hears_all(client) == heard
    assert client.said_goodbye
    await guard.until(lambda: not guard.protocols)
    await guard.close()


@each_way
@each_goodbye
@pytest.mark.parametrize("octets", [b"DATA\r\n", b"DATA\r\nx\r\n.", b"BDAT 9 LAST\r\n12345678"])
@pytest_twisted.ensureDeferred
async def test_in_message_data_it_is_a_lost_connection(way: str, goodbye: str, octets: bytes) -> None:
    guard = started(way)
    client = await greeted(guard, way, ssl.TLSVersion.TLSv1_3)
    says_and_leaves(client, ENVELOPE + octets, goodbye)
    await client.hears_the_end()
    assert guard.delivery.messages == []
    await guard.until(lambda: not guard.protocols)
    assert guard.delivery.calls[-1] == "sink.abort"
    await guard.close()


@each_version
@pytest_twisted.ensureDeferred
async def test_who_leaves_without_close_notify_while_a_hook_is_pending_is_gone(
    version: ssl.TLSVersion,
) -> None:
    guard = started("implicit")
    cancelled: list[object] = []
    guard.delivery.answers["recipient"] = lambda _: Deferred(cancelled.append)
    client = await greeted(guard, "implicit", version)
    says_and_leaves(client, ENVELOPE, "FIN")
    await guard.until(lambda: guard.factory.connections == 0)
    assert len(cancelled) == 1
    await guard.until(lambda: not guard.protocols)
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_client_that_sends_close_notify_and_resets_while_a_hook_is_pending_is_gone() -> None:
    guard = started("implicit")
    cancelled: list[object] = []
    guard.delivery.answers["recipient"] = lambda _: Deferred(cancelled.append)
    client = await greeted(guard, "implicit", ssl.TLSVersion.TLSv1_3)
    says_and_leaves(client, ENVELOPE, "close_notify")
    await guard.until(lambda: "recipient" in guard.delivery.calls)
    for _ in range(5):
        await guard.turn()
    assert guard.factory.connections == 1
    client.reset()
    await guard.until(lambda: guard.factory.connections == 0)
    assert len(cancelled) == 1
    await guard.until(lambda: not guard.protocols)
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_input_after_close_notify_is_not_read() -> None:
    """OpenSSL would keep it in memory, as much as comes."""
    guard = started("implicit")
    verdict: Deferred[None] = Deferred()
    guard.delivery.answers["finish"] = lambda: verdict
    client = await greeted(guard, "implicit", ssl.TLSVersion.TLSv1_3)
    says_and_leaves(client, MESSAGE, "close_notify")
    await guard.until(lambda: "finish" in guard.delivery.calls)
    client.tls, sent, refused = None, 0, 0
    while refused < 20:
        octets = client.send(b"x" * 65536)
        sent += octets
        refused += not octets
        assert sent < 32 * 1024 * 1024
        await guard.turn()
    verdict.callback(None)
    await client.hears_the_end()
    assert len(guard.delivery.messages) == 1
    await guard.until(lambda: not guard.protocols)
    await guard.close()


@each_way
@pytest_twisted.ensureDeferred
async def test_a_close_notify_after_the_guards_own_ends_the_connection(way: str) -> None:
    guard = started(way)
    client = await greeted(guard, way, ssl.TLSVersion.TLSv1_3)
    await client.says(b"WHAT\r\n" * 10)
    await client.hears(b"421 4.4.0 ")
    await guard.until(lambda: client.read() or client.said_goodbye)
    assert guard.factory.connections == 0
    assert not client.ended
    assert client.tls is not None
    client.tls.unwrap()
    client._flush()
    assert await client.hears_the_end() == "FIN"
    await guard.until(lambda: not guard.protocols)
    await guard.close()


@each_way
@pytest_twisted.ensureDeferred
async def test_at_most_max_lingering_connections_are_kept_for_a_goodbye_that_does_not_come(way: str) -> None:
    guard = started(way, max_lingering=1)
    lingering = await greeted(guard, way, ssl.TLSVersion.TLSv1_3)
    await lingering.says(b"QUIT\r\n")
    await lingering.hears(b"221 ")
    other = await greeted(guard, way, ssl.TLSVersion.TLSv1_3)
    await other.says(b"QUIT\r\n")
    assert await hears_all(other) == [221]
    assert other.said_goodbye
    assert other.ended == "FIN"
    assert not lingering.ended
    assert guard.factory.connections == 0
    lingering.socket.close()
    await guard.until(lambda: not guard.protocols)
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_who_reads_nothing_is_aborted_when_the_lingering_is_over() -> None:
    guard = started("implicit", linger_timeout=5, max_junk_commands=0, socket_send_buffer=4096)
    client = await greeted(guard, "implicit", ssl.TLSVersion.TLSv1_3)
    await client.says(b"HELP\r\n" * 600 + b"QUIT\r\n")
    await guard.until(lambda: guard.factory.connections == 0)
    for _ in range(12):
        guard.clock.advance(1)
        await guard.turn()
    assert not guard.protocols
    await guard.close()
