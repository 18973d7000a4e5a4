"""Messages straight on to a mail server behind the guard: nothing is kept, and every verdict is the server's.

What smtp: and lmtp: have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from zope.interface import implementer

from twisted_smtpguard.arguments import checked
from twisted_smtpguard.hostnames import check_hostname
from twisted_smtpguard.interfaces import (
    Client,
    IConnectingDelivery,
    IMailTransaction,
    IMessageSink,
    IPreparedReload,
    IReadsFiles,
    IRelayDelivery,
    IRelayTransaction,
    ISessionDelivery,
    Path,
    Refused,
)
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.smtp.trace import received
from twisted_smtpguard.threads import OneThread, ThreadedReactor
from twisted_smtpguard.upstream.connection import Connection
from twisted_smtpguard.upstream.dialling import Dialler
from twisted_smtpguard.upstream.dotstuffing import DotStuffer
from twisted_smtpguard.upstream.envelope import mail_command, rcpt_command
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.options import UpstreamOptions
from twisted_smtpguard.upstream.pool import Pool
from twisted_smtpguard.upstream.refusals import verdict_of
from twisted_smtpguard.upstream.replies import UpstreamReply, for_client

_PIECE_OCTETS = 16 * 1024
"""Smaller writes are sent together, and this is the most that the server gets in one BDAT. Under TLS there are several
copies of it at once."""

_HANGS_UP = frozenset({221, 421})

_NO_VERDICT = frozenset({replies.UPSTREAM_LOST, replies.UPSTREAM_TIMED_OUT, replies.UPSTREAM_GARBLED})


class Use:
    """One transaction's use of a connection, from MAIL until it is given back or dropped, whichever comes first."""

    def __init__(self, pool: Pool, client: Client, options: UpstreamOptions) -> None:
        self._pool = pool
        self._seconds = options.timeout
        self.client = client
        self.connection: Connection | None = None
        self.may_have_message = False
        """A verdict is missing: on the whole message, or for one of its recipients."""
        self._hangs_up = False

    async def begin(self) -> Connection:
        self.connection = await self._pool.take(self.client)
        return self.connection

    async def command(self, line: bytes) -> UpstreamReply:
        """A command's reply. `Refused` where there is none; then the connection is dropped."""
        return self.checked(await self.current.command(line, self._seconds))

    async def verdict(self, seconds: float) -> Reply:
        """What the server says of the whole message, or of it for the next recipient: a 2xx, or `Refused`."""
        try:
            reply = await self.current.answer(seconds)
            # Not yet dropped: those of other recipients may still come.
            self._hangs_up |= reply.code in _HANGS_UP
            if not reply.positive:
                self.current.complaints += 1
                raise verdict_of(reply)
            self.current.complaints = 0
        except Refused as refused:
            self.may_have_message |= refused.reply in _NO_VERDICT
            raise
        return for_client(reply)

    @property
    def current(self) -> Connection:
        """The connection. `Refused` where it was dropped."""
        if self.connection is None:
            raise Refused(replies.UPSTREAM_LOST)
        return self.connection

    def checked(self, reply: UpstreamReply) -> UpstreamReply:
        """A reply as it is. Behind a 421 or 221 the server hangs up: the connection is dropped."""
        if reply.code >= 400:
            self.current.complaints += 1
        if reply.code in _HANGS_UP:
            self.drop(verdict_of(reply).reply)
        return reply

    def give_back(self) -> None:
        """No message has begun that has not ended."""
        if self._hangs_up:
            self.drop()
        connection, self.connection = self.connection, None
        if connection is not None:
            self._pool.give_back(connection, self.client)

    def drop(self, problem: Reply = replies.UPSTREAM_LOST) -> None:
        """What has begun is not to be delivered."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.end(problem)


@implementer(ISessionDelivery, IRelayDelivery, IConnectingDelivery, IPreparedReload, IReadsFiles)
class UpstreamDelivery(Service):
    """Each message is handed to the server at `endpoint` while it comes in. The client gets 250 when the server has
    said so.

    A service: a connection is tried at its start, and all are closed at its stop. `name` is for the log; `hostname` is
    what the guard calls itself in Received fields and to the server; `host` is whom the server's certificate must name.
    At a reload files that `options` name are read again, in one of the threads of `reactor`; connections that there are
    go on.
    """

    lmtp = False

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
        self.options = options = options or UpstreamOptions()
        check_hostname(hostname)
        if options.tls == "required" and not (options.tls_name or host):
            raise ValueError(
                "options: tls='required' needs tls_name, or host, which the certificate has to name"
            )
        if options.auth and options.announce == "xclient":
            raise ValueError(
                "options: auth and announce='xclient' exclude each other: XCLIENT makes the server forget who logged in"
            )
        if options.recipients and not self.lmtp:
            raise ValueError("options: recipients is for LMTP only")
        self._clock = reactor
        self._hostname = hostname
        self._thread = OneThread(cast(ThreadedReactor, reactor))
        self.notices = Notices(name, reactor)
        self._dialler = Dialler(
            endpoint, reactor, self.options, self.notices, name=hostname, host=host, lmtp=self.lmtp
        )
        self._pool = Pool(self._dialler, reactor, self.options, self.notices)

    @property
    def extensions(self) -> frozenset[str]:
        """What the server offered last; nothing before that."""
        return self._pool.hello.extensions

    @property
    def max_message_octets(self) -> int:
        """The server's SIZE."""
        return self._pool.hello.size

    @property
    def chunking(self) -> bool:
        return "CHUNKING" in self._pool.hello

    @property
    def max_connections(self) -> int:
        return self.options.connections

    @property
    def may_relay_for_all(self) -> bool:
        """A server that is not told of the client trusts every client as it trusts us. So it does where we have logged
        in: to a user it sends on from whatever address."""
        options = self.options
        return not self.lmtp and (not options.tells_client or options.auth is not None)

    def startService(self) -> None:  # noqa: N802 - Service's name
        super().startService()
        self._pool.start()

    def stopService(self) -> Deferred[Any]:  # noqa: N802
        super().stopService()
        return self._pool.stop()

    @property
    def files(self) -> Mapping[str, str]:
        """Those of `auth=` and `tls-ca=`."""
        auth = self.options.auth
        return {path: "" for path in (auth.file if auth else "", self.options.tls_ca) if path}

    async def prepare_reload(self) -> Callable[[], None]:
        switch = await self._thread.run(self._dialler.read_again)

        def take() -> None:
            switch()
            self._pool.try_now()

        return take

    async def reload(self) -> None:
        (await self.prepare_reload())()

    async def begin(self, client: Client, sender: Path) -> IMailTransaction:
        use = Use(self._pool, client, self.options)
        try:
            connection = await use.begin()
            reply = await use.command(mail_command(sender, connection.hello))
        except Refused:
            use.give_back()
            raise
        except Exception:
            use.drop()
            raise
        if not reply.positive:
            use.give_back()
            raise verdict_of(reply)
        return Mail(use, self, for_client(reply))

    def session_ended(self, session: str) -> None:
        self._pool.session_ended(session)

    # What the transaction and its sink ask.

    def head(self, client: Client, recipients: Sequence[Path]) -> bytes:
        """The header fields to put on top. A server that takes us for the client writes its own."""
        if self.options.tells_client:
            return b""
        return received(client, self._hostname, recipients, self._clock.seconds())

    def check_recipients(self, recipients: int) -> None:
        """`Refused`: a message for so many already gets no other."""

    def verdicts_due(self, recipients: Sequence[Path]) -> int:
        """How many replies come to the end of a message."""
        return 1

    async def verdict(self, use: Use, recipients: Sequence[Path]) -> Reply:
        """What the server says of the whole message: a 2xx, or `Refused`."""
        return await use.verdict(self.options.verdict)


