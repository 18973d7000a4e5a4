"""The client side of SMTP and LMTP as a state machine: octets in, commands out, and each reply to the one who asked.

It is pure: it knows octets, replies and numbers, and neither Twisted nor a clock. Its host sends, closes and keeps
time; smtpclient.py is the host on Twisted, a test's list of effects is another.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from twisted_smtpguard import replies
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.refusals import as_temporary
from twisted_smtpguard.upstream.replyparser import BadReply, ReplyParser, UpstreamReply, for_client
from twisted_smtpguard.values import Refused

Answered: TypeAlias = Callable[[UpstreamReply | None, Reply | None], object]
"""Called once: with the server's reply and None, or with None and the reply for the client, because the connection has
ended without one."""

Due: TypeAlias = tuple[Answered, float]
"""A reply that the server owes: who gets it, and how many seconds the server has for it, from the one before."""


_LINE_END = re.compile(rb"[\r\n\0]")


class State(enum.Enum):
    """The state of a connection to the upstream server."""

    COMMANDS = "commands"
    """Commands may be sent. The server says what was asked of it, and nothing else."""
    MESSAGE = "message data"
    """The server has said 354, and has to be silent until the end of the message has been sent."""
    HANDSHAKE = "TLS handshake"
    """The server has to be silent until the handshake is complete."""
    ENDED = "ended"
    """The connection cannot be used any more. `problem` says why."""


class ClientEngine:
    """One connection to the upstream server. The base class of its host, which has the methods of the last section.

    A fault of the server ends the connection, and whoever has asked gets the 451 for the client. A reply that has come
    counts, whatever follows it: else a message would come twice.
    """

    def __init__(self) -> None:
        self.state = State.COMMANDS
        self.problem: Reply | None = None
        """Why the connection can no longer be used, as a reply for the client. None: it can be used."""
        self._parser = ReplyParser()
        self._due: deque[Due] = deque()
        """The replies that the server owes, in their order."""
        self._came: deque[UpstreamReply] = deque()
        """The replies that have come together, and that nobody has been told yet."""
        self._waits_for_room: Callable[[Reply | None], object] | None = None
        self._room_seconds = 0.0

    @property
    def usable(self) -> bool:
        return self.problem is None

    def require_usable(self) -> None:
        """Raise `Refused`, with the reply for the client, if the connection can no longer be used."""
        if self.problem is not None:
            raise Refused(self.problem)

    # Called by who uses the connection.

    def expect(self, answered: Answered, seconds: float) -> None:
        """The server owes a reply that no command asks for: its greeting."""
        self.deadline(seconds)
        self._due.append((answered, seconds))

    def ask(self, line: bytes, answered: Answered, seconds: float) -> None:
        """Send a command line, to which the server has to reply within `seconds`. ValueError: `line` is not exactly one
        line, and nothing was sent."""
        self._send(one_line(line), ((answered, seconds),))

    def ask_together(self, lines: Sequence[bytes], due: Sequence[Due]) -> None:
        """Send command lines in one write, as a server allows that has PIPELINING (RFC 2920). It owes a reply to
        each."""
        self._send(b"".join(map(one_line, lines)), due)

    def chunk(self, octets: bytes, due: Sequence[Due], *, last: bool = False) -> None:
        """Send a piece of a message as BDAT (RFC 3030). `due` is what the server then owes: the verdicts, after the
        last piece. `Refused`: the connection has ended, and nothing was sent."""
        self._end_amid_reply()
        self.require_usable()
        self._send(b"BDAT %d%b\r\n%b" % (len(octets), b" LAST" if last else b"", octets), due)

    def start_data(self) -> None:
        """Called after the 354. `Refused`: the server may have sent a 421, or closed the connection, right after it."""
        self.require_usable()
        self.state = State.MESSAGE
        self.message_begins()

    def stream(self, octets: bytes) -> bool:
        """Send octets of a message. Returns whether more may be sent at once; else `wait_for_room` is due. `Refused`:
        the connection has ended."""
        self.require_usable()
        self.send(octets)
        return not self.full

    def wait_for_room(self, answered: Callable[[Reply | None], object], seconds: float) -> None:
        """Call `answered` when more of the message may be sent: with None, or with the reply for the client, because
        the connection has ended. `seconds`: how long the server may read nothing."""
        if self.problem is not None:
            answered(self.problem)
        else:
            self._waits_for_room = answered
            self._room_seconds = seconds
            self.deadline(seconds)

    def end_data(self, octets: bytes, due: Sequence[Due]) -> None:
        """Send `octets`, which end the message. `due` is the verdicts that the server then owes. `Refused`: the
        connection has ended, and nothing was sent."""
        self._end_amid_reply()
        self.require_usable()
        self.state = State.COMMANDS
        self.message_ends()
        self._send(octets, due)

    def start_handshake(self) -> None:
        """Called when the server has answered STARTTLS with 220, and before TLS begins."""
        self._end_amid_reply()
        if self.problem is None:
            self.state = State.HANDSHAKE

    def secured(self) -> bool:
        """Called when a handshake is complete. Returns whether it was one that `start_handshake` has begun."""
        if self.state is not State.HANDSHAKE:
            return False
        self.state = State.COMMANDS
        return True

    def forsake(self) -> None:
        """End the connection, since an answer is no longer waited for: when it came late, it would be taken for the
        answer to the next command. Nobody is told."""
        self._due.clear()
        self._waits_for_room = None
        self.end(replies.UPSTREAM_LOST)

    def end(self, problem: Reply) -> None:
        """Abort the connection, also in the middle of a command or message: the server does not deliver an incomplete
        message. Whoever waits for an answer gets `problem`."""
        self._end(problem, ())

    # Called by the host.

    def received(self, octets: bytes) -> None:
        """Take octets from the server."""
        due = self._due
        if due and self.state is State.COMMANDS:
            reply = self._parser.whole(octets)
            if reply is not None:
                answered, _ = due.popleft()
                if due:
                    self.deadline(due[0][1])
                answered(reply, None)
                return
        if self.state is State.HANDSHAKE:
            # Input in clear after the reply to STARTTLS is an injection (RFC 3207 6). Under TLS the server must not
            # speak first.
            self.end(replies.UPSTREAM_GARBLED)
        elif self.state is not State.ENDED:
            self._read(octets)

    def _read(self, octets: bytes) -> None:
        owed = len(self._due) if self.state is State.COMMANDS else 0
        came = self._came
        problem: Reply | None = None
        try:
            for reply in self._parser.feed(octets):
                if len(came) == owed:
                    problem = self._unexpected(reply)
                    break
                came.append(reply)
        except BadReply:
            problem = replies.UPSTREAM_GARBLED
        if problem is not None:
            # Before anybody is told: nothing more must be asked of this server.
            self._end(problem, tuple(came))
            return
        self.tell()

    def tell(self) -> None:
        """Tell all who have asked for replies that have come. Also called by one who is being told, and would have to
        wait for the next reply otherwise, though it is there."""
        came, due = self._came, self._due
        # It is empty as soon as an answer has ended the connection.
        while came:
            answered, _ = due.popleft()
            if due:
                self.deadline(due[0][1])
            answered(came.popleft(), None)

    def _unexpected(self, reply: UpstreamReply) -> Reply:
        """The reply for the client after a reply that was not due, such as the 421 of a server that is about to close
        the connection (RFC 5321 3.8). It passes as the server's word on the message only while one is being sent; else
        the client gets a 451."""
        amid_message = self.state is State.MESSAGE
        return for_client(reply) if amid_message and reply.code >= 400 else as_temporary(reply).reply

    def room(self) -> None:
        """Called when the host is no longer full."""
        answered, self._waits_for_room = self._waits_for_room, None
        if answered is not None:
            answered(None)

    def some_taken(self) -> None:
        """Called when the server has read some of what waits, where the host can tell."""
        if self._waits_for_room is not None:
            self.deadline(self._room_seconds)

    def lost(self) -> None:
        """Called when the connection is gone."""
        if self.state is State.HANDSHAKE:
            self.finish(replies.UPSTREAM_UNSUITABLE)
        else:
            self.finish(replies.UPSTREAM_LOST)

    def timed_out(self) -> None:
        """Called at the deadline, which is not taken back when the server has answered in time."""
        if self._due or self._waits_for_room is not None or self.state is State.HANDSHAKE:
            self.end(replies.UPSTREAM_TIMED_OUT)

    # What changes the state.

    def _end_amid_reply(self) -> None:
        """End the connection if part of a reply has come unasked: the next reply would be parsed as the rest of it."""
        if self._parser.amid_reply:
            self.end(replies.UPSTREAM_GARBLED)

    def _send(self, octets: bytes, due: Sequence[Due]) -> None:
        if self._parser.amid_reply:
            self._end_amid_reply()
        if self.problem is not None:
            for answered, _ in due:
                answered(None, self.problem)
            return
        if not self._due:
            self.deadline(due[0][1])
        self._due.extend(due)
        self.send(octets)

    def _end(self, problem: Reply, came: Sequence[UpstreamReply]) -> None:
        if self.problem is None:
            # The place is freed and whoever waits is told even if the transport raises.
            self.message_ends()
            self.finish(problem, came)
            self.abort()

    def finish(self, problem: Reply, came: Sequence[UpstreamReply] = ()) -> None:
        """The connection can no longer be used. Whoever waits gets one of the replies that `came`, or `problem`."""
        if self.problem is not None:
            return
        self.problem, self.state = problem, State.ENDED
        due, self._due = self._due, deque()
        self._came.clear()
        room, self._waits_for_room = self._waits_for_room, None
        self.ended()
        for number, (answered, _) in enumerate(due):
            if number < len(came):
                answered(came[number], None)
            else:
                answered(None, problem)
        if room is not None:
            room(problem)

    # What the host does.

    full = False
    """Whether so much of a message waits that no more should be sent."""

    def send(self, octets: bytes) -> None:
        """Send these octets after earlier ones. If it raises, the connection has ended."""
        raise NotImplementedError

    def deadline(self, seconds: float) -> None:
        """Call `timed_out` after `seconds`, replacing the earlier deadline."""
        raise NotImplementedError

    def message_begins(self) -> None:
        """From now on `full` matters, and `room` is called when it ends."""

    def message_ends(self) -> None:
        """The opposite of `message_begins`. Also called when no message is being sent."""

    def ended(self) -> None:
        """Called once, as soon as the connection can no longer be used."""

    def abort(self) -> None:
        """Close the connection at once, and drop what has not been sent."""


def one_line(line: bytes) -> bytes:
    """`line` with its CRLF, to be sent. ValueError: it is not exactly one line."""
    if _LINE_END.search(line):
        # The server would execute the text after the line end as another command: command injection.
        raise ValueError(f"a command is one line, not {line!r}")
    return line + b"\r\n"
