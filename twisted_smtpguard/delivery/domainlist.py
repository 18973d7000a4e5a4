"""The domains that mail is accepted for: how they are written, read from files and compared. Pure but for the files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from io import TextIOWrapper
from ipaddress import ip_address
from pathlib import Path

import idna

from twisted_smtpguard.engine.grammar import parse_rcpt
from twisted_smtpguard.inputs.regularfile import open_regular
from twisted_smtpguard.values import Refused

_COMMENT = re.compile(r"(^|\s)#.*")
_LINES_AT_ONCE = 256

_LEADING_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")

_ROUTING = frozenset("@%!")
"""Characters by which a local part tells a server where to send the mail next (RFC 5321 3.6.1 and appendix F.2)."""


@lru_cache(maxsize=10_000)
def canonical(domain: str) -> str:
    """The one spelling of a domain that is compared: lower case, A-labels for U-labels, an address literal without
    leading zeros."""
    if domain.startswith("["):
        return _canonical_literal(domain)
    domain = domain.lower().removesuffix(".")
    if domain.isascii():
        return domain
    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError:
        # The text is not a domain of the DNS, and is equal only to itself.
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


def is_for(address: str, domains: frozenset[str]) -> bool:
    """Whether the recipient `address` is at one of `domains`, which are canonical. `Postmaster` without a domain always
    is.

    An address whose local part names another destination, such as `user%elsewhere@here`, never is.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        return True
    return not _ROUTING & set(local) and canonical(domain) in domains


def parse_domain(text: str) -> str:
    """The canonical spelling of a domain or address literal. ValueError: `text` is neither."""
    address = f"postmaster@{text}"
    try:
        if parse_rcpt(f"TO:<{address}>".encode(), frozenset(), utf8=True).address != address:
            raise ValueError
        return canonical(text)
    except (Refused, ValueError):
        raise ValueError(f"a domain such as example.org is expected, not {text!r}") from None


def read_domains(path: Path, yield_gil: Callable[[], object] = lambda: None) -> Iterable[str]:
    """The domains of a file, one on each line. `yield_gil` is called after each short piece of work.

    ValueError names the file and the line.
    """
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8-sig") as file:
            text = file.read()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file is not UTF-8 text") from error
    domains = []
    for number, line in enumerate(text.split("\n"), 1):
        content = _COMMENT.sub("", line).strip()
        if content:
            try:
                domains.append(parse_domain(content))
            except ValueError as error:
                raise ValueError(f"{path} line {number}: {error}") from error
        if number % _LINES_AT_ONCE == 0:
            yield_gil()
    return domains
