"""XCLIENT and XFORWARD commands and PROXY headers, which tell the upstream server who the client is. Pure.

Postfix defines XCLIENT and XFORWARD (XCLIENT_README, XFORWARD_README); HAProxy defines the PROXY protocol, versions 1
and 2.
"""

from __future__ import annotations

import re
import struct
import textwrap
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address

from twisted_smtpguard.inputs.proxyprotocol import LOCAL, PROXY, SIGNATURE, TCP4, TCP6, UNSPECIFIED
from twisted_smtpguard.values import Address, Client, Peer

UNKNOWN = "[UNAVAILABLE]"
"""The value of an attribute that the guard does not know."""

_MAX_LINE = 500
"""Below the 512 octets of a command line (RFC 5321 4.5.3.1.4)."""

_MAX_VALUE = 255
"""The longest value of an attribute. Postfix refuses a longer one, and with it the client."""

_NOT_XTEXT = re.compile(rb"[^!-*,-<>-~]")


def xclient(client: Client, offered: Collection[str]) -> list[str]:
    """The XCLIENT command for `client`, with the attributes that the server has offered. Empty if it has offered none.

    There is never a second command, since Postfix would attribute it to the client. If the HELO name or the login makes
    the command too long for one line, it is sent as unavailable; the EHLO that follows has the name.
    """
    values = _attributes(client)
    commands = _commands("XCLIENT", values, offered)
    for too_long in ("HELO", "LOGIN"):
        if len(commands) > 1:
            values[too_long] = UNKNOWN
            commands = _commands("XCLIENT", values, offered)
    return commands


def xforward(client: Client, offered: Collection[str]) -> list[str]:
    """The XFORWARD commands for `client`, which must be sent before each MAIL."""
    values = {**_attributes(client), "IDENT": client.session, "SOURCE": "REMOTE"}
    return _commands("XFORWARD", values, offered)


def proxy_v1(peer: Peer | None) -> bytes:
    """The PROXY header of version 1 for `peer`. For None or a UNIX socket it is UNKNOWN: the server then uses the
    address of the guard."""
    ends = _ends(peer)
    if ends is None:
        return b"PROXY UNKNOWN\r\n"
    (source, port), (destination, local_port) = ends
    family = "TCP4" if source.version == 4 else "TCP6"
    return f"PROXY {family} {_text(source)} {_text(destination)} {port} {local_port}\r\n".encode("ascii")


def proxy_v2(peer: Peer | None) -> bytes:
    """The PROXY header of version 2 for `peer`. For None or a UNIX socket the connection is LOCAL."""
    ends = _ends(peer)
    if ends is None:
        return _proxy_v2(LOCAL, UNSPECIFIED)
    (source, port), (destination, local_port) = ends
    addresses = source.packed + destination.packed + struct.pack("!HH", port, local_port)
    return _proxy_v2(PROXY, TCP4 if source.version == 4 else TCP6, addresses)


def _proxy_v2(command: int, family: int, addresses: bytes = b"") -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(addresses)) + addresses


def _attributes(client: Client) -> dict[str, str]:
    peer = client.peer
    return {
        # The guard looks up no names. An attribute that is left out would keep the value of the guard's own host.
        "NAME": UNKNOWN,
        "REVERSE_NAME": UNKNOWN,
        "ADDR": _address(peer.address),
        "PORT": str(peer.port) if peer.port is not None else UNKNOWN,
        "PROTO": "SMTP" if client.protocol == "SMTP" else "ESMTP",
        "HELO": client.helo or UNKNOWN,
        "LOGIN": client.identity or UNKNOWN,
        "DESTADDR": _address(peer.local_address),
        "DESTPORT": str(peer.local_port) if peer.local_port is not None else UNKNOWN,
    }


def _commands(verb: str, values: dict[str, str], offered: Collection[str]) -> list[str]:
    words = []
    for name in [name for name in values if name in offered]:
        text = _xtext(values[name])
        words.append(f"{name}={text if len(text) <= _MAX_VALUE else UNKNOWN}")
    width = _MAX_LINE - len(f"{verb} ")
    lines = textwrap.wrap(" ".join(words), width, break_long_words=False, break_on_hyphens=False)
    return [f"{verb} {line}" for line in lines]


def _xtext(text: str) -> str:
    """`text` as xtext (RFC 3461 4)."""
    octets = text.encode("utf-8", "surrogateescape")
    return _NOT_XTEXT.sub(lambda octet: b"+%02X" % ord(octet[0]), octets).decode("ascii")


def _address(address: Address | None) -> str:
    if address is None:
        return UNKNOWN
    return _text(address) if address.version == 4 else f"IPV6:{_text(address)}"


def _text(address: Address) -> str:
    """`address` without the scope that a link-local address may have."""
    return str(address).partition("%")[0]


def _ends(peer: Peer | None) -> tuple[tuple[Address, int], tuple[Address, int]] | None:
    if peer is None or peer.address is None:
        return None
    here = peer.local_address
    if here is None or here.version != peer.address.version:
        here = IPv4Address(0) if peer.address.version == 4 else IPv6Address(0)
    return (peer.address, peer.port or 0), (here, peer.local_port or 0)
