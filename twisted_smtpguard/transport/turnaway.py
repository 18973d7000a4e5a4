"""A connection that gets no session: one line, and it goes. As cheap as it can be, since floods end here."""

from __future__ import annotations

from typing import Any

from twisted.internet import tcp
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol, ISSLTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.engine.refusal import refusal_of
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.transport.peers import input_waits

_DONE = Failure(ConnectionDone())


@implementer(IProtocol)
class TurnAway:
    """The protocol of every connection that is refused with `reply` at accept. One object serves them all."""

    def __init__(self, reply: Reply) -> None:
        self.refusal = refusal_of(reply)
        """For the log; made once, for floods end here."""

    def makeConnection(self, transport: Any) -> None:
        """Say why, and close. Nothing else knows the connection: it need not wait for a turn of the reactor."""
        if type(transport) is tcp.Server:
            say_before_close(transport, self.refusal.reply.wire)
            transport.connectionLost(_DONE)
        else:
            turn_away(transport, self.refusal.reply.wire)

    def dataReceived(self, data: bytes) -> None:
        """Nothing that comes now is looked at."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        """It held nothing."""

    def connectionMade(self) -> None:
        """makeConnection has done everything."""


class SilentTurnAway(TurnAway):
    """The same at a listener of implicit TLS: to say anything would take a handshake."""

    def makeConnection(self, transport: Any) -> None:
        """Abort."""
        transport.abortConnection()


def turn_away(transport: Any, line: bytes) -> None:
    """Say why, and close in the next turn. Under TLS nothing can be said without a handshake: abort."""
    if ISSLTransport.providedBy(transport):
        transport.abortConnection()
        return
    if type(transport) is tcp.Server:
        say_before_close(transport, line)
    else:
        transport.write(line)
    transport.loseConnection()


def say_before_close(transport: tcp.Server, line: bytes) -> None:
    """Send `line`, and take once what has already come: a close with unread input resets the connection, and the line
    would be lost."""
    try:
        transport.socket.send(line)
        if input_waits(transport):
            transport.socket.recv(65536)
    except OSError:
        pass  # the client is gone already
