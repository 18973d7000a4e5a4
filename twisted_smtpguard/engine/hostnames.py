"""Host and domain names: their syntax, the hostname of a guard, and the comparison of two domains."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address

import idna

from twisted_smtpguard.engine.grammar import parse_rcpt
from twisted_smtpguard.values import Refused

_LEADING_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")


def parse_hostname(text: str) -> str:
    """Return `text` if it is a hostname, which may follow the @ of an address (RFC 5321 4.1.2); else ValueError."""
    if not _follows_at(text, utf8=False):
        raise ValueError("a domain or an address literal such as mx.example.org or [192.0.2.1] is expected")
    return text


def check_hostname(hostname: str) -> str:
    """As `parse_hostname`, with a ValueError that names the argument `hostname`."""
    try:
        return parse_hostname(hostname)
    except ValueError as error:
        raise ValueError(f"hostname: {error}, not {hostname!r}") from None


@lru_cache(maxsize=10_000)
def canonical(domain: str) -> str:
    """The spelling in which domains are compared: lower case, A-labels for U-labels, no final dot, and an address
    literal without leading zeros."""
    if domain.startswith("["):
        return _canonical_literal(domain)
    domain = domain.lower().removesuffix(".")
    if domain.isascii():
        return domain
    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError:
        # The text is no DNS domain, and so equals nothing but itself.
        return domain


def _canonical_literal(literal: str) -> str:
    text = literal[1:-1].lower()
    if ":" not in text:
        # The numbers are decimal (RFC 5321 4.1.3). Python refuses leading zeros, which mean octal elsewhere.
        text = _LEADING_ZEROS.sub("", text)
    try:
        return f"[{ip_address(text.removeprefix('ipv6:'))}]"
    except ValueError:
        return f"[{text}]"


def parse_domain(text: str) -> str:
    """Return the canonical spelling of a domain or address literal; ValueError if `text` is neither."""
    if not _follows_at(text, utf8=True):
        raise ValueError(f"a domain such as example.org is expected, not {text!r}")
    return canonical(text)


def _follows_at(text: str, *, utf8: bool) -> bool:
    """Whether `text` may follow the @ of an address."""
    address = f"postmaster@{text}"
    try:
        return parse_rcpt(f"TO:<{address}>".encode(errors="replace"), frozenset(), utf8).address == address
    except Refused:
        return False
