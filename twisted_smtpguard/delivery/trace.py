"""The trace fields that a delivery puts before a message: Return-Path, Delivered-To, those of session policies, and
Received.

Each function returns whole lines of octets with CRLF. Addresses are written as they were given, with UTF-8 and quoted
local parts. No value can end a field early or begin another one: that would be header injection. No line has more than
the 998 octets that RFC 5322 2.1.1 allows: an address cannot be folded, so one that is too long for its line is left
out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from email.utils import format_datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from twisted_smtpguard.inputs.fieldlines import folded, line
from twisted_smtpguard.values import Address, Client, Path

_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_IPV4_LITERAL = re.compile(r"\[([0-9.]{7,15})\]")
# Only these characters are allowed: Python would accept anything after a "%" as a scope.
_IPV6_LITERAL = re.compile(r"\[IPv6:([0-9A-Fa-f:.]{2,45})\]", re.IGNORECASE)
_NOT_ATOM = re.compile(r"[^A-Za-z0-9!#$%&'*+/=?^_`{|}~-]")
# The operator chooses the host name, so an underscore in it is no forgery.
_NOT_HOST = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_NOT_TLS = re.compile(r"[^A-Za-z0-9. _-]")
_CONTROLS = dict.fromkeys((*range(32), 127), "?")


def return_path(sender: Path) -> bytes:
    """`Return-Path: <a@b>`, or `<>` for the null sender (RFC 5321 4.4). Empty if the address is too long for a line."""
    return line(b"Return-Path: <%b>" % _address(sender))


def delivered_to(recipient: Path) -> bytes:
    """`Delivered-To: a@b` for one recipient. Empty if the address is too long for a line."""
    return line(b"Delivered-To: %b" % _address(recipient))


def received(client: Client, hostname: str, recipients: Sequence[Path], when: float) -> bytes:
    """The Received field of a message that `hostname` accepted at `when`, in seconds since 1970 (RFC 5321 4.4).

    The recipient is named if there is only one, and its address is not too long for a line; with several, each would
    learn of the others (RFC 5321 7.2). A HELO name that is neither a domain nor an address literal could forge any
    part of the field, so the client's address is written instead.
    """
    recipient = line(b"\tfor <%b>;" % _address(recipients[0])) if len(recipients) == 1 else b""
    return b"%b%b\t%b\r\n" % (
        _origin(client.peer.address, client.helo, client.protocol, client.tls, client.session, hostname),
        b"\r\n" + recipient if recipient else b";\r\n",
        _date(int(when)),
    )


# It is the same for every message of a session.
@lru_cache(maxsize=256)
def _origin(
    address: Address | None, helo: str, protocol: str, tls: str, session: str, hostname: str
) -> bytes:
    """The field up to the recipient."""
    origin = _literal(address)
    name = helo if _is_host(helo) else origin or "localhost"
    here = _NOT_HOST.sub("", hostname) or "localhost"
    with_clause = _clause("with", protocol)
    if tls:
        with_clause += b" (%b)" % _NOT_TLS.sub("", tls).encode("ascii")
    return b"Received: from %b (%b)\r\n\tby %b%b%b" % (
        name.encode("ascii"),
        (origin or "UNIX socket").encode("ascii"),
        here.encode("ascii"),
        with_clause,
        _clause("id", session),
    )


def prepended(fields: Sequence[str]) -> bytes:
    """The header fields that session policies put before a message, which stand above Received."""
    return b"".join(map(folded, fields))


def _address(path: Path) -> bytes:
    return path.address.translate(_CONTROLS).encode("utf-8", "replace")


def _literal(address: Address | None) -> str:
    """An address literal (RFC 5321 4.1.3), without the scope that a link-local address may have; "" for a
    UNIX socket."""
    if address is None:
        return ""
    text = str(address).partition("%")[0]
    return f"[IPv6:{text}]" if address.version == 6 else f"[{text}]"


def _is_host(word: str) -> bool:
    """Whether `word` is a Domain or an IPv4 or IPv6 address literal (RFC 5321 4.1.2, 4.1.3)."""
    if len(word) <= 255 and _DOMAIN.fullmatch(word):
        return True
    try:
        if match := _IPV4_LITERAL.fullmatch(word):
            IPv4Address(match[1])
        elif match := _IPV6_LITERAL.fullmatch(word):
            IPv6Address(match[1])
    except ValueError:
        return False
    return match is not None


def _clause(keyword: str, value: str) -> bytes:
    """` keyword value`, with the value reduced to an Atom; empty if nothing of it is left."""
    atom = _NOT_ATOM.sub("", value)
    return f" {keyword} {atom}".encode("ascii") if atom else b""


# Formatting a date costs more than everything else here, and a busy guard needs the same date many times.
@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return format_datetime(datetime.fromtimestamp(second, timezone.utc)).encode("ascii")
