"""TLS with certificates and keys from files, which a reload reads again. OpenSSL is loaded only if it is used."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from twisted_smtpguard.hooks.threads import ReadInThread, ThreadedReactor
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.inputs.regularfile import FaultyFileError
from twisted_smtpguard.interfaces import IPreparedReload, IReadsFiles
from twisted_smtpguard.tls.certificates import CERTIFICATE, KEY, KeyPair, read_certificates, read_pairs
from twisted_smtpguard.tls.contexts import Sessions, choose_by_name, make_context
from twisted_smtpguard.tls.doubts import Doubt, doubts, expires_at, without_issuer
from twisted_smtpguard.tls.names import NAMES, read_names

_AUTHORITIES = "tls-client-authorities"


@attrs.frozen
class _Served:
    """The certificates that are served, as one reading found them, and their OpenSSL contexts."""

    context: Any
    """The context for clients that ask for no name (SNI), or for none of `names`."""
    pairs: Sequence[KeyPair]
    """The certificates of that context."""
    names: Mapping[str, tuple[KeyPair, Any]]
    """The certificate for each name, and its context."""
    without_issuer: frozenset[str]
    """The files of certificates whose issuer is not known."""
    faults: Sequence[FaultyFileError]
    """The mistakes in files of names, whose old certificates are still served."""
    sessions: Any
    """The `Sessions` that clients may resume. A reading begins new ones, so that none outlives its certificates."""


@implementer(IOpenSSLServerConnectionCreator, IPreparedReload, IReadsFiles)
class CertificateFiles(ReadInThread[_Served]):
    """TLS 1.2 and later, with certificates and keys from PEM files.

    `certificate` is a file with the server's certificate and then its chain; `key` has its private key, by default in
    the same file. Both may be several files: one certificate for each kind of key, such as RSA and ECDSA, of which each
    client gets one that it can verify. The keys may be in any order.

    `names` is a directory of files NAME.pem, each with a certificate, its chain and its key, for clients that ask for
    that name (SNI): `mx.example.org.pem`, or `*.example.org.pem` for all names with one label more. Clients that ask
    for another name, or for none, get `certificate`.

    `client_authorities` is a PEM file of certificates. Clients are asked for a certificate that is one of these or is
    signed by one; the handshake fails if a client has another one. A client that has none is admitted all the same, and
    `Peer.certificate` is None.

    The files are read at once, and again at a reload: in one of the threads of `reactor`, or without it while
    everything else waits. Connections under TLS keep the certificates that they began with. A faulty file of `names`
    keeps its old content in force, any other faulty file that of all. ValueError says which file is wrong, and why.

    Clients may resume a session with a ticket (RFC 8446 2.2, RFC 5077), until the next reload and for two hours at
    most, however often; then they make a full handshake. Each CertificateFiles has its own keys for tickets.
    """

    @checked
    def __init__(
        self,
        certificate: str | Sequence[str],
        key: str | Sequence[str] = (),
        client_authorities: str = "",
        *,
        names: str = "",
        reactor: ThreadedReactor | None = None,
    ) -> None:
        super().__init__(reactor)
        self._certificates = _several(certificate)
        self._keys = _several(key)
        self._names = names
        self._client_authorities = client_authorities
        if not self._certificates:
            raise ValueError("the file of a certificate is needed")
        self._faults: Sequence[FaultyFileError] = ()
        self._seconds = time.monotonic if reactor is None else reactor.seconds
        self._served = _Served(None, (), {}, frozenset(), (), None)
        self._served = self._read()
        if self._served.faults:
            raise self._served.faults[0]

    @property
    def asks_for_certificates(self) -> bool:
        """Whether clients are asked for certificates. With implicit TLS the IP filters are then asked after the
        handshake."""
        return bool(self._client_authorities)

    @property
    def files(self) -> Mapping[str, str]:
        """The files that a reload reads."""
        read = dict.fromkeys(self._certificates, CERTIFICATE)
        read |= {path: KEY for path in self._keys if path not in read}
        read |= {self._names: NAMES, self._client_authorities: _AUTHORITIES}
        return {path: option for path, option in read.items() if path}

    def take_faults(self) -> Sequence[FaultyFileError]:
        """The mistakes that the last reload found in files of `names`, whose old content stays in force. Each is
        returned once."""
        faults, self._faults = self._faults, ()
        return faults

    def doubts(self, hostname: str, now: float) -> list[Doubt]:
        """The problems for which clients may reject the served certificates. `hostname` is the guard's name in its
        greeting; `now` is in seconds since 1970."""
        served = self._served
        found: list[Doubt] = []
        for pair in self.served:
            missing = pair.file in served.without_issuer
            found += doubts(pair, issuer_missing=missing, hostname=hostname, now=now)
        return found

    @property
    def served(self) -> list[KeyPair]:
        """The certificates that are served now, each with its chain."""
        return [*self._served.pairs, *(pair for pair, _ in self._served.names.values())]

    def not_after(self) -> float:
        """When the first of the served certificates, or of their chains, expires: in seconds since 1970."""
        return min(expires_at(each) for pair in self.served for each in (pair.certificate, *pair.chain))

    def serverConnectionForTLS(self, protocol: object) -> Any:
        """Called by Twisted for each connection that begins TLS."""
        served = self._served
        return served.sessions.connection(served.context)

    def _take(self, served: _Served) -> None:
        self._served, self._faults = served, served.faults

    def _read(self) -> _Served:
        before = self._served.names
        pairs = read_pairs(self._certificates, self._keys)
        path = self._client_authorities
        authorities = read_certificates(path, _AUTHORITIES) if path else []
        by_name, faults = read_names(self._names) if self._names else ({}, {})
        names: dict[str, tuple[KeyPair, Any]] = {}
        for name, pair in by_name.items():
            try:
                names[name] = pair, make_context([pair], authorities)
            except FaultyFileError as error:
                faults[name] = error
        names.update({name: before[name] for name in faults if name in before})
        context = make_context(pairs, authorities)
        if self._names:
            choose_by_name(context, {name: each for name, (_, each) in names.items()})
        missing = without_issuer([*pairs, *(pair for pair, _ in names.values())], authorities)
        sessions = Sessions(self._seconds, asks_for_certificates=bool(authorities))
        return _Served(context, pairs, names, missing, list(faults.values()), sessions)


def _several(files: str | Sequence[str]) -> tuple[str, ...]:
    return ((files,) if files else ()) if isinstance(files, str) else tuple(files)


def can_begin_tls(tls: object) -> bool:
    """Whether Twisted's `startTLS` takes `tls`."""
    return IOpenSSLServerConnectionCreator.providedBy(tls) or callable(getattr(tls, "getContext", None))


def version_and_cipher(transport: Any) -> str:
    """Such as `TLSv1.3 TLS_AES_256_GCM_SHA384`. The handshake must be complete."""
    connection = transport.getHandle()
    return f"{connection.get_protocol_version_name()} {connection.get_cipher_name()}"


def cipher_bits(transport: Any) -> int:
    """The size of the cipher's key, in bits; 0 if it is unknown. The handshake must be complete."""
    return getattr(transport.getHandle(), "get_cipher_bits", lambda: 0)() or 0


def client_certificate(transport: Any) -> bytes | None:
    """The client's certificate in DER form; None if it has sent none. The handshake must be complete."""
    certificate = transport.getPeerCertificate()
    if certificate is None:
        return None
    from OpenSSL import crypto  # noqa: PLC0415

    octets: bytes = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
    return octets
