"""The common part of `smtp:` and `lmtp:`. Each message is passed to an upstream server while it comes in: the guard
stores nothing, and every verdict is the server's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from zope.interface import implementer

from twisted_smtpguard import replies
from twisted_smtpguard.delivery.trace import received
from twisted_smtpguard.engine.hostnames import check_hostname
from twisted_smtpguard.hooks.threads import ReadInThread, ThreadedReactor
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.interfaces import (
    IConnectingDelivery,
    IMailTransaction,
    IMessageSink,
    IPreparedReload,
    IReadsFiles,
    IRelayDelivery,
    IRelayTransaction,
    ISessionDelivery,
)
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.dialling import Dialler
from twisted_smtpguard.upstream.login import Credentials
from twisted_smtpguard.upstream.mailcommands import mail_command, rcpt_command
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.parameters import UpstreamOptions
from twisted_smtpguard.upstream.pool import Pool
from twisted_smtpguard.upstream.refusals import verdict_of
from twisted_smtpguard.upstream.replyparser import UpstreamReply, for_client
from twisted_smtpguard.upstream.smtpclient import Connection
from twisted_smtpguard.values import Client, Path, Refused

_PIECE_OCTETS = 16 * 1024
"""The size of the pieces in which a message is sent, and the largest BDAT chunk. It is small because under TLS there
are several copies of a piece at once."""

_HANGS_UP = frozenset({221, 421})
"""Codes after which the server closes the connection."""

_NO_VERDICT = frozenset(
    {replies.UPSTREAM_LOST, replies.UPSTREAM_TIMED_OUT, replies.UPSTREAM_GARBLED, replies.SHUTTING_DOWN}
)
"""The replies for the client if the server has given no verdict; the last one at a stop of the guard."""


@implementer(ISessionDelivery, IRelayDelivery, IConnectingDelivery, IPreparedReload, IReadsFiles)
class UpstreamDelivery(Service, ReadInThread[tuple[Any, Credentials | None]]):
    """Passes each message to the server at `endpoint` while it comes in. The client gets a 250 when the server has
    given one.

    This is a service: it attempts a connection when it starts, and closes all when it stops. `name` is its name in the
    log; `hostname` is the guard's name in Received fields and in EHLO or LHLO; `host` is the name that the server's
    certificate must have. At a reload the files of `options` are read again, in one of the threads of `reactor`; open
    connections go on.
    """

    lmtp = False
    """Whether the server speaks LMTP, and so gives one verdict for each recipient."""

    @checked
    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        reactor: IReactorTime,
        *,
        hostname: str,
        options: UpstreamOptions | None = None,
        name: str = "upstream",
        host: str = "",
    ) -> None:
        super().__init__(cast(ThreadedReactor, reactor))
        self.options = options = options or UpstreamOptions()
        check_hostname(hostname)
        if options.tls == "required" and not (options.tls_name or host):
            raise ValueError(
                "options: tls='required' needs tls_name or host, which is the name that the certificate must have"
            )
        if options.recipients and not self.lmtp:
            raise ValueError("options: recipients is for LMTP only")
        self._clock = reactor
        self._hostname = hostname
        self.notices = Notices(name, reactor)
        self._dialler = Dialler(
            endpoint, reactor, self.options, self.notices, name=hostname, host=host, lmtp=self.lmtp
        )
        self._pool = Pool(self._dialler)

    @property
    def extensions(self) -> frozenset[str]:
        """The extensions that the server offered last; empty before its first answer."""
        return self._pool.offering.hello.extensions

    @property
    def max_message_octets(self) -> int:
        """The largest message that the server accepts, by the SIZE that it offered last; 0: it stated none."""
        return self._pool.offering.hello.size

    @property
    def chunking(self) -> bool:
        return "CHUNKING" in self._pool.offering.hello

    @property
    def max_connections(self) -> int:
        return self.options.connections

    @property
    def may_relay_for_all(self) -> bool:
        """A server that does not see the client's address trusts every client as it trusts the guard. So does a server
        that the guard has logged in to: it relays for that user from any address."""
        options = self.options
        return not self.lmtp and (not options.server_sees_client or options.auth is not None)

    def startService(self) -> None:  # noqa: N802 - Service's name
        super().startService()
        self._pool.start()

    def stopService(self) -> Deferred[Any]:  # noqa: N802
        super().stopService()
        return self._pool.stop()

    @property
    def files(self) -> Mapping[str, str]:
        """The files of `auth=` and `tls-ca=`."""
        auth = self.options.auth
        return {path: "" for path in (auth.file if auth else "", self.options.tls_ca) if path}

    def _read(self) -> tuple[Any, Credentials | None]:
        return self._dialler.read_files()

    def _take(self, files_read: tuple[Any, Credentials | None]) -> None:
        self._dialler.files_read = files_read
        self._pool.health.reconfigured()

    async def begin(self, client: Client, sender: Path) -> IMailTransaction:
        mail = UpstreamTransaction(self, client)
        await mail.begin(sender)
        return mail

    def session_ended(self, session: str) -> None:
        self._pool.session_ended(session)

    async def verdict(self, mail: UpstreamTransaction) -> Reply:
        """The server's verdict on the whole message: a 2xx, or `Refused`. Called by the sink."""
        return await mail.verdict()


