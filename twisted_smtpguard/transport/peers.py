"""The other end of a connection: from Twisted's addresses to names for the log and Peer values."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import termios
from functools import lru_cache
from typing import Any

from twisted.internet import address, tcp
from twisted.internet.interfaces import IAddress, ISSLTransport

from twisted_smtpguard.engine.proxyheader import ProxyHeader
from twisted_smtpguard.values import Address, Peer, unmapped


def peer_name(peer: IAddress | None) -> str:
    """What the log calls a peer: its IP address without port, or `unix`."""
    if isinstance(peer, address.IPv4Address):
        return str(peer.host)
    ip, _ = _split(peer)
    return "unix" if ip is None else str(ip)


def socket_name(address: Any) -> str:
    """The same of an address as the socket module has it."""
    ip = _address(address[0]) if isinstance(address, tuple) else None
    return "unix" if ip is None else str(ip)


def make_peer(peer: IAddress | None, transport: Any, tls: bool) -> Peer:
    """The Peer of a connection from `peer`. Costs a system call, so it is made when it is first needed. `tls`:
    implicit."""
    remote, remote_port = _split(peer)
    local, local_port = _split(transport.getHost())
    return Peer(
        address=remote,
        port=remote_port,
        local_address=local,
        local_port=local_port,
        tls=tls,
        proxied=False,
    )


def peer_address(peer: IAddress | None) -> Address | None:
    """The IP address of a peer; None where it came over a UNIX socket."""
    return _split(peer)[0]


def is_own(header: ProxyHeader, peer: IAddress | None) -> bool:
    """Whether the connection is the proxy's own, such as a health check: its header names no client, or, as HAProxy's
    of version 1 does, the proxy's own end of it."""
    return header.client is None or header.client == _split(peer)


_OF_TCP = (address.IPv4Address, address.IPv6Address)


def _split(end: IAddress | None) -> tuple[Address | None, int | None]:
    if not isinstance(end, _OF_TCP):
        return None, None
    return _address(end.host), end.port


@lru_cache(maxsize=1024)
def _address(host: str) -> Address | None:
    """The same clients come again and again, and always to the same few addresses."""
    return unmapped(ipaddress.ip_address(host))


_NONE = bytes(4)


def input_waits(transport: Any) -> bool:
    """Whether the kernel has input of the connection: what came with it is early, too. False where it cannot be
    told, and of octets that were sent to begin TLS.

    FIONREAD: a recv() that finds nothing would raise, which takes twice as long. It counts up to an urgent octet
    (MSG_OOB), which no mail client sends: what stands behind one is seen when it is read.
    """
    if not isinstance(transport, tcp.Server) or ISSLTransport.providedBy(transport):
        return False
    try:
        return fcntl.ioctl(transport.socket, termios.FIONREAD, _NONE) != _NONE
    except OSError:
        return False


def waiting_octets(transport: Any, most: int) -> bytes:
    """The first octets of what `input_waits` has found, which stay where they are."""
    if not isinstance(transport, tcp.Server) or ISSLTransport.providedBy(transport):
        return b""
    try:
        octets: bytes = transport.socket.recv(most, socket.MSG_PEEK)
    except OSError:
        return b""
    return octets
