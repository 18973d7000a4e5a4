"""How one connection begins and ends. What is said meanwhile is the protocol's.

In front of the greeting stands the entrance, and in front of that the header of a proxy, where one is due. With
implicit TLS a handshake stands behind the entrance, or, where clients are asked for a certificate that filters are to
see, before it. Whatever comes until the greeting goes to the one of them whose turn it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IHandshakeListener,
    ISSLTransport,
)
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.admission.refusal import Refusal
from twisted_smtpguard.admission.visitor import Visitor
from twisted_smtpguard.faults import safely
from twisted_smtpguard.wire.behindproxy import BehindProxy
from twisted_smtpguard.wire.entrance import Entrance
from twisted_smtpguard.wire.handshake import Handshake
from twisted_smtpguard.wire.output import Output
from twisted_smtpguard.wire.peeking import waiting_octets
from twisted_smtpguard.wire.peers import announced_peer, is_own, make_peer, peer_address, peer_name
from twisted_smtpguard.wire.proxyheader import LONGEST_BEGINNING, ProxyHeader, begins_header
from twisted_smtpguard.wire.secureoutput import SecureOutput
from twisted_smtpguard.wire.tls import certificate_shown, spoken
from twisted_smtpguard.wire.turnaway import turn_away

if TYPE_CHECKING:
    from twisted_smtpguard.wire.factory import SMTPGuardFactory
    from twisted_smtpguard.wire.tlslayer import TLSLayer


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class Connection(LineReceiver, TimeoutMixin, ABC):
    """One connection that was not refused at accept. It has an entrance until it is greeted or refused, and again
    while TLS begins."""

    implicit_tls = False
    """TLS comes before the greeting: set by the factory of such listeners."""

    holds_slot = True
    """It counts among the connections that there may be. Taken back by the factory."""

    # How a connection begins. What changes is kept with it: ten thousand idle ones have only what is their own.
    _output: Output | None = None
    _entrance: Entrance | BehindProxy | Handshake | None = None
    _handshake: Handshake | None = None
    _admitted = False
    _secure = False
    _tls = ""
    _at_accept = True
    _header_expected = False
    """It comes from a proxy, and began with the header of one."""
    _greeted = False
    _refused = False
    _buffer = b""
    _offset = 0
    _paused = False
    _peer_closed = False
    _end_announced = False
    """The kernel has seen the end of the client's input, which may be still unread."""
    _tls_layer: TLSLayer | None = None
    _closing = False
    _at_ease = False
    """A command may come, and nothing is in its way."""
    _silent = False
    """It is the proxy's own, and has said nothing yet."""
    _lingering = False
    _lingers_no_longer = False
    _half_closed = False
    _lost = False
    end_reason = "lost"
    """Why the connection ends, for the log."""

    def __init__(self, factory: SMTPGuardFactory, peer: IAddress | None, listener: str = "") -> None:
        self.factory = factory
        self._listener = listener
        self._limits = factory.site.limits
        self._address = peer
        self.began_at = factory.site.seconds()

    # For the protocol to say.

    @abstractmethod
    def begin_session(self) -> None:
        """The greeting has been queued."""

    @abstractmethod
    def silence_over(self) -> None:
        """The proxy's own connection, greeted, has said something."""

    @abstractmethod
    def end_session(self) -> None:
        """Nothing more is said, or there is nobody to say it to. May be called twice, but only after the greeting."""

    @abstractmethod
    def session_over(self, seconds: float) -> None:
        """The connection, `seconds` old, holds no slot any more. Called once, only after the greeting."""

    @abstractmethod
    def input_over(self) -> None:
        """The client, greeted, has shut down its side."""

    @abstractmethod
    def output_drained(self) -> None:
        """The session may go on: it has begun, or the client has taken the replies that had to wait."""

    @abstractmethod
    def read_timed_out(self) -> None:
        """The client, greeted, has not sent in time what was due."""

    # The beginning.

    def connectionMade(self) -> None:
        """Called by the transport. Whether and when to greet is decided at the entrance."""
        self._transport: Any = self.transport
        self.or_abort("a connection could not begin", self._begin)
        self._at_accept = False

    def _begin(self) -> None:
        transport = self._transport
        own = getattr(transport, "socket", None)
        if own is not None:
            self.factory.socket_buffers.accepted(getattr(transport, "server", None), own)
        by_endpoint = type(transport) is not tcp.Server and ISSLTransport.providedBy(transport)
        if by_endpoint:
            self.implicit_tls = True
            self._handshake = Handshake(self.factory, transport, self)
            self._handshake.begin(by_endpoint=True)
        self._visitor = Visitor(
            peer_name(self._address),
            partial(make_peer, transport, self.implicit_tls),
            self.factory.clients,
            port=getattr(self._address, "port", None),
            listener=self._listener,
        )
        proxies = self.factory.proxies
        if proxies is not None and not by_endpoint and proxies.has(peer_address(self._address)):
            self._header_expected = True
            self._entrance = BehindProxy(self.factory, self)
        else:
            self._arrive()

    def _arrive(self) -> None:
        """Who comes is known."""
        if self.implicit_tls and self._handshake is None and self.factory.asks_for_certificates:
            self._shake_hands()
        else:
            self._enter()

    def _enter(self) -> None:
        self._entrance = Entrance(self.factory, self._visitor, self._transport, self)
        if self._buffer:
            self._entrance.spoke()
        self._entrance.begin()

    def sends_proxy_header(self) -> bool:
        """Called by the entrance."""
        octets = self._buffer or waiting_octets(self._transport, LONGEST_BEGINNING)
        return not self._header_expected and begins_header(octets)

    def greet(self) -> None:
        """Called by the entrance: the client is let in."""
        self._entrance = None
        if self.implicit_tls and not self._secure:
            self._admitted = True
            self._shake_hands()
        else:
            self._greet()

    def _greet(self) -> None:
        self._begin_to_speak().queue(self.factory.greeting.wire)
        self.begin_session()
        self._greeted = True
        self.output_drained()

    def refuse(self, refusal: Refusal) -> None:
        """Called by the entrance. At once as cheaply as at accept; after a wait so that the line reaches a client
        that was not silent."""
        self._leave_entrance()
        self._refused = self._closing = True
        site = self.factory.site
        refusal.log_of(self._visitor, site.events, self._limits)
        if self.implicit_tls and not self._secure:
            # Nothing can be said without a handshake.
            self.factory.release(self)
            self._transport.abortConnection()
        elif self._at_accept:
            self.factory.release(self)
            turn_away(self._transport, refusal.reply.wire)
        else:
            self._begin_to_speak().queue(refusal.reply.wire)
            self._close(half=True)

    def _leave_entrance(self) -> None:
        entrance, self._entrance = self._entrance, None
        if entrance is not None:
            entrance.leave()

    def _begin_to_speak(self) -> Output:
        kind = SecureOutput if self._secure else Output
        output = self._output = kind(self._transport, self.factory.output_rules, self)
        return output

    # A proxy in front.

    def received(self) -> bytes:
        """Called by BehindProxy."""
        return self._buffer

    def announced(self, header: ProxyHeader) -> None:
        """Called by BehindProxy: now the client is known. What stands behind the header is the client's."""
        self._buffer = self._buffer[header.octets :]
        if header.client is not None and header.server is not None:
            self._tls = header.tls
            peer = announced_peer(header.client, header.server, self.implicit_tls or header.tls != "")
            self._visitor = Visitor(
                str(peer.address),
                lambda: peer,
                self.factory.clients,
                port=peer.port,
                listener=self._listener,
            )
        if not self._buffer and is_own(header, self._address):
            self._silent = True
            self.dataReceived = self._first_words  # type: ignore[method-assign]
        self._arrive()

    def _first_words(self, octets: bytes) -> None:
        """The proxy's own connection says something: from here on it is logged like any other."""
        del self.dataReceived
        self._silent = False
        if self._greeted:
            self.silence_over()
        self.dataReceived(octets)

    def proxy_failed(self, reason: str) -> None:
        """Called by BehindProxy. There is nobody to say anything to."""
        self._refuse_unsaid(reason)
        self.abort()

    def _refuse_unsaid(self, reason: str) -> None:
        self._leave_entrance()
        self._refused = True
        visitor = self._visitor
        self.factory.site.events.reject(
            visitor.name,
            reason,
            port=visitor.port,
            listener=visitor.listener,
            limit=self._limits.shown(reason),
        )

    # TLS.

    def _shake_hands(self) -> None:
        """TLS is next. What has come already is part of the handshake."""
        if self._handshake is None:
            self._handshake = Handshake(self.factory, self._transport, self)
        self._entrance = self._handshake
        if not self._handshake.begun:
            octets, self._buffer = self._buffer, b""
            self._resume()
            self._handshake.begin(octets)

    def tls_begins(self, layer: Any) -> None:
        """Called by the handshake."""
        # Needs OpenSSL, which is there where TLS is.
        from twisted_smtpguard.wire.tlslayer import attach  # noqa: PLC0415

        self._tls_layer = attach(self._transport, layer, self)

    def handshakeCompleted(self) -> None:
        """Called by the TLS layer, once."""
        handshake, self._handshake = self._handshake, None
        if handshake is None:
            return
        handshake.leave()
        if self._tls_layer is not None:
            self._tls_layer.secured()
        self._secure = True
        self._tls = spoken(self._transport)
        certificate = certificate_shown(self._transport)
        if certificate is not None:
            self._visitor.certify(certificate)
        if self._closing or self._entrance is not handshake:
            return
        self._entrance = None
        if self._greeted:
            self.secured()
        elif self._admitted:
            self._greet()
        else:
            self._enter()

    @abstractmethod
    def secured(self) -> None:
        """The client, greeted, has asked for TLS, and it has begun."""

    def spoke_in_clear(self) -> None:
        """Called by the handshake. Only who has asked for TLS waits for its beginning."""

    def handshake_timed_out(self) -> None:
        """Called by the handshake. Nothing can be said."""
        self._handshake_failed("tls_handshake_timeout")
        self.abort()

    def _handshake_failed(self, reason: str) -> None:
        self._handshake = None
        self.end_reason = reason
        if not (self._greeted or self._refused):
            self._refuse_unsaid(reason)

    # Time.

    def callLater(self, period: float, func: Callable[[], object]) -> Any:
        """TimeoutMixin's way to a timer: the coarse one that all connections share."""
        self._read_deadline = self.factory.deadlines.call_later(period, func)
        return self._read_deadline

    def timeoutConnection(self) -> None:
        """Called by TimeoutMixin. What is closing has lingered long enough."""
        if self._closing:
            self.abort()
        else:
            self.or_abort("a connection could not be timed out", self.read_timed_out)

    # Reading.

    @property
    def _buffer_full(self) -> bool:
        return 0 < self._limits.max_input_buffer <= len(self._buffer) - self._offset

    def _bound_buffer(self) -> None:
        if self._buffer_full:
            self._pause()

    def _pause(self) -> None:
        if not self._paused and not self._peer_closed:
            self._paused = True
            self._transport.pauseProducing()
            self.factory.ends.watch(self._transport, self, input_over=self._end_announced)

    def _resume(self) -> None:
        if self._paused and not self._peer_closed:
            self._paused = False
            self.factory.ends.forget(self)
            self._transport.resumeProducing()

    # The ends.

    def abort(self) -> None:
        """Drop the connection: nothing can be said, or the service waits no longer."""
        self._closing = True
        self._at_ease = False
        # To abort a TLS connection that is lost would raise.
        if not (self._lost or self._safely("a connection could not be aborted", self._abort)):
            self.connectionLost()

    def _abort(self) -> None:
        self._transport.abortConnection()

    def or_abort(self, what: str, step: Callable[[], object]) -> None:
        """Take a step that nobody but us would follow up: where it fails the connection ends. `what` is for the log."""
        if not self._safely(what, step):
            self.abort()

    def _safely(self, what: str, step: Callable[..., object], *args: object) -> bool:
        """Whether the step succeeded. What it raises is logged as `what`."""
        return safely(self.failed, what, step, *args)

    def failed(self, failure: Failure, what: str) -> None:
        """Log a fault of ours, or of somebody else's code, with its traceback."""
        self.factory.site.events.failure(failure, what, peer=self._visitor.name)

    def _close(self, *, half: bool) -> None:
        """Behind the last line. `half`: linger, so that the line reaches a client that may be still sending."""
        self._closing = True
        self.or_abort("a connection could not be closed", partial(self._say_no_more, half=half))

    def _say_no_more(self, *, half: bool) -> None:
        assert self._output is not None
        self._stop()
        if half and not self._peer_closed and self.factory.may_linger():
            self._lingering = True
            self._resume()
            self._output.half_close()
        else:
            self._output.close()

    def output_closing(self) -> None:
        """Everything has been said: no slot is held any more. Under TLS even a plain close waits for the client."""
        self.factory.release(self)
        if self._lingering or ISSLTransport.providedBy(self._transport):
            self.setTimeout(self._limits.linger_timeout or None)

    def _stop(self) -> None:
        self._at_ease = False
        self._buffer = b""
        self._offset = 0
        self.setTimeout(None)
        if self._greeted:
            self.end_session()

    def output_stalled(self) -> None:
        """Nothing can be said to a client that does not read."""
        self.end_reason = "write_timeout"
        self.abort()

    def slot_given_back(self) -> None:
        """Called by the factory, once: the connection counts no more."""
        self._visitor.leave()
        seconds = self.factory.site.seconds() - self.began_at
        if self._greeted:
            self.session_over(seconds)
        elif not self._refused:
            visitor = self._visitor
            self.factory.site.events.hangup(
                visitor.name,
                seconds,
                port=visitor.port,
                listener=visitor.listener,
                silent=self._silent,
            )

    def readConnectionLost(self) -> None:
        """The client has shut down its side, under TLS with close_notify. It still gets every reply that is due."""
        self._peer_closed = True
        if self._closing:
            self._transport.loseConnection()
        elif self._greeted:
            self.input_over()
            if not self._closing:
                # It may yet leave altogether, while it waits for a verdict.
                self.factory.ends.watch(self._transport, self, input_over=True)
        else:
            # Before the greeting no reply is due, whatever was sent ahead.
            self._leave_entrance()
            self._closing = True
            self.factory.release(self)
            self._transport.loseConnection()

    def input_end_announced(self) -> None:
        """Called by the EndWatcher, while nothing is read."""
        self._end_announced = True
        if not self._greeted:
            self.or_abort("a connection could not be closed", self.readConnectionLost)
        elif not self._buffer_full:
            # What is unread may be the end of a message, or nothing.
            self._resume()

    def connection_broken(self) -> None:
        """Called by the EndWatcher, while nothing is read: nobody is there any more."""
        self.abort()

    @property
    @abstractmethod
    def owes_verdict(self) -> bool:
        """Asked by the TLS layer when the connection has ended without close_notify: whether a reply is due that the
        client may still read."""

    def writeConnectionLost(self) -> None:
        """Called by the transport: our FIN has been sent, behind everything else."""
        self._half_closed = True
        if self._lingers_no_longer:
            self.abort()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Called by the transport, once, however the connection ended."""
        if self._lost:
            return
        self._lost = True
        # Each step has somebody else's code in it, and none is to keep the next one from its turn.
        for step in (
            partial(self._lose_handshake, reason),
            self._lose_transport,
            self._leave_entrance,
            self._lose_session,
            self._lose_output,
        ):
            self._safely("a connection could not be ended", step)
        self.factory.connection_ended(self, lingered=self._lingering)

    def _lose_handshake(self, reason: Failure | None) -> None:
        handshake, closing = self._handshake, self._closing
        if handshake is not None:
            handshake.leave()
            if not (closing or reason is None or reason.check(ConnectionClosed)):
                self._handshake_failed("tls_failed")
            # No circle of references: it knows its connection.
            self._handshake = None

    def _lose_transport(self) -> None:
        self.factory.ends.forget(self)
        if self._tls_layer is not None:
            self._tls_layer.lost()
            self._tls_layer = None

    def _lose_session(self) -> None:
        self._closing = True
        self._stop()

    def _lose_output(self) -> None:
        if self._output is not None:
            self._output.lost()