@implementer(IRelayTransaction)
class UpstreamTransaction:
    """One mail transaction with the server. It holds one connection, from MAIL until the connection is given back to
    the pool or dropped."""

    begun: Reply

    def __init__(self, delivery: UpstreamDelivery, client: Client) -> None:
        self.delivery = delivery
        self.client = client
        self.recipients: list[Path] = []
        """The accepted recipients."""
        self.may_have_message = False
        """Whether the server may have the message although the verdict for a recipient is missing."""
        self._connection: Connection | None = None
        self._server_hangs_up = False
        """Whether a verdict was a 221 or 421, so that the connection cannot be used again."""

    async def begin(self, sender: Path) -> None:
        """Take a connection and send MAIL. `Refused`: there is no transaction, and no connection is held."""
        try:
            self._connection = await self.delivery._pool.take(self.client)
            self.begun = self.accepted(await self._command(mail_command(sender, self._connection.hello)))
        except Refused:
            self.give_back()
            raise
        except Exception:
            self.drop()
            raise

    async def recipient(self, recipient: Path) -> Reply:
        if 0 < self.delivery.options.recipients <= len(self.recipients):
            raise Refused(replies.TOO_MANY_LMTP_RECIPIENTS)
        reply = self.accepted(await self._command(rcpt_command(recipient, self.connection.hello)))
        self.recipients.append(recipient)
        return reply

    async def data(self) -> IMessageSink:
        reply = self.checked(await self._command(b"DATA"))
        if reply.code == 354:
            # The server may have sent a 421, or closed the connection, right after the 354.
            self.connection.require_usable()
            self.connection.start_data()
            return _Sink(self, DotStuffer())
        if reply.code < 400:
            # After such a reply the server may take the next input for message data.
            self.drop()
        self.give_back()
        raise verdict_of(reply)

    async def data_in_chunks(self) -> IMessageSink:
        return _Sink(self, None) if "CHUNKING" in self.connection.hello else await self.data()

    def abort(self) -> None:
        self.give_back()

    async def _command(self, line: bytes) -> UpstreamReply:
        """Send a command, and return its reply. `Refused`: there was none, and the connection has ended."""
        return await self.connection.command(line, self.delivery.options.timeout)

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
        if reply.code in _HANGS_UP:
            self.drop(verdict_of(reply).reply)
        return reply

    def accepted(self, reply: UpstreamReply) -> Reply:
        """Return `reply` as the client gets it. `Refused`: it is not a 2xx."""
        if not self.checked(reply).positive:
            raise verdict_of(reply)
        return for_client(reply)

    async def verdict(self) -> Reply:
        """Wait for the server's verdict on the message, which in LMTP is the one for the next recipient: a 2xx, or
        `Refused`."""
        try:
            reply = await self.connection.answer(self.delivery.options.verdict)
            # The connection is not dropped yet, since verdicts for other recipients may still come.
            self._server_hangs_up |= reply.code in _HANGS_UP
            if not reply.positive:
                self.connection.error_replies += 1
                raise verdict_of(reply)
            self.connection.error_replies = 0
        except Refused as refused:
            self.may_have_message |= refused.reply in _NO_VERDICT
            raise
        return for_client(reply)

    def give_back(self) -> None:
        """Give the connection back to the pool. Called when no message on it is incomplete."""
        if self._server_hangs_up:
            self.drop()
        connection, self._connection = self._connection, None
        if connection is not None:
            self.delivery._pool.give_back(connection, self.client)

    def drop(self, problem: Reply = replies.UPSTREAM_LOST) -> None:
        """Abort the connection, so that a message that has begun is not delivered."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end(problem)


@implementer(IMessageSink)
class _Sink:
    """One message to the server. With `dots` it is sent after DATA; with None it is sent in BDAT chunks, each of which
    the server answers before the next is sent."""

    def __init__(self, mail: UpstreamTransaction, dots: DotStuffer | None) -> None:
        self._mail = mail
        self._dots = dots
        self._held = bytearray()
        delivery = mail.delivery
        if not delivery.options.server_sees_client:
            # A server that sees the client's address writes its own trace fields.
            now = delivery._clock.seconds()
            self._held += received(mail.client, delivery._hostname, mail.recipients, now)

    def write(self, data: bytes) -> Deferred[None] | None:
        if self._held or len(data) < _PIECE_OCTETS:
            self._held += data
            if len(self._held) < _PIECE_OCTETS:
                return None
            data, self._held = bytes(self._held), bytearray()
        if self._dots is None:
            return Deferred.fromCoroutine(self._send_chunks(data))
        return self._mail.connection.stream(self._dots.encode(data), self._mail.delivery.options.timeout)

    async def _send_chunks(self, piece: bytes) -> None:
        connection = self._mail.connection
        for start in range(0, len(piece), _PIECE_OCTETS):
            # A larger chunk would wait in the transport as a whole, in each of many sessions.
            connection.chunk(piece[start : start + _PIECE_OCTETS])
            self._mail.accepted(await connection.answer(self._mail.delivery.options.timeout))

    async def finish(self) -> Reply:
        mail, delivery = self._mail, self._mail.delivery
        piece, self._held = bytes(self._held), bytearray()
        verdicts = len(mail.recipients) if delivery.lmtp else 1
        try:
            if self._dots is None:
                mail.connection.chunk(piece, last=True, verdicts=verdicts)
            else:
                mail.connection.end_data(self._dots.encode(piece) + self._dots.end(), verdicts)
            reply = await delivery.verdict(mail)
        except Refused:
            if mail.may_have_message:
                delivery.notices.may_come_twice(mail.client.session)
            mail.give_back()
            raise
        except Exception:
            delivery.notices.may_come_twice(mail.client.session)
            mail.drop()
            raise
        mail.give_back()
        return reply

    def abort(self) -> None:
        self._held = bytearray()
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
