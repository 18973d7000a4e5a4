"""Certificates in a PEM file. OpenSSL is imported where there are any."""

from __future__ import annotations

import re
from typing import Any

from twisted_smtpguard.regularfile import open_regular

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def read_octets(path: str) -> bytes:
    """What is in a regular file. ValueError says why it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def read_certificates(path: str) -> list[Any]:
    """At least one. ValueError says what is wrong with the file."""
    from OpenSSL import crypto  # noqa: PLC0415

    try:
        found = [
            crypto.load_certificate(crypto.FILETYPE_PEM, block)
            for block in _CERTIFICATE.findall(read_octets(path))
        ]
    except crypto.Error as error:
        raise ValueError(f"{path}: a certificate in it is damaged") from error
    if not found:
        raise ValueError(f"{path}: there is no certificate in PEM form")
    return found