@implementer(IRelayTransaction)
class Mail:
    """A transaction on one connection."""

    def __init__(self, use: Use, delivery: UpstreamDelivery, begun: Reply) -> None:
        self.begun = begun
        self._use = use
        self._delivery = delivery
        self._recipients: list[Path] = []

    async def recipient(self, recipient: Path) -> Reply:
        self._delivery.check_recipients(len(self._recipients))
        reply = await self._use.command(rcpt_command(recipient, self._use.current.hello))
        if not reply.positive:
            raise verdict_of(reply)
        self._recipients.append(recipient)
        return for_client(reply)

    async def data(self) -> IMessageSink:
        reply = await self._use.command(b"DATA")
        if reply.code == 354:
            connection = self._use.current
            if not connection.usable:
                # It has said goodbye in the same breath.
                raise Refused(connection.verdict)
            connection.start_data()
            return _DataSink(self._use, self._delivery, self._recipients)
        if reply.code < 400:
            # It may take what comes next for anything.
            self._use.drop()
        self._use.give_back()
        raise verdict_of(reply)

    async def data_in_chunks(self) -> IMessageSink:
        if "CHUNKING" not in self._use.current.hello:
            return await self.data()
        return _ChunkSink(self._use, self._delivery, self._recipients)

    def abort(self) -> None:
        self._use.give_back()


