"""Certificates and private keys: reading them from PEM files, and matching each key with its certificate.

Functions import cryptography, so that it is loaded only by a guard that has certificates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from twisted_smtpguard.inputs.regularfile import FaultyFileError, open_regular

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

CERTIFICATE, KEY = "tls-certificate", "tls-key"
"""The command-line options that name the files."""


@attrs.frozen
class KeyPair:
    """A certificate of the server with its chain and its key, as read from files."""

    certificate: Certificate
    chain: tuple[Certificate, ...]
    """The certificates that follow it in its file."""
    key: Any = attrs.field(repr=False)
    file: str
    """The path of the certificate's file."""
    option: str = CERTIFICATE
    """The command-line option that names the file."""
    name: str = ""
    """The name for which clients get this certificate (SNI); "" if it is for all other clients."""


def read_certificates(path: str, option: str = "") -> list[Certificate]:
    """The certificates in a file, one or more. FaultyFileError says what is wrong with the file; `option` is the
    command-line option that names it."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    octets = _octets(path, option)
    try:
        found = x509.load_pem_x509_certificates(octets)
        for each in found:
            # The key is parsed only when it is asked for, so a damaged one would be found too late.
            each.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        damaged = b"BEGIN CERTIFICATE" in octets
        problem = "a certificate in it is damaged" if damaged else "there is no certificate in PEM form"
        raise FaultyFileError(option, path, problem) from error
    return found


def read_key(path: str, option: str = "") -> Any:
    """The private key in a file. FaultyFileError says what is wrong with the file; `option` is the command-line option
    that names it."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    octets = _octets(path, option)
    try:
        return load_pem_private_key(octets, None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        problem = "there is no private key in PEM form"
        if isinstance(error, TypeError):
            problem = "its private key has a passphrase, and one without is expected"
        elif b" PRIVATE KEY-----" in octets:
            problem = "its private key is damaged, or of a kind that is not known"
        raise FaultyFileError(option, path, problem) from error


def read_pairs(certificates: Sequence[str], keys: Sequence[str]) -> list[KeyPair]:
    """The certificates in the files `certificates`, in the same order, each with its key. A key is in one of the files
    `keys`, whose order does not matter, or else in the file of its certificate. FaultyFileError says which file is
    wrong, and why."""
    chains = [(path, read_certificates(path, CERTIFICATE)) for path in certificates]
    found: dict[str, Any] = {}
    for path in keys:
        key = read_key(path, KEY)
        owner = next((file for file, chain in chains if file not in found and _fits(key, chain[0])), None)
        if owner is None:
            for file, chain in chains:
                _refuse_chain_before_certificate(key, file, chain, CERTIFICATE)
            problem = f"the key does not belong to the certificate in {certificates[0]}"
            if len(certificates) > 1:
                names = ", ".join(certificates)
                problem = (
                    f"the key belongs to none of the certificates in {names}, or to one that has its key"
                )
            raise FaultyFileError(KEY, path, problem)
        found[owner] = key
    pairs = []
    kinds: dict[type, str] = {}
    for path, chain in chains:
        pair = _pair(path, chain, found.get(path) or _own_key(path, keys))
        other = kinds.setdefault(type(pair.key), path)
        if other != path or certificates.count(other) > 1:
            problem = (
                f"its key is of the same kind as that of {other}: there can be one certificate of each kind, RSA and "
                "ECDSA, and those of other names are for --tls-names"
            )
            raise FaultyFileError(CERTIFICATE, path, problem)
        pairs.append(pair)
    return pairs


def read_pair(path: str, *, option: str, name: str) -> KeyPair:
    """The certificate, its chain and its key in one file. FaultyFileError says what is wrong with the file."""
    return _pair(path, read_certificates(path, option), read_key(path, option), option, name)


def _octets(path: str, option: str) -> bytes:
    """The content of a regular file. FaultyFileError: it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise FaultyFileError(option, path, str(error.strerror)) from error


def _own_key(path: str, keys: Sequence[str]) -> Any:
    """The key in the file of its certificate, if none of the files `keys` has it."""
    try:
        return read_key(path, CERTIFICATE)
    except FaultyFileError as error:
        if not keys:
            raise
        problem = f"its private key is neither in it nor in {', '.join(keys)}"
        raise FaultyFileError(CERTIFICATE, path, problem) from error


def _pair(
    path: str, chain: list[Certificate], key: Any, option: str = CERTIFICATE, name: str = ""
) -> KeyPair:
    _refuse_chain_before_certificate(key, path, chain, option)
    if not _fits(key, chain[0]):
        raise FaultyFileError(option, path, "its key does not belong to its certificate")
    return KeyPair(chain[0], tuple(chain[1:]), key, path, option, name)


def _refuse_chain_before_certificate(key: Any, path: str, chain: list[Certificate], option: str) -> None:
    """FaultyFileError: the key belongs to a certificate that is not the first in its file."""
    number = next((number for number, each in enumerate(chain, 1) if _fits(key, each)), 1)
    if number > 1:
        problem = (
            f"the server's own certificate comes first and the rest of its chain after it, but here the key belongs to "
            f"certificate number {number}"
        )
        raise FaultyFileError(option, path, problem)


def _fits(key: Any, certificate: Certificate) -> bool:
    """Whether the private key belongs to the certificate."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ours: bytes = key.public_key().public_bytes(*form)
    return ours == certificate.public_key().public_bytes(*form)
