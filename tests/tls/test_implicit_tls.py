"""Listeners of implicit TLS: what happens before the handshake and after it, and which clients never get that far."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import pytest_twisted
from certificates import AUTHORITY, certificate, stranger
from cryptography import x509
from fakes import FakeFilter, SlowFilter
from loopback import Loopback, reactor
from tlsclient import TLSClient
from twisted.internet.endpoints import serverFromString
from twisted.logger import capturedLogs

from twisted_smtpguard.interfaces import PASS, refuse
from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.testing import FakeDelivery
from twisted_smtpguard.tls.files import CertificateFiles

GREETING = b"220 guard.example ESMTP ready\r\n"


def started(
    ip_filters: Any = (), client_authorities: str = "", listeners: int = 0, **limits: Any
) -> Loopback:
    tls = CertificateFiles(str(certificate()), client_authorities=client_authorities)
    options = {"tls": tls, "ip_filters": ip_filters}
    guard = Loopback(listeners, tls_listeners=1, options=options, **limits)
    guard.start()
    return guard


async def greeted(guard: Loopback, **given: Any) -> TLSClient:
    client = TLSClient(guard, **given)
    await client.shake_hands()
    await client.hears(GREETING)
    return client


@pytest_twisted.ensureDeferred
async def test_the_greeting_comes_under_tls_and_the_peer_is_one_of_implicit_tls() -> None:
    guard = started()
    client = await greeted(guard)
    await client.says(b"EHLO a\r\n")
    await client.hears(b"250 ENHANCEDSTATUSCODES")
    assert b"STARTTLS" not in client.heard
    await client.says(b"STARTTLS\r\n")
    await client.hears(b"503 5.5.1 ")
    await client.says(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<b@guard.example>\r\nDATA\r\n")
    await client.hears(b"354 ")
    await client.says(b"x\r\n.\r\n")
    await client.hears(b"250 2.0.0 Message")
    (message,) = guard.delivery.messages
    assert message.client.peer.tls
    assert message.client.protocol == "ESMTPS"
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_cap_is_one_cap_over_plain_and_tls_listeners() -> None:
    guard = started(listeners=1, max_connections=1)
    plain = await guard.greeted()
    late = TLSClient(guard, listener=1)
    with pytest.raises(ConnectionError):
        await late.shake_hands()
    assert late.heard == b""
    plain.close()
    await guard.until(lambda: guard.factory.connections == 0)
    await greeted(guard, listener=1)
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_who_is_refused_by_a_filter_hears_nothing_and_costs_no_handshake() -> None:
    guard = started(ip_filters=[FakeFilter(refuse())])
    client = TLSClient(guard)
    with pytest.raises(ConnectionError):
        await client.shake_hands()
    assert client._incoming.pending == 0
    assert guard.factory.statistics.refusals == {"ip_filter": 1}
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_hello_that_comes_while_a_filter_thinks_is_kept_and_is_not_early() -> None:
    slow = SlowFilter()
    guard = started(ip_filters=[slow], early_talker="refuse", greet_delay=1)
    client = TLSClient(guard)
    hello = client.hello()
    client._unsent = hello
    client._flush()
    await guard.until(lambda: slow.asked)
    (protocol,) = guard.protocols
    await guard.until(lambda: protocol.engine.buffer == hello)
    slow.asked[0].callback(PASS)
    guard.clock.advance(1.1)

    def shaken() -> bool:
        assert client.tls is not None
        try:
            client.tls.do_handshake()
        except ssl.SSLWantReadError:
            client._flush()
            client._fill()
            return False
        client._flush()
        return True

    await guard.until(shaken)
    await client.hears(GREETING)
    await guard.close()


# Handshakes that do not end well.


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_never_ends_is_aborted_at_its_time_limit() -> None:
    guard = started()
    silent, half = guard.client(), TLSClient(guard)
    hello = half.hello()
    half.tls = None
    half.send(hello[:50])
    await guard.until(lambda: guard.factory.connections == 2)
    guard.clock.advance(29.9)
    await guard.turn()
    assert guard.factory.connections == 2
    guard.clock.advance(0.3)
    assert await silent.hears_the_end() == "RST"
    assert await half.hears_the_end() == "RST"
    assert guard.factory.connections == 0
    assert guard.factory.statistics.refusals == {"tls_handshake_timeout": 2}
    assert guard.factory.statistics.hangups == 0
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_the_limit_is_never_longer_than_the_read_timeout() -> None:
    guard = started(read_timeout=5)
    silent = guard.client()
    await guard.until(lambda: guard.factory.connections == 1)
    guard.clock.advance(5.2)
    await silent.hears_the_end()
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_starttls_has_the_same_limit_and_ends_with_the_same_reason() -> None:
    guard = Loopback(options={"tls": CertificateFiles(str(certificate()))})
    guard.start()
    client = await guard.greeted()
    await client.says(b"STARTTLS\r\n")
    await client.hears(b"220 2.0.0 ")
    client.heard = b""
    guard.clock.advance(30.2)
    assert await client.hears_the_end() == "RST"
    assert client.heard == b""
    assert guard.factory.statistics.refusals == {"tls_handshake_timeout": 1}
    await guard.close()


@pytest.mark.parametrize("octets", [b"EHLO client.example\r\n", b"GET / HTTP/1.0\r\n\r\n", b"\0" * 300])
@pytest_twisted.ensureDeferred
async def test_plain_text_at_a_tls_listener_fails_the_handshake(octets: bytes) -> None:
    guard = started()
    client = guard.client()
    client.send(octets)
    await client.hears_the_end()
    assert b"220" not in client.heard
    assert guard.factory.statistics.refusals == {"tls_failed": 1}
    assert guard.factory.connections == 0
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_who_leaves_in_the_handshake_has_hung_up() -> None:
    guard = started()
    client = guard.client()
    await guard.until(lambda: guard.factory.connections == 1)
    client.close()
    await guard.until(lambda: guard.factory.connections == 0)
    assert guard.factory.statistics.hangups == 1
    assert guard.factory.statistics.refusals == {}
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_goes_on_when_the_service_stops_is_aborted() -> None:
    guard = started()
    client = guard.client()
    await guard.until(lambda: guard.factory.connections == 1)
    guard.factory.drain()
    await client.hears_the_end()
    assert client.heard == b""
    guard.factory.reopen()
    await guard.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest_twisted.ensureDeferred
async def test_old_versions_are_not_spoken(version: ssl.TLSVersion) -> None:
    guard = started()
    client = TLSClient(guard)
    client.context.set_ciphers("ALL:@SECLEVEL=0")
    client.context.minimum_version = ssl.TLSVersion.TLSv1
    client.context.maximum_version = version
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.shake_hands()
    await guard.until(lambda: guard.factory.connections == 0)
    await guard.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest_twisted.ensureDeferred
async def test_both_modern_versions_are_spoken_without_compression(version: ssl.TLSVersion) -> None:
    guard = started()
    client = TLSClient(guard)
    client.context.minimum_version = client.context.maximum_version = version
    await client.shake_hands()
    assert client.tls is not None
    assert client.tls.compression() is None
    await client.hears(GREETING)
    await guard.close()


# Certificates of clients.


@pytest_twisted.ensureDeferred
async def test_where_client_certificates_are_requested_filters_run_after_the_handshake_and_see_them() -> None:
    shown: list[Any] = []
    checks = FakeFilter()
    checks.check = lambda peer: shown.append(peer) or PASS  # type: ignore[method-assign,func-returns-value]
    guard = started(ip_filters=[checks], client_authorities=str(AUTHORITY))
    await greeted(guard, certificate=certificate("client.example"))
    await greeted(guard)
    with_one, without = shown
    names = x509.load_der_x509_certificate(with_one.certificate).extensions
    alternatives = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "client.example" in alternatives.get_values_for_type(x509.DNSName)
    assert with_one.tls
    assert without.certificate is None
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_refusal_after_the_handshake_is_sent() -> None:
    guard = started(ip_filters=[FakeFilter(refuse())], client_authorities=str(AUTHORITY))
    client = TLSClient(guard)
    await client.shake_hands()
    await client.hears(b"421 4.7.0 Connection refused\r\n")
    assert guard.factory.connections == 0
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_certificate_of_an_unknown_authority_fails_the_handshake() -> None:
    guard = started(client_authorities=str(AUTHORITY))
    client = TLSClient(guard, certificate=stranger())
    client.context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.shake_hands()
    await guard.until(lambda: guard.factory.connections == 0)
    assert guard.factory.statistics.refusals == {"tls_failed": 1}
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_after_starttls_a_delivery_sees_the_certificate() -> None:
    tls = CertificateFiles(str(certificate()), client_authorities=str(AUTHORITY))
    guard = Loopback(options={"tls": tls})
    guard.start()
    client = await TLSClient.upgraded(guard, certificate("client.example"))
    await client.says(b"EHLO a\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<b@c.example>\r\nDATA\r\n")
    await client.hears(b"354 ")
    await client.says(b"x\r\n.\r\n")
    await client.hears(b"250 2.0.0 ")
    (message,) = guard.delivery.messages
    assert message.client.peer.certificate is not None
    await guard.close()


# ssl: endpoints.


@pytest_twisted.ensureDeferred
async def test_an_ssl_endpoint_offers_no_starttls_and_has_the_limit_on_handshakes() -> None:
    guard = Loopback(listeners=0)
    pem = str(certificate()).replace(":", "\\:")
    endpoint = serverFromString(reactor, f"ssl:0:interface=127.0.0.1:privateKey={pem}")
    guard.service = SMTPGuardService(guard.clock, [endpoint], FakeDelivery(), hostname="guard.example")
    guard.factory = guard.service.factory
    with capturedLogs() as logged:
        guard.start()
    (warning,) = (event for event in logged if event.get("event") == "ssl_endpoint")
    assert "no PROXY header" in warning["problem"]
    client = await greeted(guard)
    await client.says(b"EHLO a\r\n")
    await client.hears(b"250 ENHANCEDSTATUSCODES")
    assert b"STARTTLS" not in client.heard
    silent, plain = guard.client(), guard.client()
    plain.send(b"EHLO client.example\r\n")
    await plain.hears_the_end()
    assert b"220" not in plain.heard
    await guard.until(lambda: guard.factory.connections == 2)
    guard.clock.advance(30.2)
    await silent.hears_the_end()
    assert guard.factory.statistics.refusals == {"tls_failed": 1, "tls_handshake_timeout": 1}
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_an_ssl_endpoint_takes_its_connections_as_they_are_though_proxies_are_named() -> None:
    guard = Loopback(listeners=0)
    endpoint = serverFromString(reactor, f"ssl:0:interface=127.0.0.1:privateKey={certificate()}")
    guard.service = SMTPGuardService(
        guard.clock,
        [endpoint],
        FakeDelivery(),
        hostname="guard.example",
        proxy_protocol_from=["127.0.0.1"],
    )
    guard.factory = guard.service.factory
    guard.start()
    await greeted(guard)
    await guard.close()


def test_a_tls_listener_needs_a_certificate() -> None:
    with pytest.raises(ValueError, match="needs a certificate"):
        Loopback(tls_listeners=1)
