"""One client of the control socket: its requests, one after the other, and their answers.

Everything that a client can make grow is bounded, and each has a small share of a turn of the reactor: whoever may
write to the socket may change the guard, but must not be able to hold it up by mistake.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol

from twisted.internet import protocol
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.control.requests import (
    MAX_REQUEST_OCTETS,
    Request,
    RequestError,
    line_of,
    parse_request,
)

IDLE_SECONDS = 60
"""A connection that asks nothing for so long is closed."""

READ_SECONDS = 30
"""A client that does not read what waits for it is dropped after so long."""

ROWS_A_TURN = 100
"""How many rows are made in one turn of the reactor, and sent in one line."""

MAX_LOST = 1_000_000_000

_log = Logger()


class Operator(Protocol):
    """What the socket needs of an `Operator`."""

    def carry_out(self, verb: str, arguments: dict[str, object], by: str) -> Any:
        """The answer: a dict, an iterator of dicts, a Deferred of one of these, or a Stream. ValueError: refused."""


class Stream(Protocol):
    """An answer whose rows come as they happen."""

    def begin(self, row: Callable[..., object], end: Callable[[], object]) -> None:
        """Called once. From then on `row` may be called with each row, and the number of those that are missing before
        it if there are any, and `end` at the end. A client that does not read loses rows, and is told how many."""

    def stop(self) -> None:
        """Called when the client is gone before the end. Nothing is called any more."""


class Seats(Protocol):
    """What the clients of one socket share."""

    reactor: Any
    operator: Operator
    full: str
    """The sentence for a client for which there is no seat."""

    def opened(self, client: ControlClient) -> bool:
        """Take a seat. Returns whether there is one."""

    def used(self, client: ControlClient) -> None:
        """Called at each request."""

    def left(self, client: ControlClient) -> None:
        """Called once, at the end."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class ControlClient(protocol.Protocol):
    """One client. Its requests are carried out one after the other, one in a turn of the reactor."""

    transport: Any

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._buffer = b""
        self._ended = False
        self._answer: Iterator[dict[str, Any]] | Stream | None = None
        self._id: str | int | None = None
        self._lost_rows = 0
        self._timer: Any = None
        self._next_step: Any = None
        self.busy = False
        """Whether an answer is being made or sent."""
        self.full = False
        """Whether the client has to read before more is sent."""
        self.by = ""

    def connectionMade(self) -> None:
        self.by = f"uid:{_user_of(self.transport)}"
        if not self._seats.opened(self):
            self.busy = True
            self._fail(None, self._seats.full)
            self.transport.loseConnection()
            return
        # The transport says when too much waits for the client, and when it has read all of it.
        self.transport.registerProducer(self, True)
        self._set_timer(IDLE_SECONDS)

    @property
    def dispensable(self) -> int:
        """How easily the client can be given up for another: 3 if it asks nothing, 2 if it does not read what it has
        asked for, 1 if it has sent further requests without waiting for answers, 0 if it waits for one answer."""
        if not self.busy and not self._has_unread():
            return 3
        asks_more = 0 < self._buffer.find(b"\n") + 1 < len(self._buffer)
        return 2 if self.full else int(asks_more)

    def _has_unread(self) -> bool:
        """Whether something has come that has not been read: its request, if the client has just been accepted."""
        try:
            return bool(self.transport.getHandle().recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        self._go_on()

    def readConnectionLost(self) -> None:
        """The client asks nothing more, and may still read. It may also be gone, which a stream, that may have no row
        to write for a long time, would not learn; so a stream ends here."""
        self._ended = True
        if self._streams:
            self.transport.abortConnection()
        else:
            self._go_on()

    def writeConnectionLost(self) -> None:
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self._seats.left(self)
        self.busy = self._ended = True
        answer, self._answer, self._buffer = self._answer, None, b""
        self._set_timer(0)
        if self._next_step is not None:
            self._next_step.cancel()
            self._next_step = None
        if answer is not None and not isinstance(answer, Iterator):
            answer.stop()

    # IPushProducer: the transport holds more than it wants to, and holds nothing.

    def pauseProducing(self) -> None:
        self.full = True
        # A stream loses rows instead, and need not be read while its reader looks at them.
        self._set_timer(0 if self._streams else READ_SECONDS)

    def resumeProducing(self) -> None:
        self.full = False
        self._set_timer(0 if self.busy else IDLE_SECONDS)
        if isinstance(self._answer, Iterator):
            self._later(self._send_rows)
        elif not self.busy:
            self._go_on()

    def stopProducing(self) -> None:
        """The connection is lost, of which `connectionLost` hears too."""

    @property
    def _streams(self) -> bool:
        return self._answer is not None and not isinstance(self._answer, Iterator)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._seats.reactor.callLater(seconds, self._give_up) if seconds else None

    def _give_up(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def _later(self, step: Callable[[], object]) -> None:
        """Call `step` in the next turn of the reactor."""

        def call() -> None:
            self._next_step = None
            step()

        if self._next_step is None:
            self._next_step = self._seats.reactor.callLater(0, call)

    # Requests.

    def _go_on(self) -> None:
        """Carry out the first request that waits. While many wait the client is not read; while a few do it is, since
        its end is noticed only then."""
        waits = b"\n" in self._buffer
        is_long = len(self._buffer) >= MAX_REQUEST_OCTETS
        too_long = is_long and not waits
        if is_long:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()
        if self.busy or self.full:
            return
        if waits:
            self.busy = True
            self._set_timer(0)
            self._later(self._carry_out)
        elif too_long or (self._buffer and self._ended):
            problem = "has no end" if self._ended else f"is longer than {MAX_REQUEST_OCTETS} octets"
            self._fail(None, f"the line {problem}")
            self._close()
        elif self._ended:
            self._close()

    def _close(self) -> None:
        self.busy = True
        self._set_timer(READ_SECONDS)
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _carry_out(self) -> None:
        self._seats.used(self)
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            if len(line) >= MAX_REQUEST_OCTETS:
                raise RequestError(f"the line is longer than {MAX_REQUEST_OCTETS} octets")
            request = parse_request(line)
        except RequestError as error:
            self._id = error.id
            self._done("error", str(error))
            return
        self._id = request.id
        answer: Deferred[Any] = maybeDeferred(self._asked, request)
        answer.addCallbacks(self._answered, self._failed).addErrback(self._failed)

    def _asked(self, request: Request) -> Any:
        return self._seats.operator.carry_out(request.verb, request.arguments, self.by)

    def _failed(self, failure: Failure) -> None:
        if failure.check(ValueError):
            self._done("error", failure.getErrorMessage())
        else:
            _log.failure("a request of an operator failed", failure)
            self._done("error", "the guard has a fault, which its log shows")

    def _answered(self, answer: Any) -> None:
        if self.transport.disconnected:
            if not isinstance(answer, dict | Iterator):
                answer.stop()
        elif isinstance(answer, dict):
            self._done("done", answer)
        elif isinstance(answer, Iterator):
            self._answer = answer
            self._send_rows()
        else:
            self._answer = answer
            answer.begin(self._row, self._stream_ended)

    def _send_rows(self) -> None:
        """Send some of the rows, and the others in later turns, as the client reads."""
        rows = self._answer
        if self.full or not isinstance(rows, Iterator):
            return
        some = list(islice(rows, ROWS_A_TURN))
        if some:
            self._send({"rows": some})
            self._later(self._send_rows)
        else:
            self._done("done", {})

    def _row(self, row: dict[str, Any], lost_before: int = 0) -> None:
        """A row of a stream, before which so many are missing. What the client cannot take now is lost."""
        if self._answer is None:
            return
        self._lost_rows = min(self._lost_rows + lost_before + self.full, MAX_LOST)
        if self.full:
            return
        lost, self._lost_rows = self._lost_rows, 0
        self._send({"lost": lost, "rows": [row]} if lost else {"rows": [row]})

    def _stream_ended(self) -> None:
        if self._answer is not None:
            self._done("done", {"lost": self._lost_rows} if self._lost_rows else {})

    def _done(self, word: str, value: object) -> None:
        """Send the last line of an answer, and go on with the next request."""
        self._answer, self._lost_rows = None, 0
        if self.transport.disconnected:
            return
        self._send({word: value})
        self.busy = False
        self._set_timer(READ_SECONDS if self.full else IDLE_SECONDS)
        self._go_on()

    def _fail(self, id: str | int | None, problem: str) -> None:  # noqa: A002 - the field's name
        self._id = id
        self._send({"error": problem})

    def _send(self, value: dict[str, Any]) -> None:
        self.transport.write(line_of({"id": self._id, **value}))


def _user_of(transport: Any) -> int | str:
    """The number of the user at the other end, as the kernel knows it; `unknown` where it does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return "unknown"
    try:
        credentials = transport.getHandle().getsockopt(socket.SOL_SOCKET, option, struct.calcsize("iII"))
    except OSError:
        return "unknown"
    uid: int = struct.unpack("iII", credentials)[1]
    return uid
