"""The IP filter of lists in the DNS (RFC 5782): blocklists and allow lists, by weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_smtpguard.filters.dnsblasker import Asker
from twisted_smtpguard.filters.dnsbldecision import decide, is_asked_about, shown
from twisted_smtpguard.filters.dnsbllist import Client, DnsblNotices, ListInUse
from twisted_smtpguard.filters.dnsblsettings import DnsblSettings, parse_dnsbl
from twisted_smtpguard.hooks.promise import Promise
from twisted_smtpguard.interfaces import (
    IAsksForKnownClients,
    IExplainingFilter,
    IIPFilter,
    IIPFilterFactory,
    IMeasuredFilter,
    IReloadable,
    ISelfTestingFilter,
)
from twisted_smtpguard.values import PASS, Address, FilterMetric, Peer, Verdict, refuse

TEST_SECONDS = 600.0
"""How often all lists are tested, and the resolvers looked for."""

RETRY_SECONDS = 60.0
"""How often a list is tested that is left out."""


@implementer(IExplainingFilter, IReloadable, IMeasuredFilter, IAsksForKnownClients, ISelfTestingFilter)
class DnsblFilter(Service):
    """Refuses a client if the weights of the lists that list it reach the threshold.

    It is a service, and passes everybody until it is started: then the lists are tested first, for which a client
    waits. `reactor` has the time, sockets and threads. `client` asks the name servers; by default a DNSClient.
    """

    def __init__(self, settings: DnsblSettings, reactor: Any, client: Client | None = None) -> None:
        if client is None:
            # twisted.names is needed only where lists are asked.
            from twisted_smtpguard.filters.dnsclient import DNSClient  # noqa: PLC0415

            client = DNSClient(reactor, settings.resolver)
        self.settings = settings
        self.clock = reactor
        self._client = client
        notices = DnsblNotices(reactor.seconds)
        self.lists = [ListInUse(each, settings, client, reactor, notices) for each in settings.lists]
        for each in self.lists:
            each.tested = partial(self._tested, each)
        self._known_client: Callable[[Address], str] = lambda _: ""
        self._waiting: dict[Decision, None] = {}
        """The decisions that wait for the first test of a list."""
        self._timer: Any = None
        self._rounds = 0

    # The service.

    def startService(self) -> None:
        super().startService()
        self._rounds = 0
        self._look()

    def stopService(self) -> None:
        super().stopService()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        for each in self.lists:
            each.stop()

    def _look(self) -> None:
        """Test the lists: all, or those that are left out."""
        all_due = self._rounds % (TEST_SECONDS // RETRY_SECONDS) == 0
        self._rounds += 1
        self._timer = self.clock.callLater(RETRY_SECONDS, self._look)
        due = self.lists if all_due else [each for each in self.lists if each.problem]
        if due:
            # If the resolvers are not found, those that were known are asked. Without any no list passes its test,
            # which is logged.
            self._test(due).addErrback(lambda _: None)

    def _test(self, lists: Sequence[ListInUse]) -> Deferred[None]:
        """Find the resolvers, and then begin to test the lists."""

        def begin(found: Any) -> Any:
            if self.running:
                for each in lists:
                    each.test()
            return found

        return self._client.find_servers().addBoth(begin)

    def _tested(self, tested: ListInUse) -> None:
        """A list has been tested."""
        for decision in list(self._waiting):
            decision.tested(tested)

    def reload(self) -> Deferred[None]:
        """Find the resolvers, forget all answers, and test the lists. ValueError: the resolvers are not found."""
        for each in self.lists:
            each.asker.forget()
        return self._test(self.lists)

    async def self_test(self) -> str:
        """Test the lists. Returns what is wrong with them."""
        try:
            await self._client.find_servers()
        except ValueError as error:
            return str(error)
        tested: list[Deferred[None]] = []
        for each in self.lists:
            done: Deferred[None] = Deferred()
            tested.append(done)
            each.tested = partial(done.callback, None)
            each.test()
        for done in tested:
            await done
        return "; ".join(f"the list {each.name}: {each.problem}" for each in self.lists if each.problem)

    # As an IP filter.

    def ask_for_known(self, known_client: Callable[[Address], str]) -> None:
        self._known_client = known_client

    def check(self, peer: Peer) -> Verdict | Promise[Verdict]:
        address = peer.address
        if not self.running or address is None or not is_asked_about(address):
            return PASS
        return Decision(self, address).begin()

    def explain(self, peer: Peer) -> str:
        """The lists that list the client, and in brackets what is known of the others."""
        address = peer.address
        if address is None or not is_asked_about(address):
            return "no list is asked about this address"
        answers = {each: each.answer_about(address) for each in self.lists}
        listing = [f"{each.name} ({answer})" for each, (answer, lists_it) in answers.items() if lists_it]
        others = [f"{each.name} {answer}" for each, (answer, lists_it) in answers.items() if not lists_it]
        found = f"its listing by {', '.join(listing)}" if listing else "no list has it"
        return f"{found} [{'; '.join(others)}]" if others else found

    def waits(self, decision: Decision, *, for_a_test: bool) -> None:
        """Called with a decision that waits for the first test of a list, and when it does so no longer."""
        if for_a_test:
            self._waiting[decision] = None
        else:
            self._waiting.pop(decision, None)

    def decided(self, address: Address, refused: bool, answers: Mapping[ListInUse, Sequence[int]]) -> None:
        """Called with each decision. `refused`: the lists would refuse the client, were none in dry run."""
        client = self._known_client(address)
        if client:
            for each, codes in answers.items():
                if each.weight > 0:
                    each.count_known(client, refused=refused and bool(codes))

    @property
    def metrics(self) -> Sequence[FilterMetric]:
        answers: dict[tuple[str, ...], float] = {
            (each.name, outcome): number
            for each in self.lists
            for outcome, number in each.asker.answers.items()
        }
        counts: dict[tuple[str, ...], float] = {
            (each.name,): int(not each.problem and not each.in_dry_run) for each in self.lists
        }
        return (
            FilterMetric(
                "dnsbl_answers",
                "Questions to lists in the DNS, by what came of them.",
                ("list", "outcome"),
                answers,
                rises=True,
            ),
            FilterMetric(
                "dnsbl_list_counts",
                "Whether the answers of a list in the DNS count: 0 while it is left out or in dry run.",
                ("list",),
                counts,
            ),
        )


class Decision:
    """The decision about one client."""

    __slots__ = ("_address", "_answers", "_filter", "_pending", "_promise", "_timer")

    def __init__(self, ip_filter: DnsblFilter, address: Address) -> None:
        self._filter = ip_filter
        self._address = address
        self._answers: dict[ListInUse, tuple[int, ...]] = {}
        self._pending: dict[Asker, ListInUse] = {}
        self._promise: Promise[Verdict] = Promise(self._end)
        self._timer: Any = None

    def begin(self) -> Verdict | Promise[Verdict]:
        """Ask those lists whose answers are not known. A list that has not been tested is asked after its test."""
        for each in self._filter.lists:
            self._look_at(each)
        if any(each.untested for each in self._pending.values()):
            self._filter.waits(self, for_a_test=True)
        self._settle()
        self._ask()
        if self._promise.there:
            return self._promise.result()
        settings, clock = self._filter.settings, self._filter.clock
        self._timer = clock.callLater(settings.timeout, self._out_of_time)
        return self._promise

    def _look_at(self, each: ListInUse) -> None:
        """Take what a list has answered before, or have it asked."""
        codes = each.asker.kept(self._address) if each.serves(self._address) else None
        if codes is not None:
            self._answers[each] = codes
        elif each.untested or each.serves(self._address):
            self._pending[each.asker] = each

    def _ask(self) -> None:
        for asker, each in list(self._pending.items()):
            if not (self._promise.there or each.untested):
                asker.ask(self._address, self)

    def tested(self, tested: ListInUse) -> None:
        """Called when a list has been tested, while this waits for one."""
        if self._pending.pop(tested.asker, None) is not None:
            self._look_at(tested)
            self._settle()
            if not self._promise.there and tested.asker in self._pending:
                tested.asker.ask(self._address, self)

    def told(self, asker: Asker, codes: tuple[int, ...] | None) -> None:
        """Called with the answer of a list."""
        each = self._pending.pop(asker, None)
        # A list may have failed a test meanwhile.
        if each is not None:
            if codes is not None:
                self._answers[each] = codes
            self._settle()

    def _settle(self) -> None:
        """Answer, if what is known decides."""
        if self._promise.there:
            return
        enforced = all_lists = self._decided(self._filter.lists)
        in_force = [each for each in self._filter.lists if each.weight < 0 or not each.in_dry_run]
        if len(in_force) < len(self._filter.lists):
            enforced = self._decided(in_force)
        if enforced is None or (not enforced and all_lists is None):
            return
        self._end()
        self._filter.decided(self._address, bool(all_lists), self._answers)
        if not (enforced or all_lists):
            self._promise.succeed(PASS)
            return
        listing = {each.name: codes for each, codes in self._answers.items() if codes}
        against = [each.name for each, codes in self._answers.items() if codes and each.weight > 0]
        reply = self._filter.settings.reply(against)
        self._promise.succeed(refuse(reply, shown(listing), dry_run=not enforced))

    def _decided(self, lists: Sequence[ListInUse]) -> bool | None:
        """The decision of these lists; None while it depends on answers that are still to come."""
        answers = self._answers
        weights = [each.weight for each in lists if answers.get(each)]
        pending = [each.weight for each in lists if each.asker in self._pending]
        return decide(weights, pending, self._filter.settings.threshold)

    def _out_of_time(self) -> None:
        """Decide by the answers that there are."""
        self._timer = None
        pending, self._pending = self._pending, {}
        for asker in pending:
            asker.give_up(self._address, self)
        self._settle()

    def _end(self) -> None:
        """Wait for nothing more. Called also when the client has left."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        for asker in self._pending:
            asker.give_up(self._address, self)
        self._filter.waits(self, for_a_test=False)


@implementer(IIPFilterFactory)
class DnsblFactory:
    """`--ip-filter dnsbl:LISTS`."""

    name = "dnsbl"
    summary = "Refuse clients by lists in the DNS, with weights, and allow lists."
    argument_format = (
        "ZONE[=FILTER][*WEIGHT],…[;option=value…], such as dnsbl:zen.example=127.0.0.[2..11]*2,list.example*-1. FILTER "
        "has the answers that count, as Postfix writes it. WEIGHT is 1 by default, and negative for an allow list: a "
        "client is refused if the weights of the lists that list it are at least threshold=1. Options: timeout=2 (in "
        "seconds, for all lists together), resolver=HOST[:PORT] (default: those of /etc/resolv.conf), ttl=60-3600 (for "
        "how long answers are kept), refuse=521|421, text=TEXT, and name=WORD,… with a name of each list for the log, "
        "the metrics and the client, since a zone may have a key in it; by default the last two labels of the zone. "
        "Each list is tested at the start and every ten minutes, and one that fails is left out until it passes."
    )

    def make_filter(self, argument: str, reactor: object) -> IIPFilter:
        return DnsblFilter(parse_dnsbl(argument), reactor)
