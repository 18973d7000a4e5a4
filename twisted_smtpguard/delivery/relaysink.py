"""The sink that passes a message on to the upstream server, by DATA or by BDAT."""

from __future__ import annotations

import enum
from functools import partial

from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_smtpguard import replies
from twisted_smtpguard.delivery.relayedmail import RelayedMail
from twisted_smtpguard.delivery.trace import prepended, received
from twisted_smtpguard.hooks.promise import Promise, run
from twisted_smtpguard.interfaces import IMessageSink, Later
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.refusals import verdict_of
from twisted_smtpguard.upstream.replyparser import HANGS_UP, UpstreamReply, for_client
from twisted_smtpguard.upstream.smtpclient import settles
from twisted_smtpguard.values import Refused

_PIECE_OCTETS = 16 * 1024
"""The size of the pieces in which a message is sent, and the largest BDAT chunk. It is small because under TLS there
are several copies of a piece at once."""

_NO_VERDICT = frozenset(
    {replies.UPSTREAM_LOST, replies.UPSTREAM_TIMED_OUT, replies.UPSTREAM_GARBLED, replies.SHUTTING_DOWN}
)
"""The replies for the client if the server has given no verdict; the last one at a stop of the guard."""


class By(enum.Enum):
    """How a message is sent."""

    DATA = "after the server's 354"
    BDAT = "in chunks, each of which the server answers before the next is sent"
    BDAT_IF_SMALL = "in one chunk, unless it becomes larger than a piece"


@implementer(IMessageSink)
class RelaySink:
    """One message to the server."""

    def __init__(self, mail: RelayedMail, by: By) -> None:
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
        if mail.prepended:
            self._held = prepended(mail.prepended) + self._held

    def write(self, data: bytes) -> Deferred[None] | None:
        if self._held or len(data) < _PIECE_OCTETS:
            data, self._held = self._held + data, b""
            if len(data) < _PIECE_OCTETS:
                self._held = data
                return None
        if self._by is By.BDAT:
            return run(self._send_chunks(data)).deferred()
        if self._by is By.BDAT_IF_SMALL:
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
        self._by = By.DATA
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
            if self._by is By.DATA:
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
