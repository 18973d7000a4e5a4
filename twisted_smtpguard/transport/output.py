"""Replies on their way out: sent at once where that is possible, held back where the client is slow.

Nothing else writes to a connection's transport, but the turn-away of connections that get no session.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from socket import socket
from typing import Any

import attrs
from twisted.internet import tcp
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPullProducer, IPushProducer, ISSLTransport, ITCPTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.port import Close
from twisted_smtpguard.hooks.faults import safely
from twisted_smtpguard.limits.units import no_limit
from twisted_smtpguard.transport.batcher import ReplyBatcher
from twisted_smtpguard.transport.deadlines import Deadline, Deadlines

_PIECE_OCTETS = 4096
"""What the transport is given at a time. When it asks for the next, it has taken all of the last."""

_DONE = Failure(ConnectionDone())


@attrs.frozen
class OutputRules:
    """What all connections of a guard have in common. `timeout` is the time limit on writing, in seconds,
    `max_waiting` what may wait for a client, in octets. 0: none."""

    deadlines: Deadlines
    batcher: ReplyBatcher
    timeout: float
    max_waiting: float = attrs.field(converter=no_limit)
    """While so much waits, nothing more is to be said."""


class Output:
    """The outgoing half of a connection: the part of the protocol that its engine writes to."""

    engine: Engine
    transport: Any
    output_rules: OutputRules
    batcher: ReplyBatcher

    failed: Callable[[Failure, str], object]
    lost: Callable[[], None]
    _lost = False

    congested = False
    """So many replies wait for the client that nothing more is to be said."""
    unsent = b""
    """Written, and sent at the end of this turn."""
    _socket: socket | None = None
    """Sends at once. None where the transport has to see what passes, or something waits already."""
    _backlog: Backlog | SecureBacklog | None = None
    _close: Close | None = None
    _delays = True

    def write(self, octets: bytes) -> bool:
        """Called by the engine: send these octets after those before them. Whether too many wait now."""
        if self._socket is None:
            if self._backlog is None:
                self._wait_for_client(octets)
            else:
                self._backlog.add(octets)
            return self.congested
        if not self.unsent and self.batcher.delays(self):
            self.unsent = octets
            return False
        # What is written twice in a turn leaves at once.
        self.unsent += octets
        self.send_now()
        return self.congested

    def send_now(self) -> None:
        """What was written leaves. Called at the end of the turn, too."""
        octets = self.unsent
        if octets and self._socket is not None:
            self.unsent = b""
            try:
                sent = self._socket.send(octets)
            except OSError:
                # Full, or broken: the transport finds out which.
                sent = 0
            if sent != len(octets):
                self._wait_for_client(octets[sent:])

    def _wait_for_client(self, octets: bytes) -> None:
        backlog = self._backlog = Backlog(self, self._socket)
        self._socket = None
        backlog.begin(octets)

    def backlog_taken(self) -> None:
        """Called by the backlog: the client has made room for all that waited."""
        if isinstance(self._backlog, Backlog):
            self._socket = self._backlog.socket
        self._backlog = None
        self.drained()

    def drained(self) -> None:
        """Nothing waits any more."""
        if self._close is not None:
            self._close_now()
        else:
            self.engine.drained()

    @property
    def idle(self) -> bool:
        """Everything that was written has left, as far as can be seen."""
        if self.unsent:
            self.send_now()
        return self._backlog is None or self._backlog.empty

    def do_not_delay(self) -> None:
        """Replies come late, more than one to an arrival: the kernel is not to hold one back until the last one is
        acknowledged."""
        if self._delays:
            self._delays = False
            if ITCPTransport.providedBy(self.transport):
                # Of a connection that is gone the system may know no such option any more.
                with suppress(OSError):
                    self.transport.setTcpNoDelay(True)

    def own_socket(self) -> None:
        """Use the socket itself, for replies that need not wait for a turn of the reactor.

        Only that of Twisted's plain TCP transport: anything else may have to encrypt or buffer what passes.
        """
        if type(self.transport) is tcp.Server and not self.transport.TLS:
            self._socket = self.transport.socket

    def secure(self) -> None:
        """TLS has begun: nothing passes by the encryption from here on."""
        self._socket = None
        self._backlog = SecureBacklog(self)

    # The ends.

    def close(self, how: Close) -> None:
        """Called by the engine: end the connection, when everything has left unless it is to be aborted."""
        if how is Close.ABORT:
            self.abort_transport()
        elif self._close is not None:
            # The client has shut down its side too.
            self.transport.loseConnection()
        else:
            self._close = how
            if self.idle:
                self._close_now()

    def _close_now(self) -> None:
        """Everything has left."""
        secure = ISSLTransport.providedBy(self.transport)
        if self._backlog is not None:
            # While there is a producer a close waits for it.
            self._backlog.leave()
            self._backlog = None
        lingers = self._close is Close.LINGER
        self.engine.all_sent(lingers=lingers or secure)
        if lingers and not secure:
            self.transport.loseWriteConnection()
        elif self._socket is None:
            # Under TLS that is close_notify: a bare FIN would look like an attack.
            self.transport.loseConnection()
        else:
            # There is nothing to wait a turn of the reactor for.
            self.transport.connectionLost(_DONE)

    def abort_transport(self) -> None:
        """Drop the connection with all that waits."""
        # To abort a TLS connection that is lost would raise.
        if not (
            self._lost
            or safely(self.failed, "a connection could not be aborted", self.transport.abortConnection)
        ):
            self.lost()

    def output_lost(self) -> None:
        """The connection is gone."""
        self._socket = None
        self.unsent = b""
        if self._backlog is not None:
            self._backlog.lost()
            self._backlog = None


class _Producer:
    """The replies that wait, as the transport knows them, and their time limit."""

    __slots__ = ("_deadline", "_output", "_waiting", "empty")

    def __init__(self, output: Output, *, empty: bool) -> None:
        self._output = output
        self._waiting = b""
        self._deadline: Deadline | None = None
        self.empty = empty

    def stopProducing(self) -> None:
        """Called by the transport: the connection is gone; connectionLost follows."""

    def leave(self) -> None:
        """Called when nothing waits any more."""
        self.lost()
        self._output.transport.unregisterProducer()

    def lost(self) -> None:
        """Called when the connection is gone."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _begin_time_limit(self) -> None:
        rules = self._output.output_rules
        if rules.timeout:
            self._deadline = rules.deadlines.call_later(rules.timeout, self._time_out)

    def _time_out(self) -> None:
        self._deadline = None
        self._output.engine.stalled()


