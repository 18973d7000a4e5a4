"""Replies on their way out: joined, sent at once where that is possible, held back where the client is slow.

Nothing else writes to a connection's transport, but the turn-away of connections that get no session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IPullProducer, ISSLTransport, ITCPTransport
from zope.interface import implementer

from twisted_smtpguard.wire.deadlines import Deadline, Deadlines

_PIECE_OCTETS = 4096
"""What the transport is given at a time. When it asks for the next, it has taken all of the last."""


@implementer(IPullProducer)
class Output:
    """The outgoing half of one connection.

    `drained()` is called when replies had to wait and the transport has taken them all, `stalled()` when it has
    taken none of them for `timeout` seconds (0: it may take as long as it likes), `closed()` when it has taken the
    last of all and our side is about to be closed.
    """

    def __init__(
        self,
        transport: Any,
        deadlines: Deadlines,
        timeout: float,
        drained: Callable[[], None],
        stalled: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._deadlines = deadlines
        self._timeout = timeout
        self._drained = drained
        self._stalled = stalled
        self._closed = closed
        self._queued: list[bytes] = []
        self._queued_octets = 0
        self._waiting = b""
        self._producing = False
        self._deadline: Deadline | None = None
        self._close: Callable[[], None] | None = None
        self._send = _direct_send(transport)
        if ITCPTransport.providedBy(transport):
            # Each flush is all that there is to say: to hold it back until the last one is acknowledged only costs
            # time, where a hook answers later.
            transport.setTcpNoDelay(True)

    @property
    def queued_octets(self) -> int:
        """Of replies not flushed yet."""
        return self._queued_octets

    @property
    def waiting_octets(self) -> int:
        """Of replies that the client has not made room for."""
        return len(self._waiting)

    def queue(self, octets: bytes) -> None:
        """Put a reply behind the others; `flush` sends them."""
        self._queued.append(octets)
        self._queued_octets += len(octets)

    def flush(self) -> None:
        """Send what is queued, in one write."""
        if not self._queued:
            return
        octets = self._queued[0] if len(self._queued) == 1 else b"".join(self._queued)
        self._queued.clear()
        self._queued_octets = 0
        if self._producing:
            self._waiting += octets
            return
        if self._send is not None:
            try:
                octets = octets[self._send(octets) :]
            except OSError:
                # Full, or broken: the transport finds out which.
                pass
            if not octets:
                return
        self._waiting = octets
        self._producing = True
        if self._timeout:
            self._deadline = self._deadlines.call_later(self._timeout, self._time_out)
        self._transport.registerProducer(self, False)

    def close(self) -> None:
        """Close the connection plainly once everything has been taken."""
        self._close_by(self._transport.loseConnection)

    def half_close(self) -> None:
        """Shut down our side once everything has been taken, and go on reading.

        Under TLS that is close_notify, which `loseConnection` sends: a bare FIN would look like an attack.
        """
        if ISSLTransport.providedBy(self._transport):
            self._close_by(self._transport.loseConnection)
        else:
            self._close_by(self._transport.loseWriteConnection)

    def _close_by(self, close: Callable[[], None]) -> None:
        self.flush()
        self._close = close
        if not self._producing:
            self._close_now()

    def _close_now(self) -> None:
        if self._close is not None:
            self._closed()
            self._close()

    def abort(self) -> None:
        """Drop the connection with all that waits."""
        self._transport.abortConnection()

    def lost(self) -> None:
        """The connection is gone. Called once, by the protocol."""
        self._cancel_deadline()
        self._queued.clear()
        self._waiting = b""
        self._send = None

    # IPullProducer, called by the transport.

    def resumeProducing(self) -> None:
        """The transport has taken the last piece."""
        if self._waiting:
            piece, self._waiting = self._waiting[:_PIECE_OCTETS], self._waiting[_PIECE_OCTETS:]
            if self._deadline is not None:
                self._deadline.reset(self._timeout)
            self._transport.write(piece)
            return
        self._cancel_deadline()
        if self._producing:
            self._producing = False
            self._transport.unregisterProducer()
            if self._close is not None:
                self._close_now()
            else:
                self._drained()

    def stopProducing(self) -> None:
        """The connection is gone; connectionLost follows."""

    def _time_out(self) -> None:
        self._deadline = None
        self._stalled()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _direct_send(transport: Any) -> Callable[[bytes], int] | None:
    """The socket's own send, for replies that need not wait for a turn of the reactor.

    Only Twisted's plain TCP transport: anything else may have to encrypt or buffer what passes.
    """
    if type(transport) is tcp.Server and not transport.TLS:
        send: Callable[[bytes], int] = transport.socket.send
        return send
    return None
