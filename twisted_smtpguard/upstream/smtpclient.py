"""One connection to the upstream server on Twisted: the host of a ClientEngine. It moves octets, keeps time and speaks
TLS, and decides nothing.
"""

# ruff: noqa: N802 - Twisted's own method names

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from socket import socket
from typing import Any

from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IPullProducer,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Protocol
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard import replies
from twisted_smtpguard.hooks.faults import at_debug, safely
from twisted_smtpguard.hooks.promise import Promise
from twisted_smtpguard.hooks.turns import ReplyBatcher
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.clientengine import ClientEngine, Due, State
from twisted_smtpguard.upstream.hello import NO_EXTENSIONS, Hello
from twisted_smtpguard.upstream.replyparser import UpstreamReply
from twisted_smtpguard.upstream.tlsfailure import tls_failure
from twisted_smtpguard.values import Peer, Refused

SEND_BUFFER_OCTETS = 16 * 1024
"""How many octets may wait in the transport, besides the piece that is being sent, before the client is paused."""

_LOOK_SECONDS = 5.0
"""How often a connection with a deadline looks at the clock, unless the deadline is earlier."""


@implementer(IPushProducer, IPullProducer, IHandshakeListener)
class Connection(ClientEngine, Protocol):
    """A connection to the server. `has_ended(self)` is called once, as soon as the connection can no longer be used.
    `batcher` decides what is sent at the end of a turn; without it everything is sent at once."""

    transport: Any

    def __init__(
        self,
        clock: IReactorTime,
        has_ended: Callable[[Connection], None],
        batcher: ReplyBatcher | None = None,
    ) -> None:
        super().__init__()
        self._batcher = batcher
        self._unsent = b""
        """What is sent at the end of this turn of the reactor."""
        self._clock = clock
        self._has_ended = has_ended
        self._due_at = self._looks_at = math.inf
        """When the deadline is, and when the connection looks at the clock next; never, where it is infinite."""
        self._look_call: IDelayedCall | None = None
        self._unused: Callable[[Connection], None] | None = None
        """Called when the connection has not been used for its time. None: it is in use."""
        self._abandoning: IDelayedCall | None = None
        self._socket: socket | None = None
        """The socket, to send at once. None if the transport has to encrypt or buffer, or if octets wait."""
        self._own_socket: socket | None = None
        """The socket that sends again when no octets wait any more."""
        self._waiting: bytes | None = None
        """What the socket could not take at once, and the transport has not been given yet. None: the socket has taken
        everything, or the transport gets everything at once."""
        self._paces = False
        """Whether the transport says during a message when it is full, and when it has room again."""
        self._secured: Promise[None] | None = None
        self._greeting: Promise[UpstreamReply] = Promise(self.forsake)
        self.expect(settles(self._greeting), math.inf)
        self.hello: Hello = NO_EXTENSIONS
        self.greeted_as: tuple[str, bool] | None = None
        """The HELO name that the last EHLO took from its client, and whether that client used TLS. None: the name was
        the guard's own."""
        self.tls_problem = ""
        """Why TLS failed, for the log; "": it did not fail."""
        self.closed: Deferred[None] = Deferred()
        """Fires when the transport has been closed."""
        self.messages = 0
        """How many mail transactions the connection was used for."""
        self.error_replies = 0
        """How many 4xx and 5xx replies have come since the last accepted message."""

    # Called by who makes the connection ready. Each of these promises fails with `Refused` if the connection ends.

    def send_proxy_header(self, octets: bytes) -> None:
        """Send a PROXY header. Nothing may be sent before it."""
        self.send(octets)

    def greeting(self, seconds: float) -> Promise[UpstreamReply]:
        """The greeting, for which the server has `seconds` from now."""
        if not self._greeting.there:
            self.deadline(seconds)
        return self._greeting

    def command(self, line: bytes, seconds: float) -> Promise[UpstreamReply]:
        """As `ask`. Cancelling the promise ends the connection."""
        promise: Promise[UpstreamReply] = Promise(self.forsake)
        self.ask(line, settles(promise), seconds)
        return promise

    def commands(
        self, lines: Sequence[bytes], seconds: float, first_seconds: float | None = None
    ) -> list[Promise[UpstreamReply]]:
        """As `command` for several lines. They leave together, which needs PIPELINING. The server has `seconds` for
        each reply, from the one before; for the first it has `first_seconds`, if these are given."""
        promises: list[Promise[UpstreamReply]] = []
        due: list[Due] = []
        its_seconds = seconds if first_seconds is None else first_seconds
        for _ in lines:
            promise: Promise[UpstreamReply] = Promise(self.forsake)
            promises.append(promise)
            due.append((settles(promise), its_seconds))
            its_seconds = seconds
        self.ask_together(lines, due)
        return promises

    def start_tls(self, options: Any, seconds: float) -> Promise[None]:
        """Begin the TLS handshake. Called when the server has answered STARTTLS with 220."""
        promise: Promise[None] = Promise(self.forsake)
        self.start_handshake()
        if self.problem is not None:
            promise.fail(Refused(self.problem))
        else:
            self._secured = promise
            # Nor is it used when what still waits has left: nothing may leave in clear any more.
            self._socket = self._own_socket = None
            self.deadline(seconds)
            self.transport.startTLS(options)
        return promise

    def rest(self, seconds: float, unused: Callable[[Connection], None]) -> None:
        """Call `unused` unless `use` is called within `seconds`."""
        self._unused = unused
        self.deadline(seconds)

    def use(self) -> None:
        """Called when the connection is used again."""
        self._unused = None

    def end_after(self, seconds: float) -> IDelayedCall:
        """End the connection in so many seconds, whatever comes, unless the call is cancelled."""
        return self._clock.callLater(seconds, self.end, replies.UPSTREAM_TIMED_OUT)

    def local_peer(self) -> Peer | None:
        """The guard's own end of the connection, as the server sees it. None: the connection is over a UNIX socket."""
        here, there = self.transport.getHost(), self.transport.getPeer()
        if not isinstance(here, IPv4Address | IPv6Address):
            return None
        return Peer(ip_address(here.host), here.port, ip_address(there.host), there.port)

    # The end.

    def quit(self, seconds: float) -> None:
        """Send QUIT and close the connection. It is aborted if the server has not closed its side after `seconds`:
        under TLS a close waits for the server's close_notify, which may never come. Called when no command is
        pending."""
        if self.usable:
            self.message_ends()
            self.send_now()
            self.finish(replies.UPSTREAM_LOST)
            self._abandoning = self._clock.callLater(seconds, self.abandon)
            _safely(self._send_quit)

    def _send_quit(self) -> None:
        self.transport.write(b"QUIT\r\n")
        self.transport.loseConnection()

    def hurry(self, seconds: float) -> None:
        """Shorten the time that the server has after `quit()` to `seconds` from now."""
        call = self._abandoning
        if call is not None and call.active() and call.getTime() > self._clock.seconds() + seconds:
            call.reset(seconds)

    def abandon(self) -> None:
        """Abort the connection after `quit()`, if the server has not closed its side yet."""
        if not (self.closed.called or _safely(self._abort)):
            # The transport will not report the end, so nothing else would free the place of the connection.
            self.connectionLost()

    def _abort(self) -> None:
        self.transport.abortConnection()

    # What the engine asks of its host.

    def send(self, octets: bytes) -> None:
        if self._socket is not None:
            if not self._unsent and self._batcher is not None and self._batcher.delays(self):
                self._unsent = octets
                return
            # The second write of a turn is sent at once, together with the first.
            self._unsent += octets
            self.send_now()
        elif self._waiting is not None:
            self._waiting += octets
        else:
            self._write(octets)

    def send_now(self) -> None:
        """Send what waits for the end of the turn. Also called by the batcher then."""
        octets = self._unsent
        if octets and self._socket is not None:
            self._unsent = b""
            try:
                sent = self._socket.send(octets)
            except OSError:
                # The socket's buffer is full, or the connection is broken. The transport finds out which.
                sent = 0
            if sent != len(octets):
                self._wait_for_socket(octets[sent:])

    def _write(self, octets: bytes) -> None:
        try:
            self.transport.write(octets)
        except BaseException:
            # The connection cannot be used again: what the server has got of the octets is unknown.
            self.end(replies.UPSTREAM_LOST)
            raise

    def _wait_for_socket(self, octets: bytes) -> None:
        """Leave everything to the transport, until it has sent all that waits."""
        self._own_socket, self._socket = self._socket, None
        self._waiting = octets
        self.full = True
        _safely(self.transport.registerProducer, self, False)

    def message_begins(self) -> None:
        if self._socket is None and self._waiting is None:
            self._paces = _safely(self.transport.registerProducer, self, True)

    def message_ends(self) -> None:
        if self._paces:
            self._paces = self.full = False
            _safely(self.transport.unregisterProducer)

    def deadline(self, seconds: float) -> None:
        # Nearly all deadlines are replaced by the next one before they come, so that is an assignment: the connection
        # looks at the clock from time to time, and not at each deadline.
        when = self._due_at = self._clock.seconds() + seconds
        if when < self._looks_at and self.problem is None:
            stop_timer(self._look_call)
            self._plan_look()

    def _plan_look(self) -> None:
        now = self._clock.seconds()
        seconds = min(max(0.0, self._due_at - now), _LOOK_SECONDS)
        self._looks_at = now + seconds
        self._look_call = self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        self._looks_at = math.inf
        if self._clock.seconds() >= self._due_at:
            self._due_at = math.inf
            self.timed_out()
        if self.problem is None and self._due_at < self._looks_at:
            self._plan_look()

    def timed_out(self) -> None:
        if self._unused is not None:
            self._unused(self)
        else:
            super().timed_out()

    def ended(self) -> None:
        stop_timer(self._look_call)
        self._socket = self._unused = None
        self._unsent = b""
        if self._waiting is not None:
            # What the server has not read of a complete message or command is dropped: it has replied already.
            self._waiting = None
            _safely(self.transport.unregisterProducer)
        self._has_ended(self)
        secured, self._secured = self._secured, None
        if secured is not None and self.problem is not None:
            secured.fail(Refused(self.problem))

    def abort(self) -> None:
        _safely(self._abort)

    # Called by the transport.

    def connectionMade(self) -> None:
        # Twisted's default, 64 KiB, would add up over many sessions.
        transport = self.transport
        while isinstance(transport, ProtocolWrapper):
            # The endpoint uses TLS, and its transport does not pass an attribute on to the socket's.
            transport = transport.transport
        if hasattr(transport, "bufferSize"):
            transport.bufferSize = SEND_BUFFER_OCTETS
        if isinstance(transport, tcp.Connection):
            # For the reactor on uvloop: what is logged names the server.
            transport.without_log_context = True  # type: ignore[attr-defined]
        if type(self.transport) is tcp.Client and not self.transport.TLS:
            self._socket = self.transport.socket

    def dataReceived(self, data: bytes) -> None:
        self.received(data)

    def handshakeCompleted(self) -> None:
        secured, self._secured = self._secured, None
        if self.secured() and secured is not None:
            secured.succeed(None)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._paces = self.full = False
        if reason is not None:
            _safely(self._explain, reason.value)
        if self.state is State.HANDSHAKE:
            self.tls_problem = self.tls_problem or "it closed the connection"
        self.lost()
        stop_timer(self._abandoning)
        if not self.closed.called:
            self.closed.callback(None)

    def _explain(self, error: BaseException | None) -> None:
        self.tls_problem = tls_failure(error, self.transport)

    def pauseProducing(self) -> None:
        self.full = True

    def resumeProducing(self) -> None:
        if self._waiting:
            piece, self._waiting = self._waiting[:SEND_BUFFER_OCTETS], self._waiting[SEND_BUFFER_OCTETS:]
            self._write(piece)
            self.some_taken()
            return
        if self._waiting is not None:
            self._waiting = None
            self._socket = self._own_socket
            _safely(self.transport.unregisterProducer)
        self.full = False
        self.room()

    def stopProducing(self) -> None:
        """The transport is closing; connectionLost() follows."""


def settles(promise: Promise[UpstreamReply]) -> Callable[[UpstreamReply | None, Reply | None], None]:
    """What settles the promise with the server's reply, or with `Refused`."""
    return lambda reply, problem: promise.settle(reply, None if problem is None else Refused(problem))


def stop_timer(timer: IDelayedCall | None) -> None:
    """Cancel `timer`, unless it is None, has been called or was cancelled before."""
    if timer is not None and timer.active():
        timer.cancel()


def _safely(step: Callable[..., object], *args: object) -> bool:
    return safely(at_debug, "a connection to the upstream server could not be ended", step, *args)
