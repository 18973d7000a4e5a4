"""One connection to Dovecot, or another server of its authentication protocol: many requests, and their answers."""

# ruff: noqa: N802 - Twisted's own names

from __future__ import annotations

from itertools import count

from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from twisted_smtpguard.checkers.dovecotlines import (
    Answer,
    ProtocolError,
    cancel_line,
    hello,
    parse_answer,
    parse_mechanism,
)

_LONGEST_LINE = 64 * 1024
_MOST_MECHANISMS = 100


class DovecotConnection(Protocol):
    """One connection to the server. It is over at the first line that breaks the protocol."""

    def __init__(self) -> None:
        self.mechanisms: tuple[str, ...] = ()
        self.problem = ""
        """Why it is over; "" while it is not."""
        self.ready: Deferred[DovecotConnection] = Deferred(lambda _: self.fail("it does not answer"))
        """Fires with this connection when the server has said what it offers."""
        self.lost: Deferred[None] = Deferred()
        """Fires when it is over."""
        self.answers = 0
        """How many lines have come."""
        self._waiting: dict[int, Deferred[Answer]] = {}
        self._numbers = count(1)
        self._buffer = b""
        self._version = False
        self._full = False
        """Whether so much waits to be read by the server that no more is sent."""
        self._unsent: dict[int, bytes] = {}
        """The lines of requests that wait for that. None is kept of a client that leaves."""

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)  # type: ignore[union-attr]
        self._send(hello())

    def pauseProducing(self) -> None:
        """Called by the transport when the server does not read what is sent."""
        self._full = True

    def resumeProducing(self) -> None:
        """Called by the transport when the server reads again."""
        self._full = False
        while self._unsent and not self._full:
            self._send(self._unsent.pop(next(iter(self._unsent))))

    def stopProducing(self) -> None:
        """Called by the transport when the connection is over."""

    def dataReceived(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            for line in lines:
                if self.problem:
                    return
                self.answers += 1
                self._take(line.decode("utf-8", "replace").split("\t"))
            if len(self._buffer) > _LONGEST_LINE:
                raise ProtocolError("a line does not end")
        except ProtocolError as error:
            self.fail(str(error))

    def _take(self, words: list[str]) -> None:
        verb, *rest = words
        if verb == "VERSION":
            if rest[:1] != ["1"]:
                raise ProtocolError(f"version {'.'.join(rest)} of the protocol is not known here")
            self._version = True
        elif not self._version:
            raise ProtocolError("it does not speak the protocol of Dovecot's authentication")
        elif verb == "MECH":
            name = parse_mechanism(rest)
            if name and len(self.mechanisms) < _MOST_MECHANISMS:
                self.mechanisms += (name,)
        elif verb == "DONE" and not self.ready.called:
            self.ready.callback(self)
        elif verb in ("OK", "FAIL", "CONT"):
            answer = parse_answer(verb, rest)
            waiting = self._waiting.pop(answer.number, None)
            if waiting is not None:
                waiting.callback(answer)

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.problem = self.problem or "the connection was lost"
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            each.errback(ProtocolError(self.problem))
        if not self.ready.called:
            self.ready.errback(ProtocolError(self.problem))
        self.lost.callback(None)

    def fail(self, problem: str) -> None:
        """End it because of `problem`, unless it is over already."""
        if not self.problem:
            self.problem = problem
            self.transport.abortConnection()  # type: ignore[union-attr]

    def new_number(self) -> int:
        """The number of a new request."""
        return next(self._numbers)

    def ask(self, number: int, line: bytes) -> Deferred[Answer]:
        """Send a line of a request. Fires with the answer; ProtocolError: the connection is over. Cancelling it ends
        the request."""
        if self.problem:
            return fail(ProtocolError(self.problem))
        answer: Deferred[Answer] = Deferred(lambda _: self.cancel(number))
        self._waiting[number] = answer
        if self._full:
            self._unsent[number] = line
        else:
            self._send(line)
        return answer

    def cancel(self, number: int) -> None:
        """End a request."""
        self._waiting.pop(number, None)
        unsent = self._unsent.pop(number, b"")
        if not (self.problem or unsent.startswith(b"AUTH\t")):
            self._send(cancel_line(number))

    def _send(self, line: bytes) -> None:
        self.transport.write(line)  # type: ignore[union-attr]
