"""OpenSSL contexts: one for each certificate, and the one from which connections begin, whose sessions are resumed.

Functions import OpenSSL, so that it is loaded only by a guard that has certificates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from typing import Any

from twisted_smtpguard.inputs.regularfile import FaultyFileError
from twisted_smtpguard.tls.certificates import KeyPair
from twisted_smtpguard.tls.names import look_up

SESSION_SECONDS = 2 * 60 * 60
"""How long a session may be resumed, and a key for tickets is used. Facts about the client, such as its certificate,
may be so old: in TLS 1.3 whoever resumes gets a ticket whose time begins anew, and only the next key ends that chain.
Whoever learns a key can read the TLS 1.2 sessions that were resumed with it."""


class Sessions:
    """The sessions that clients may resume, from one reading of the certificates to the next.

    A ticket holds the whole session, encrypted, so the guard keeps nothing. OpenSSL makes the key together with a
    context, and a connection keeps the key of the context in which it began even after `Connection.set_context`.
    pyOpenSSL has no other control of it. So each connection begins in a context that has a key and no certificate, and
    another such context is another key. A ticket of an earlier key leads to a full handshake.
    """

    def __init__(self, seconds: Callable[[], float], *, asks_for_certificates: bool) -> None:
        self._seconds = seconds
        self._asks_for_certificates = asks_for_certificates
        self._change_key()

    def connection(self, context: Any) -> Any:
        """A new connection of OpenSSL that serves the certificates of `context`."""
        from OpenSSL import SSL  # noqa: PLC0415

        # A clock that was set back must not prolong the use of a key.
        if not 0 <= self._seconds() - self._key_since < SESSION_SECONDS:
            self._change_key()
        connection = SSL.Connection(self._key, None)
        connection.set_context(context)
        return connection

    def _change_key(self) -> None:
        from OpenSSL import SSL  # noqa: PLC0415

        self._key = _bare_context()
        self._key_since = self._seconds()
        if self._asks_for_certificates:
            # With CertificateOptions a client that has no certificate could only be refused.
            self._key.set_verify(SSL.VERIFY_PEER)


def _bare_context() -> Any:
    from OpenSSL import SSL  # noqa: PLC0415
    from twisted.internet.ssl import CertificateOptions, TLSVersion  # noqa: PLC0415

    options = CertificateOptions(raiseMinimumTo=TLSVersion.TLSv1_2, enableSessionTickets=True)
    context: Any = options.getContext()
    # By renegotiating, a client could make the guard compute one handshake after another.
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    context.set_timeout(SESSION_SECONDS)
    return context


def make_context(pairs: Sequence[KeyPair], authorities: Sequence[Any]) -> Any:
    """An OpenSSL context that serves these certificates."""
    from OpenSSL import SSL, crypto  # noqa: PLC0415

    context = _bare_context()
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


def choose_by_name(context: Any, names: Mapping[str, Any]) -> None:
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
