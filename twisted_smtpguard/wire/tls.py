"""The certificate, the key, and what they make: how TLS is spoken. OpenSSL is imported where there is a certificate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from twisted_smtpguard.certificates import read_certificates, read_octets
from twisted_smtpguard.interfaces import IPreparedReload
from twisted_smtpguard.threads import OneThread, ThreadedReactor


@implementer(IOpenSSLServerConnectionCreator, IPreparedReload)
class CertificateFiles:
    """TLS 1.2 and later with the certificate in a PEM file, its chain behind it, and its `key`, by default in the same
    file. Read at once, and again at a reload: what is encrypted already goes on with what it began with. A reload reads
    in one of the threads of `reactor`, if it is given, else where everything else has to wait for it.

    `client_authorities` is a PEM file of certificates: clients are asked for one that one of these has signed, or that
    is one of these. Who shows none is let in all the same; `Peer.certificate` tells. One that is not signed so fails
    the handshake.

    A ValueError says what is wrong with which file.
    """

    def __init__(
        self,
        certificate: str,
        key: str = "",
        client_authorities: str = "",
        *,
        reactor: ThreadedReactor | None = None,
    ) -> None:
        self._certificate = certificate
        self._key = key or certificate
        self._client_authorities = client_authorities
        self._thread = None if reactor is None else OneThread(reactor)
        self._context = self._read()

    @property
    def asks_for_certificates(self) -> bool:
        """Whether clients are asked for one. IP filters of a listener of implicit TLS then come after the handshake."""
        return bool(self._client_authorities)

    def serverConnectionForTLS(self, protocol: object) -> Any:
        """Called by Twisted for each connection that begins TLS."""
        from OpenSSL.SSL import Connection  # noqa: PLC0415

        return Connection(self._context, None)

    def prepare_reload(self) -> Deferred[Callable[[], None]]:
        """Called at a reload."""
        reading: Deferred[Any] = self._thread.run(self._read) if self._thread else maybeDeferred(self._read)
        return reading.addCallback(lambda context: lambda: self._take(context))

    def reload(self) -> Deferred[None]:
        """As `prepare_reload`, for who reloads nothing else."""
        return self.prepare_reload().addCallback(lambda take: take())

    def _take(self, context: Any) -> None:
        self._context = context

    def _read(self) -> Any:
        from OpenSSL import SSL, crypto  # noqa: PLC0415
        from twisted.internet.ssl import CertificateOptions, TLSVersion  # noqa: PLC0415

        certificate, *chain = read_certificates(self._certificate)
        octets = read_octets(self._key)
        try:
            # A passphrase is never asked for: there is nobody at the terminal.
            key = crypto.load_privatekey(crypto.FILETYPE_PEM, octets, passphrase=b"")
        except (crypto.Error, ValueError, TypeError) as error:
            raise ValueError(f"{self._key}: there is no private key, or it has a passphrase") from error
        authorities = read_certificates(self._client_authorities) if self._client_authorities else []
        options = CertificateOptions(
            privateKey=key,
            certificate=certificate,
            extraCertChain=chain,
            raiseMinimumTo=TLSVersion.TLSv1_2,
        )
        try:
            context = options.getContext()
        except SSL.Error as error:
            raise ValueError(
                f"{self._key}: the key does not belong to the certificate in {self._certificate}"
            ) from error
        # A client could make us compute for ever.
        context.set_options(SSL.OP_NO_RENEGOTIATION)
        for authority in authorities:
            store: Any = context.get_cert_store()
            store.add_cert(authority)
            context.add_client_ca(authority)
        if authorities:
            # Of a client without one Twisted's own would know nothing but to refuse it.
            context.set_verify(SSL.VERIFY_PEER)
        return context


def spoken(transport: Any) -> str:
    """The version and the cipher, once the handshake is over."""
    connection = transport.getHandle()
    return f"{connection.get_protocol_version_name()} {connection.get_cipher_name()}"


def certificate_shown(transport: Any) -> bytes | None:
    """The client's certificate (DER), once the handshake is over; None where it has shown none."""
    certificate = transport.getPeerCertificate()
    if certificate is None:
        return None
    from OpenSSL import crypto  # noqa: PLC0415

    octets: bytes = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
    return octets
