"""Octets in: which are lines and which are message data, and what is answered.

Input lies in one buffer that is walked by offset; the replies to one arrival leave in one write; while a Deferred is
pending, nothing behind its command is looked at.
"""

from __future__ import annotations

from abc import abstractmethod

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.smtp import grammar, incoming, replies
from twisted_smtpguard.smtp.replies import Reply, Step
from twisted_smtpguard.smtp.session import Session
from twisted_smtpguard.smtp.transaction import Answer
from twisted_smtpguard.wire.connection import Connection
from twisted_smtpguard.wire.datarate import DataRate
from twisted_smtpguard.wire.lines import LineSplitter
from twisted_smtpguard.wire.output import Output
from twisted_smtpguard.wire.proxyheader import LONGEST_BEGINNING, begins_header, may_begin_header
from twisted_smtpguard.wire.turns import (
    COMMANDS_A_TURN,
    DATA_OCTETS_OF_A_COMMAND,
    LINE_OCTETS_OF_A_COMMAND,
    SLOW_DATA_OCTETS_OF_A_COMMAND,
)

_PIECE_OCTETS = 16 * 1024
"""Message data is copied out of the middle of the buffer in pieces of at most this size."""

_SLOW_PIECE_OCTETS = 4 * 1024
"""The same where it may take long to read."""

_PROGRESS_OCTETS = 1024
"""What has to come of message data within the read timeout, where no line ends sooner."""

_TLS_HELLO = b"\x16\x03"


