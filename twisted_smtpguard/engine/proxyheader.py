"""The parser of the PROXY protocol, versions 1 and 2, by which a proxy names its client. Octets in, a value out.

The source is haproxy.org's proxy-protocol.txt. The functions keep no state and read no more octets than a header may
have. When more octets have come, the caller calls them again with all octets so far.

Why no library: proxy-protocol of PyPI accepts +25 and 4_7 as ports, raises struct.error at a short header, does not
bound how much it asks for, and does not tell how long the header was. Twisted's parsers are private, and with its
haproxy: endpoints a factory sees the proxy's address and sends the greeting before the header has come.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TypeAlias

import attrs

from twisted_smtpguard.inputs.proxyprotocol import LOCAL, PROXY, SIGNATURE, TCP4, TCP6, UNIX, UNSPECIFIED
from twisted_smtpguard.values import Address

MAX_LINE_OCTETS = 107
"""The longest header of version 1, its CRLF included."""

MAX_BINARY_OCTETS = 4096
"""The longest header of version 2 without its first 16 octets. Addresses take at most 36; the rest is type-length-value
vectors, of which only that of TLS is read."""

_FIXED_OCTETS = 16
_WORD = b"PROXY "
_PORT = rb"(0|[1-9][0-9]{0,4})"
_IP = rb"([0-9A-Fa-f:.]+)"
_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?|(TCP4|TCP6) %b %b %b %b)" % (_IP, _IP, _PORT, _PORT),
)

_BEGINNINGS = (_WORD, SIGNATURE[:5])
"""What headers of version 1 and 2 begin with. No SMTP client begins like this: the second has a NUL."""

LONGEST_BEGINNING = max(map(len, _BEGINNINGS))
"""The number of octets that `begins_header` needs."""

# Types of the type-length-value vectors of version 2: the vector of TLS, and the two inside it.
_SSL, _SSL_VERSION, _SSL_CIPHER = 0x20, 0x21, 0x23
_CLIENT_SSL = 0x01
"""The bit in the first octet of the TLS vector that says that the client speaks TLS to the proxy."""
_SSL_FIXED_OCTETS = 5
_VISIBLE = re.compile(rb"[!-~]{1,64}")

End: TypeAlias = tuple[Address, int]
"""An address and a port."""


class HeaderError(ValueError):
    """The octets are no PROXY header, or the header is too long."""


@attrs.frozen
class ProxyHeader:
    """The contents of a header. `client` and `server` are None if it names no client: the connection is the proxy's
    own, such as a health check, or the proxy does not know the client's address."""

    octets: int
    """The length of the header."""
    client: End | None = None
    server: End | None = None
    tls: str = ""
    """The TLS version and cipher of the client's connection to the proxy, as far as the header has them. "" if that
    connection is not encrypted, the caller did not ask, or the header names no client."""


def begins_header(octets: bytes) -> bool:
    """Whether `octets`, the first of a connection, already show that it begins with a PROXY header."""
    return octets.startswith(_BEGINNINGS)


def may_begin_header(octets: bytes) -> bool:
    """Whether `octets`, too few for `begins_header` to tell, may yet become the beginning of a PROXY header."""
    return any(each.startswith(octets) for each in _BEGINNINGS)


def parse_header(buffer: bytes, *, tls: bool = False) -> ProxyHeader | None:
    """Return the header that `buffer` begins with, or None if more octets are needed. HeaderError as soon as it is
    certain that the octets are no valid header.

    `tls` asks for the client's TLS in version 2. The vectors after the addresses must be well formed then.
    """
    if buffer.startswith(SIGNATURE[: len(buffer)]):
        return _parse_binary(buffer, tls) if len(buffer) >= _FIXED_OCTETS else None
    if not buffer.startswith(_WORD[: len(buffer)]):
        raise HeaderError
    end = buffer.find(b"\r\n", 0, MAX_LINE_OCTETS)
    if end < 0:
        if len(buffer) >= MAX_LINE_OCTETS:
            raise HeaderError
        return None
    return _parse_line(buffer[:end])


def _parse_line(line: bytes) -> ProxyHeader:
    match = _LINE.fullmatch(line)
    if match is None:
        raise HeaderError
    octets = len(line) + 2
    family, client, server, client_port, server_port = match.groups()
    if family is None:
        return ProxyHeader(octets)
    kind = IPv4Address if family == b"TCP4" else IPv6Address
    try:
        ends = [(kind(ip.decode()), int(port)) for ip, port in ((client, client_port), (server, server_port))]
    except AddressValueError as error:
        raise HeaderError from error
    if any(port > 65535 for _, port in ends):
        raise HeaderError
    return ProxyHeader(octets, ends[0], ends[1])


def _parse_binary(buffer: bytes, tls: bool) -> ProxyHeader | None:
    command, family, length = struct.unpack_from("!BBH", buffer, len(SIGNATURE))
    if command not in (LOCAL, PROXY) or length > MAX_BINARY_OCTETS:
        raise HeaderError
    octets = _FIXED_OCTETS + length
    if len(buffer) < octets:
        return None
    if command == LOCAL or family in (UNSPECIFIED, UNIX):
        return ProxyHeader(octets)
    kind: type[IPv4Address] | type[IPv6Address]
    if family == TCP4 and length >= 12:
        kind, form = IPv4Address, "!4s4sHH"
    elif family == TCP6 and length >= 36:
        kind, form = IPv6Address, "!16s16sHH"
    else:
        raise HeaderError
    client, server, client_port, server_port = struct.unpack_from(form, buffer, _FIXED_OCTETS)
    spoken = _tls_of(buffer[_FIXED_OCTETS + struct.calcsize(form) : octets]) if tls else ""
    return ProxyHeader(octets, (kind(client), client_port), (kind(server), server_port), spoken)


def _tls_of(vectors: bytes) -> str:
    """The TLS version and cipher of the client in the vectors after the addresses; "" if it does not speak TLS."""
    for kind, value in _vectors(vectors):
        if kind == _SSL:
            if len(value) < _SSL_FIXED_OCTETS:
                raise HeaderError
            inner = dict(_vectors(value[_SSL_FIXED_OCTETS:]))
            if value[0] & _CLIENT_SSL:
                version, cipher = inner.get(_SSL_VERSION, b""), inner.get(_SSL_CIPHER, b"")
                return f"{_visible(version) or 'TLS'} {_visible(cipher)}".rstrip()
    return ""


def _vectors(octets: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(octets):
        if len(octets) - offset < 3:
            raise HeaderError
        kind, length = struct.unpack_from("!BH", octets, offset)
        offset += 3 + length
        if offset > len(octets):
            raise HeaderError
        yield kind, octets[offset - length : offset]


def _visible(word: bytes) -> str:
    return word.decode("ascii") if _VISIBLE.fullmatch(word) else ""
