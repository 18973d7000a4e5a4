"""The refusal of a connection at accept: it gets one reply and no session, as cheaply as possible because of floods."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from twisted_smtpguard.engine.refusal import Refusal, refusal_of
from twisted_smtpguard.reactors.quicktcp import PLAIN_TCP, bound_accepts
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.transport.peers import has_unread

_DONE = Failure(ConnectionDone())


class TurnAway(Protocol):
    """The protocol of every connection that is refused with `reply` at accept. One object serves them all."""

    def __init__(self, reply: Reply, reason: str = "") -> None:
        self.refusal = Refusal(reply, reason) if reason else refusal_of(reply)
        """The refusal for the log, made once for all connections. Its reason is `reason`, or that of the catalogue."""

    def makeConnection(self, transport: Any) -> None:
        """Send the reply and close at once: nothing else uses the connection that would need a turn of the reactor."""
        bound_accepts(getattr(transport, "server", None))
        if type(transport) in PLAIN_TCP:
            say_before_close(transport.socket, self.refusal.reply.wire)
            transport.connectionLost(_DONE)
        else:
            turn_away(transport, self.refusal.reply.wire)

    def end_accepted(self, connection: socket.socket) -> None:
        """Called by a QuickPort instead of `makeConnection`."""
        say_before_close(connection, self.refusal.reply.wire)
        connection.close()


class SilentTurnAway(Protocol):
    """The protocol of a refused connection at a listener of implicit TLS, where a reply would need a handshake."""

    def makeConnection(self, transport: Any) -> None:
        """Abort the connection."""
        bound_accepts(getattr(transport, "server", None))
        transport.abortConnection()

    def end_accepted(self, connection: socket.socket) -> None:
        """Called by a QuickPort instead of `makeConnection`."""
        # With no time to linger, the kernel sends a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def turn_away(transport: Any, line: bytes) -> None:
    """Send `line` and close in the next turn of the reactor. Under TLS abort, since a reply would need a handshake."""
    if ISSLTransport.providedBy(transport):
        transport.abortConnection()
        return
    if type(transport) in PLAIN_TCP:
        say_before_close(transport.socket, line)
    else:
        transport.write(line)
    transport.loseConnection()


def say_before_close(connection: socket.socket, line: bytes) -> None:
    """Send `line`, then read once the input that has come: closing with unread input resets the connection, and the
    client would lose the line."""
    try:
        connection.send(line, socket.MSG_DONTWAIT)
        if has_unread(connection):
            connection.recv(65536, socket.MSG_DONTWAIT)
    except OSError:
        pass  # the client has closed the connection already
