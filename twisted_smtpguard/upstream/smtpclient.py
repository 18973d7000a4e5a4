"""One connection to the upstream server: commands one at a time, message data with back-pressure, and a deadline for
each answer of the server.

A fault of the server ends the connection, and raises `Refused` with the 451 for the client.
"""

# ruff: noqa: N802 - Twisted's own method names

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard import replies
from twisted_smtpguard.hooks.faults import at_debug, safely
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.hello import NO_EXTENSIONS, Hello
from twisted_smtpguard.upstream.refusals import as_temporary
from twisted_smtpguard.upstream.replyparser import BadReply, ReplyParser, UpstreamReply, for_client
from twisted_smtpguard.upstream.tlsfailure import tls_failure
from twisted_smtpguard.values import Peer, Refused

SEND_BUFFER_OCTETS = 16 * 1024
"""How many octets may wait in the transport, besides the piece that is being sent, before the client is paused."""


@implementer(IPushProducer, IHandshakeListener)
class Connection(Protocol):
    """A connection to the server. `ended(self)` is called once, as soon as the connection can no longer be used."""

    transport: Any

    def __init__(self, clock: IReactorTime, ended: Callable[[Connection], None]) -> None:
        self._clock = clock
        self._ended = ended
        self._parser = ReplyParser()
        self._answers: deque[UpstreamReply] = deque()
        self._replies_due = 1  # the greeting
        self._waiter: Deferred[Any] | None = None
        self._abandoning: IDelayedCall | None = None
        self._streaming = self._full = self._securing = False
        self.hello: Hello = NO_EXTENSIONS
        self.greeted_as: tuple[str, bool] | None = None
        """The HELO name that the last EHLO took from its client, and whether that client used TLS. None: the name was
        the guard's own."""
        self.problem: Reply | None = None
        """Why the connection can no longer be used, as a reply for the client. None: it can be used."""
        self.tls_problem = ""
        """Why TLS failed, for the log; "": it did not fail."""
        self.closed: Deferred[None] = Deferred()
        """Fires when the transport has been closed."""
        self.messages = 0
        """How many mail transactions the connection was used for."""
        self.error_replies = 0
        """How many 4xx and 5xx replies have come since the last accepted message."""

    @property
    def usable(self) -> bool:
        return self.problem is None

    def require_usable(self) -> None:
        """Raise `Refused`, with the reply for the client, if the connection can no longer be used."""
        if self.problem is not None:
            raise Refused(self.problem)

    # Commands and replies.

    def send_proxy_header(self, octets: bytes) -> None:
        """Send a PROXY header. Nothing may be sent before it."""
        self._write(octets)

    def command(self, line: bytes, seconds: float) -> Deferred[UpstreamReply]:
        """Send a command line. The Deferred is that of `answer`. ValueError: `line` is not exactly one line, and
        nothing was sent."""
        if b"\r" in line or b"\n" in line or b"\0" in line:
            # The server would execute the text after the line end as another command: command injection.
            raise ValueError(f"a command is one line, not {line!r}")
        if self._parser.amid_reply:
            # Part of a reply has come unasked, and the reply to this command would be parsed as the rest of it.
            self.end(replies.UPSTREAM_GARBLED)
        if not self.usable:
            return self._wait(seconds)
        self._replies_due += 1
        self._write(line + b"\r\n")
        return self.answer(seconds)

    def answer(self, seconds: float) -> Deferred[UpstreamReply]:
        """Wait for the next reply that is due. A reply that came before the connection ended still counts. `Refused`:
        no reply came within `seconds`, or the connection has ended. Cancelling the Deferred ends the connection, since
        the late reply would be taken for the reply to the next command."""
        if self._answers:
            return succeed(self._answers.popleft())
        return self._wait(seconds)

    def local_peer(self) -> Peer | None:
        """The guard's own end of the connection, as the server sees it. None: the connection is over a UNIX socket."""
        here, there = self.transport.getHost(), self.transport.getPeer()
        if not isinstance(here, IPv4Address | IPv6Address):
            return None
        return Peer(ip_address(here.host), here.port, ip_address(there.host), there.port)

    # Message data.

    def start_data(self) -> None:
        """Called after the 354: the octets that are sent from now on are message data, and the server has to be silent
        until their end."""
        self._streaming = True
        self.transport.registerProducer(self, True)

    def stream(self, octets: bytes, seconds: float) -> Deferred[None] | None:
        """Send octets of a message. None: more may be sent at once. Else the Deferred fires when the transport has room
        again, for which the server has `seconds`. `Refused`: the connection has ended."""
        self.require_usable()
        self._write(octets)
        return self._wait(seconds) if self._full else None

    def end_data(self, octets: bytes, verdicts: int) -> None:
        """Send `octets`, which end the message. The server then owes `verdicts` replies. `Refused`: the connection has
        ended, and nothing was sent."""
        self.require_usable()
        self._replies_due += verdicts
        self._stop_streaming()
        self._write(octets)

    def chunk(self, octets: bytes, *, last: bool = False, verdicts: int = 1) -> None:
        """Send a piece of a message as BDAT (RFC 3030). The server then owes `verdicts` replies. `Refused`: the
        connection has ended, and nothing was sent."""
        self.require_usable()
        self._replies_due += verdicts
        self._write(b"BDAT %d%b\r\n" % (len(octets), b" LAST" if last else b""))
        self._write(octets)

    def _write(self, octets: bytes) -> None:
        try:
            self.transport.write(octets)
        except BaseException:
            # The connection cannot be used again: what the server has got of the octets is unknown.
            self.end(replies.UPSTREAM_LOST)
            raise

    def _stop_streaming(self) -> None:
        if self._streaming:
            self._streaming = self._full = False
            self.transport.unregisterProducer()

    # TLS.

    def start_tls(self, options: Any, seconds: float) -> Deferred[None]:
        """Begin the TLS handshake. Called when the server has answered STARTTLS with 220. The Deferred fires when the
        handshake is complete. `Refused`: it failed, or took longer than `seconds`."""
        if self._parser.amid_reply or self._answers:
            self.end(replies.UPSTREAM_GARBLED)
        secured: Deferred[None] = self._wait(seconds)
        if self.usable:
            self._securing = True
            self.transport.startTLS(options)
        return secured

    def handshakeCompleted(self) -> None:
        """Called by the transport."""
        securing, self._securing = self._securing, False
        if securing and self._waiter is not None:
            self._fire(None)

    # The end.

    def quit(self, seconds: float) -> None:
        """Send QUIT and close the connection. It is aborted if the server has not closed its side after `seconds`:
        under TLS a close waits for the server's close_notify, which may never come. Called when no command is
        pending."""
        if self.usable:
            self._finish(replies.UPSTREAM_LOST)
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

    def end(self, problem: Reply) -> None:
        """Abort the connection, also in the middle of a command or message. A pending answer fails with `Refused` and
        `problem`. The server does not deliver an incomplete message."""
        if self.usable:
            # The place is freed and the waiter is told even if the transport raises.
            _safely(self._stop_streaming)
            self._finish(problem)
            _safely(self._abort)

    def _finish(self, problem: Reply) -> None:
        if not self.usable:
            return
        self.problem = problem
        self._ended(self)
        if self._waiter is not None:
            # A verdict that has come counts, whatever follows it: else the message would come twice.
            self._fire(self._answers.popleft() if self._answers else Failure(Refused(problem)))

    # Called by the transport.

    def connectionMade(self) -> None:
        # Twisted's default, 64 KiB, would add up over many sessions.
        transport = self.transport
        while isinstance(transport, ProtocolWrapper):
            # The endpoint uses TLS, and its transport does not pass an attribute on to the socket's.
            transport = transport.transport
        if hasattr(transport, "bufferSize"):
            transport.bufferSize = SEND_BUFFER_OCTETS

    def dataReceived(self, data: bytes) -> None:
        if not self.usable:
            return
        if self._securing:
            # Input in clear after the reply to STARTTLS is an injection (RFC 3207 6). Under TLS the server must not
            # speak first.
            self.end(replies.UPSTREAM_GARBLED)
            return
        problem: Reply | None = None
        try:
            for answer in self._parser.feed(data):
                if self._replies_due and not self._streaming:
                    self._replies_due -= 1
                    self._answers.append(answer)
                else:
                    problem = _unexpected_reply(answer, amid_message=self._streaming)
                    break
        except BadReply:
            problem = replies.UPSTREAM_GARBLED
        if problem is not None:
            self.end(problem)
        elif self._answers and self._waiter is not None:
            self._fire(self._answers.popleft())

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._streaming = self._full = False
        if reason is not None:
            _safely(self._explain, reason.value)
        problem = replies.UPSTREAM_LOST
        if self._securing:
            problem = replies.UPSTREAM_UNSUITABLE
            self.tls_problem = self.tls_problem or "it closed the connection"
        self._finish(problem)
        stop_timer(self._abandoning)
        if not self.closed.called:
            self.closed.callback(None)

    def _explain(self, error: BaseException | None) -> None:
        self.tls_problem = tls_failure(error, self.transport)

    def pauseProducing(self) -> None:
        self._full = True

    def resumeProducing(self) -> None:
        self._full = False
        if self._streaming and self._waiter is not None:
            self._fire(None)

    def stopProducing(self) -> None:
        """The transport is closing; connectionLost() follows."""

    # Waiting.

    def _wait(self, seconds: float) -> Deferred[Any]:
        if self._waiter is not None:
            # A second waiter would wait indefinitely, and one of them would get the other's reply.
            raise RuntimeError("this connection already waits for a reply")
        if self.problem is not None:
            return fail(Refused(self.problem))
        waiter: Deferred[Any] = Deferred(lambda _: self._wait_cancelled())
        self._waiter = waiter
        timer = self._clock.callLater(seconds, self.end, replies.UPSTREAM_TIMED_OUT)
        return waiter.addBoth(_stop_timer_of, timer)

    def _fire(self, outcome: Any) -> None:
        waiter, self._waiter = self._waiter, None
        assert waiter is not None
        waiter.callback(outcome)

    def _wait_cancelled(self) -> None:
        self._waiter = None
        self.end(replies.UPSTREAM_LOST)


def stop_timer(timer: IDelayedCall | None) -> None:
    """Cancel `timer`, unless it is None, has been called or was cancelled before."""
    if timer is not None and timer.active():
        timer.cancel()


def _stop_timer_of(outcome: Any, timer: IDelayedCall) -> Any:
    stop_timer(timer)
    return outcome


def _safely(step: Callable[..., object], *args: object) -> bool:
    return safely(at_debug, "a connection to the upstream server could not be ended", step, *args)


def _unexpected_reply(answer: UpstreamReply, *, amid_message: bool) -> Reply:
    """The reply for the client after a reply that was not due, such as the 421 of a server that is about to close the
    connection (RFC 5321 3.8). It passes as the server's word on the message only while one is being sent; else the
    client gets a 451."""
    return for_client(answer) if amid_message and answer.code >= 400 else as_temporary(answer).reply