class _Sink:
    """A message to a server. `_send` and `_end` say how."""

    def __init__(self, use: Use, delivery: UpstreamDelivery, recipients: Sequence[Path]) -> None:
        self._use = use
        self._delivery = delivery
        self._recipients = recipients
        self._held = bytearray(delivery.head(use.client, recipients))

    def write(self, data: bytes) -> Deferred[None] | None:
        if self._held or len(data) < _PIECE_OCTETS:
            self._held += data
            if len(self._held) < _PIECE_OCTETS:
                return None
            data, self._held = bytes(self._held), bytearray()
        return self._send(data)

    def _send(self, piece: bytes) -> Deferred[None] | None:
        raise NotImplementedError

    def _end(self, piece: bytes, verdicts: int) -> None:
        raise NotImplementedError

    async def finish(self) -> Reply:
        piece, self._held = bytes(self._held), bytearray()
        try:
            self._end(piece, self._delivery.verdicts_due(self._recipients))
            reply = await self._delivery.verdict(self._use, self._recipients)
        except Refused:
            if self._use.may_have_message:
                self._delivery.notices.may_come_twice(self._use.client.session)
            self._use.give_back()
            raise
        except Exception:
            self._delivery.notices.may_come_twice(self._use.client.session)
            self._use.drop()
            raise
        self._use.give_back()
        return reply

    def abort(self) -> None:
        self._held = bytearray()
        self._use.drop()


@implementer(IMessageSink)
class _DataSink(_Sink):
    """Behind DATA."""

    def __init__(self, use: Use, delivery: UpstreamDelivery, recipients: Sequence[Path]) -> None:
        super().__init__(use, delivery, recipients)
        self._dots = DotStuffer()

    def _send(self, piece: bytes) -> Deferred[None] | None:
        return self._use.current.stream(self._dots.encode(piece), self._delivery.options.timeout)

    def _end(self, piece: bytes, verdicts: int) -> None:
        self._use.current.end_data(self._dots.encode(piece) + self._dots.end(), verdicts)


@implementer(IMessageSink)
class _ChunkSink(_Sink):
    """As BDATs, each of which is answered before the next is sent."""

    def _send(self, piece: bytes) -> Deferred[None]:
        return Deferred.fromCoroutine(self._send_chunk(piece))

    async def _send_chunk(self, piece: bytes) -> None:
        connection = self._use.current
        for start in range(0, len(piece), _PIECE_OCTETS):
            # All of it would wait in the transport, and this is one of many sessions.
            connection.chunk(piece[start : start + _PIECE_OCTETS])
            reply = self._use.checked(await connection.answer(self._delivery.options.timeout))
            if not reply.positive:
                raise verdict_of(reply)

    def _end(self, piece: bytes, verdicts: int) -> None:
        self._use.current.chunk(piece, last=True, verdicts=verdicts)