class Receiving(Connection):
    """A connection whose session has begun: its lines and message data, and the answers to them."""

    session: Session
    _output: Output
    _lines: LineSplitter
    _rate: DataRate | None = None
    _first_line = True
    _beginning = b""
    """Of the connection, where a header of the PROXY protocol may have begun with lines that were answered."""
    _pending: Deferred[Reply | None] | None = None
    _walking = False
    _had_its_turn = False
    _progress = False
    _progress_octets = 0

    # For the protocol to say.

    @abstractmethod
    def _step(self, step: Step) -> None:
        """What comes behind this reply is no command."""

    @abstractmethod
    def _wait_for_what_is_next(self) -> None:
        """Everything that could be taken has been, and answered."""

    @abstractmethod
    def _start_delivery_time(self) -> None:
        """An answer is pending."""

    @abstractmethod
    def _stop_delivery_time(self) -> None:
        """It has come."""

    # Octets come in.

    def dataReceived(self, data: bytes) -> None:
        """Called by the transport. LineReceiver's own would take quadratic time for a pipelined burst."""
        if self._at_ease:
            line, end, rest = data.partition(b"\r\n")
            if (
                end
                and not rest
                and line
                and b"\n" not in line
                and b"\r" not in line
                and len(line) < self.factory.line_rules.longest
                and not self._output.congested
            ):
                self._receive_lone_line(line)
                return
        if self._closing:
            return
        self._buffer = self._buffer[self._offset :] + data if self._buffer else data
        self._offset = 0
        if self._entrance is None:
            self._walk()
        else:
            self._entrance.spoke()
            self._bound_buffer()

    def _receive_lone_line(self, line: bytes) -> None:
        """A command that has come whole and alone, as nearly all do: what `_walk` does with it, in fewer steps."""
        session = self.session
        self._walking = True
        try:
            answer = session.execute(line, False)
            if (
                type(answer) is Reply
                and answer.code < 300
                and session.conduct.unremarkable
                # Else a hook has stopped the guard.
                and not self._closing
            ):
                # It ends nothing and waits for nothing, so that the next may come, if the client has room for replies.
                output = self._output
                output.say(answer.wire)
                if not output.congested:
                    self._walking = False
                    if self.timeOut is not None:
                        # As resetTimeout() does.
                        self._read_deadline.reset(self.timeOut)
                    return
            else:
                self._go_on_with(answer)
        except Exception:  # noqa: BLE001 - as in `_walk`
            self._reply(session.broken(Failure()))
        self._at_ease = False
        self._progress = True
        self._rest()

    @property
    def _held(self) -> bool:
        """Whether what has come has to wait: for an answer, for the next turn, or until the client has read so many
        replies that more can be said."""
        return self._pending is not None or self._had_its_turn or self._output.congested

    def _walk(self) -> None:
        """Take what lies in the buffer as far as possible, and send all that is to be said in one write."""
        self._walking = True
        self._at_ease = False
        session, output, lines = self.session, self._output, self._lines
        share = COMMANDS_A_TURN
        # As `_held` says: this is asked at every command.
        while self._offset < len(self._buffer) and not (
            self._pending is not None or self._had_its_turn or output.congested
        ):
            start, a_command = self._offset, LINE_OCTETS_OF_A_COMMAND
            reception = session.reception
            receiving = reception is not None and reception.open
            more = True
            try:
                if receiving:
                    slow = session.slow_to_read
                    a_command = SLOW_DATA_OCTETS_OF_A_COMMAND if slow else DATA_OCTETS_OF_A_COMMAND
                    self._receive_data(_SLOW_PIECE_OCTETS if slow else _PIECE_OCTETS, whole=not slow)
                elif self._first_line and self._buffer.startswith(_TLS_HELLO, start):
                    self._reply(replies.NOT_SMTP)
                elif self._first_line and self._begins_with_proxy_header(start):
                    self._reply(replies.UNEXPECTED_PROXY_HEADER)
                else:
                    line, self._offset = lines.next_line(self._buffer, start)
                    if type(line) is bytes and not self._first_line:
                        self._progress = True
                        self.lineReceived(line)
                    else:
                        more = self._receive_special(start, line)
            except Exception:  # noqa: BLE001 - our own fault must not end the process or another session
                self._reply(session.broken(Failure(), amid_data=receiving))
            if self._closing or not more:
                break
            share -= 1 + (self._offset - start) // a_command
            if share <= 0 and self._offset < len(self._buffer) and not self._held:
                self._had_its_turn = True
                self.factory.turns.wait(self._take_turn)
        self._rest()

    def _rest(self) -> None:
        """Nothing more can be taken now: what was said is sent."""
        self._walking = False
        if self._closing:
            return
        if not self._had_its_turn:
            self._buffer = self._buffer[self._offset :]
            self._offset = 0
            self._output.flush()
            if self._closing:
                # The client has taken the last replies meanwhile, and had shut down its side.
                return
        self._wait_for_what_is_next()

    def _take_turn(self) -> None:
        self._had_its_turn = False
        self.or_abort("a connection could not go on", self._walk)

    def _receive_special(self, start: int, line: bytes | Reply | None) -> bool:
        """The first line, one that is refused, or none yet. Whether there may be more to take."""
        if line is None and not self._lines.endless:
            return False
        self._progress = True
        if self._first_line:
            # An over-long line is not kept, and so cannot be told from SMTP. The line after it can, if it begins one.
            self._first_line = line is replies.LINE_TOO_LONG and not self._lines.amid_line
            octets = self._beginning + self._buffer[start : self._offset]
            if not self._first_line and grammar.is_not_smtp(octets):
                self._reply(replies.NOT_SMTP)
                return False
            if type(line) is bytes and may_begin_header(octets):
                self._first_line, self._beginning = True, octets
        if isinstance(line, Reply):
            self._reply(self.session.invalid_line(line))
        elif line is not None:
            self.lineReceived(line)
            return True
        if self._lines.endless and not self._closing:
            self._reply(replies.TOO_MANY_INVALID_COMMANDS, reason="max_endless_line")
        return True

    def _begins_with_proxy_header(self, start: int) -> bool:
        octets = self._beginning + self._buffer[start : start + LONGEST_BEGINNING]
        return not self._header_expected and begins_header(octets)

    def lineReceived(self, line: bytes) -> None:
        """One command, without its CRLF."""
        self._go_on_with(self.session.execute(line, self._offset < len(self._buffer)))

    def _go_on_with(self, answer: Answer) -> None:
        if type(answer) is Reply:
            self._reply(answer)
        elif type(answer) is Step:
            self._step(answer)
        else:
            self._take(answer)

    def _receive_data(self, octets: int, *, whole: bool) -> None:
        """`whole`: an arrival that is nothing but message data need not be cut, and is not copied."""
        if whole and not self._offset:
            self.rawDataReceived(self._buffer)
        else:
            self.rawDataReceived(self._buffer[self._offset : self._offset + octets])

    def rawDataReceived(self, data: bytes) -> None:
        """Message data, and perhaps commands behind it."""
        session = self.session
        taken, answer = incoming.receive(session, data)
        self._offset += taken
        if self._rate is not None:
            self._rate.count(taken)
        if not session.receiving or data.find(b"\n", 0, taken) >= 0:
            self._progress = True
        else:
            self._progress_octets += taken
            if self._progress_octets >= _PROGRESS_OCTETS:
                self._progress = True
        if answer is not None:
            self._take(answer)

    # Answers go out.

    def _take(self, answer: Answer) -> None:
        # In the order of how often each comes. Deferred is an abstract type, of which to ask costs more.
        if isinstance(answer, Reply):
            self._reply(answer)
        elif answer is not None:
            self._pending = answer
            self._output.do_not_delay()
            answer.addCallbacks(self._answered, self._failed).addErrback(self._drop)
            if self._pending is not None:
                self._start_delivery_time()

    def _answered(self, reply: Reply | None) -> None:
        self._pending = None
        self._stop_delivery_time()
        if self._closing:
            return
        self._progress = True
        if reply is not None:
            if self._offset < len(self._buffer) and self.session.refuses_pipelining():
                reply = replies.UNEXPECTED_PIPELINING
            self._reply(reply)
        if not self._walking:
            self._walk()

    def _failed(self, failure: Failure) -> None:
        self._answered(self.session.broken(failure))

    def _drop(self, failure: Failure) -> None:
        """A fault while an answer was given. Nobody else would end the session, for nothing is waited for."""
        self.session.broken(failure)
        self.abort()

    def _reply(self, reply: Reply, *, reason: str = "") -> None:
        if self._closing:
            # A hook has stopped the guard: the last line has been said.
            return
        output, session = self._output, self.session
        output.queue(reply.wire)
        last = reply
        if reply.code >= 400 or not session.unremarkable:
            behind = session.account(reply, reason)
            if behind is not None:
                output.queue(behind.wire)
                last = behind
            if last.closes:
                self.end_reason = reason or replies.reason_of(last)
                self._close(half=True)
                return
            if session.quit:
                self.end_reason = "quit"
                self._close(half=False)
                return
        session.ends_group = False
        if output.full:
            output.flush()
