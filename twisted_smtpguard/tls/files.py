"""TLS with certificates and keys from files, which a reload reads again. OpenSSL is loaded only if it is used."""

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
    """An OpenSSL context that serves these certificates."""
    from OpenSSL import SSL, crypto  # noqa: PLC0415
    from twisted.internet.ssl import CertificateOptions, TLSVersion  # noqa: PLC0415

    context: Any = CertificateOptions(raiseMinimumTo=TLSVersion.TLSv1_2).getContext()
    # By renegotiating, a client could make the guard compute one handshake after another.
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    for pair in pairs:
        try:
            with _chain_file(pair) as path:
                # This is the only call of pyOpenSSL that gives each of several certificates its own chain.
                context.use_certificate_chain_file(path)
            _with_either(context.use_privatekey, pair.key, crypto.PKey.from_cryptography_key)
            context.check_privatekey()
        except SSL.Error as error:
            problem = f"OpenSSL does not accept it: {_reason(error)}"
            raise FaultyFileError(pair.option, pair.file, problem) from error
    for authority in authorities:
        context.get_cert_store().add_cert(crypto.X509.from_cryptography(authority))
        _with_either(context.add_client_ca, authority, crypto.X509.from_cryptography)
    if authorities:
        # With CertificateOptions a client that has no certificate could only be refused.
        context.set_verify(SSL.VERIFY_PEER)
    return context


@contextmanager
def _chain_file(pair: KeyPair) -> Iterator[str]:
    """The path of a temporary file with the certificate and its chain, without the key. The operator's own file may
    have changed since it was read."""
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    octets = b"".join(each.public_bytes(Encoding.PEM) for each in (pair.certificate, *pair.chain))
    # A hardened systemd unit may leave the guard no writable directory.
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):  # noqa: PTH112
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
    """Make connections of `context` switch to the context of `names` for the name that the client asks for."""

    def choose(connection: Any) -> None:
        found = look_up(names, connection.get_servername())
        if found is not None:
            connection.set_context(found)

    context.set_tlsext_servername_callback(choose)


def _with_either(method: Callable[[Any], object], value: Any, converted: Callable[[Any], object]) -> None:
    """Call `method` with an object of cryptography, or for pyOpenSSL before 24.3 with its own kind of object."""
    try:
        method(value)
    except TypeError:
        method(converted(value))


def _reason(error: Exception) -> str:
    """The text of an error of OpenSSL."""
    queue = error.args[0] if error.args else None
    words = [str(entry[-1]) for entry in queue if entry] if isinstance(queue, list) else [str(error)]
    return ", ".join(words) or type(error).__name__


def can_begin_tls(tls: object) -> bool:
    """Whether Twisted's `startTLS` takes `tls`."""
    return IOpenSSLServerConnectionCreator.providedBy(tls) or callable(getattr(tls, "getContext", None))


def version_and_cipher(transport: Any) -> str:
    """Such as `TLSv1.3 TLS_AES_256_GCM_SHA384`. The handshake must be complete."""
    connection = transport.getHandle()
    return f"{connection.get_protocol_version_name()} {connection.get_cipher_name()}"


def client_certificate(transport: Any) -> bytes | None:
    """The client's certificate in DER form; None if it has sent none. The handshake must be complete."""
    certificate = transport.getPeerCertificate()
    if certificate is None:
        return None
    from OpenSSL import crypto  # noqa: PLC0415

    octets: bytes = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
    return octets
