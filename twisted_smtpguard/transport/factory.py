"""The factory of a guard: its live connections, the cap on them, and what they share, for any number of ports."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import ServerFactory

from twisted_smtpguard import replies
from twisted_smtpguard.admission.admission import Admission
from twisted_smtpguard.admission.bans import BanList
from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.admission.clients import ClientLimits
from twisted_smtpguard.admission.known import KnownClients
from twisted_smtpguard.admission.loginattempts import LoginAttempts
from twisted_smtpguard.admission.offences import Offences
from twisted_smtpguard.admission.seats import RESERVED, TOTAL
from twisted_smtpguard.checkers.checking import Checkers
from twisted_smtpguard.counters.counting import Counting
from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.engine.context import ServerContext
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.hostnames import check_hostname
from twisted_smtpguard.engine.stages import Stage
from twisted_smtpguard.engine.table import STAGES
from twisted_smtpguard.hooks.faults import safely
from twisted_smtpguard.hooks.turns import FairScheduler, ReplyBatcher
from twisted_smtpguard.inputs.arguments import checked, unfit
from twisted_smtpguard.interfaces import (
    IAsksForKnownClients,
    ICounterStore,
    IDelivery,
    IIPFilter,
    IRelayDelivery,
    IRelayTransaction,
    ISessionDelivery,
    ISessionPolicy,
)
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.policies.policyentry import PolicyEntry, by_stage, entries_of
from twisted_smtpguard.records.recordsharing import record_sharing
from twisted_smtpguard.records.recordtables import BAN, FORMER_BAN, KNOWN, LOGIN, RecordTables
from twisted_smtpguard.tls.files import can_begin_tls
from twisted_smtpguard.transport.deadlines import Deadlines
from twisted_smtpguard.transport.draining import Drain
from twisted_smtpguard.transport.endwatcher import EndWatcher
from twisted_smtpguard.transport.output import OutputRules
from twisted_smtpguard.transport.peers import peer_address, peer_name
from twisted_smtpguard.transport.protocol import SMTPGuardProtocol
from twisted_smtpguard.transport.proxynetworks import ProxyNetworks
from twisted_smtpguard.transport.seating import Seating
from twisted_smtpguard.transport.socketbuffers import SocketBuffers
from twisted_smtpguard.transport.turnaway import SilentTurnAway, TurnAway
from twisted_smtpguard.values import Address

_SILENT = SilentTurnAway()


class Arrival(NamedTuple):
    """What the log shows of a connection that is refused at accept."""

    peer_name: str
    port: int | None
    listener: str


class SMTPGuardFactory(ServerFactory):
    """Tracks the live protocols of a guard. Usable on any stream endpoint, alone or in SMTPGuardService.

    `reactor` provides the time. `hostname` is the guard's name in its greeting; by default the machine's name.
    `events` logs and counts; by default at level info. `ip_filters` are asked in their order; a FilterEntry adds
    settings to a filter. `counters` stores the counts of each client; by default in memory. One that is
    given may be shared by several guards, and counts the connections of all of them. `tls` has the certificate:
    CertificateFiles, or whatever Twisted's `startTLS` takes; without it STARTTLS is not offered.
    `proxy_protocol_from` has the networks of trusted proxies, and `unix` for UNIX sockets: each connection from there
    begins with a PROXY header. `proxy_protocol_tls` believes what they report of a client's TLS.
    `checkers`, of twisted.cred, decide who may log in with AUTH: with TLS only, unless `auth_without_tls`.
    `require_auth` refuses MAIL before AUTH, `require_tls` refuses MAIL without TLS. `policies` are asked at their
    stages of a session, in their order; a PolicyEntry adds settings to a policy.
    """

    noisy = False
    _lingering = 0
    on_connection: Callable[[SMTPGuardProtocol], object] | None = None
    """Called with each new connection, while there are traces."""

    @checked
    def __init__(
        self,
        reactor: IReactorTime,
        delivery: IDelivery,
        *,
        limits: Limits | None = None,
        hostname: str | None = None,
        events: Events | None = None,
        ip_filters: Sequence[IIPFilter | FilterEntry] = (),
        counters: ICounterStore | None = None,
        tls: object | None = None,
        proxy_protocol_from: Sequence[str] = (),
        proxy_protocol_tls: bool = False,
        checkers: Sequence[object] = (),
        require_tls: bool = False,
        require_auth: bool = False,
        auth_without_tls: bool = False,
        policies: Sequence[ISessionPolicy | PolicyEntry] = (),
    ) -> None:
        limits = Limits() if limits is None else limits
        if tls is not None and not can_begin_tls(tls):
            raise unfit("tls", "CertificateFiles, or what else Twisted's startTLS() takes", tls)
        if require_tls and tls is None and not proxy_protocol_tls:
            raise ValueError("require_tls needs tls: without it everybody would be refused")
        if require_auth and not checkers:
            raise ValueError("require_auth needs checkers")
        if proxy_protocol_tls and not proxy_protocol_from:
            raise ValueError("proxy_protocol_tls needs proxy_protocol_from")
        events = events or Events(Statistics(), reactor, limits)
        self.deadlines = Deadlines(reactor)
        self.tls: Any = tls
        try:
            self.proxies = ProxyNetworks(proxy_protocol_from) if proxy_protocol_from else None
        except ValueError as error:
            raise ValueError(f"proxy_protocol_from: {error}") from None
        self.asks_for_certificates = bool(getattr(tls, "asks_for_certificates", False))
        own = self.own_counters = LocalCounterStore(limits.max_tracked_clients, reactor.seconds)
        self.counting = Counting(counters, own, reactor, events, self._something_ended)
        self.records = RecordTables(reactor.seconds)
        """What is remembered of clients after their connections have ended."""
        self.clients = ClientLimits(limits, self.counting, reactor.seconds, self.records[BAN])
        self.known = KnownClients(limits, self.records[KNOWN], reactor.seconds)
        self.filters = tuple(
            each if isinstance(each, FilterEntry) else FilterEntry(each) for each in ip_filters
        )
        self.bans = BanList(limits, self.records[BAN], self.records[FORMER_BAN], reactor.seconds)
        self.offences = Offences(limits, self.bans, self.counting, events)
        self.seating = Seating(limits, self.deadlines, self.counting, events, self.sessions)
        self.admission = Admission(
            limits, self.filters, self.clients, self.deadlines.call_later, events, self.bans, self.seating
        )
        for entry in self.filters:
            if IAsksForKnownClients.providedBy(entry.filter):
                IAsksForKnownClients(entry.filter).ask_for_known(self.known_client)
        attempts = LoginAttempts(self.clients, self.records[LOGIN], reactor.callLater, reactor.seconds)
        self.session_times = self.seating.session_times
        is_session_delivery = ISessionDelivery.providedBy(delivery)
        self.context = ServerContext(
            limits=limits,
            delivery=delivery,
            hostname=socket.gethostname() if hostname is None else check_hostname(hostname),
            events=events,
            clients=self.clients,
            admission=self.admission,
            known=self.known,
            attempts=attempts,
            offences=self.offences,
            seconds=reactor.seconds,
            call_later=self.deadlines.call_later,
            stages=STAGES,
            guard=self,
            pending_delivery_settled=self._something_ended,
            is_relay=IRelayTransaction.providedBy,
            offers_chunking=self._offers_chunking,
            session_ended=ISessionDelivery(delivery).session_ended if is_session_delivery else None,
            starttls=tls is not None,
            asks_for_certificates=self.asks_for_certificates,
            proxy_tls=proxy_protocol_tls,
            **Checkers(checkers).hooks,
            auth_without_tls=auth_without_tls,
            require_tls=require_tls,
            require_auth=require_auth,
        )
        self.policies = entries_of(policies)
        self.context.policies = by_stage(self.policies)
        self.seating.serve(self.context)
        self.turns = FairScheduler(reactor)
        self.ends = EndWatcher()
        self.output_rules = OutputRules(self.deadlines, ReplyBatcher(reactor), limits)
        self.socket_buffers = SocketBuffers(limits.socket_send_buffer, limits.socket_receive_buffer)
        self._full = TurnAway(replies.TOO_MANY_CONNECTIONS)
        self._reserved = TurnAway(replies.TOO_MANY_CONNECTIONS, RESERVED)
        self._stopping = TurnAway(replies.SHUTTING_DOWN)
        self._session_prefix = secrets.token_hex(4)
        self._session_numbers = count(1)
        self._open: set[SMTPGuardProtocol] = set()
        sharing = record_sharing(counters, self.records, reactor.callLater, events)
        self._drain = Drain(self.context, self.deadlines, self.counting, sharing, self._open)

    @property
    def statistics(self) -> Statistics:
        """The statistics so far."""
        statistics: Statistics = self.context.events.statistics
        return statistics

    @property
    def connections(self) -> int:
        """The number of connections that hold a slot of `Limits.max_connections`."""
        return self.seating.taken

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self.context.limits

    @checked
    def set_limits(self, limits: Limits) -> None:
        """Swap the limits of the running guard for others: `attrs.evolve(factory.limits, max_connections=500)` changes
        one. From when on each of them holds is its `LimitSpec.holds_from`."""
        before, engines = self.context.limits, [protocol.engine for protocol in self._open]
        self.own_counters.set_max_clients(limits.max_tracked_clients)
        self.clients.limits = self.output_rules.limits = limits
        self.admission.set_limits(limits)
        self.known.set_limits(limits)
        self.bans.set_limits(limits)
        self.offences.set_limits(limits)
        for budget in self.context.events.budgets:
            budget.set_limits(limits.max_log_lines, limits.max_log_lines_per_client)
        self.context.set_limits(limits)
        self.socket_buffers.set_sizes(limits.socket_send_buffer, limits.socket_receive_buffer)
        for engine in engines:
            engine.limits_changed()
            if engine.admitted:
                self.admission.count_admitted(engine)
        if limits.max_session_time != before.max_session_time or limits.dry_run != before.dry_run:
            sessions = [engine for engine in engines if engine.name and not engine.gone]
            for engine in sessions:
                # Those whose time was over before are told again, if it still is.
                engine.account_all = self.context.draining
            self.session_times.restart(limits.max_session_time, sessions)
        self.seating.set_limits(limits)

    def known_client(self, address: Address | None) -> str:
        """The key of the client at an address if it is known, by mail of it or by the operator, else ""."""
        return key if self.known.has(key := self.clients.key_of(address), address) else ""

    def _offers_chunking(self) -> bool:
        delivery = self.context.delivery
        return not IRelayDelivery.providedBy(delivery) or IRelayDelivery(delivery).chunking

    def greet_delay(self) -> float:
        """The seconds from admission to the greeting, at this time; 0 for none, as in stress: a client that waits holds
        a seat. The one with which stress begins waits: there is no delay above 80 % of the cap."""
        return 0 if self.seating.is_crowded else self.context.limits.greet_delay

    def next_session_name(self) -> str:
        """Return a session name for the log that no other session has, in this process or another."""
        return f"{self._session_prefix}-{next(self._session_numbers):x}"

    def startFactory(self) -> None:
        """Called by Twisted when the first port begins to listen."""
        self.ends.prepare()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Called by the port at accept. A connection above the cap gets a protocol that turns it away."""
        return self.build(addr, "")

    def build(self, addr: IAddress | None, listener: str, *, implicit_tls: bool = False) -> Any:
        """As `buildProtocol`, for a connection to the listener with this name. `implicit_tls`: TLS comes before the
        greeting."""
        seating, seated = self.seating, True
        if seating.held >= seating.seats.looked_at_from or self._drain.begun:
            late = implicit_tls and self.asks_for_certificates
            turn_away = self.turned_away(partial(peer_address, addr), late=late)
            seated = seating.held < seating.seats.of_strangers
            if turn_away is not None:
                arrival = Arrival(peer_name(addr), getattr(addr, "port", None), listener)
                if self.enforces(turn_away, arrival, self.context.events):
                    return _SILENT if implicit_tls else turn_away
        protocol = SMTPGuardProtocol(self, addr, listener, implicit_tls=implicit_tls)
        protocol.engine.seated = seated
        seating.take()
        self._open.add(protocol)
        if self.on_connection is not None:
            # An exception here would leave the slot taken, since the transport never begins.
            safely(
                self.context.events.failure, "a connection could not be traced", self.on_connection, protocol
            )
        return protocol

    def turned_away(self, address: Callable[[], Address | None], *, late: bool = False) -> TurnAway | None:
        """What turns away a connection that comes now; None: nothing, or admission decides. `address` returns its
        address, and is called only if that matters. `late`: a TLS handshake comes before admission, too long for a seat
        that it may not have."""
        if self._drain.begun:
            return self._stopping
        taken, seats = self.seating.held, self.seating.seats
        if taken < seats.of_strangers:
            return self._full if taken >= seats.tried_cap else None
        if taken < seats.all and self._may_use_reserve(address, late=late):
            return None
        # Where the store answers later, the connection would be one too many until then.
        if not late and self.seating.may_make_room and (taken < seats.all or not self.counting.can_fail):
            of_client = address()
            if self.proxies is None or not self.proxies.has(of_client):
                network = self.clients.widest_network(self.clients.key_of(of_client))
                if self.seating.could_make_room("" if self.known_client(of_client) else network):
                    return None
        return self._full if taken >= seats.all else self._reserved

    def _may_use_reserve(self, address: Callable[[], Address | None], *, late: bool) -> bool:
        """Whether a connection may turn out to be from a client that is known or trusted. Of a proxy's that is known as
        soon as its header has come."""
        if self.admission.chain.entries and not late:
            return True
        if self.proxies is None and not self.known.are_some:
            return False
        of_client = address()
        proxied = self.proxies is not None and self.proxies.has(of_client)
        return proxied or bool(self.known_client(of_client))

    def enforces(self, turn_away: TurnAway, arrival: Arrival, events: Events) -> bool:
        """Log to `events` that a connection is turned away. Returns False if that is only logged, in dry run."""
        limits, capped = self.context.limits, turn_away is not self._stopping
        dry_run = turn_away is self._full and TOTAL in limits.dry_run
        value = self.seating.held + 1 if capped else None
        turn_away.refusal.log(arrival, events, limits, dry_run=dry_run, value=value)
        return not dry_run

    # Called by the protocols.

    def may_linger(self) -> bool:
        """Whether one more connection may linger, which is counted then. Above the cap it is closed at once."""
        cap = self.context.limits.max_lingering
        if cap and self._lingering >= cap:
            return False
        self._lingering += 1
        return True

    def release(self, engine: Engine) -> None:
        """Give back a connection's slot: our side is being shut down, or the connection is gone. Called once."""
        self.seating.give_back()

    def connection_ended(self, protocol: SMTPGuardProtocol, *, lingered: bool) -> None:
        """Forget a connection that is gone. Called once. `lingered`: it was counted by `may_linger`."""
        self._open.discard(protocol)
        self._lingering -= lingered
        self._something_ended()

    # Called for an operator.

    @property
    def lingering(self) -> int:
        """The number of connections that are closed on our side and wait for their client's end."""
        return self._lingering

    def sessions(self) -> list[Engine]:
        """The connections that have not been closed on our side."""
        return [protocol.engine for protocol in self._open if not protocol.engine.gone]

    def connections_by_stage(self) -> dict[str, int]:
        """How many connections are open, for each stage by its name in lower case."""
        stages = [protocol.engine.stage for protocol in self._open]
        return {stage.name.lower(): stages.count(stage) for stage in Stage if stage is not Stage.CLOSED}

    def end_session(self, name: str) -> bool:
        """End the session with this name with a 421, also in a mail transaction: now, or after the verdict that it
        waits for. Returns whether there is such a session."""
        engine = next((each for each in self.sessions() if name and each.name == name), None)
        if engine is None:
            return False
        if engine.awaits_verdict:
            # Its client would send the message again, and it may be safe already.
            engine.closing_reply, engine.account_next = replies.SESSION_ENDED, True
        else:
            engine.input(engine.hang_up, replies.SESSION_ENDED)
        return True

    # Called by the service.

    def drain(self) -> Deferred[None]:
        """Refuse new connections and end the sessions. Fires when every session has ended and every verdict has come.

        A session in a mail transaction has `Limits.shutdown_grace` seconds to end it; then the session is ended. May be
        called again meanwhile.
        """
        return self._drain.begin()

    @property
    def pending_verdicts(self) -> int:
        """The number of messages on which the delivery has not given its verdict."""
        return self._drain.pending_verdicts

    def reopen(self) -> None:
        """Admit connections again after a drain. RuntimeError if the drain is not over."""
        self._drain.reopen()

    def end_now(self) -> None:
        """End the grace of the drain: every session ends, and a reply that is not sent half a second later is dropped.
        Pending verdicts have five seconds more, however often this is called. Before a drain: it gets no grace."""
        self._drain.end_now()

    def _something_ended(self) -> None:
        self._drain.something_ended()
