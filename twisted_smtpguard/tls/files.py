"""The certificates, the keys, and what they make: how TLS is spoken. OpenSSL is imported where there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from typing import Any

import attrs
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from twisted_smtpguard.hooks.threads import ReadInThread, ThreadedReactor
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.inputs.regularfile import FaultyFileError
from twisted_smtpguard.interfaces import IPreparedReload, IReadsFiles
from twisted_smtpguard.tls.certificates import CERTIFICATE, KEY, KeyPair, read_certificates, read_pairs
from twisted_smtpguard.tls.doubts import Doubt, doubts, without_issuer
from twisted_smtpguard.tls.names import NAMES, look_up, read_names

_AUTHORITIES = "tls-client-authorities"


@attrs.frozen
class _Served:
    """What was read at one time."""

    context: Any
    """For who asks for no name, or for none of these."""
    pairs: Sequence[KeyPair]
    names: Mapping[str, tuple[KeyPair, Any]]
    """By each name its certificate, and the context with it."""
    without_issuer: frozenset[str]
    """The files of certificates whose issuer is not known."""
    faults: Sequence[FaultyFileError]
    """Of files of names. What they held before is still served."""


@implementer(IOpenSSLServerConnectionCreator, IPreparedReload, IReadsFiles)
class CertificateFiles(ReadInThread[_Served]):
    """TLS 1.2 and later with the certificate in a PEM file, its chain after it, and its `key`, by default in the same
    file. Read at once, and again at a reload: what is encrypted already goes on with what it began with. A reload reads
    in one of the threads of `reactor`, if it is given, else where everything else has to wait for it.

    Both may be several files: one certificate of each kind, such as one RSA and one ECDSA, of which each client gets
    one that it can verify. A key tells itself to which certificate it belongs.

    `names` is a directory of files NAME.pem, each with a certificate, its chain and its key, for clients who ask for
    that name (SNI): `mx.example.org.pem`, or `*.example.org.pem` for all one label below. Who asks for another name, or
    for none, gets `certificate`. At a reload a file with a mistake leaves what it held before in force.

    `client_authorities` is a PEM file of certificates: clients are asked for one that one of these has signed, or that
    is one of these. Who shows none is let in all the same; `Peer.certificate` tells. One that is not signed so fails
    the handshake.

    A ValueError says what is wrong with which file.
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
        self._served = _Served(None, (), {}, frozenset(), ())
        self._served = self._read()
        if self._served.faults:
            raise self._served.faults[0]

    @property
    def asks_for_certificates(self) -> bool:
        """Whether clients are asked for one. IP filters of a listener of implicit TLS then come after the handshake."""
        return bool(self._client_authorities)

    @property
    def files(self) -> Mapping[str, str]:
        """What a reload reads."""
        read = dict.fromkeys(self._certificates, CERTIFICATE)
        read |= {path: KEY for path in self._keys if path not in read}
        read |= {self._names: NAMES, self._client_authorities: _AUTHORITIES}
        return {path: option for path, option in read.items() if path}

    def take_faults(self) -> Sequence[FaultyFileError]:
        """What the last reload found wrong with files of names, of which what they held before stays in force. Told
        once."""
        faults, self._faults = self._faults, ()
        return faults

    def doubts(self, hostname: str, now: float) -> list[Doubt]:
        """What clients may find wrong with the certificates that are served. `hostname` is what the guard calls itself,
        `now` seconds since 1970."""
        served = self._served
        found: list[Doubt] = []
        for pair in (*served.pairs, *(pair for pair, _ in served.names.values())):
            missing = pair.file in served.without_issuer
            found += doubts(pair, issuer_missing=missing, hostname=hostname, now=now)
        return found

    def serverConnectionForTLS(self, protocol: object) -> Any:
        """Called by Twisted for each connection that begins TLS."""
        from OpenSSL.SSL import Connection  # noqa: PLC0415

        return Connection(self._served.context, None)

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
                names[name] = pair, _context([pair], authorities)
            except FaultyFileError as error:
                faults[name] = error
        names.update({name: before[name] for name in faults if name in before})
        context = _context(pairs, authorities)
        if self._names:
            _choose_by_name(context, {name: each for name, (_, each) in names.items()})
        missing = without_issuer([*pairs, *(pair for pair, _ in names.values())], authorities)
        return _Served(context, pairs, names, missing, list(faults.values()))


def _several(files: str | Sequence[str]) -> tuple[str, ...]:
    return ((files,) if files else ()) if isinstance(files, str) else tuple(files)


def _context(pairs: Sequence[KeyPair], authorities: Sequence[Any]) -> Any:
    """How TLS is spoken with these certificates."""
    from OpenSSL import SSL, crypto  # noqa: PLC0415
    from twisted.internet.ssl import CertificateOptions, TLSVersion  # noqa: PLC0415

    context: Any = CertificateOptions(raiseMinimumTo=TLSVersion.TLSv1_2).getContext()
    # A client could make us compute for ever.
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    for pair in pairs:
        try:
            with _chain_file(pair) as path:
                # Each certificate keeps a chain of its own, which no other call of pyOpenSSL gives it.
                context.use_certificate_chain_file(path)
            _with_either(context.use_privatekey, pair.key, crypto.PKey.from_cryptography_key)
            context.check_privatekey()
        except SSL.Error as error:
            problem = f"OpenSSL does not take it: {_reason(error)}"
            raise FaultyFileError(pair.option, pair.file, problem) from error
    for authority in authorities:
        context.get_cert_store().add_cert(crypto.X509.from_cryptography(authority))
        _with_either(context.add_client_ca, authority, crypto.X509.from_cryptography)
    if authorities:
        # Of a client without one Twisted's own would know nothing but to refuse it.
        context.set_verify(SSL.VERIFY_PEER)
    return context


@contextmanager
def _chain_file(pair: KeyPair) -> Iterator[str]:
    """The path of a file with the certificate and its chain as they were read, and nothing secret. The operator's own
    may have changed."""
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    octets = b"".join(each.public_bytes(Encoding.PEM) for each in (pair.certificate, *pair.chain))
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):  # noqa: PTH112 - no directory can be written
        descriptor = os.memfd_create("chain")
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(octets)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with NamedTemporaryFile() as named:
        named.write(octets)
        named.flush()
        yield named.name


def _choose_by_name(context: Any, names: Mapping[str, Any]) -> None:
    def choose(connection: Any) -> None:
        found = look_up(names, connection.get_servername())
        if found is not None:
            connection.set_context(found)

    context.set_tlsext_servername_callback(choose)


def _with_either(method: Callable[[Any], object], value: Any, converted: Callable[[Any], object]) -> None:
    """pyOpenSSL before 24.3 takes objects of its own only; those of cryptography are what it takes from then on."""
    try:
        method(value)
    except TypeError:
        method(converted(value))


def _reason(error: Exception) -> str:
    queue = error.args[0] if error.args else None
    words = [str(entry[-1]) for entry in queue if entry] if isinstance(queue, list) else [str(error)]
    return ", ".join(words) or type(error).__name__


def can_begin_tls(tls: object) -> bool:
    """Whether Twisted's `startTLS` takes it."""
    return IOpenSSLServerConnectionCreator.providedBy(tls) or callable(getattr(tls, "getContext", None))


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
