"""TLS with an upstream server, over real sockets: which certificate is good enough, and what is said of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from certificates import AUTHORITY, certificate, expired, stranger
from twisted.internet import reactor as real_reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.internet.tcp import Client
from twisted.protocols.basic import LineReceiver
from twisted.protocols.tls import TLSMemoryBIOFactory

from twisted_smtpguard import replies
from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.upstream.dialling import Dialler
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.parameters import UpstreamOptions
from twisted_smtpguard.upstream.refusals import describe
from twisted_smtpguard.upstream.smtpclient import SEND_BUFFER_OCTETS, Connection

reactor: Any = real_reactor


class Server(LineReceiver):
    """Offers STARTTLS with `options`, and says yes to everything else."""

    options: Any

    def connectionMade(self) -> None:
        self.sendLine(b"220 mx")

    def lineReceived(self, line: bytes) -> None:
        if line == b"STARTTLS":
            self.sendLine(b"220 go on")
            self.transport.startTLS(self.options)
        elif line.startswith(b"EHLO"):
            self.sendLine(b"250-mx\r\n250 STARTTLS")
        else:
            self.sendLine(b"250 yes")


@contextmanager
def listening(pem: Path, *, implicit: bool) -> Iterator[int]:
    """The port of a server with a certificate."""
    factory: Any = Factory.forProtocol(Server)
    factory.noisy = False
    options = PrivateCertificate.loadPEM(pem.read_bytes()).options()
    Server.options = options
    if implicit:
        factory = TLSMemoryBIOFactory(options, False, factory)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    yield port.getHost().port
    port.stopListening()


async def dialled(port: int, name: str, *, implicit: bool) -> Connection:
    endpoint: IStreamClientEndpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    options = UpstreamOptions(tls="required", tls_name=name, tls_ca=str(AUTHORITY), connect=30)
    if implicit:
        trusted = trustRootFromCertificates([Certificate.loadPEM(AUTHORITY.read_bytes())])
        endpoint = wrapClientTLS(optionsForClientTLS(name, trustRoot=trusted), endpoint)
        options = UpstreamOptions(connect=30)
    dialler = Dialler(
        endpoint, reactor, options, Notices("upstream"), name="guard.example", host="", lmtp=False
    )
    return await dialler.dial(None, lambda _: None)


async def gone(connection: Connection) -> None:
    connection.end(replies.UPSTREAM_LOST)
    await connection.closed


@pytest.mark.parametrize("implicit", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_certificate_that_is_trusted_and_names_the_host_is_good(implicit: bool) -> None:
    with listening(certificate(), implicit=implicit) as port:
        connection = await dialled(port, "localhost", implicit=implicit)
        assert "STARTTLS" in connection.hello
        await gone(connection)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("stranger", "its certificate is not accepted: unable to get local issuer certificate"),
        ("other name", "its certificate is for another name"),
        ("expired", "its certificate is not accepted: certificate has expired"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_wrong_with_a_certificate_is_told(kind: str, why: str, implicit: bool) -> None:
    pem = {"stranger": stranger, "other name": certificate, "expired": expired}[kind]()
    name = {"stranger": "stranger.example", "other name": "other.example"}.get(kind, "localhost")
    with listening(pem, implicit=implicit) as port, pytest.raises(Refused) as refused:
        await dialled(port, name, implicit=implicit)
    assert describe(refused.value) == f"TLS failed: {why}"
    assert refused.value.reply is replies.UPSTREAM_UNSUITABLE


@pytest.mark.parametrize("implicit", [False, True])
@pytest_twisted.ensureDeferred
async def test_the_buffer_of_the_socket_is_small_with_starttls_and_with_an_endpoint_under_tls(
    implicit: bool,
) -> None:
    with listening(certificate(), implicit=implicit) as port:
        connection = await dialled(port, "localhost", implicit=implicit)
        (socket,) = [each for each in reactor.getReaders() if isinstance(each, Client)]
        assert socket.bufferSize == SEND_BUFFER_OCTETS
        await gone(connection)


@pytest_twisted.ensureDeferred
async def test_a_server_that_speaks_no_tls_is_told_of_so() -> None:
    factory: Any = Factory.forProtocol(Server)
    factory.noisy = False
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    with pytest.raises(Refused) as refused:
        await dialled(port.getHost().port, "localhost", implicit=True)
    assert describe(refused.value) == "TLS failed: wrong version number"
    await port.stopListening()
