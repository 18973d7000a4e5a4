"""From an endpoint to a connection that is ready for MAIL: greeting, EHLO or LHLO, STARTTLS, AUTH, and the client
told of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory

from twisted_smtpguard.certificates import read_certificates
from twisted_smtpguard.interfaces import Client, Refused
from twisted_smtpguard.later import within
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.upstream import announcing
from twisted_smtpguard.upstream.connection import Connection
from twisted_smtpguard.upstream.hello import NOTHING, parse_hello
from twisted_smtpguard.upstream.login import Credentials, dialogue, read_credentials
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.options import UpstreamOptions
from twisted_smtpguard.upstream.refusals import (
    GREETING,
    PROXY,
    ClientRefused,
    Explained,
    HandshakeFailed,
    NotNow,
    Unreachable,
    Unsuitable,
    describe,
    refused_by,
)
from twisted_smtpguard.upstream.replies import UpstreamReply

_HINT = ": does it expect a PROXY header?"


def _refused(command: str, reply: UpstreamReply, client: Client | None) -> Refused:
    """What the server says to a command of ours that is about `client`, or about nobody but us."""
    if client is not None:
        return refused_by(command, reply, ClientRefused)
    if 400 <= reply.code < 500:
        return refused_by(command, reply, NotNow)
    return refused_by(command, reply, remark=_HINT if command == PROXY else "")


def _introduction(client: Client) -> tuple[str, bool]:
    return client.helo, bool(client.tls)


def _without_secrets(reply: UpstreamReply, credentials: Credentials, lines: Sequence[str]) -> str:
    """What a server says to AUTH; its code alone where it repeats the password, or what it was sent."""
    secrets = [credentials.password, *(line.split(" ")[-1] for line in lines if line != "AUTH LOGIN")]
    return str(reply.code) if any(secret and secret in reply.text for secret in secrets) else reply.text


class Dialler:
    """Makes connections to one server. `lmtp`: LHLO is said there (RFC 2033)."""

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        options: UpstreamOptions,
        notices: Notices,
        *,
        name: str,
        host: str,
        lmtp: bool,
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._options = options
        self._name = options.helo or name
        self._host = options.tls_name or host
        self._lmtp = lmtp
        self._notices = notices
        self._tls = self._tls_settings()
        self._credentials = options.auth
        self._told_in_clear = False
        self._header_understood = False
        """The server has answered EHLO with a yes after a PROXY header."""

    def read_again(self) -> Callable[[], None]:
        """Read the files of `tls-ca=` and `auth=`, or the system's certificates; may be called in a thread. What it
        returns makes new connections use them. ValueError: a file is faulty."""
        tls = self._tls_settings()
        credentials = self._credentials
        if credentials is not None and credentials.file:
            credentials = read_credentials(credentials.file)

        def take() -> None:
            self._tls = tls
            self._credentials = credentials

        return take

    async def dial(self, client: Client | None, ended: Callable[[Connection], None]) -> Connection:
        """A connection that is ready, for `client` where it belongs to one. `Refused`: there is none."""
        try:
            return await self._dial_in_time(client, ended, self._options.tls)
        except HandshakeFailed as failed:
            if self._options.tls != "opportunistic":
                raise
            self._tell_in_clear(describe(failed))
        return await self._dial_in_time(client, ended, "off")

    def _tell_in_clear(self, problem: str) -> None:
        """Once until a handshake succeeds: clients decide how often one is tried."""
        if not self._told_in_clear:
            self._told_in_clear = True
            self._notices.in_clear(problem)

    async def _dial_in_time(
        self, client: Client | None, ended: Callable[[Connection], None], tls: str
    ) -> Connection:
        dialling = Deferred.fromCoroutine(self._dial(client, ended, tls))
        try:
            return await within(3 * self._options.connect, self._clock.callLater, dialling)
        except TimeoutError:
            # Each step was within its own time.
            raise Refused(replies.UPSTREAM_TIMED_OUT) from None

    async def _dial(self, client: Client | None, ended: Callable[[Connection], None], tls: str) -> Connection:
        connection = await self._connect(ended)
        try:
            await self._open(connection, client, tls)
            if not connection.usable:
                raise Refused(connection.verdict)
        except Exception as error:
            connection.end(error.reply if isinstance(error, Refused) else replies.UPSTREAM_UNAVAILABLE)
            raise
        return connection

    async def _connect(self, ended: Callable[[Connection], None]) -> Connection:
        factory = Factory.forProtocol(lambda: Connection(self._clock, ended))
        factory.noisy = False
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        try:
            connection: Connection = await within(self._options.connect, self._clock.callLater, connecting)
        except (CancelledError, ConnectingCancelledError) as cancelled:
            # An endpoint says so in its own way, and nothing of the server.
            raise CancelledError from cancelled
        except (Exception, asyncio.CancelledError) as error:
            # An endpoint may be made of asyncio's parts, whose cancellation is no Exception.
            raise Unreachable(replies.UPSTREAM_UNAVAILABLE) from error
        return connection

    async def _open(self, connection: Connection, client: Client | None, tls: str) -> None:
        options = self._options
        if not options.proxied:
            # It will be announced, or never.
            client = None
        if options.proxied:
            peer = client.peer if client is not None and client.peer.address is not None else None
            if options.announce == "proxy-v1":
                # Postfix knows no UNKNOWN: our own address says the same.
                connection.send_first(announcing.proxy_v1(peer or connection.own_end()))
            else:
                connection.send_first(announcing.proxy_v2(peer))
        try:
            greeting = await connection.answer(options.connect)
        except Refused as lost:
            if connection.why:
                raise HandshakeFailed(replies.UPSTREAM_UNSUITABLE, connection.why) from lost
            raise
        if greeting.code != 220:
            raise _refused(PROXY if options.proxied else GREETING, greeting, client)
        await (self._hello_after_header if options.proxied else self._hello)(connection, client)
        if tls != "off":
            await self._secure(connection, client)
        if self._credentials is not None:
            await self._log_in(connection, self._credentials)
        if options.announce in ("xclient", "xforward"):
            self._offered(connection, options.announce.upper())

    async def reset(self, connection: Connection, client: Client, seconds: float) -> bool:
        """As new, so that a MAIL of `client` may follow; whether the server says so. EHLO does what RSET does (RFC 5321
        4.1.4), and where the connection is the client's own it hears what the client calls itself now: what was said
        before, perhaps in clear before STARTTLS, is not to be believed (RFC 3207 4.2)."""
        if self._options.proxied and connection.introduced != _introduction(client):
            try:
                await self._hello(connection, client)
            except ClientRefused:
                # Perhaps of the connection, as with a 421: of the client it will say so on the next one too.
                return False
            return True
        return (await connection.command(b"RSET", seconds)).positive

    async def _hello(self, connection: Connection, client: Client | None) -> None:
        """In the client's name where the server is told that it is the client's connection."""
        connection.introduced = None if client is None else _introduction(client)
        name = self._name if client is None else client.helo
        verb = "LHLO" if self._lmtp else "EHLO"
        reply = await connection.command(f"{verb} {name}".encode(), self._options.timeout)
        if reply.positive:
            connection.hello = parse_hello(reply)
            return
        # Not after a PROXY header: of a server that has read it as a command this is the answer to that.
        if not (self._lmtp or self._options.proxied) and reply.code in (500, 502, 504):
            verb = "HELO"
            reply = await connection.command(f"{verb} {name}".encode(), self._options.timeout)
            if reply.positive:
                connection.hello = NOTHING
                return
        raise _refused(verb, reply, client)

    async def _hello_after_header(self, connection: Connection, client: Client | None) -> None:
        """A server that expects no PROXY header has read it as a command: its answer comes before the one to EHLO, or
        in its place."""
        try:
            await self._hello(connection, client)
        except Refused as refused:
            reply = refused.reply
            refuses = reply.said.startswith("5") or reply is replies.UPSTREAM_GARBLED
            if self._header_understood or not refuses:
                raise
            why = describe(refused) + _HINT
            raise (Unsuitable(why) if client is None else ClientRefused(PROXY, reply, why)) from refused
        self._header_understood = True

    async def _secure(self, connection: Connection, client: Client | None) -> None:
        required = self._options.tls == "required"
        if "STARTTLS" not in connection.hello:
            if required:
                raise Unsuitable("it offers no STARTTLS")
            return
        reply = await connection.command(b"STARTTLS", self._options.timeout)
        if required and 400 <= reply.code < 500:
            # It may be able to in a moment.
            raise _refused("STARTTLS", reply, None)
        if reply.code != 220:
            if required or reply.positive:
                raise Unsuitable(f"it answers STARTTLS with {reply.text}")
            self._tell_in_clear(f"it answers STARTTLS with {reply.text}")
            return
        if not connection.usable:
            raise Refused(connection.verdict)
        try:
            # As long as a connection: where it is never answered there is time left to go on in clear.
            await connection.start_tls(self._tls, min(self._options.connect, self._options.timeout))
        except Refused as refused:
            raise HandshakeFailed(refused.reply, connection.why) from refused
        self._told_in_clear = False
        # What was said in clear is forgotten (RFC 3207 4.2).
        await self._hello(connection, client)

    def _tls_settings(self) -> Any:
        """Made once: to read the certificates to trust holds up everything else. ValueError: there are none."""
        if self._options.tls == "off":
            return None
        # Late: to import them costs time, and not every guard has TLS behind it.
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415
        from twisted.internet import ssl  # noqa: PLC0415

        if self._options.tls == "opportunistic":
            return ssl.CertificateOptions()
        trusted = None
        if self._options.tls_ca:
            trusted = ssl.trustRootFromCertificates(
                ssl.Certificate.load(each.public_bytes(Encoding.DER))
                for each in read_certificates(self._options.tls_ca)
            )
        return ssl.optionsForClientTLS(self._host, trustRoot=trusted)

    async def _log_in(self, connection: Connection, credentials: Credentials) -> None:
        lines = dialogue(credentials, connection.hello.words("AUTH"))
        if lines is None:
            raise Unsuitable("it offers neither AUTH PLAIN nor AUTH LOGIN")
        for number, line in enumerate(lines, 1):
            reply = await connection.command(line.encode(), self._options.timeout)
            if reply.code == (235 if number == len(lines) else 334):
                continue
            why = f"it answers AUTH with {_without_secrets(reply, credentials, lines)}"
            if 400 <= reply.code < 500:
                # The password may be right (RFC 4954 6).
                raise Explained(replies.UPSTREAM_UNAVAILABLE, why)
            raise Unsuitable(why)

    # Telling of the client.

    async def announce(self, connection: Connection, client: Client) -> None:
        """Before a MAIL of `client`, where the server is to be told. `ClientRefused`: it refuses a command for that."""
        kind = self._options.announce
        if kind == "xclient":
            await self._xclient(connection, client)
        elif kind == "xforward":
            for command in announcing.xforward(client, self._offered(connection, "XFORWARD")):
                reply = await connection.command(command.encode(), self._options.timeout)
                if not reply.positive:
                    raise refused_by("XFORWARD", reply, ClientRefused)

    async def _xclient(self, connection: Connection, client: Client) -> None:
        offered = self._offered(connection, "XCLIENT")
        for command in announcing.xclient(client, offered):
            reply = await connection.command(command.encode(), self._options.timeout)
            # It greets anew with 220; some say 250.
            if not reply.positive:
                raise refused_by("XCLIENT", reply, ClientRefused)
        await self._hello(connection, client)

    def _offered(self, connection: Connection, command: str) -> frozenset[str]:
        """The attributes. Without the address the server would apply its rules to us."""
        offered = connection.hello.words(command)
        if "ADDR" not in offered:
            raise Unsuitable(f"it does not offer {command} with ADDR to this host")
        return offered
