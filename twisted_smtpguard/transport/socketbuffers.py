"""The kernel buffers of a connection. Without a bound the kernel's tuning grows them to megabytes, for replies that the
client never reads and for input that we do not read."""

from __future__ import annotations

import contextlib
import math
import socket
from typing import Any
from weakref import WeakKeyDictionary

from twisted.internet import tcp

_SIDES = (socket.SO_SNDBUF, socket.SO_RCVBUF)

_MAX_WAITING = 4096
"""The most connections that may wait to be accepted: SOMAXCONN on Linux."""


class SocketBuffers:
    """Sets SO_SNDBUF and SO_RCVBUF to `send` and `receive` octets; 0 leaves a size to the system.

    New connections inherit the sizes of a listening TCP socket. A connection that may have been made before these were
    set, and every one over a UNIX socket, is checked when it is accepted.
    """

    def __init__(self, send: int, receive: int) -> None:
        self._in_force = 0
        """The first size as the system reports it after it was set. Linux doubles it and has its own bounds."""
        self._unchecked: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        """How many connections of each port still have to be checked."""
        self.set_sizes(send, receive)

    def set_sizes(self, send: int, receive: int) -> None:
        """Swap the sizes. A port whose size was set once keeps it where it is left to the system now, until it is
        opened anew."""
        self._sizes = [(side, size) for side, size in zip(_SIDES, (send, receive), strict=True) if size]
        for port in [each for each in self._unchecked if getattr(each, "connected", False)]:
            self.opened(port)

    def opened(self, port: Any) -> None:
        """Set the sizes of a port that listens. A port that an application opens is found at its first connection."""
        self._unchecked[port] = self._first_of(port)

    def accepted(self, port: Any, connection: socket.socket) -> None:
        """Set the sizes of a connection accepted at `port`, unless it has inherited them."""
        if not self._sizes:
            return
        unchecked = self._unchecked.get(port)
        if unchecked == 0:
            return
        with contextlib.suppress(OSError):
            if unchecked is None:
                self.opened(port)
            else:
                self._unchecked[port] = unchecked - 1
            if connection.getsockopt(socket.SOL_SOCKET, self._sizes[0][0]) != self._in_force:
                self._set(connection)

    def _first_of(self, port: Any) -> float:
        """Set the sizes of a port. Returns how many connections may have been made before and have to be checked."""
        if not isinstance(port, tcp.Port) or port.socket.family == getattr(socket, "AF_UNIX", None):
            return math.inf
        self._set(port.socket)
        return _MAX_WAITING

    def _set(self, of: socket.socket) -> None:
        for side, size in self._sizes:
            of.setsockopt(socket.SOL_SOCKET, side, size)
        for side, _ in self._sizes[:1]:
            self._in_force = of.getsockopt(socket.SOL_SOCKET, side)
