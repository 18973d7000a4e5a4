"""A rehearsal: what would happen to a client that came now.

A connection that does not exist is carried out by the code that carries out all others: the cap at accept, admission
with its filters and limits, the engine. Its counter store only looks, its events are not logged, and its delivery takes
everything. So no rule stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.admission.admission import Admission
from twisted_smtpguard.admission.chain import FilterChain, FilterEntry
from twisted_smtpguard.admission.clients import ClientLimits, Place
from twisted_smtpguard.admission.loginattempts import LoginAttempts
from twisted_smtpguard.checkers.checking import Judgement, User
from twisted_smtpguard.counters.counting import LookingCounting
from twisted_smtpguard.engine import arrival
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.port import Answered, Cancellable, Close, Host
from twisted_smtpguard.engine.refusal import NotAdmitted
from twisted_smtpguard.hooks.faults import at_debug
from twisted_smtpguard.hooks.later import call_hook, mapped, when_answered, within
from twisted_smtpguard.inputs.escaping import escape_text
from twisted_smtpguard.interfaces import IExplainingFilter, IIPFilter
from twisted_smtpguard.limits.limits import IP_FILTER
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.history import MAX_CHARACTERS
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.records.records import Records
from twisted_smtpguard.records.recordtables import LOGIN
from twisted_smtpguard.replies import text_of
from twisted_smtpguard.transport.factory import Arrival, SMTPGuardFactory
from twisted_smtpguard.transport.seating import Seating
from twisted_smtpguard.values import FAULTS, Address, Client, Path, Peer, Verdict, is_later

ARRIVAL = "connection"
"""The step before the first command."""

_QUIT = ("QUIT", b"QUIT\r\n")
_AUTH = ("AUTH", b"AUTH PLAIN AGEAYg==\r\n")
"""As the user `a` with the password `b`, which are right in a rehearsal."""
_EHLO = ("EHLO", b"EHLO x\r\n")
_MAIL = (
    ("MAIL", b"MAIL FROM:<>\r\n"),
    ("RCPT", b"RCPT TO:<a@b>\r\n"),
    _QUIT,
)
"""What the client says, with the name of each step, in lines so short that no limit which lets mail pass refuses them.
It logs in where it has to, and leaves when a command is refused."""


@attrs.define
class Outcome:
    """What happened in a rehearsal. Every text of a stranger in it is escaped."""

    replies: dict[str, str] = attrs.field(factory=dict)
    """What the client was told at each step that was reached: `connection`, then the verbs."""
    refusals: list[dict[str, object]] = attrs.field(factory=list)
    """Every refusal as the history would show it, those in dry run too, with its `step`."""
    filters: list[dict[str, object]] = attrs.field(factory=list)
    """What each filter answered, in their order. One that is not `asked` comes after the one that decides."""
    trusted: bool = False
    """Whether a filter trusts the client."""
    problems: list[str] = attrs.field(factory=list)
    """What has failed meanwhile, a sentence each."""

    @property
    def refused(self) -> dict[str, object] | None:
        """The first refusal that is enforced; None if the guard itself would accept a mail."""
        return next((each for each in self.refusals if not each["dry_run"]), None)


def rehearse(factory: SMTPGuardFactory, address: Address | None) -> Deferred[Outcome]:
    """Rehearse a connection from this address, None for a UNIX socket, and a mail with one recipient.

    It fires when the filters have answered. What a handshake, or a client that sends too early, would change is left
    out, and neither the delivery nor a checker is asked. A login is one of a user who has not logged in from there
    before.
    """
    return Deferred.fromCoroutine(_rehearse(factory, Peer(address, None, None, None)))


async def _rehearse(factory: SMTPGuardFactory, peer: Peer) -> Outcome:
    outcome = Outcome()
    witness = _Witness(factory, outcome)
    name = "unix" if peer.address is None else str(peer.address)
    asked = [_Asked(entry, witness) for entry in factory.admission.chain.entries]
    turn_away = factory.turned_away(lambda: peer.address)
    if turn_away is not None and factory.enforces(turn_away, Arrival(name, None, ""), witness):
        outcome.replies[ARRIVAL] = text_of(turn_away.refusal.reply)
    else:
        host = _Host(peer, outcome, (_EHLO, *([_AUTH] if factory.context.require_auth else ()), *_MAIL))
        witness.host = host
        host.engine = _engine(factory, host, name, witness, [each.entry for each in asked])
        arrival.begin(host.engine)
        await host.over
        outcome.trusted = host.engine.trusted
    for each in asked:
        each.row["asked"] = each.answered
    # An operator wants to know what those would say that come after the one that decides.
    await gatherResults([_ask_alone(factory, each, peer, name) for each in asked if not each.answered])
    await gatherResults([each.explain(peer, factory, outcome) for each in asked])
    outcome.filters = [each.row for each in asked]
    return outcome


def _engine(
    factory: SMTPGuardFactory, host: _Host, name: str, witness: _Witness, entries: list[FilterEntry]
) -> Engine:
    """The engine of a connection that is not counted, logged or delivered anywhere."""
    context, limits = factory.context, factory.context.limits
    clients = ClientLimits(limits, LookingCounting(factory.counting), context.seconds)
    seating = _LookingSeating(factory.seating)
    rehearsed = attrs.evolve(
        context,
        events=witness,
        clients=clients,
        attempts=LoginAttempts(
            clients, Records(LOGIN, 1, context.seconds), context.call_later, context.seconds, rehearses=True
        ),
        admission=Admission(limits, entries, clients, context.call_later, witness, factory.bans, seating),
        offences=None,
        guard=_Guard(),
        delivery=_Delivery(),
        pending_delivery_settled=lambda: None,
        session_ended=None,
        policies={},
        identify=lambda login: Judgement(User("", None)),
        mechanisms=lambda certified: ("PLAIN",),
        auth_without_tls=True,
        require_tls=False,
        require_auth=False,
    )
    rehearsed.defer(context.deferral)
    rehearsed.stressed = context.stressed
    engine = Engine(rehearsed, host, name)
    engine.seated = seating.taken <= factory.seating.seats.of_strangers
    return engine


def _ask_alone(factory: SMTPGuardFactory, asked: _Asked, peer: Peer, name: str) -> Deferred[None]:
    """Ask a filter that the rehearsal has not reached, by a chain of this filter alone."""
    witness = asked.witness = _Witness(factory, Outcome())

    async def nothing() -> None:
        pass

    async def ask() -> None:
        limits, call_later = factory.context.limits, factory.context.call_later
        try:
            await FilterChain([asked.entry], limits, call_later, witness).judge(_Enquiry(peer, name), nothing)
        except NotAdmitted:
            # The row has it.
            pass

    return Deferred.fromCoroutine(ask())


@implementer(IIPFilter)
class _Asked:
    """A filter whose answer is written into `row`."""

    def __init__(self, entry: FilterEntry, witness: _Witness) -> None:
        self._filter: Any = entry.filter
        self.entry = attrs.evolve(entry, filter=self)
        self.witness = witness
        dry_run = IP_FILTER in witness.limits.dry_run
        self.row: dict[str, object] = {
            "filter": escape_text(entry.name),
            "asked": False,
            "fail_open": entry.fail_open,
            "dry_run": dry_run,
        }

    @property
    def answered(self) -> bool:
        """Whether its verdict is known. One that is cancelled, since a limit has refused the client, has none."""
        return "verdict" in self.row

    def check(self, peer: Peer) -> Any:
        self.witness.asking = self
        answer: Any = self._filter.check(peer)
        return mapped(answer, self._note) if is_later(answer) else self._note(answer)

    def explain(self, peer: Peer, factory: SMTPGuardFactory, outcome: Outcome) -> Deferred[None]:
        """Ask the filter what in its data gives its verdict, if it can tell."""

        async def ask() -> None:
            if IExplainingFilter.providedBy(self._filter):
                answer = call_hook(self._filter.explain, peer)
                limit, call_later = factory.context.limits.ip_filter_timeout, factory.context.call_later
                try:
                    because = await within(limit, call_later, answer)
                except FAULTS as error:
                    outcome.problems.append(_shown(f"{self.entry.name}: {type(error).__name__}: {error}"))
                else:
                    self.row.update({"because": _shown(because)} if because else {})

        return Deferred.fromCoroutine(ask())

    def _note(self, verdict: Any) -> Any:
        if isinstance(verdict, Verdict):
            self.row["verdict"] = verdict.kind
            self.row["dry_run"] = self.row["dry_run"] or verdict.dry_run
            if verdict.rule:
                self.row["rule"] = _shown(verdict.rule)
            if verdict.reply is not None:
                self.row["reply"] = _shown(text_of(verdict.reply))
        return verdict


class _Witness(Events):
    """Events that are written down instead of logged, and count for themselves."""

    def __init__(self, factory: SMTPGuardFactory, outcome: Outcome) -> None:
        self.limits = factory.context.limits
        super().__init__(Statistics(), factory.deadlines.clock, self.limits, LogLevel.critical)
        self.outcome = outcome
        self.host: _Host | None = None
        self.asking: _Asked | None = None

    def reject(self, peer: str, reason: str, **fields: Any) -> None:
        super().reject(peer, reason, **fields)
        (row, *_) = self.history.refusals.of(peer)
        row["step"] = ARRIVAL if self.host is None else self.host.step
        self.outcome.refusals.append(
            {name: value for name, value in row.items() if name not in ("time", "address", "session")}
        )

    def filter_failed(self, ip_filter: str, peer: str, problem: str, *, let_in: bool) -> None:
        if self.asking is not None:
            self.asking.row.update(verdict="failed", problem=problem)

    def failure(self, failure: Failure | BaseException, text: str, session: str = "", peer: str = "") -> None:
        error = failure.value if isinstance(failure, Failure) else failure
        self.outcome.problems.append(_shown(f"{text}: {type(error).__name__}: {error}"))


class _Host(Host):
    """The host of a rehearsed connection: it hears what the client would, and says what is next."""

    gone = False
    engine: Engine

    def __init__(self, peer: Peer, outcome: Outcome, commands: Sequence[tuple[str, bytes]]) -> None:
        self._peer = peer
        self._outcome = outcome
        self._commands = iter(commands)
        self.step = ARRIVAL
        self.over: Deferred[None] = Deferred()

    def address(self) -> Address | None:
        return self._peer.address

    def peer(self) -> Peer:
        return self._peer

    def write(self, octets: bytes) -> bool:
        self._hear(octets)
        return False

    def turn_away(self, line: bytes) -> None:
        self._hear(line)
        self.close(Close.PLAIN)

    def _hear(self, octets: bytes) -> None:
        self._outcome.replies[self.step] = _shown(octets.decode("ascii").replace("\r\n", " ").strip())
        if not self.engine.gone:
            self.step, line = next(self._commands) if octets[:1] == b"2" else _QUIT
            self.engine.received(line)

    def close(self, how: Close) -> None:
        if not self.over.called:
            self.over.callback(None)
            self.engine.lost()

    def wait(self, later: Any, answered: Answered) -> Cancellable:
        return when_answered(later, answered, at_debug)

    def next_turn(self) -> None:
        self.engine.take_turn()


class _LookingSeating:
    """The seats of a guard with one more connection, which takes none."""

    imagined = 1

    def __init__(self, seating: Seating) -> None:
        self._seating = seating
        self.taken = seating.taken + 1

    def found(self, of_all: int) -> None:
        pass

    def make_room(self, network: str) -> bool:
        return self._seating.could_make_room(network)


class _Guard:
    """Stands in for the factory: nothing is counted."""

    session_times: Any

    def __init__(self) -> None:
        self.session_times = self

    def next_session_name(self) -> str:
        return "rehearsal"

    def greet_delay(self) -> float:
        return 0

    def may_linger(self) -> bool:
        return False

    def release(self, engine: Engine) -> None:
        pass

    def add(self, engine: Engine) -> None:
        pass

    def remove(self, engine: Engine) -> None:
        pass


class _Delivery:
    """Begins and accepts everything, and is its own transaction. It comes to no message."""

    extensions: frozenset[str] = frozenset()
    max_message_octets = 0

    def begin(self, client: Client, sender: Path) -> _Delivery:
        return self

    def recipient(self, recipient: Path) -> None:
        pass

    def abort(self) -> None:
        pass


@attrs.define
class _Enquiry:
    """A PendingConnection, for a filter that is asked alone."""

    peer: Peer
    peer_name: str
    port: int | None = None
    listener: str = ""
    trusted: bool = False
    place: Place | None = None
    key: str = ""
    gone: bool = False
    is_known: bool = False
    names_client: bool = True
    seated: bool = True
    may_use_reserve: bool = False
    widest_network: str = ""


def _shown(text: str) -> str:
    return escape_text(text[:MAX_CHARACTERS])
