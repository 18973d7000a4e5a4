"""The peer of a connection: its name in the log and its Peer value, made from Twisted's addresses."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from functools import lru_cache
from typing import Any

from twisted.internet import address, tcp
from twisted.internet.interfaces import IAddress, ISSLTransport

from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.port import Host
from twisted_smtpguard.engine.proxyheader import ProxyHeader
from twisted_smtpguard.values import Address, Peer, unmapped

try:
    import fcntl
    import termios
except ImportError:
    # Windows has neither.
    fcntl = None  # type: ignore[assignment]


def peer_name(peer: IAddress | None) -> str:
    """The name of a peer in the log: its IP address without the port, or `unix`."""
    if isinstance(peer, address.IPv4Address):
        return str(peer.host)
    ip, _ = _split(peer)
    return "unix" if ip is None else str(ip)


def socket_name(address: Any) -> str:
    """As `peer_name`, for an address of the socket module."""
    ip = _address(address[0]) if isinstance(address, tuple) else None
    return "unix" if ip is None else str(ip)


class RemoteEnd(Host):
    """The part of a host that knows the other end of the connection. A base class of the protocol."""

    engine: Engine
    transport: Any
    _address: IAddress | None

    def address(self) -> Address | None:
        return _split(self._address)[0]

    def peer(self) -> Peer:
        tls = self.engine.implicit_tls
        return Peer(*_split(self._address), *_split(self.transport.getHost()), tls=tls)

    def is_own(self, header: ProxyHeader) -> bool:
        # The header names no client or, as HAProxy's does in version 1, the proxy's own end of the connection.
        return header.client is None or header.client == _split(self._address)

    def waiting_octets(self, most: int) -> bytes:
        if input_waits(self.transport):
            with suppress(OSError):
                octets: bytes = self.transport.socket.recv(most, socket.MSG_PEEK)
                return octets
        return b""


def peer_address(peer: IAddress | None) -> Address | None:
    """The IP address of a peer; None for a UNIX socket."""
    return _split(peer)[0]


_OF_TCP = (address.IPv4Address, address.IPv6Address)


def _split(end: IAddress | None) -> tuple[Address | None, int | None]:
    if not isinstance(end, _OF_TCP):
        return None, None
    return _address(end.host), end.port


@lru_cache(maxsize=1024)
def _address(host: str) -> Address | None:
    """Parse an IP address. The results are cached, because the same clients and local addresses come up repeatedly."""
    return unmapped(ipaddress.ip_address(host))


_NONE = bytes(4)


def input_waits(transport: Any) -> bool:
    """Whether the kernel has unread input of the connection, which shows that a client has sent before its greeting.
    False where that cannot be known, and under TLS, where the octets belong to the handshake.

    It uses FIONREAD, because a recv() that finds nothing raises, which takes twice as long. FIONREAD counts only up to
    an urgent octet (MSG_OOB), which no mail client sends; octets after one are noticed when they are read.
    """
    if not isinstance(transport, tcp.Server) or ISSLTransport.providedBy(transport):
        return False
    return has_unread(transport.socket)


def has_unread(connection: socket.socket) -> bool:
    """As `input_waits`, for a socket."""
    if fcntl is None:
        return False
    try:
        return fcntl.ioctl(connection, termios.FIONREAD, _NONE) != _NONE
    except OSError:
        return False
