"""Replies on their way out: joined, sent at once where that is possible, held back where the client is slow.

Nothing else writes to a connection's transport, but the turn-away of connections that get no session.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from socket import socket
from typing import Any, Protocol

import attrs
from twisted.internet import tcp
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPullProducer, ISSLTransport, ITCPTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.units import no_limit
from twisted_smtpguard.wire.deadlines import Deadline, Deadlines
from twisted_smtpguard.wire.together import Together

_PIECE_OCTETS = 4096
"""What the transport is given at a time. When it asks for the next, it has taken all of the last."""


class Speaker(Protocol):
    """Whose replies an Output sends."""

    def output_drained(self) -> None:
        """Replies had to wait, and the transport has taken them all."""

    def output_stalled(self) -> None:
        """The transport has taken none of the waiting replies for the time limit on writing."""

    def output_closing(self) -> None:
        """The transport has taken the last of all, and our side is about to be closed."""


_NOBODY: Any = None

_DONE = Failure(ConnectionDone())


@attrs.frozen
class OutputRules:
    """What all connections of a guard have in common. `timeout` is the time limit on writing, in seconds,
    `max_waiting` what may wait for a client, in octets. 0: none."""

    deadlines: Deadlines
    together: Together
    timeout: float
    max_waiting: float = attrs.field(converter=no_limit)
    """More than that is not to be queued without a flush, nor said while it waits."""


@implementer(IPullProducer)
class Output:
    """The outgoing half of one connection."""

    # Ten thousand idle ones have these; what follows only where it is not as it begins.
    __slots__ = (
        "__dict__",
        "_close",
        "_producing",
        "_queued",
        "_rules",
        "_socket",
        "_speaker",
        "_transport",
        "_waits_for_others",
        "congested",
        "queued_octets",
    )

    _deadline: Deadline | None = None
    _waiting = b""
    _delays = True

    def __init__(self, transport: Any, rules: OutputRules, speaker: Speaker) -> None:
        self._transport = transport
        self._rules = rules
        self._speaker = speaker
        self._queued: list[bytes] | None = None
        self.queued_octets = 0
        """Of replies not flushed yet."""
        self._producing = False
        self._waits_for_others = False
        self._close: Callable[[], None] | None = None
        self._socket = _own_socket(transport)
        self.congested = False
        """So much waits that nothing more is to be said."""

    @property
    def idle(self) -> bool:
        """The transport has taken everything that was flushed."""
        return not self._producing

    @property
    def waiting_octets(self) -> int:
        """Of replies that the client has not made room for."""
        return len(self._waiting)

    def do_not_delay(self) -> None:
        """Replies come late, more than one to an arrival: the kernel is not to hold one back until the last one is
        acknowledged."""
        if self._delays:
            self._delays = False
            if ITCPTransport.providedBy(self._transport):
                # Of a connection that is gone the system may know no such option any more.
                with suppress(OSError):
                    self._transport.setTcpNoDelay(True)

    def queue(self, octets: bytes) -> None:
        """Put a reply behind the others; `flush` sends them."""
        if self._queued is None:
            self._queued = [octets]
        else:
            self._queued.append(octets)
        self.queued_octets += len(octets)

    @property
    def full(self) -> bool:
        """No more is to be queued without a flush."""
        return self.queued_octets >= self._rules.max_waiting

    def say(self, octets: bytes) -> None:
        """Send one reply, with those that are queued: `queue` and `flush`, in fewer steps where there are none."""
        if self._socket is None or self._queued is not None or self._producing:
            self.queue(octets)
            self.flush()
        elif self._rules.together.waits(self):
            self._waits_for_others = True
            self._queued = [octets]
            self.queued_octets = len(octets)
        else:
            self._send(octets)

    def flush(self) -> None:
        """Send what is queued, in one write: now or, where others are served too, at the end of this turn. What is
        flushed again before that is sent now."""
        if self._socket is not None and self._queued and not (self._waits_for_others or self._producing):
            self._waits_for_others = self._rules.together.waits(self)
            if self._waits_for_others:
                return
        self.send_now()

    def send_now(self) -> None:
        """Called when what was flushed is to leave."""
        self._waits_for_others = False
        if self._queued:
            self._send(self._take_queued())
        if self._close is not None and not self._producing:
            self._close_now()

    def _send(self, octets: bytes) -> None:
        if self._producing:
            self._wait(self._waiting + octets)
            return
        sent = 0
        if self._socket is not None:
            try:
                sent = self._socket.send(octets)
            except OSError:
                # Full, or broken: the transport finds out which.
                pass
        if sent != len(octets):
            self._produce(octets[sent:])

    def _take_queued(self) -> bytes:
        queued, self._queued = self._queued or (), None
        self.queued_octets = 0
        return queued[0] if len(queued) == 1 else b"".join(queued)

    def _produce(self, octets: bytes) -> None:
        """The transport takes the rest when it can."""
        self._producing = True
        self._set_deadline()
        self._wait(octets)
        self._transport.registerProducer(self, False)

    def _wait(self, octets: bytes) -> None:
        self._waiting = octets
        self.congested = len(octets) >= self._rules.max_waiting

    def close(self) -> None:
        """Close the connection plainly once everything has been taken."""
        self._close_by(self._lose_connection)

    def _lose_connection(self) -> None:
        if self._socket is None:
            self._transport.loseConnection()
        else:
            # There is nothing to wait a turn of the reactor for.
            self._transport.connectionLost(_DONE)

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
        if not (self._producing or self._waits_for_others):
            self._close_now()

    def _close_now(self) -> None:
        close, self._close = self._close, None
        if close is not None:
            self._speaker.output_closing()
            close()

    def abort(self) -> None:
        """Drop the connection with all that waits."""
        self._transport.abortConnection()

    def lost(self) -> None:
        """The connection is gone, or speaks TLS from now on. May be called twice."""
        self._cancel_deadline()
        self._queued = None
        self._close = None
        self._wait(b"")
        self._socket = None
        # No circle of references, or the garbage collector would have to find it.
        self._speaker = _NOBODY

    # IPullProducer, called by the transport.

    def resumeProducing(self) -> None:
        """The transport has taken the last piece."""
        if self._waiting:
            piece = self._waiting[:_PIECE_OCTETS]
            self._wait(self._waiting[_PIECE_OCTETS:])
            if self._deadline is not None:
                self._deadline.reset(self._rules.timeout)
            self._transport.write(piece)
            return
        self._cancel_deadline()
        if self._producing:
            self._producing = False
            self._transport.unregisterProducer()
            if self._close is not None:
                self._close_now()
            else:
                self._speaker.output_drained()

    def stopProducing(self) -> None:
        """The connection is gone; connectionLost follows."""

    def _time_out(self) -> None:
        self._deadline = None
        self._speaker.output_stalled()

    def _set_deadline(self) -> None:
        if self._rules.timeout:
            self._deadline = self._rules.deadlines.call_later(self._rules.timeout, self._time_out)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _own_socket(transport: Any) -> socket | None:
    """The socket, for replies that need not wait for a turn of the reactor.

    Only that of Twisted's plain TCP transport: anything else may have to encrypt or buffer what passes.
    """
    if type(transport) is tcp.Server and not transport.TLS:
        own: socket = transport.socket
        return own
    return None
