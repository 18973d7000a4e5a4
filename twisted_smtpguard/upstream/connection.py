"""One connection to the mail server behind: commands one at a time, message data with back-pressure, time limits.

What goes wrong is `Refused` with the 451 that our client gets, and ends the connection.
"""

# ruff: noqa: N802 - Twisted's own method names

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.faults import at_debug, safely
from twisted_smtpguard.interfaces import Peer, Refused
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.upstream.hello import NOTHING, Hello
from twisted_smtpguard.upstream.refusals import not_now
from twisted_smtpguard.upstream.replies import BadReply, ReplyParser, UpstreamReply, for_client
from twisted_smtpguard.upstream.tlsfailure import tls_failure

SEND_BUFFER_OCTETS = 16 * 1024
"""What may wait in the transport before the client is held back, besides the piece that is being sent."""


@implementer(IPushProducer, IHandshakeListener)
class Connection(Protocol):
    """`ended(self)` is called once, as soon as nothing can be done with it any more."""

    def __init__(self, clock: IReactorTime, ended: Callable[[Connection], None]) -> None:
        self._clock = clock
        self._ended = ended
        self._transport: Any = None
        self._parser = ReplyParser()
        self._answers: deque[UpstreamReply] = deque()
        self._owed = 1  # the greeting
        self._waiter: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._streaming = False
        self._full = False
        self._secured: Deferred[None] | None = None
        self.hello: Hello = NOTHING
        self.introduced: tuple[str, bool] | None = None
        """The client in whose name EHLO was said last: what it called itself, and whether under TLS."""
        self.problem: Reply | None = None
        """Why it cannot be used any more."""
        self.why = ""
        """What was wrong with TLS, for the log."""
        self.lost = False
        """The transport is gone."""
        self.messages = 0
        """For which it was used."""
        self.complaints = 0
        """Replies of 400 and above since the last message that was taken."""
        self.gone: list[Deferred[None]] = []
        """Fired when the transport is gone."""

    @property
    def usable(self) -> bool:
        return self.problem is None

    @property
    def verdict(self) -> Reply:
        """What the client is told where the connection has ended."""
        return self.problem or replies.UPSTREAM_LOST

    # Speaking.

    def send_first(self, octets: bytes) -> None:
        """What stands before everything else: a PROXY header."""
        self._transport.write(octets)

    def command(self, line: bytes, seconds: float) -> Deferred[UpstreamReply]:
        """Send a command line; its reply. ValueError, and nothing is sent: it is more than one line, or less."""
        if b"\r" in line or b"\n" in line or b"\0" in line:
            # What follows would be taken for a command of ours, whoever wrote it.
            raise ValueError(f"a command is one line, not {line!r}")
        if self._parser.amid_reply:
            # That of the command before is not over: this one's would be taken for the rest of it.
            self.end(replies.UPSTREAM_GARBLED)
        if not self.usable:
            return self._wait(seconds)
        self._owed += 1
        self._transport.write(line + b"\r\n")
        return self.answer(seconds)

    def answer(self, seconds: float) -> Deferred[UpstreamReply]:
        """The next reply that is due, also one that came before the connection ended. To cancel it ends the connection:
        the reply would be taken for another's."""
        if self._answers:
            return succeed(self._answers.popleft())
        return self._wait(seconds)

    def own_end(self) -> Peer | None:
        """Us, as the server sees us; None over a UNIX socket."""
        here, there = self._transport.getHost(), self._transport.getPeer()
        if not isinstance(here, IPv4Address | IPv6Address):
            return None
        return Peer(ip_address(here.host), here.port, ip_address(there.host), there.port)

    # Message data.

    def start_data(self) -> None:
        """The 354 has come: what is written now is the message."""
        self._streaming = True
        self._transport.registerProducer(self, True)

    def stream(self, octets: bytes, seconds: float) -> Deferred[None] | None:
        """Send octets of a message. A Deferred fires when the server has taken so many that there is room."""
        if not self.usable:
            raise Refused(self.verdict)
        self._transport.write(octets)
        return self._wait(seconds) if self._full else None

    def end_data(self, octets: bytes, verdicts: int) -> None:
        """Send the end of the message. So many replies are due now."""
        self._owed += verdicts
        self._stop_streaming()
        if self.usable:
            self._transport.write(octets)

    def chunk(self, octets: bytes, *, last: bool = False, verdicts: int = 1) -> None:
        """Send a piece of a message as BDAT (RFC 3030). So many replies are due then."""
        if self.usable:
            self._owed += verdicts
            self._transport.write(b"BDAT %d%b\r\n" % (len(octets), b" LAST" if last else b""))
            self._transport.write(octets)

    def _stop_streaming(self) -> None:
        if self._streaming:
            self._streaming = self._full = False
            self._transport.unregisterProducer()

    # TLS.

    def start_tls(self, options: Any, seconds: float) -> Deferred[None]:
        """The handshake, after the server has said that it is ready. Fires when it is done."""
        if self._parser.amid_reply or self._answers:
            self.end(replies.UPSTREAM_GARBLED)
        secured: Deferred[None] = self._wait(seconds)
        if self.usable:
            self._secured = secured
            self._transport.startTLS(options)
        return secured

    def handshakeCompleted(self) -> None:
        """Called by the transport."""
        secured, self._secured = self._secured, None
        if secured is not None and secured is self._waiter:
            self._fire(None)

    # The end.

    def quit(self) -> None:
        """Nothing is under way: say goodbye, and wait for nothing."""
        if self.usable:
            self._over(replies.UPSTREAM_LOST)
            _safely(self._say_goodbye)

    def _say_goodbye(self) -> None:
        self._transport.write(b"QUIT\r\n")
        self._transport.loseConnection()

    def abandon(self) -> None:
        """After `quit()`: no longer wait for the server's side of the goodbye."""
        if not (self.lost or _safely(self._abort)):
            # Nobody else would say that its place is free.
            self.connectionLost()

    def _abort(self) -> None:
        self._transport.abortConnection()

    def end(self, problem: Reply) -> None:
        """Whatever is under way: drop it. A message that has not ended is not delivered then."""
        if self.usable:
            # The place is given back, and whoever waits is told, whatever the transport raises.
            _safely(self._stop_streaming)
            self._over(problem)
            _safely(self._abort)

    def _over(self, problem: Reply) -> None:
        if self.problem is not None:
            return
        self.problem = problem
        self._ended(self)
        if self._waiter is None:
            return
        if self._answers:
            # Whoever waits for an answer has it: a verdict counts, whatever follows it.
            self._fire(self._answers.popleft())
        else:
            self._fire(Failure(Refused(problem)))

    # What the transport calls.

    def connectionMade(self) -> None:
        self._transport = self.transport
        # Twisted's 64 KiB for each of many sessions would add up.
        if hasattr(self._transport, "bufferSize"):
            self._transport.bufferSize = SEND_BUFFER_OCTETS

    def dataReceived(self, data: bytes) -> None:
        if not self.usable:
            return
        if self._secured is not None:
            # In clear behind the reply to STARTTLS (RFC 3207 6), or else a server that speaks first under TLS.
            self.end(replies.UPSTREAM_GARBLED)
            return
        problem: Reply | None = None
        try:
            answers = self._parser.feed(data)
        except BadReply as bad:
            answers, problem = bad.replies, replies.UPSTREAM_GARBLED
        for answer in answers:
            if self._owed and not self._streaming:
                self._owed -= 1
                self._answers.append(answer)
            else:
                problem = _out_of_turn(answer, amid_message=self._streaming)
                break
        if problem is not None:
            self.end(problem)
        elif self._answers and self._waiter is not None:
            self._fire(self._answers.popleft())

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost = True
        self._streaming = self._full = False
        if reason is not None:
            _safely(self._explain, reason.value)
        problem = replies.UPSTREAM_LOST
        if self._secured is not None:
            problem = replies.UPSTREAM_UNSUITABLE
            self.why = self.why or "it closed the connection"
        self._over(problem)
        gone, self.gone = self.gone, []
        for waiting in gone:
            waiting.callback(None)

    def _explain(self, error: BaseException | None) -> None:
        self.why = tls_failure(error, self._transport)

    def pauseProducing(self) -> None:
        self._full = True

    def resumeProducing(self) -> None:
        self._full = False
        if self._streaming and self._waiter is not None:
            self._fire(None)

    def stopProducing(self) -> None:
        """The transport is going away: connectionLost follows."""

    # Waiting.

    def _wait(self, seconds: float) -> Deferred[Any]:
        if self._waiter is not None:
            # Whoever waits would wait indefinitely, and an answer would be taken for another's.
            raise RuntimeError("an answer is waited for already")
        waiter: Deferred[Any] = Deferred(lambda _: self._given_up())
        if not self.usable:
            waiter.errback(Refused(self.verdict))
            return waiter
        self._waiter = waiter
        self._timer = self._clock.callLater(seconds, self._timed_out)
        return waiter

    def _fire(self, outcome: Any) -> None:
        waiter, self._waiter = self._waiter, None
        self._stop_timer()
        assert waiter is not None
        waiter.callback(outcome)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _timed_out(self) -> None:
        self._timer = None
        self.end(replies.UPSTREAM_TIMED_OUT)

    def _given_up(self) -> None:
        self._waiter = None
        self._stop_timer()
        self.end(replies.UPSTREAM_LOST)


def _safely(step: Callable[..., object], *args: object) -> bool:
    return safely(at_debug, "a connection to the upstream server could not be ended", step, *args)


def _out_of_turn(answer: UpstreamReply, *, amid_message: bool) -> Reply:
    """A server that gives up on us says why (RFC 5321 3.8); anything else that was not asked for is its fault. Of
    what a client has done it speaks only where a message is being sent."""
    return for_client(answer) if amid_message and answer.code >= 400 else not_now(answer).reply
