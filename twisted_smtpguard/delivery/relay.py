"""One message on its way to the upstream server: the transaction, and the sink that passes the message on."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

import attrs
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_smtpguard import replies
from twisted_smtpguard.delivery.lookahead import DATA, SentAhead, Upcoming, following, goes_on_small
from twisted_smtpguard.delivery.trace import received
from twisted_smtpguard.hooks.promise import Promise, run
from twisted_smtpguard.interfaces import IMessageSink, IRelayTransaction, Later
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.clientengine import one_line
from twisted_smtpguard.upstream.hello import Hello
from twisted_smtpguard.upstream.mailcommands import mail_command, rcpt_command
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.parameters import UpstreamOptions
from twisted_smtpguard.upstream.pool import Pool
from twisted_smtpguard.upstream.refusals import verdict_of
from twisted_smtpguard.upstream.replyparser import HANGS_UP, UpstreamReply, for_client
from twisted_smtpguard.upstream.smtpclient import Connection, settles
from twisted_smtpguard.values import Client, Path, Refused

T = TypeVar("T")

_PIECE_OCTETS = 16 * 1024
"""The size of the pieces in which a message is sent, and the largest BDAT chunk. It is small because under TLS there
are several copies of a piece at once."""

_NO_VERDICT = frozenset(
    {replies.UPSTREAM_LOST, replies.UPSTREAM_TIMED_OUT, replies.UPSTREAM_GARBLED, replies.SHUTTING_DOWN}
)
"""The replies for the client if the server has given no verdict; the last one at a stop of the guard."""

Combine: TypeAlias = Callable[[Client, Sequence[Path], Sequence[Reply]], Reply]
"""Called with the client, the accepted recipients and the server's verdict for each. Returns the one for the client."""


@attrs.frozen
class Relay:
    """What all transactions with one server share."""

    pool: Pool
    options: UpstreamOptions
    notices: Notices
    hostname: str
    seconds: Callable[[], float]
    """The clock."""
    combine: Combine | None
    """LMTP: makes one verdict of those for each recipient. None: the server gives one for all."""


