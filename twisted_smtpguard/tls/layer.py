"""What Twisted's TLS layer lacks: the end of a client's input as an event, a handshake larger than one read of it, and
octets that leave at once.

Twisted calls `bio_read`, `recv` and `shutdown` of the connection's OpenSSL object. The methods here are set on that
object, where they hide those of its class, so that every way to begin TLS (STARTTLS, implicit TLS, an `ssl:` endpoint)
has them.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

_SET_ON_CONNECTION = ("bio_read", "recv", "shutdown")
_SET_ON_LAYER = ("__conform__",)


def attach(transport: Any, layer: Any, owner: Any) -> TLSLayer | None:
    """Called when TLS has begun on `transport`. Returns None if the transport does not encrypt with OpenSSL.

    `layer` is Twisted's protocol that encrypts; it is the transport itself if an endpoint has begun TLS. `owner` is the
    protocol of the connection. Its `owes_verdict` tells whether the client may still read a reply after the connection
    has ended without close_notify, its `readConnectionLost()` is called at the end of the client's input, and its
    `send_encrypted()` sends what it can and returns the rest.
    """
    connection = getattr(transport, "getHandle", lambda: None)()
    if not (isinstance(connection, SSL.Connection) and isinstance(layer, TLSMemoryBIOProtocol)):
        return None
    kind: Any = type(layer)
    _keep_declarations(kind, providedBy(transport))
    return TLSLayer(transport, layer, connection, owner)


@lru_cache(maxsize=8)
def _keep_declarations(layer: Any, declared: Any) -> list[object]:
    """Twisted declares each interface of a transport for its TLS layer, one after the other. zope computes such a
    declaration anew if no object has it any more, which is a sixth of what Python does for TLS in a short session. What
    is returned, and kept, for each kind of transport has all of them."""
    kept = [declared, *(object.__new__(layer) for _ in declared)]
    for each, interface in zip(kept[1:], declared, strict=True):
        directlyProvides(each, interface)
    return kept


@implementer(IHalfCloseableProtocol)
class TLSLayer:
    """The TLS layer of one connection, from the beginning of TLS to `lost()`."""

    __slots__ = (
        "_connection",
        "_cut_off",
        "_ended",
        "_holds",
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
        self._holds = False
        connection.bio_read = self._bio_read
        connection.recv = self._recv
        connection.shutdown = self._shutdown

    def secured(self) -> None:
        """Called when the handshake is complete. Before that, the end of the input is the end of the connection."""
        # The transport adapts its protocol (PEP 246). To declare the interface for one object would take zope 11 µs.
        self._layer.__conform__ = {IHalfCloseableProtocol: self}.get

    def write(self, octets: bytes) -> None:
        """Encrypt `octets` and send them. The transport's own method would keep them for the next turn of the reactor,
        to join small writes; but replies that belong together are together already."""
        TLSMemoryBIOProtocol.write(self._layer, octets)

    def expect_no_goodbye(self) -> None:
        """Called when the connection is to be closed as soon as the close_notify of the guard has been sent."""
        self._cut_off = True

    def lost(self) -> None:
        """Called when the connection is gone. Breaks the reference cycles, which the garbage collector would have to
        find."""
        for owner, names in ((self._connection, _SET_ON_CONNECTION), (self._layer, _SET_ON_LAYER)):
            for name in names:
                owner.__dict__.pop(name, None)
        for name in self.__slots__:
            # The traceback of an OpenSSL error may outlive the connection, and refers to this object.
            setattr(self, name, None)

    # Called by Twisted.

    def _bio_read(self, octets: int) -> bytes:
        """Return what is to be sent and could not be sent at once, even if it is more than `octets`. Twisted calls this
        once: the rest of a handshake with a long chain of certificates would not be sent, and the client would wait for
        it.

        Nothing is sent while the owner is carrying out an arrival, which it does up to its share of the turn: Twisted
        calls this once more afterwards. So the replies of a turn leave together, and the last one with close_notify.
        """
        if self._holds:
            raise SSL.WantReadError
        piece: bytes = self._take(octets)
        if len(piece) == octets:
            pieces = [piece]
            with suppress(SSL.WantReadError):
                while True:
                    pieces.append(self._take(octets))
            piece = b"".join(pieces)
        rest: bytes = self._owner.send_encrypted(piece)
        if not rest:
            raise SSL.WantReadError
        return rest

    def _recv(self, octets: int) -> bytes:
        """Return decrypted input. At the client's close_notify, which ends its input only (RFC 8446 6.1), the owner's
        `readConnectionLost()` is called. Twisted would close the connection and drop every reply that is still due."""
        self._holds = False
        try:
            received: bytes = self._read(octets)
        except SSL.ZeroReturnError:
            if self._connection.get_shutdown() & SSL.SENT_SHUTDOWN:
                raise  # both sides have sent close_notify
            if not self._ended:
                self._ended = True
                # Octets after a close_notify are not TLS, and OpenSSL would buffer them.
                self._transport.pauseProducing()
                self._owner.readConnectionLost()
            raise SSL.WantReadError from None
        self._holds = True
        return received

    def _shutdown(self) -> bool:
        """Send close_notify. Returns whether the client's own has come, or cannot come any more."""
        try:
            complete = bool(self._shut_down())
        except SSL.Error:
            if not self._cut_off:
                raise
            complete = True
        return complete or self._cut_off

    def writeConnectionLost(self) -> None:
        """Called when the FIN of the guard has been sent. There is no half-close under TLS, so nothing follows."""

    def readConnectionLost(self) -> None:
        """Called when the client has half-closed the connection without close_notify. That ends the session at once,
        unless it owes the verdict on a whole message, which the client must be able to read."""
        if self._ended:
            return
        self._cut_off = True
        if self._connection.get_shutdown() & SSL.SENT_SHUTDOWN or not self._owner.owes_verdict:
            self._layer.transport.connectionLost(Failure(ConnectionDone()))
        else:
            self._owner.readConnectionLost()
