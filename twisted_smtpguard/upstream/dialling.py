"""How a connection to the upstream server is made and made ready for MAIL: greeting, EHLO or LHLO, STARTTLS, AUTH, and
the announcement of the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory

from twisted_smtpguard import replies
from twisted_smtpguard.hooks.later import within
from twisted_smtpguard.hooks.promise import Promise, run
from twisted_smtpguard.hooks.turns import ReplyBatcher
from twisted_smtpguard.tls.certificates import read_certificates
from twisted_smtpguard.upstream import announcing
from twisted_smtpguard.upstream.hello import NO_EXTENSIONS, Hello, parse_hello
from twisted_smtpguard.upstream.login import Credentials, dialogue, read_credentials
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.parameters import UpstreamOptions
from twisted_smtpguard.upstream.refusals import (
    GREETING,
    PROXY,
    PROXY_HINT,
    ClientRefused,
    Explained,
    HandshakeFailed,
    Unreachable,
    Unsuitable,
    describe,
    refused_by,
)
from twisted_smtpguard.upstream.replyparser import HANGS_UP, UpstreamReply
from twisted_smtpguard.upstream.smtpclient import Connection
from twisted_smtpguard.values import Client, Refused

Early: TypeAlias = Callable[[Hello], Sequence[bytes]]
"""Makes the commands that may be sent before the server has answered RSET. There may be none."""

Taken: TypeAlias = tuple[Connection, Sequence[Promise[UpstreamReply]]]
"""A connection that is ready for MAIL, and the answers to the commands of `Early`, the first of which has come; none if
they have not been sent."""

_ANNOUNCED = ("xclient", "xforward")
"""The kinds of `announce` with commands before each MAIL."""


def _greeting_of(client: Client) -> tuple[str, bool]:
    return client.helo, bool(client.tls)


def _without_secrets(reply: UpstreamReply, credentials: Credentials, lines: Sequence[str]) -> str:
    """The server's answer to AUTH, for the log. It is the code alone if the text repeats the password or a line that
    was sent."""
    secrets = [credentials.password, *(line.split(" ")[-1] for line in lines if line != "AUTH LOGIN")]
    return str(reply.code) if any(secret and secret in reply.text for secret in secrets) else reply.text


async def _check_server_stays(first: Promise[UpstreamReply]) -> None:
    """Wait for the answer to the first command of `Early`. `Refused`: the server is leaving. It may have been before it
    had the command, so another connection is tried."""
    try:
        leaves = (await first).code in HANGS_UP
    except Refused as refused:
        # A server that is silent is not given its time again.
        leaves = refused.reply is not replies.UPSTREAM_TIMED_OUT
    if leaves:
        raise Refused(replies.UPSTREAM_LOST)


@attrs.define(eq=False)
class Dialler:
    """Makes connections to one server. With `lmtp` it says LHLO (RFC 2033) instead of EHLO."""

    _endpoint: IStreamClientEndpoint
    clock: IReactorTime
    options: UpstreamOptions
    notices: Notices
    _name: str
    """The guard's hostname, for EHLO."""
    _host: str
    """The host of the endpoint, which the server's certificate must name; "": it has none."""
    _lmtp: bool
    files_read: tuple[Any, Credentials | None] = attrs.field(init=False)
    """The TLS options and the login of new connections, as `read_files` returned them."""
    _warned_of_clear: bool = attrs.field(default=False, init=False)
    """Whether the log says that mail goes out in clear, and no handshake has succeeded since."""
    _header_understood: bool = attrs.field(default=False, init=False)
    """Whether the server has accepted EHLO after a PROXY header."""

    _batcher: ReplyBatcher = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._batcher = ReplyBatcher(self.clock)
        self.files_read = self._tls_settings(), self.options.auth

    def read_files(self) -> tuple[Any, Credentials | None]:
        """Read the files of `tls-ca=` and `auth=`, or the system's certificates, again. May be called in a thread.
        ValueError: a file is faulty."""
        login = self.options.auth
        if login is not None and login.file:
            login = read_credentials(login.file)
        return self._tls_settings(), login

    async def dial(self, client: Client | None, ended: Callable[[Connection], None]) -> Connection:
        """Make a connection that is ready for MAIL. With a PROXY header it belongs to `client`; None: to no client.
        `Refused`: no connection could be made."""
        dialling = run(self._dial(client, ended)).deferred()
        try:
            return await within(3 * self.options.connect, self.clock.callLater, dialling)
        except TimeoutError:
            # Each step was within its own time limit, but all of them together took too long.
            raise Refused(replies.UPSTREAM_TIMED_OUT) from None

    async def _dial(self, client: Client | None, ended: Callable[[Connection], None]) -> Connection:
        """Make the connection. With opportunistic TLS a failed handshake is followed by an attempt in clear."""
        tls = self.options.tls
        try:
            return await self._attempt(client, ended, tls)
        except HandshakeFailed as failed:
            if tls != "opportunistic":
                raise
            self._warn_of_clear(describe(failed))
        return await self._attempt(client, ended, "off")

    def _warn_of_clear(self, problem: str) -> None:
        """Log the warning once until a handshake succeeds, since clients decide how often a handshake is attempted."""
        if not self._warned_of_clear:
            self._warned_of_clear = True
            self.notices.in_clear(problem)

    async def _attempt(
        self, client: Client | None, ended: Callable[[Connection], None], tls: str
    ) -> Connection:
        connection = await self._connect(ended)
        try:
            await self._open(connection, client, tls)
            connection.require_usable()
        except Exception as error:
            connection.end(error.reply if isinstance(error, Refused) else replies.UPSTREAM_UNAVAILABLE)
            raise
        return connection

    async def _connect(self, ended: Callable[[Connection], None]) -> Connection:
        factory = Factory.forProtocol(lambda: Connection(self.clock, ended, self._batcher))
        factory.noisy = False
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        try:
            connection: Connection = await within(self.options.connect, self.clock.callLater, connecting)
        except (CancelledError, ConnectingCancelledError) as cancelled:
            # The attempt was cancelled. Endpoints differ in how they report that, and it says nothing about the server.
            raise CancelledError from cancelled
        except (Exception, asyncio.CancelledError) as error:
            # An endpoint may be built on asyncio, whose CancelledError is not an Exception.
            raise Unreachable(replies.UPSTREAM_UNAVAILABLE) from error
        return connection

    async def _open(self, connection: Connection, client: Client | None, tls: str) -> None:
        options = self.options
        if not options.proxied:
            # The connection belongs to no client. `announce` names one later, if the operator chose that.
            client = None
        else:
            peer = client.peer if client is not None and client.peer.address is not None else None
            if options.announce == "proxy-v1":
                # Postfix does not accept UNKNOWN, so the guard sends its own address.
                connection.send_proxy_header(announcing.proxy_v1(peer or connection.local_peer()))
            else:
                connection.send_proxy_header(announcing.proxy_v2(peer))
        try:
            greeting = await connection.greeting(options.connect)
        except Refused as lost:
            if connection.tls_problem:
                raise HandshakeFailed(replies.UPSTREAM_UNSUITABLE, connection.tls_problem) from lost
            raise
        if greeting.code != 220:
            raise refused_by(PROXY if options.proxied else GREETING, greeting, client)
        await (self._hello_after_header if options.proxied else self._hello)(connection, client)
        if tls != "off":
            await self._secure(connection, client)
        credentials = self.files_read[1]
        if credentials is not None:
            await self._log_in(connection, credentials)
        if options.announce in _ANNOUNCED:
            self._offered(connection, options.announce.upper())

    async def reset(self, connection: Connection, client: Client, early: Early, seconds: float) -> Taken:
        """Reset a connection that was used before, so that a MAIL of `client` may follow. The commands that `early`
        makes leave together with RSET, with PIPELINING. `Refused`: the server refused, or the connection has ended.

        On a client's own connection a changed HELO name is sent with EHLO, which resets as RSET does (RFC 5321 4.1.4):
        an earlier name, perhaps sent in clear before STARTTLS, must not be trusted (RFC 3207 4.2).
        """
        options = self.options
        if options.proxied and connection.greeted_as != _greeting_of(client):
            await self._hello(connection, client)
            return connection, ()
        lines = [b"RSET"]
        if "PIPELINING" in connection.hello and options.announce not in _ANNOUNCED:
            lines += early(connection.hello)
        reset, *answers = connection.commands(lines, options.timeout, seconds)
        if not (await reset).positive:
            raise Refused(replies.UPSTREAM_LOST)
        if answers:
            await _check_server_stays(answers[0])
        return connection, answers

    async def _hello(self, connection: Connection, client: Client | None) -> None:
        """Send EHLO or LHLO, with the HELO name of `client`; None: with the guard's own name. A server that does not
        know EHLO gets a HELO."""
        connection.greeted_as = None if client is None else _greeting_of(client)
        name = (self.options.helo or self._name) if client is None else client.helo
        for verb in ("LHLO",) if self._lmtp else ("EHLO", "HELO"):
            reply = await connection.command(f"{verb} {name}".encode(), self.options.timeout)
            if reply.positive:
                connection.hello = NO_EXTENSIONS if verb == "HELO" else parse_hello(reply)
                return
            # After a PROXY header there is no HELO: a server that takes the header for a command answers the header
            # with one of these codes.
            if self.options.proxied or reply.code not in (500, 502, 504):
                break
        raise refused_by(verb, reply, client)

    async def _hello_after_header(self, connection: Connection, client: Client | None) -> None:
        """Send EHLO after a PROXY header. A server that expects no header takes it for a command, and its answer to the
        header comes before the answer to EHLO, or instead of it."""
        try:
            await self._hello(connection, client)
        except Refused as refused:
            reply = refused.reply
            refuses = reply.said.startswith("5") or reply is replies.UPSTREAM_GARBLED
            if self._header_understood or not refuses:
                raise
            why = describe(refused) + PROXY_HINT
            raise (Unsuitable(why) if client is None else ClientRefused(PROXY, reply, why)) from refused
        self._header_understood = True

    async def _secure(self, connection: Connection, client: Client | None) -> None:
        required = self.options.tls == "required"
        if "STARTTLS" not in connection.hello:
            if required:
                raise Unsuitable("it offers no STARTTLS")
            return
        reply = await connection.command(b"STARTTLS", self.options.timeout)
        if required and 400 <= reply.code < 500:
            # The server may be able to start TLS in a moment.
            raise refused_by("STARTTLS", reply, None)
        if reply.code != 220:
            if required or reply.positive:
                raise Unsuitable(f"it answers STARTTLS with {reply.text}")
            self._warn_of_clear(f"it answers STARTTLS with {reply.text}")
            return
        connection.require_usable()
        try:
            # The limit is no more than `connect`, so that time is left for an attempt in clear if the server is silent.
            await connection.start_tls(self.files_read[0], min(self.options.connect, self.options.timeout))
        except Refused as refused:
            raise HandshakeFailed(refused.reply, connection.tls_problem) from refused
        self._warned_of_clear = False
        # The extensions that were offered in clear must be forgotten (RFC 3207 4.2).
        await self._hello(connection, client)

    def _tls_settings(self) -> Any:
        """The TLS options of connections. They are made once, since reading the trusted certificates blocks the
        reactor. ValueError: there are no certificates."""
        if self.options.tls == "off":
            return None
        # Imported late, since the imports take time and not every guard uses TLS with its upstream server.
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415
        from twisted.internet import ssl  # noqa: PLC0415

        if self.options.tls == "opportunistic":
            return ssl.CertificateOptions()
        trusted = None
        if self.options.tls_ca:
            trusted = ssl.trustRootFromCertificates(
                ssl.Certificate.load(each.public_bytes(Encoding.DER))
                for each in read_certificates(self.options.tls_ca)
            )
        return ssl.optionsForClientTLS(self.options.tls_name or self._host, trustRoot=trusted)

    async def _log_in(self, connection: Connection, credentials: Credentials) -> None:
        lines = dialogue(credentials, connection.hello.words("AUTH"))
        if lines is None:
            raise Unsuitable("it offers neither AUTH PLAIN nor AUTH LOGIN")
        for number, line in enumerate(lines, 1):
            reply = await connection.command(line.encode(), self.options.timeout)
            if reply.code == (235 if number == len(lines) else 334):
                continue
            why = f"it answers AUTH with {_without_secrets(reply, credentials, lines)}"
            if 400 <= reply.code < 500:
                # The failure is temporary: the password may be right (RFC 4954 6).
                raise Explained(replies.UPSTREAM_UNAVAILABLE, why)
            raise Unsuitable(why)

    # Announcing the client.

    async def announce(self, connection: Connection, client: Client) -> None:
        """Send XCLIENT or XFORWARD for `client`, if the operator chose one of them. Called before each MAIL.
        `ClientRefused`: the server refused the command."""
        kind = self.options.announce
        if kind not in _ANNOUNCED:
            return
        verb = kind.upper()
        commands = announcing.xclient if kind == "xclient" else announcing.xforward
        for command in commands(client, self._offered(connection, verb)):
            reply = await connection.command(command.encode(), self.options.timeout)
            # Postfix answers XCLIENT with a new 220 greeting; some servers send 250.
            if not reply.positive:
                raise refused_by(verb, reply, client)
        if kind == "xclient":
            await self._hello(connection, client)

    def _offered(self, connection: Connection, command: str) -> frozenset[str]:
        """The attributes that the server offers for `command`. `Unsuitable`: ADDR is not among them, so the server
        would apply its rules to the guard's address instead of the client's."""
        offered = connection.hello.words(command)
        if "ADDR" not in offered:
            raise Unsuitable(f"it does not offer {command} with ADDR to this host")
        return offered
