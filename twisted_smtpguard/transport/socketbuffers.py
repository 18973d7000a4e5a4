"""What the kernel may hold of one connection. Without a bound it takes some megabytes of what a client never reads, and
of what we do not read, by its own tuning."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

_SIDES = (socket.SO_SNDBUF, socket.SO_RCVBUF)

_MAX_WAITING = 4096
"""Connections that may wait to be accepted: what SOMAXCONN is on Linux."""


class SocketBuffers:
    """Sets SO_SNDBUF and SO_RCVBUF, of `send` and `receive` octets; 0 leaves one to the system.

    A listening TCP socket hands them on to the connections that it makes from then on. A connection that may have been
    made before, or by a port that is not known here, and one over a UNIX socket, is looked at when it comes.
    """

    def __init__(self, send: int, receive: int) -> None:
        self._sizes = [(side, size) for side, size in zip(_SIDES, (send, receive), strict=True) if size]
        self._in_force = 0
        """What the system made of the first of them. Linux doubles it, and has bounds of its own."""
        self._unsure: dict[Any, int] = {}
        """Of each TCP port that was opened: how many of its connections are still to be looked at."""

    def opened(self, port: Any) -> None:
        """A port of ours listens."""
        self._set(port.socket)
        if port.socket.family != getattr(socket, "AF_UNIX", None):
            self._unsure[port] = _MAX_WAITING

    def closed(self, port: Any) -> None:
        """It does not any more."""
        self._unsure.pop(port, None)

    def accepted(self, port: Any, connection: socket.socket) -> None:
        """A connection has been made, at `port`."""
        unsure = self._unsure.get(port)
        if unsure == 0 or not self._sizes:
            return
        if unsure:
            self._unsure[port] = unsure - 1
        with contextlib.suppress(OSError):
            if connection.getsockopt(socket.SOL_SOCKET, self._sizes[0][0]) != self._in_force:
                self._set(connection)

    def _set(self, of: socket.socket) -> None:
        for side, size in self._sizes:
            of.setsockopt(socket.SOL_SOCKET, side, size)
        for side, _ in self._sizes[:1]:
            self._in_force = of.getsockopt(socket.SOL_SOCKET, side)
