"""Whether a client has sent something that has not been read yet."""

from __future__ import annotations

import fcntl
import socket
import termios
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import ISSLTransport

_NONE = bytes(4)


def input_waits(transport: Any) -> bool:
    """Whether the kernel has input of the connection: what came with it is early, too. False where it cannot be
    told, and of octets that were sent to begin TLS.

    FIONREAD: a recv() that finds nothing would raise, which takes twice as long. It counts up to an urgent octet
    (MSG_OOB), which no mail client sends: what follows one is seen when it is read.
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
