"""The decision whether a connection is admitted: the IP filters first, then the limits per client."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from twisted_smtpguard import replies
from twisted_smtpguard.admission.bans import BanList
from twisted_smtpguard.admission.chain import FilterChain, FilterEntry
from twisted_smtpguard.admission.clients import PER_CLIENT, ClientLimits, Place, total_place
from twisted_smtpguard.admission.offences import BAN_AFTER
from twisted_smtpguard.admission.peaks import NOTED
from twisted_smtpguard.admission.pendingconnection import PendingConnection
from twisted_smtpguard.admission.seats import RESERVED, TOTAL, SeatKeeper, Seats
from twisted_smtpguard.counters.decision import fits
from twisted_smtpguard.engine.refusal import NotAdmitted, Refusal, refusal_of
from twisted_smtpguard.hooks.later import CallLater, start_coroutine
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.values import Wanted


class Admission:
    """Decides which connections are admitted. A guard has one for all its listeners."""

    def __init__(
        self,
        limits: Limits,
        entries: Sequence[FilterEntry],
        clients: ClientLimits,
        call_later: CallLater,
        events: Events,
        bans: BanList,
        seating: SeatKeeper,
    ) -> None:
        self.chain = FilterChain(entries, limits, call_later, events)
        self._entries = self.chain.entries
        self._clients = clients
        self._counting = clients.counting
        self._note = clients.peaks.note
        self._events = events
        self._bans = bans
        self._seating = seating
        self.set_limits(limits)

    def ask_first(self, entry: FilterEntry | None) -> None:
        """Ask this filter before the others from the next connection on; None: only the others."""
        self.chain.entries = self._entries if entry is None else (entry, *self._entries)
        self._see_whether_asking_is_needed()

    def set_limits(self, limits: Limits) -> None:
        """Swap the limits, those of the filters too. The ClientLimits have them already."""
        self._clients.peaks.set_limits(limits)
        self._limits = self.chain.limits = limits
        self._rate = self._clients.rate("connection_rate")
        self._per_client = self._clients.limit(PER_CLIENT)
        self._seats = seats = Seats(limits)
        self._total: tuple[Wanted, ...] = ()
        self._total_of_strangers: tuple[Wanted, ...] = ()
        if self._counting.shared and limits.max_connections:
            self._total = (total_place(limits.enforced(TOTAL)),)
            of_strangers = 0 if seats.of_strangers == math.inf else int(seats.of_strangers)
            self._total_of_strangers = (total_place(of_strangers),)
        self._some_are_tried = not limits.dry_run.isdisjoint(_REPLIES)
        self._see_whether_asking_is_needed()

    def _see_whether_asking_is_needed(self) -> None:
        asked = (
            self.chain.entries,
            self._total,
            self._per_client,
            self._rate,
            self._limits.ban_after,
            self._seats.tried < self._seats.all,
        )
        self.asks_nothing = not any(asked)
        """Whether every client is admitted without asking a filter or the counter store, and none is trusted."""

    def count_admitted(self, connection: PendingConnection) -> None:
        """Take the places of a connection that was admitted, or asked for, while they had no limit, now that they have
        one. It stays, however many there are."""
        if connection.gone:
            return
        if connection.place is None:
            connection.place = Place(self._counting, connection.key)
        connection.place.take_all(self._total, None if connection.trusted else self._per_client)

    def decide(self, connection: PendingConnection) -> Refusal | Deferred[Refusal | None] | None:
        """The refusal of the connection; None if it is admitted, trusted or not. A Deferred of that if a filter or the
        store answers later, which the caller cancels when the client disconnects."""
        try:
            asks = self.chain.entries
            if not asks and self._bans.may_hold(connection.key):
                self._refuse_banned(connection)
            answer = start_coroutine(self._judge(connection)) if asks else self._count(connection)
        except NotAdmitted as not_admitted:
            return not_admitted.refusal
        if not isinstance(answer, Deferred):
            return answer
        # Limits that have been set meanwhile have asked for places of those only that were admitted.
        return answer.addCallbacks(lambda _: self.count_admitted(connection), _refusal_of)

    async def _judge(self, connection: PendingConnection) -> None:
        """Ask the filters, and count the connection. NotAdmitted: it is refused.

        While the answer of a filter is pending, the connection already counts against its client's limits. Otherwise
        one client could have any number of checks pending.
        """
        counted = False

        async def count() -> None:
            nonlocal counted
            counted = True
            # A filter that answers later may trust this client of a network that is banned.
            self._refuse_banned(connection, networks=False)
            await _done(self._count(connection))

        trusted = await self.chain.judge(connection, count)
        if not trusted:
            self._refuse_banned(connection, own=not counted)
        if not counted:
            await _done(self._count(connection, trusted=trusted))
        elif trusted:
            self._uncount(connection)
        connection.trusted = trusted

    def _refuse_banned(
        self, connection: PendingConnection, *, own: bool = True, networks: bool = True
    ) -> None:
        """NotAdmitted: the client is banned, by its `own` ban or by that of one of its `networks`."""
        if not (self._limits.ban_after and self._bans.may_hold(connection.key)):
            return
        # A ban that was made in dry run refuses nobody when that is over.
        tried = BAN_AFTER in self._limits.dry_run
        ban = self._bans.of(connection.key, dry_run=tried)
        if ban is not None and not own:
            return
        if ban is None and networks:
            ban = self._bans.of_networks(connection.key, dry_run=tried)
        if ban is not None and connection.names_client and not connection.is_known:
            refusal = refusal_of(replies.TOO_MANY_OFFENCES, ban.points, ban.key if ban.is_of_network else "")
            refusal.enforce(self._events, self._limits, connection, BAN_AFTER)

    def _uncount(self, connection: PendingConnection) -> None:
        """Undo the count of a connection against the limits of its client, which turned out to be trusted."""
        if connection.place is not None:
            connection.place.give_back_of_client()
        if self._rate is not None:
            self._counting.give_back(self._rate.wanted(connection.key))

    def _count(
        self, connection: PendingConnection, *, trusted: bool = False, room_made: bool = False
    ) -> Deferred[None] | None:
        """Take a seat and, unless the client is trusted, the places of the client, and count it against its rate.
        Returns a Deferred if the store answers later. NotAdmitted, at once or later: the connection exceeds a limit,
        and nothing was taken. `room_made`: a session has just ended for it."""
        favoured = trusted or (self._seats.matter and connection.may_use_reserve)
        total = self._total if favoured or room_made else self._total_of_strangers
        if room_made and self._seating.imagined and self._limits.enforced(TOTAL):
            total = (total_place(self._limits.max_connections + self._seating.imagined),)
        wanted, per_client, key = total, None, connection.key
        if not trusted:
            per_client, rate = self._per_client, self._rate
            if per_client is not None:
                wanted += per_client.wanted(key)
            if rate is not None:
                wanted += rate.wanted(key)
        if not wanted:
            self._take_seat(connection, favoured, wanted)
            return None
        place = Place(self._counting, key, total, per_client)
        again = None if room_made else partial(self._count, connection, trusted=trusted, room_made=True)
        counts = self._counting.take(wanted)
        if isinstance(counts, Deferred):
            return counts.addCallback(
                partial(self._counted, connection, wanted, place, self._limits, favoured, again)
            )
        return self._counted(connection, wanted, place, self._limits, favoured, again, counts)

    def _counted(
        self,
        connection: PendingConnection,
        wanted: Sequence[Wanted],
        place: Place,
        limits: Limits,
        favoured: bool,
        again: Callable[[], Deferred[None] | None] | None,
        counts: Sequence[int],
    ) -> Deferred[None] | None:
        """Called with the answer of the store. `place` has been taken if all fits. `limits` are those by which it was
        asked: they may have changed. `again` asks once more, when room has been made."""
        of_all = wanted[0].counter == TOTAL
        if fits(wanted, counts):
            self._found(wanted, counts, of_all)
            connection.place = place
            if connection.gone:
                place.give_back()
                raise CancelledError
            self._take_seat(connection, favoured, wanted, counts[0] if of_all else None)
            if not self._some_are_tried:
                return None
        elif of_all and counts[0] > wanted[0].limit > 0:
            self._seating.found(counts[0] - 1)
            if again and fits(wanted[1:], counts[1:]) and self._make_room(connection, favoured):
                return again()
        told = ""
        for each, count in zip(wanted, counts, strict=True):
            name, most = each.counter, each.limit
            if not most:
                # It is in dry run. If another limit refuses the connection, it has not reached this one. It is told
                # once, however many networks have reached it.
                if connection.place is None or name == told:
                    continue
                limit = limits.of_client(name, each.client)
                most = limit.events if each.seconds else limit
            if count > most:
                told = name
                network = self._exceeded_by(connection, each, count)
                if name == TOTAL and most < limits.max_connections >= count:
                    name = RESERVED
                _refusal(name, count, network).enforce(self._events, limits, connection, name)
        return None

    def _found(self, wanted: Sequence[Wanted], counts: Sequence[int], of_all: bool) -> None:
        """Called with the counts when all that was wanted has been taken: of all connections, if it is `of_all`, and of
        the client and its networks."""
        if of_all:
            self._seating.found(counts[0])
        number = len(counts)
        if number > of_all:
            # These are the counts of the client itself, of one limit or of two.
            first, count = wanted[of_all], counts[of_all]
            if count in NOTED:
                self._note(first.client, first.counter, count)
            middle = (number + of_all) >> 1
            if counts[middle] in NOTED and wanted[middle].client == first.client:
                self._note(first.client, wanted[middle].counter, counts[middle])

    def _exceeded_by(self, connection: PendingConnection, wanted: Wanted, count: int) -> str:
        """The network that has exceeded a limit; "" if it is the client itself, which is noted, or all clients."""
        if wanted.client == connection.key:
            self._note(wanted.client, wanted.counter, count)
            return ""
        return wanted.client

    def _make_room(self, connection: PendingConnection, favoured: bool) -> bool:
        """End an idle session for a connection. Returns whether its seat is free now."""
        stranger = not (favoured or connection.may_use_reserve)
        return self._seating.make_room(connection.widest_network if stranger else "")

    def _take_seat(
        self,
        connection: PendingConnection,
        favoured: bool,
        taken: Sequence[Wanted],
        of_all: int | None = None,
    ) -> None:
        """Give a connection its seat for good, if there is one for it. `taken` is what it has taken of the counter
        store, and `of_all` the number of connections of all guards that count together. NotAdmitted: there is none."""
        seats, seating = self._seats, self._seating
        if not (connection.seated or self._counting.shared):
            most = seats.all if favoured else seats.of_strangers
            if seating.taken > most and not self._make_room(connection, favoured):
                # Its place is given back when it is refused.
                self._counting.give_back([each for each in taken if each.seconds])
                raise NotAdmitted(_refusal(TOTAL if seating.taken > seats.all else RESERVED, seating.taken))
        connection.seated = True
        count = seating.taken if of_all is None else of_all
        if count > seats.tried and not favoured:
            _refusal(RESERVED, count).enforce(self._events, self._limits, connection, RESERVED)


_REPLIES = {
    TOTAL: replies.TOO_MANY_CONNECTIONS,
    RESERVED: replies.TOO_MANY_CONNECTIONS,
    PER_CLIENT: replies.TOO_MANY_CONNECTIONS_OF_CLIENT,
    "connection_rate": replies.CONNECTION_RATE_EXCEEDED,
}


def _refusal(name: str, value: int, network: str = "") -> Refusal:
    return Refusal(_REPLIES[name], name, value, network=network)


async def _done(answer: Deferred[None] | None) -> None:
    if answer is not None:
        await answer


def _refusal_of(failure: Failure) -> Refusal:
    failure.trap(NotAdmitted)
    decision = failure.value
    assert isinstance(decision, NotAdmitted)
    return decision.refusal