@implementer(IRelayTransaction)
class UpstreamTransaction:
    """One mail transaction with the server. It holds one connection, from MAIL until the connection is given back to
    the pool or dropped."""

    begun: Reply

    def __init__(self, relay: Relay, client: Client) -> None:
        self.relay = relay
        self.client = client
        self.recipients: list[Path] = []
        """The accepted recipients."""
        self._upcoming: Upcoming = tuple
        self._connection: Connection | None = None
        self._ahead = SentAhead()

    def look_ahead(self, upcoming: Upcoming) -> None:
        """Called before `begin`, if commands may be sent ahead."""
        self._upcoming = upcoming

    async def begin(self, sender: Path) -> UpstreamTransaction:
        """Take a connection and send MAIL. `Refused`: there is no transaction, and no connection is held."""
        lines: list[bytes] = []

        def early(hello: Hello) -> list[bytes]:
            nonlocal lines
            try:
                command = mail_command(sender, hello)
                one_line(command)
            except (Refused, ValueError):
                # The same is raised below, when a connection is ready.
                return []
            lines = [command, *self._following(hello)]
            return lines

        try:
            connection, answers = await self.relay.pool.take(self.client, early)
            self._connection = connection
            if not answers:
                command = mail_command(sender, connection.hello)
                lines = [command, *self._following(connection.hello)]
                answers = connection.commands(lines, self.relay.options.timeout)
            if len(answers) > 1:
                self._ahead.add(lines[1:], answers[1:])
            self.begun = self.accepted(await answers[0])
        except Refused:
            self.give_back()
            raise
        except Exception:
            self.drop()
            raise
        return self

    def recipient(self, recipient: Path) -> Later[Reply | None]:
        if 0 < self.relay.options.recipients <= len(self.recipients):
            raise Refused(replies.TOO_MANY_LMTP_RECIPIENTS)

        def answered(reply: UpstreamReply) -> Reply:
            told = self.accepted(reply)
            self.recipients.append(recipient)
            return told

        connection = self.connection
        line = rcpt_command(recipient, connection.hello)
        if not self._ahead:
            more = self._following(connection.hello, 1)
            if more:
                lines = [line, *more]
                self._ahead.add(lines, connection.commands(lines, self.relay.options.timeout))
        return self._ask(connection, line, answered)

    def data(self) -> Later[IMessageSink]:
        connection = self.connection
        if goes_on_small(connection.hello, self.relay.options):
            return self._without_data(_By.BDAT_IF_SMALL)
        return self._ask(connection, DATA, self._data_answered)

    def _data_answered(self, reply: UpstreamReply) -> IMessageSink:
        self.require_data(reply)
        return _Sink(self, _By.DATA)

    def data_in_chunks(self) -> Later[IMessageSink]:
        return self._without_data(_By.BDAT) if "CHUNKING" in self.connection.hello else self.data()

    def abort(self) -> None:
        self.give_back()

    def _without_data(self, by: _By) -> _Sink:
        if self._ahead:
            # Somebody between the guard and this has refused a recipient.
            self.drop()
        return _Sink(self, by)

    def _ask(self, connection: Connection, line: bytes, then: Callable[[UpstreamReply], T]) -> T | Promise[T]:
        """Send a command, unless it was sent ahead. `then` makes the answer of the hook from the reply. `Refused`:
        there was none, and the connection has ended."""
        seconds = self.relay.options.timeout
        if self._ahead:
            answer = self._ahead.take(connection, line, seconds)
            if answer is not None:
                return answer.mapped(then).now()
        promise: Promise[T] = Promise(connection.forsake)
        connection.ask(line, partial(_settle, promise, then), seconds)
        return promise.now()

    def _following(self, hello: Hello, asked: int = 0) -> Sequence[bytes]:
        """What may leave together with MAIL, or with an RCPT that is `asked` about."""
        upcoming = self._upcoming()
        if not upcoming:
            return ()
        return following(upcoming, hello, self.relay.options, len(self.recipients) + asked)

    # Called by the sink too.

    @property
    def connection(self) -> Connection:
        """The connection. `Refused`: it was dropped."""
        if self._connection is None:
            raise Refused(replies.UPSTREAM_LOST)
        return self._connection

    def checked(self, reply: UpstreamReply) -> UpstreamReply:
        """Return `reply`, and drop the connection if it is a 421 or 221, after which the server closes it."""
        if reply.code >= 400:
            self.connection.error_replies += 1
        if reply.code in HANGS_UP:
            self.drop(verdict_of(reply).reply)
        return reply

    def require_data(self, reply: UpstreamReply) -> None:
        """Begin the message data, if `reply` is the 354 to DATA. `Refused`: it is not, and the connection was given
        back or dropped."""
        if self.checked(reply).code == 354:
            self.connection.start_data()
            return
        if reply.code < 400:
            # After such a reply the server may take the next input for message data.
            self.drop()
        self.give_back()
        raise verdict_of(reply)

    def accepted(self, reply: UpstreamReply) -> Reply:
        """Return `reply` as the client gets it. `Refused`: it is not a 2xx."""
        if not self.checked(reply).positive:
            raise verdict_of(reply)
        return for_client(reply)

    def give_back(self) -> None:
        """Give the connection back to the pool. Called when no message on it is incomplete."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._ahead:
            give_back = partial(self.relay.pool.give_back, connection, self.client)
            # A connection of one session only is of no use to others, and the session may be over when that happens.
            self._ahead.forget(connection, give_back, waits=not self.relay.options.proxied)
        else:
            self.relay.pool.give_back(connection, self.client)

    def drop(self, problem: Reply = replies.UPSTREAM_LOST) -> None:
        """Abort the connection, so that a message that has begun is not delivered."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end(problem)


def _settle(
    promise: Promise[T],
    then: Callable[[UpstreamReply], T],
    reply: UpstreamReply | None,
    problem: Reply | None,
) -> None:
    try:
        if reply is None:
            assert problem is not None
            raise Refused(problem)
        value = then(reply)
    except Exception as error:  # noqa: BLE001 - whoever waits for the answer gets it
        promise.fail(error)
    else:
        promise.succeed(value)


class _By(enum.Enum):
    """How a message is sent."""

    DATA = "after the server's 354"
    BDAT = "in chunks, each of which the server answers before the next is sent"
    BDAT_IF_SMALL = "in one chunk, unless it becomes larger than a piece"


