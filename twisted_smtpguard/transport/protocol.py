"""The Twisted protocol of one connection, which is the host of its engine.

It moves octets, keeps time, speaks TLS, and turns answers that come later into one call. The engine decides everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet import tcp
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IHandshakeListener, ISSLTransport
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.engine import arrival
from twisted_smtpguard.engine.context import ServerContext
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.port import Answered, Cancellable, Host
from twisted_smtpguard.engine.stages import Stage
from twisted_smtpguard.hooks.faults import at_debug, safely
from twisted_smtpguard.hooks.later import when_answered
from twisted_smtpguard.hooks.turns import FairScheduler
from twisted_smtpguard.tls.files import cipher_bits, client_certificate, version_and_cipher
from twisted_smtpguard.transport.deadlines import Deadline, Deadlines
from twisted_smtpguard.transport.endwatcher import EndWatcher
from twisted_smtpguard.transport.output import Output, OutputRules
from twisted_smtpguard.transport.peers import RemoteEnd, peer_name
from twisted_smtpguard.transport.proxynetworks import ProxyNetworks
from twisted_smtpguard.transport.socketbuffers import SocketBuffers
from twisted_smtpguard.transport.turnaway import turn_away


class Shared(Protocol):
    """What the connections of one guard share. It is an SMTPGuardFactory, which imports this file."""

    context: ServerContext
    output_rules: OutputRules
    proxies: ProxyNetworks | None
    socket_buffers: SocketBuffers
    ends: EndWatcher
    turns: FairScheduler
    deadlines: Deadlines
    tls: Any

    def connection_ended(self, protocol: SMTPGuardProtocol, *, lingered: bool) -> None:
        """Called once, when the connection is gone. `lingered`: it was counted as lingering."""


class _Gone(Host):
    """The host of a connection that is gone. A hook that ended the connection while it ran may still answer later."""

    def wait(self, later: Any, answered: Answered) -> Cancellable:
        return when_answered(later, answered, at_debug)


_NO_HOST = _Gone()


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class SMTPGuardProtocol(Output, RemoteEnd, LineReceiver, TimeoutMixin):
    """The protocol of one connection that was not refused at accept. Made by SMTPGuardFactory only."""

    _lost = False
    _read_deadline: Deadline

    def __init__(
        self, factory: Shared, peer: IAddress | None, listener: str = "", *, implicit_tls: bool = False
    ) -> None:
        self.factory = factory
        self.output_rules = rules = factory.output_rules
        self.batcher = rules.batcher
        self._address = peer
        port = getattr(peer, "port", None)
        self.engine = Engine(factory.context, self, peer_name(peer), port, listener, implicit_tls)

    # LineReceiver.

    @property
    def line_mode(self) -> bool:  # type: ignore[override]
        """Whether the next input is a line rather than message data."""
        return not self.engine.row.in_message

    @property
    def MAX_LENGTH(self) -> int:  # type: ignore[override]
        """The longest line that may come now, in octets, its CRLF included; 0 for no limit."""
        context = self.engine.context
        return context.max_auth_line if self.engine.stage is Stage.AUTH_RESPONSE else context.max_line

    def lineReceived(self, line: bytes) -> None:
        """Take a line without its CRLF, as if it had come from the client."""
        self.engine.received(line + self.delimiter)

    def rawDataReceived(self, data: bytes) -> None:
        """Take message data, as if it had come from the client."""
        self.engine.received(data)

    # Called by the transport.

    def connectionMade(self) -> None:
        if safely(self.failed, "a connection could not begin", self._prepare):
            by_endpoint, proxies = ISSLTransport.providedBy(self.transport), self.factory.proxies
            behind_proxy = proxies is not None and not by_endpoint and proxies.has(self.address())
            arrival.begin(self.engine, behind_proxy=behind_proxy, tls_has_begun=by_endpoint)
        else:
            self.connection_broken()

    def _prepare(self) -> None:
        transport: Any = self.transport
        own = getattr(transport, "socket", None)
        if own is not None:
            self.factory.socket_buffers.accepted(getattr(transport, "server", transport), own)
        if ISSLTransport.providedBy(transport):
            self._tls_begins(transport)
        else:
            self.own_socket()
        if isinstance(transport, tcp.Connection):
            # For the reactor on uvloop: each event names its session.
            transport.without_log_context = True  # type: ignore[attr-defined]

    def dataReceived(self, data: bytes) -> None:
        self.engine.received(data)

    def readConnectionLost(self) -> None:
        self.engine.ended()
        if not self.engine.gone:
            # While the client waits for a verdict, its connection may still break altogether.
            self.factory.ends.watch(self.transport, self, input_over=True)

    def writeConnectionLost(self) -> None:
        """Called when our FIN has been sent, after everything else."""
        self.half_closed = True
        self.engine.half_closed()

    def handshakeCompleted(self) -> None:
        if self._tls_layer is not None:
            self._tls_layer.secured()
        arrival.secured(self.engine, version_and_cipher(self.transport), client_certificate(self.transport))

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost(reason)

    def lost(self, reason: Failure | None = None) -> None:
        """Called when the connection is gone or unusable. Only the first call has an effect."""
        if self._lost:
            return
        self._lost = True
        # Each step calls foreign code, and an exception in one must not prevent the next.
        if self.engine.handshaking and reason is not None:
            safely(self.failed, "a connection could not be ended", self._lose_handshake, reason)
        safely(self.failed, "a connection could not be ended", self._lose_transport)
        safely(self.failed, "a connection could not be ended", self.engine.lost)
        # This breaks the reference cycle, which the garbage collector would have to find.
        self.engine.host = _NO_HOST
        self.factory.connection_ended(self, lingered=self.engine.lingers)

    def _lose_handshake(self, reason: Failure) -> None:
        if not (self.engine.gone or reason.check(ConnectionClosed)):
            arrival.handshake_failed(self.engine, "tls_failed")

    def _lose_transport(self) -> None:
        if self.timeOut is not None:
            self.setTimeout(None)
        self.output_lost()
        self.factory.ends.forget(self)
        if self._tls_layer is not None:
            self._tls_layer.lost()
            self._tls_layer = None

    def failed(self, failure: Failure, what: str) -> None:
        """Log an exception of the guard or of foreign code, with its traceback."""
        self.factory.context.events.failure(failure, what, self.engine.name, self.engine.peer_name)

    # Called by the EndWatcher and by the TLS layer.

    def input_end_announced(self) -> None:
        """Called when the client has half-closed the connection while it is not read."""
        self.engine.end_announced_by_host()

    def connection_broken(self) -> None:
        """Drop the connection: it cannot be used, is gone in both directions, or is not waited for any longer."""
        self.engine.input(self.engine.abort)

    @property
    def owes_verdict(self) -> bool:
        """Whether a client may still read a reply after its TLS connection has ended without close_notify."""
        return self.engine.owes_reply

    # Called by the engine.

    def pause(self) -> None:
        self.transport.pauseProducing()
        self.factory.ends.watch(self.transport, self, input_over=self.engine.end_announced)

    def resume(self) -> None:
        self.factory.ends.forget(self)
        self.transport.resumeProducing()

    def cipher_bits(self) -> int:
        return cipher_bits(self.transport)

    def turn_away(self, line: bytes) -> None:
        turn_away(self.transport, line)

    def start_tls(self, octets: bytes) -> None:
        self.transport.startTLS(self.factory.tls)
        self._tls_begins(self.transport.protocol)
        if octets:
            self.transport.protocol.dataReceived(octets)

    def _tls_begins(self, layer: Any) -> None:
        # The import needs OpenSSL, which is installed wherever TLS is used.
        from twisted_smtpguard.tls.layer import attach  # noqa: PLC0415

        self.secure()
        self._tls_layer = attach(self.transport, layer, self)

    def deadline(self, seconds: float) -> Deadline | None:
        if seconds or self.timeOut is not None:
            self.setTimeout(seconds or None)
        return self._read_deadline if seconds else None

    def wait(self, later: Any, answered: Answered) -> Cancellable:
        if self.delays:
            safely(self.failed, "a reply may be delayed", self.do_not_delay)
        return when_answered(later, answered, self.failed)

    def next_turn(self) -> None:
        self.factory.turns.wait(self.engine.take_turn)

    # TimeoutMixin.

    def callLater(self, period: float, func: Callable[[], object]) -> Any:
        """Called by TimeoutMixin: schedule `func` on the coarse timer that all connections share."""
        self._read_deadline = self.factory.deadlines.call_later(period, func)
        return self._read_deadline

    def timeoutConnection(self) -> None:
        """Called by TimeoutMixin when the time limit of the stage is over."""
        self.timeOut = None
        self.engine.timed_out()
