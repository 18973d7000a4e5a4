"""The output of a connection: replies are sent at once where possible, and queued where the client is slow to read.

Only this file, and turnaway.py for connections that get no session, writes to a client's transport.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from socket import socket
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet import tcp
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPullProducer, IPushProducer, ISSLTransport, ITCPTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.port import Close
from twisted_smtpguard.hooks.faults import safely
from twisted_smtpguard.hooks.turns import ReplyBatcher
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import no_limit
from twisted_smtpguard.reactors.quicktcp import PLAIN_TCP
from twisted_smtpguard.transport.deadlines import Deadline, Deadlines

if TYPE_CHECKING:
    from twisted_smtpguard.tls.layer import TLSLayer

_PIECE_OCTETS = 4096
"""The most octets that the transport is given at once. When it asks for more, it has sent all of them."""

_DONE = Failure(ConnectionDone())


@attrs.define(eq=False)
class OutputRules:
    """The output settings that all connections of a guard share. `limits` may be swapped."""

    deadlines: Deadlines
    batcher: ReplyBatcher
    limits: Limits

    @property
    def timeout(self) -> float:
        """The write timeout in seconds; 0 for no limit."""
        return self.limits.write_timeout

    @property
    def max_waiting(self) -> float:
        """The octets that may wait for a client. While so many wait, the engine must carry out no further command
        (back-pressure)."""
        return no_limit(self.limits.max_output_buffer)


class Output:
    """The outgoing half of a connection, to which its engine writes. A base class of the protocol."""

    engine: Engine
    transport: Any
    output_rules: OutputRules
    batcher: ReplyBatcher

    failed: Callable[[Failure, str], object]
    lost: Callable[[], None]
    _lost = False
    gone = False

    congested = False
    """Whether so many replies wait for the client that the engine must carry out no further command."""
    unsent = b""
    """Replies that are sent at the end of this turn of the reactor."""
    _socket: socket | None = None
    """The socket, to send at once. None if the transport has to encrypt or buffer, or if replies wait already."""
    _below_tls: tcp.Server | None = None
    """The transport below TLS, to send at once what was encrypted. None if the transport has to buffer it."""
    _backlog: Backlog | SecureBacklog | None = None
    _close: Close | None = None
    delays = True
    """Whether the kernel may hold back a small write, until `do_not_delay` is called."""
    _left_to_twisted = 0
    """The octets that Twisted had not sent at the close, or when `is_sending` was last called."""
    _tls_layer: TLSLayer | None = None

    def write(self, octets: bytes) -> bool:
        """Called by the engine: send these octets after earlier ones. Returns whether too many wait now."""
        if self._socket is None:
            if self._backlog is None:
                self._wait_for_client(octets)
            else:
                self._backlog.add(octets)
            return self.congested
        if not self.unsent and self.batcher.delays(self):
            self.unsent = octets
            return False
        # The second write of a turn is sent at once, together with the first.
        self.unsent += octets
        self.send_now()
        return self.congested

    def send_now(self) -> None:
        """Send `unsent` now. Also called by the batcher at the end of the turn."""
        octets = self.unsent
        if octets and self._socket is not None:
            self.unsent = b""
            try:
                sent = self._socket.send(octets)
            except OSError:
                # The socket's buffer is full, or the connection is broken. The transport finds out which.
                sent = 0
            if sent != len(octets):
                self._wait_for_client(octets[sent:])

    def _wait_for_client(self, octets: bytes) -> None:
        backlog = self._backlog = Backlog(self, self._socket)
        self._socket = None
        backlog.begin(octets)

    def backlog_taken(self) -> None:
        """Called by the backlog when the kernel has taken every reply that waited."""
        if isinstance(self._backlog, Backlog):
            self._socket = self._backlog.socket
        self._backlog = None
        self.drained()

    def drained(self) -> None:
        """Called when no reply waits any more: close the connection if it is closing, else let the engine continue."""
        if self._close is not None:
            self._close_now()
        else:
            self.engine.drained()

    @property
    def idle(self) -> bool:
        """Whether everything that was written has been sent to the kernel. Under TLS: has been passed to Twisted."""
        if self.unsent:
            self.send_now()
        return self._backlog is None or self._backlog.empty

    def is_sending(self) -> bool:
        """Whether the kernel has taken more replies of Twisted since the close, or the last call. Only under TLS, where
        Twisted may have 64 KiB of them at the close."""
        before = self._left_to_twisted
        self._left_to_twisted = _left_to_twisted(self.transport)
        return self._left_to_twisted < before

    def do_not_delay(self) -> None:
        """Set TCP_NODELAY, once, because a hook answers later. An arrival then gets more than one write, and the kernel
        would hold back the second until the first is acknowledged (Nagle)."""
        if self.delays:
            self.delays = False
            if ITCPTransport.providedBy(self.transport):
                # The system may refuse the option on a connection that is gone.
                with suppress(OSError):
                    self.transport.setTcpNoDelay(True)

    def own_socket(self) -> None:
        """Send replies by the socket itself, so that they need not wait for a turn of the reactor.

        Only with Twisted's plain TCP transport: any other may have to encrypt or buffer the octets.
        """
        if type(self.transport) in PLAIN_TCP and not self.transport.TLS:
            self._socket = self.transport.socket

    def secure(self) -> None:
        """Send every reply through the TLS layer from now on."""
        self._socket = None
        plain = _below_tls(self.transport)
        # Without the second count, Twisted's octets could be overtaken (see `_left_to_twisted`).
        if type(plain) in PLAIN_TCP and hasattr(plain, "_tempDataLen"):
            self._below_tls = plain
        # Session tickets and the first reply are two writes that follow one another (Nagle). The tickets must not wait
        # for the reply: they acknowledge the end of the client's handshake, without which its own kernel keeps EHLO.
        self.do_not_delay()
        self._backlog = SecureBacklog(self)

    def write_under_tls(self, octets: bytes) -> None:
        """Called by the backlog: give `octets` to the TLS layer."""
        if self._tls_layer is None:
            self.transport.write(octets)
        else:
            self._tls_layer.write(octets)

    def send_encrypted(self, octets: bytes) -> bytes:
        """Called by the TLS layer: send what the kernel takes, unless earlier octets wait or several connections are
        served in this turn. Returns the rest, which Twisted sends in the next turn."""
        plain: Any = self._below_tls
        if plain is None or plain.dataBuffer or plain._tempDataLen or self.batcher.delays(self):
            return octets
        try:
            return octets[plain.socket.send(octets) :]
        except (OSError, AttributeError):
            # The socket's buffer is full, or the connection is broken or gone. The transport finds out which.
            return octets

    # The end of the connection.

    def close(self, how: Close) -> None:
        """Called by the engine: end the connection once everything has been sent, or at once with Close.ABORT."""
        if how is Close.ABORT:
            self.abort_transport()
        elif self._close is not None:
            # The connection is closing already, and the client has now shut down its side too.
            self.transport.loseConnection()
        else:
            self._close = how
            if self.idle:
                self._close_now()

    def _close_now(self) -> None:
        """End the connection, now that everything has been sent."""
        secure = ISSLTransport.providedBy(self.transport)
        if self._backlog is not None:
            # Twisted does not close a transport before its producer is unregistered.
            self._backlog.leave()
            self._backlog = None
        lingers = self._close is Close.LINGER
        self.engine.all_sent(lingers=lingers or secure)
        if secure and lingers:
            self._left_to_twisted = _left_to_twisted(self.transport)
        elif secure and self._tls_layer is not None:
            self._tls_layer.expect_no_goodbye()
        if lingers and not secure:
            self.transport.loseWriteConnection()
        elif self._socket is None:
            # Under TLS this sends close_notify: a bare FIN would look like a truncation attack.
            self.transport.loseConnection()
        else:
            # Nothing is left to send, so the connection is closed without waiting for a turn of the reactor.
            self.transport.connectionLost(_DONE)

    def abort_transport(self) -> None:
        """Drop the connection with every reply that waits."""
        # Twisted raises if a TLS connection is aborted that is lost already.
        if not (
            self._lost
            or safely(self.failed, "a connection could not be aborted", self.transport.abortConnection)
        ):
            self.lost()

    def output_lost(self) -> None:
        """Release everything, because the connection is gone."""
        self._socket = self._below_tls = None
        self.unsent = b""
        if self._backlog is not None:
            self._backlog.lost()
            self._backlog = None


def _below_tls(transport: Any) -> Any:
    """What sends the encrypted octets: another transport if an endpoint has begun TLS."""
    return transport if isinstance(transport, tcp.Connection) else getattr(transport, "transport", None)


def _left_to_twisted(transport: Any) -> int:
    """The octets that Twisted has taken for a TLS connection and has not sent."""
    plain = _below_tls(transport)
    if not isinstance(getattr(plain, "dataBuffer", None), bytes):
        return 0
    # Twisted has no public way to this. If a release lacks the second count, only the first is seen.
    octets: int = len(plain.dataBuffer) - plain.offset + getattr(plain, "_tempDataLen", 0)
    return octets


class _Producer:
    """The replies that wait for the client, as a producer for the transport, and their write timeout."""

    __slots__ = ("_deadline", "_output", "_waiting", "empty")

    def __init__(self, output: Output, *, empty: bool) -> None:
        self._output = output
        self._waiting = b""
        self._deadline: Deadline | None = None
        self.empty = empty

    def stopProducing(self) -> None:
        """Called by the transport when the connection is gone. connectionLost follows and does the work."""

    def leave(self) -> None:
        """Unregister the producer, because no reply waits any more."""
        self.lost()
        self._output.transport.unregisterProducer()

    def lost(self) -> None:
        """Cancel the write timeout."""
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
    """The replies that wait because the client does not read. Exists only while there are some."""

    __slots__ = ("socket",)

    def __init__(self, output: Output, own: socket | None) -> None:
        super().__init__(output, empty=False)
        self.socket = own
        """The socket that sends replies again when none waits any more."""

    def begin(self, octets: bytes) -> None:
        """Queue the first octets, and register with the transport, which asks for them when it can send."""
        self._begin_time_limit()
        self.add(octets)
        self._output.transport.registerProducer(self, False)

    def add(self, octets: bytes) -> None:
        """Queue `octets` after the others."""
        self._wait(self._waiting + octets)

    def _wait(self, octets: bytes) -> None:
        self._waiting = octets
        self._output.congested = len(octets) >= self._output.output_rules.max_waiting

    def resumeProducing(self) -> None:
        """Called by the transport when it has sent the last piece: give it the next, or leave."""
        output = self._output
        if self._waiting:
            piece = self._waiting[:_PIECE_OCTETS]
            self._wait(self._waiting[_PIECE_OCTETS:])
            timeout = output.output_rules.timeout
            if self._deadline is not None and timeout:
                self._deadline.reset(timeout)
            else:
                # The limit has changed, if it is not off all the time.
                self.lost()
                self._begin_time_limit()
            output.transport.write(piece)
        elif not self.empty:
            self.empty = True
            self.leave()
            output.backlog_taken()


@implementer(IPushProducer)
class SecureBacklog(_Producer):
    """The replies of a TLS connection, all of which pass through Twisted's TLS layer. Made when TLS begins.

    Twisted buffers 64 KiB before it pauses the producer, and how fast the client reads these cannot be seen. The write
    timeout therefore applies to all of them together.
    """

    __slots__ = ()

    def __init__(self, output: Output) -> None:
        super().__init__(output, empty=True)
        output.transport.registerProducer(self, True)

    def add(self, octets: bytes) -> None:
        """Write `octets`, or queue them after the others while the transport is paused."""
        if self.empty:
            self._output.write_under_tls(octets)
        else:
            self._waiting += octets

    def pauseProducing(self) -> None:
        """Called by the transport when its buffer is full."""
        if self.empty:
            self.empty = False
            self._output.congested = True
            self._begin_time_limit()
            self._output.engine.congested()

    def resumeProducing(self) -> None:
        """Called by the transport when it has sent its whole buffer."""
        if self.empty:
            return
        output = self._output
        self.empty = True
        output.congested = False
        self.lost()
        waiting, self._waiting = self._waiting, b""
        if waiting:
            output.write_under_tls(waiting)
        if not self.empty:
            return
        output.drained()
