"""The common part of `smtp:` and `lmtp:`. Each message is passed to an upstream server while it comes in: the guard
stores nothing, and every verdict is the server's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from zope.interface import implementer

from twisted_smtpguard.delivery.lookahead import Beginning
from twisted_smtpguard.delivery.relay import UpstreamTransaction
from twisted_smtpguard.delivery.relayedmail import Relay
from twisted_smtpguard.engine.hostnames import check_hostname
from twisted_smtpguard.hooks.threads import ReadInThread, ThreadedReactor
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.interfaces import (
    ICheckableDelivery,
    IMailTransaction,
    IPreparedReload,
    IReadsFiles,
    IRelayDelivery,
    IReportsHealth,
    IReservingDelivery,
    ISessionDelivery,
    Later,
)
from twisted_smtpguard.replies import UPSTREAM_UNSUITABLE, Reply, text_of
from twisted_smtpguard.upstream.dialling import Dialler
from twisted_smtpguard.upstream.login import Credentials
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.parameters import UpstreamOptions
from twisted_smtpguard.upstream.pool import FAST_CLOSE_SECONDS, Pool
from twisted_smtpguard.upstream.refusals import describe
from twisted_smtpguard.values import Client, Path, Refused


@implementer(
    ISessionDelivery,
    IRelayDelivery,
    IReservingDelivery,
    ICheckableDelivery,
    IReportsHealth,
    IPreparedReload,
    IReadsFiles,
)
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
        self._name = name
        self.notices = Notices(name, reactor)
        self._dialler = Dialler(
            endpoint, reactor, self.options, self.notices, name=hostname, host=host, lmtp=self.lmtp
        )
        self._pool = Pool(self._dialler)
        self._shares: dict[object, Fraction] = {}
        """The share of the connections that each guard has asked to reserve."""
        self._relay = Relay(
            self._pool,
            self.options,
            self.notices,
            hostname,
            reactor.seconds,
            self._combined if self.lmtp else None,
        )

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
        return self._pool.places.most

    def divide(self, part: int, parts: int) -> None:
        """Open only one of `parts` equal parts of the connections, since other processes open the others. The first is
        0. Called before the start."""
        self._pool.places.divide(part, parts)

    def reserve(self, share: Fraction, guard: object) -> None:
        """Keep this share of the connections, at least one and never all, for clients that are no strangers. With one
        connection none is kept. Waiting clients that are no strangers are then served before strangers. Of several
        guards the one that asks for most decides."""
        self._shares[guard] = share
        self._pool.reserve(max(self._shares.values()))

    @property
    def may_relay_for_all(self) -> bool:
        """A server that does not see the client's address trusts every client as it trusts the guard. So does a server
        that the guard has logged in to: it relays for that user from any address."""
        options = self.options
        return not self.lmtp and (not options.server_sees_client or options.auth is not None)

    @property
    def problem(self) -> str:
        """What clients are told while the server is down."""
        down = self._pool.health.down
        return "" if down is None else text_of(down)

    @property
    def connections_by_state(self) -> Mapping[str, int]:
        """`in_use`, `idle`, `parked` for the client that they were announced for, `opening` and `closing`. `reserved`
        are those, idle or not yet open, that strangers cannot have now."""
        return self._pool.places.by_state

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

    async def check(self) -> str:
        """Make a connection as a start does, with TLS and the login, and close it. A server that cannot be reached now
        is told. ValueError: it cannot be used as it is configured, or its name is unknown."""
        try:
            connection = await self._dialler.dial(None, lambda _: None)
        except Refused as refused:
            problem = f"{self._name}: {describe(refused)}"
            if refused.reply is UPSTREAM_UNSUITABLE or isinstance(refused.__cause__, DNSLookupError):
                raise ValueError(problem) from refused
            return problem
        connection.quit(FAST_CLOSE_SECONDS)
        await connection.closed
        return ""

    def begin(self, client: Client, sender: Path) -> Later[IMailTransaction]:
        """Nothing is sent before the answer is waited for."""
        mail = UpstreamTransaction(self._relay, client)
        return Beginning(partial(mail.begin, sender), mail.look_ahead)

    def session_ended(self, session: str) -> None:
        self._pool.session_ended(session)

    def _combined(self, client: Client, recipients: Sequence[Path], verdicts: Sequence[Reply]) -> Reply:
        """The one verdict for the client, in LMTP."""
        raise NotImplementedError