@implementer(IPullProducer)
class Backlog(_Producer):
    """Replies that wait because the client does not read. There is one only while some wait."""

    __slots__ = ("socket",)

    def __init__(self, output: Output, own: socket | None) -> None:
        super().__init__(output, empty=False)
        self.socket = own
        """By which replies leave again when none waits."""

    def begin(self, octets: bytes) -> None:
        """The transport takes these when it can."""
        self._begin_time_limit()
        self.add(octets)
        self._output.transport.registerProducer(self, False)

    def add(self, octets: bytes) -> None:
        """These come after the others."""
        self._wait(self._waiting + octets)

    def _wait(self, octets: bytes) -> None:
        self._waiting = octets
        self._output.congested = len(octets) >= self._output.output_rules.max_waiting

    def resumeProducing(self) -> None:
        """Called by the transport: it has taken the last piece."""
        output = self._output
        if self._waiting:
            piece = self._waiting[:_PIECE_OCTETS]
            self._wait(self._waiting[_PIECE_OCTETS:])
            if self._deadline is not None:
                self._deadline.reset(output.output_rules.timeout)
            output.transport.write(piece)
        elif not self.empty:
            self.empty = True
            self.leave()
            output.backlog_taken()


@implementer(IPushProducer)
class SecureBacklog(_Producer):
    """Replies that wait under TLS, where everything has to pass through the encryption. Made when TLS has begun.

    Twisted takes 64 KiB before it pauses the producer. How fast the client reads them cannot be seen, so one time limit
    on writing holds for all of them.
    """

    __slots__ = ()

    def __init__(self, output: Output) -> None:
        super().__init__(output, empty=True)
        output.transport.registerProducer(self, True)

    def add(self, octets: bytes) -> None:
        """These come after the others."""
        if self.empty:
            self._output.transport.write(octets)
        else:
            self._waiting += octets

    def pauseProducing(self) -> None:
        """Called by the transport: it has enough for now."""
        if self.empty:
            self.empty = False
            self._output.congested = True
            self._begin_time_limit()

    def resumeProducing(self) -> None:
        """Called by the transport: it has sent all that it had."""
        if self.empty:
            return
        output = self._output
        self.empty = True
        output.congested = False
        self.lost()
        waiting, self._waiting = self._waiting, b""
        if waiting:
            output.transport.write(waiting)
        if not self.empty:
            return
        output.drained()
