"""Certificate chains that are longer than one read of Twisted's memory BIO, 32 KiB."""

from __future__ import annotations

import ssl

import pytest
import pytest_twisted
from certificates import with_long_chain
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from loopback import Loopback, reactor
from OpenSSL.crypto import X509, PKey
from tlsclient import TLSClient
from twisted.internet.endpoints import serverFromString
from twisted.internet.ssl import CertificateOptions

from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.testing import FakeDelivery
from twisted_smtpguard.tls.files import CertificateFiles

# OpenSSL's clients take 100 KB.
SIZES = [26_000, 33_000, 48_000, 62_000, 70_000, 96_000]
each_version = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"]
)


async def shakes_hands(guard: Loopback, version: ssl.TLSVersion) -> TLSClient:
    client = TLSClient(guard)
    client.context.minimum_version = client.context.maximum_version = version
    await client.shake_hands()
    return client


@each_version
@pytest.mark.parametrize("octets", SIZES)
@pytest_twisted.ensureDeferred
async def test_it_is_served_by_implicit_tls(octets: int, version: ssl.TLSVersion) -> None:
    guard = Loopback(0, tls_listeners=1, options={"tls": CertificateFiles(str(with_long_chain(octets)))})
    guard.start()
    client = await shakes_hands(guard, version)
    await client.hears(b"220 guard.example ")
    await guard.close()


@each_version
@pytest.mark.parametrize("octets", SIZES)
@pytest_twisted.ensureDeferred
async def test_it_is_served_after_starttls(octets: int, version: ssl.TLSVersion) -> None:
    guard = Loopback(options={"tls": CertificateFiles(str(with_long_chain(octets)))})
    guard.start()
    client = TLSClient(guard)
    client.context.minimum_version = client.context.maximum_version = version
    await client.hears(b"220 ")
    await client.says(b"STARTTLS\r\n")
    await client.hears(b"220 2.0.0 ")
    await client.shake_hands()
    await client.says(b"NOOP\r\n")
    await client.hears(b"250 2.0.0 OK")
    await guard.close()


@each_version
@pytest_twisted.ensureDeferred
async def test_it_is_served_at_an_ssl_endpoint(version: ssl.TLSVersion) -> None:
    guard = Loopback(listeners=0)
    path = with_long_chain(62_000)
    endpoint = serverFromString(reactor, f"ssl:0:interface=127.0.0.1:privateKey={path}:extraCertChain={path}")
    guard.service = SMTPGuardService(guard.clock, [endpoint], FakeDelivery(), hostname="guard.example")
    guard.factory = guard.service.factory
    guard.start()
    client = await shakes_hands(guard, version)
    await client.hears(b"220 guard.example ")
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_it_is_served_with_options_of_twisted() -> None:
    octets = with_long_chain(62_000).read_bytes()
    own, *further = x509.load_pem_x509_certificates(octets)
    options = CertificateOptions(
        privateKey=PKey.from_cryptography_key(serialization.load_pem_private_key(octets, None)),  # type: ignore[arg-type]
        certificate=X509.from_cryptography(own),
        extraCertChain=[X509.from_cryptography(each) for each in further],
    )
    guard = Loopback(0, tls_listeners=1, options={"tls": options})
    guard.start()
    client = await shakes_hands(guard, ssl.TLSVersion.TLSv1_3)
    await client.hears(b"220 guard.example ")
    await guard.close()
