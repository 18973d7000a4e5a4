"""What the kernel may hold of one connection. Without a bound it takes some megabytes of what a client never reads, and
of what we do not read, by its own tuning."""

from __future__ import annotations

import contextlib
import math
import socket
from typing import Any
from weakref import WeakKeyDictionary

from twisted.internet import tcp

_SIDES = (socket.SO_SNDBUF, socket.SO_RCVBUF)

_MAX_WAITING = 4096
"""Connections that may wait to be accepted: what SOMAXCONN is on Linux."""


class SocketBuffers:
    """Sets SO_SNDBUF and SO_RCVBUF, of `send` and `receive` octets; 0 leaves one to the system.

    A listening TCP socket hands them on to the connections that it makes from then on. A connection that may have been
    made before, and one over a UNIX socket, is looked at when it comes.
    """

    def __init__(self, send: int, receive: int) -> None:
        self._sizes = [(side, size) for side, size in zip(_SIDES, (send, receive), strict=True) if size]
        self._in_force = 0
        """What the system made of the first of them. Linux doubles it, and has bounds of its own."""
        self._unchecked: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        """Of each port: how many of its connections are still to be looked at."""

    def opened(self, port: Any) -> None:
        """A port listens. Of one that an application opens itself this is learnt at its first connection."""
        self._unchecked[port] = self._first_of(port)

    def accepted(self, port: Any, connection: socket.socket) -> None:
        """A connection has been made, at `port`."""
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
        """Set those of a port. How many connections may have been made before, and are to be looked at."""
        if not isinstance(port, tcp.Port) or port.socket.family == getattr(socket, "AF_UNIX", None):
            return math.inf
        self._set(port.socket)
        return _MAX_WAITING

    def _set(self, of: socket.socket) -> None:
        for side, size in self._sizes:
            of.setsockopt(socket.SOL_SOCKET, side, size)
        for side, _ in self._sizes[:1]:
            self._in_force = of.getsockopt(socket.SOL_SOCKET, side)
