"""What a guard may call itself."""

from __future__ import annotations

from twisted_smtpguard.engine.grammar import parse_rcpt
from twisted_smtpguard.values import Refused


def parse_hostname(text: str) -> str:
    """A hostname is what may follow the @ of an address (RFC 5321 4.1.2). ValueError: it is none."""
    address = f"postmaster@{text}"
    try:
        path = parse_rcpt(f"TO:<{address}>".encode(errors="replace"), frozenset(), utf8=False)
    except Refused:
        path = None
    if path is None or path.address != address:
        raise ValueError("a domain or an address literal such as mx.example.org or [192.0.2.1] is expected")
    return text


def check_hostname(hostname: str) -> str:
    """The same for an argument `hostname`."""
    try:
        return parse_hostname(hostname)
    except ValueError as error:
        raise ValueError(f"hostname: {error}, not {hostname!r}") from None