@implementer(IMessageSink)
class _Sink:
    """One message to the server."""

    def __init__(self, mail: UpstreamTransaction, by: _By) -> None:
        self._mail = mail
        self._by = by
        self._dots = DotStuffer()
        self._verdicts: list[Reply] = []
        self._server_hangs_up = False
        """Whether a verdict was a 221 or 421, so that the connection cannot be used again."""
        relay = mail.relay
        self._held = b""
        if not relay.options.server_sees_client:
            # A server that sees the client's address writes its own trace fields.
            self._held = received(mail.client, relay.hostname, mail.recipients, relay.seconds())

    def write(self, data: bytes) -> Deferred[None] | None:
        if self._held or len(data) < _PIECE_OCTETS:
            data, self._held = self._held + data, b""
            if len(data) < _PIECE_OCTETS:
                self._held = data
                return None
        if self._by is _By.BDAT:
            return run(self._send_chunks(data)).deferred()
        if self._by is _By.BDAT_IF_SMALL:
            return run(self._send_first_after_data(data)).deferred()
        room = self._stream(data)
        return None if room is None else room.deferred()

    def _stream(self, data: bytes) -> Promise[None] | None:
        """Send octets after DATA. None: more may be sent at once."""
        connection = self._mail.connection
        if connection.stream(self._dots.encode(data)):
            return None
        room: Promise[None] = Promise(connection.forsake)
        connection.wait_for_room(
            lambda problem: room.settle(None, None if problem is None else Refused(problem)),
            self._mail.relay.options.timeout,
        )
        return room

    async def _send_first_after_data(self, data: bytes) -> None:
        """Send DATA and the first piece of a message that is not small. The client has had its 354 already, and hears
        at the end of the message what the server has refused."""
        mail = self._mail
        self._by = _By.DATA
        mail.require_data(await mail.connection.command(b"DATA", mail.relay.options.timeout))
        room = self._stream(data)
        if room is not None:
            await room

    async def _send_chunks(self, piece: bytes) -> None:
        connection = self._mail.connection
        for start in range(0, len(piece), _PIECE_OCTETS):
            # A larger chunk would wait in the transport as a whole, in each of many sessions.
            answer: Promise[UpstreamReply] = Promise(connection.forsake)
            due = settles(answer), self._mail.relay.options.timeout
            connection.chunk(piece[start : start + _PIECE_OCTETS], [due])
            self._mail.accepted(await answer)

    def finish(self) -> Later[Reply | None]:
        piece, self._held = self._held, b""
        mail = self._mail
        verdicts: Promise[Reply] = Promise(self._cancelled)
        due = [(partial(self._judged, verdicts), mail.relay.options.verdict)] * self._number_of_verdicts
        try:
            if self._by is _By.DATA:
                mail.connection.end_data(self._dots.encode(piece) + self._dots.end(), due)
            else:
                mail.connection.chunk(piece, due, last=True)
        except Refused:
            # The end of the message was not sent.
            mail.give_back()
            raise
        return verdicts.now()

    @property
    def _number_of_verdicts(self) -> int:
        return 1 if self._mail.relay.combine is None else len(self._mail.recipients)

    def _judged(self, promise: Promise[Reply], reply: UpstreamReply | None, problem: Reply | None) -> None:
        """Take one verdict on the message; in LMTP there is one for each recipient."""
        mail = self._mail
        if reply is None:
            assert problem is not None
            told = problem
        elif reply.positive:
            mail.connection.error_replies = 0
            told = for_client(reply)
        else:
            mail.connection.error_replies += 1
            # The connection is not dropped yet, since verdicts for other recipients may still come.
            self._server_hangs_up |= reply.code in HANGS_UP
            told = verdict_of(reply).reply
        self._verdicts.append(told)
        if len(self._verdicts) == self._number_of_verdicts:
            self._all_judged(promise)

    def _all_judged(self, promise: Promise[Reply]) -> None:
        mail, relay = self._mail, self._mail.relay
        if not _NO_VERDICT.isdisjoint(self._verdicts):
            relay.notices.may_come_twice(mail.client.session)
        told = self._verdicts[0]
        if relay.combine is not None:
            told = relay.combine(mail.client, mail.recipients, self._verdicts)
        if self._server_hangs_up:
            mail.drop()
        else:
            mail.give_back()
        if told.code < 300:
            promise.succeed(told)
        else:
            promise.fail(Refused(told))

    def _cancelled(self) -> None:
        """Called when the verdict has not come within the guard's own time limit."""
        mail = self._mail
        mail.relay.notices.may_come_twice(mail.client.session)
        mail.connection.forsake()

    def abort(self) -> None:
        self._held = b""
        self._mail.drop()


class DotStuffer:
    """Dot-stuffs the data of one message (RFC 5321 4.5.2). Call `encode` for each piece, then `end` once.

    A dot after any LF is doubled, not only after CRLF. So a server that takes a bare LF for a line end finds no early
    end of the message, which would be SMTP smuggling.
    """

    def __init__(self) -> None:
        self._tail = b"\r\n"

    def encode(self, data: bytes) -> bytes:
        """The octets to send for `data`."""
        if not data:
            return b""
        stuffed = data.replace(b"\n.", b"\n..")
        if data[:1] == b"." and self._tail[-1:] == b"\n":
            stuffed = b"." + stuffed
        self._tail = (self._tail + data[-2:])[-2:]
        return stuffed

    def end(self) -> bytes:
        """The octets that end the message. They end the last line first, if it has no line end."""
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"
