"""Certificates and keys in PEM files: reading them, and which key belongs to which certificate.

OpenSSL and cryptography are imported where there are any.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import attrs

from twisted_smtpguard.inputs.regularfile import FaultyFileError, open_regular

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

CERTIFICATE, KEY = "tls-certificate", "tls-key"
"""The options of the command line that name the files."""


@attrs.frozen
class KeyPair:
    """A certificate of the server with its key, as they are in files."""

    certificate: Certificate
    chain: tuple[Certificate, ...]
    """What stands after it in its file."""
    key: Any = attrs.field(repr=False)
    file: str
    """Of the certificate."""
    option: str = CERTIFICATE
    name: str = ""
    """The name that a client has to ask for; "": it need not ask for any."""


def read_octets(path: str) -> bytes:
    """What is in a regular file. ValueError says why it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def read_certificates(path: str) -> list[Certificate]:
    """At least one. ValueError says what is wrong with the file."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    octets = read_octets(path)
    try:
        found = x509.load_pem_x509_certificates(octets)
        for each in found:
            # It is looked into only where it is asked for.
            each.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        if b"BEGIN CERTIFICATE" in octets:
            raise ValueError(f"{path}: a certificate in it is damaged") from error
        raise ValueError(f"{path}: there is no certificate in PEM form") from error
    return found


def read_pairs(certificates: Sequence[str], keys: Sequence[str]) -> list[KeyPair]:
    """One for each file of a certificate, in their order. Its key is in one of the files `keys`, in whatever order
    these are, or else in its own. FaultyFileError says what is wrong with which file."""
    chains = [(path, _read(CERTIFICATE, path, read_certificates)) for path in certificates]
    found: dict[str, Any] = {}
    for path in keys:
        key = _read(KEY, path, read_key)
        owner = next((file for file, chain in chains if file not in found and _fits(key, chain[0])), None)
        if owner is None:
            _refuse_chain_before_certificate(key, chains)
            raise FaultyFileError(KEY, path, _belongs_to_none(certificates))
        found[owner] = key
    pairs = [_pair(path, chain, found.get(path), keys) for path, chain in chains]
    kinds: dict[type, str] = {}
    for pair in pairs:
        other = kinds.setdefault(type(pair.key), pair.file)
        if other != pair.file or certificates.count(other) > 1:
            problem = (
                f"its key is of the same kind as that of {other}: there can be one certificate of each kind, RSA and "
                "ECDSA, and those of other names are for --tls-names"
            )
            raise FaultyFileError(CERTIFICATE, pair.file, problem)
    return pairs


def read_pair(path: str, *, option: str, name: str) -> KeyPair:
    """A certificate with its chain and its key, all in one file. FaultyFileError says what is wrong with it."""
    chain = _read(option, path, read_certificates)
    key = _read(option, path, read_key)
    _refuse_chain_before_certificate(key, [(path, chain)], option)
    if not _fits(key, chain[0]):
        raise FaultyFileError(option, path, "its key does not belong to its certificate")
    return KeyPair(chain[0], tuple(chain[1:]), key, path, option, name)


def read_key(path: str) -> Any:
    """A private key. ValueError says what is wrong with the file."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    octets = read_octets(path)
    try:
        return load_pem_private_key(octets, None)
    except TypeError as error:
        raise ValueError(
            f"{path}: its private key has a passphrase, which nobody is there to type"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if b" PRIVATE KEY-----" in octets:
            raise ValueError(f"{path}: its private key is damaged, or of a kind that is not known") from error
        raise ValueError(f"{path}: there is no private key in PEM form") from error


@contextmanager
def chain_file(pair: KeyPair) -> Iterator[str]:
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


def _pair(path: str, chain: list[Certificate], key: Any, keys: Sequence[str]) -> KeyPair:
    if key is None:
        try:
            key = read_key(path)
        except ValueError as error:
            if not keys:
                raise FaultyFileError(CERTIFICATE, path, _without_path(error, path)) from error
            problem = f"its private key is neither in it nor in {', '.join(keys)}"
            raise FaultyFileError(CERTIFICATE, path, problem) from error
        _refuse_chain_before_certificate(key, [(path, chain)])
        if not _fits(key, chain[0]):
            raise FaultyFileError(CERTIFICATE, path, "its key does not belong to its certificate")
    return KeyPair(chain[0], tuple(chain[1:]), key, path)


def _refuse_chain_before_certificate(
    key: Any, chains: Sequence[tuple[str, list[Certificate]]], option: str = CERTIFICATE
) -> None:
    for path, chain in chains:
        for number, certificate in enumerate(chain[1:], 2):
            if _fits(key, certificate) and not _fits(key, chain[0]):
                problem = (
                    f"the server's own certificate comes first and the rest of its chain after it, but here the key "
                    f"belongs to certificate number {number}"
                )
                raise FaultyFileError(option, path, problem)


def _belongs_to_none(certificates: Sequence[str]) -> str:
    if len(certificates) == 1:
        return f"the key does not belong to the certificate in {certificates[0]}"
    return f"the key belongs to none of the certificates in {', '.join(certificates)}, or to one that has its key"


def _fits(key: Any, certificate: Certificate) -> bool:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ours: bytes = key.public_key().public_bytes(*form)
    return ours == certificate.public_key().public_bytes(*form)


def _read(option: str, path: str, read: Any) -> Any:
    try:
        return read(path)
    except ValueError as error:
        raise FaultyFileError(option, path, _without_path(error, path)) from error


def _without_path(error: ValueError, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")
