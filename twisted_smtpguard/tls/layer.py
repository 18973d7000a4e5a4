"""What Twisted's TLS layer leaves out: the end of a client's input as an event, and output larger than one read.

Twisted calls `bio_read`, `recv` and `shutdown` of the connection's OpenSSL object. Here they are set on the object, in
front of those of its class, so that every way to begin TLS (STARTTLS, implicit TLS, an `ssl:` endpoint) has them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python.failure import Failure
from zope.interface import alsoProvides

_SET_ON_CONNECTION = ("bio_read", "recv", "shutdown")
_SET_ON_LAYER = ("readConnectionLost", "writeConnectionLost")


def attach(transport: Any, layer: Any, owner: Any) -> TLSLayer | None:
    """TLS has begun at `transport`. `layer` is Twisted's protocol that encrypts, which is the transport itself where an
    endpoint has begun TLS. `owner` is the protocol of the connection: its `owes_verdict` tells whether a reply is due
    that a client may still read after its connection has ended without close_notify, and its `readConnectionLost()` is
    called when the client says no more. None for a transport that encrypts by other means."""
    connection = getattr(transport, "getHandle", lambda: None)()
    return TLSLayer(transport, layer, connection, owner) if isinstance(connection, SSL.Connection) else None


class TLSLayer:
    """The TLS layer of one connection, from the beginning of TLS to `lost()`."""

    __slots__ = (
        "_connection",
        "_cut_off",
        "_ended",
        "_layer",
        "_owner",
        "_read",
        "_shut_down",
        "_take",
        "_transport",
    )

    def __init__(self, transport: Any, layer: Any, connection: Any, owner: Any) -> None:
        self._transport = transport
        self._layer = layer
        self._connection = connection
        self._owner = owner
        self._take, self._read, self._shut_down = connection.bio_read, connection.recv, connection.shutdown
        self._ended = False
        self._cut_off = False
        connection.bio_read = self._bio_read
        connection.recv = self._recv
        connection.shutdown = self._shutdown

    def secured(self) -> None:
        """Called when the handshake is over. Before, the end of the connection is all that its end can be."""
        layer = self._layer
        layer.readConnectionLost = self._read_connection_lost
        # Called when the FIN of the guard has been sent. There is no half-close under TLS, so nothing follows.
        layer.writeConnectionLost = lambda: None
        alsoProvides(layer, IHalfCloseableProtocol)

    def lost(self) -> None:
        """Called when the connection is gone. No circle of references is left, or the garbage collector would have to
        find it."""
        for owner, names in ((self._connection, _SET_ON_CONNECTION), (self._layer, _SET_ON_LAYER)):
            for name in names:
                owner.__dict__.pop(name, None)
        for name in self.__slots__:
            # The traceback of an error of OpenSSL's may outlive the connection, and refers to this.
            setattr(self, name, None)

    # Called by Twisted.

    def _bio_read(self, octets: int) -> bytes:
        """All that is to be sent. Twisted reads once: of a handshake with a long chain of certificates the rest would
        stay behind, and the client would wait for it."""
        piece: bytes = self._take(octets)
        if len(piece) < octets:
            return piece
        pieces = [piece]
        with suppress(SSL.WantReadError):
            while True:
                pieces.append(self._take(octets))
        return b"".join(pieces)

    def _recv(self, octets: int) -> bytes:
        """Twisted would close the connection at the client's close_notify, and drop every reply that is still due: the
        end of input (RFC 8446 6.1) is told to the protocol instead."""
        try:
            received: bytes = self._read(octets)
        except SSL.ZeroReturnError:
            if self._connection.get_shutdown() & SSL.SENT_SHUTDOWN:
                raise  # both sides have said goodbye
            if not self._ended:
                self._ended = True
                # What comes now is no TLS, and OpenSSL would keep it.
                self._transport.pauseProducing()
                self._owner.readConnectionLost()
            raise SSL.WantReadError from None
        return received

    def _shutdown(self) -> bool:
        """Send close_notify. Whether no answer to it will come."""
        try:
            complete = bool(self._shut_down())
        except SSL.Error:
            if not self._cut_off:
                raise
            complete = True
        return complete or self._cut_off

    def _read_connection_lost(self) -> None:
        """The connection has ended without close_notify. That ends a session at once, but for a message that was
        whole: its client must be able to hear what became of it."""
        if self._ended:
            return
        self._cut_off = True
        if self._connection.get_shutdown() & SSL.SENT_SHUTDOWN or not self._owner.owes_verdict:
            self._layer.transport.connectionLost(Failure(ConnectionDone()))
        else:
            self._owner.readConnectionLost()
