"""The decision whether a connection is admitted: the IP filters first, then the limits per client."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard import replies
from twisted_smtpguard.admission.chain import FilterChain, FilterEntry
from twisted_smtpguard.admission.clients import ClientLimits, Place
from twisted_smtpguard.admission.pendingconnection import PendingConnection, require_connected
from twisted_smtpguard.engine.refusal import NotAdmitted, Refusal, refusal_of
from twisted_smtpguard.hooks.later import CallLater, start_coroutine
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.replies import Reply


class Admission:
    """Decides which connections are admitted. A guard has one for all its listeners."""

    def __init__(
        self,
        limits: Limits,
        entries: Sequence[FilterEntry],
        clients: ClientLimits,
        call_later: CallLater,
        events: Events,
    ) -> None:
        self.chain = FilterChain(entries, limits, call_later, events)
        self._entries = self.chain.entries
        self._clients = clients
        self._events = events
        self.set_limits(limits)

    def ask_first(self, entry: FilterEntry | None) -> None:
        """Ask this filter before the others from the next connection on; None: only the others."""
        self.chain.entries = self._entries if entry is None else (entry, *self._entries)
        self._see_whether_asking_is_needed()

    def set_limits(self, limits: Limits) -> None:
        """Swap the limits, those of the filters too. The ClientLimits have them already."""
        self._limits = self.chain.limits = limits
        self._cap = limits.max_connections_per_client
        self._enforced_cap = limits.enforced("max_connections_per_client")
        self._connection_rate = self._clients.rate("connection_rate")
        self._see_whether_asking_is_needed()

    def _see_whether_asking_is_needed(self) -> None:
        self.asks_nothing = not (self.chain.entries or self._cap or self._connection_rate)
        """Whether every client is admitted without asking a filter or the counter store, and none is trusted."""

    def count_admitted(self, connection: PendingConnection) -> None:
        """Count a connection that was admitted while its client's connections had no limit, now that they have one. It
        stays, however many its client has."""
        if self._cap and connection.place is None and not (connection.trusted or connection.gone):
            connection.place = Place(self._clients, connection.key)
            self._clients.take_place(connection.place, 0)

    def decide(self, connection: PendingConnection) -> Refusal | Deferred[Refusal | None] | None:
        """The refusal of the connection; None if it is admitted, trusted or not. A Deferred of that if a filter or the
        store answers later, which the caller cancels when the client disconnects."""
        decision = self._judge(connection) if self.chain.entries else self._count(connection)
        try:
            answer = start_coroutine(decision)
        except NotAdmitted as not_admitted:
            return not_admitted.refusal
        return answer.addErrback(_refusal_of) if isinstance(answer, Deferred) else answer

    async def _judge(self, connection: PendingConnection) -> None:
        """Ask the filters, and count the connection unless its client is trusted. NotAdmitted: it is refused.

        While the answer of a filter is pending, the connection already counts against its client's limits. Otherwise
        one client could have any number of checks pending.
        """
        counted = False

        async def count() -> None:
            nonlocal counted
            counted = True
            await self._count(connection)

        trusted = await self.chain.judge(connection, count)
        if not (trusted or counted):
            await self._count(connection)
        if trusted and counted:
            self._uncount(connection)
        connection.trusted = trusted

    def _uncount(self, connection: PendingConnection) -> None:
        """Undo the count of a connection whose client turned out to be trusted."""
        if connection.place is not None:
            connection.place.give_back()
        if self._connection_rate is not None:
            self._connection_rate.count(connection.key, -1)

    async def _count(self, connection: PendingConnection) -> None:
        """Count the connection against its client's limits. NotAdmitted: it exceeds one, or the store has failed."""
        cap, rate = self._cap, self._connection_rate
        if cap:
            connection.place = Place(self._clients, connection.key)
            held = self._clients.take_place(connection.place, self._enforced_cap)
            if isinstance(held, Deferred):
                held = await held
                require_connected(connection)
            if held is None or held > cap:
                self._refuse(connection, replies.TOO_MANY_CONNECTIONS_OF_CLIENT, held)
        if rate is not None:
            count = rate.count(connection.key)
            if isinstance(count, Deferred):
                count = await count
                require_connected(connection)
            if count is None or count > rate.most:
                self._refuse(connection, replies.CONNECTION_RATE_EXCEEDED, count)

    def _refuse(self, connection: PendingConnection, reply: Reply, count: int | None) -> None:
        """Refuse the connection with `reply`, because its client has reached `count`; with an internal error if `count`
        is None, because the store has failed. In dry run the refusal is only logged."""
        refusal = refusal_of(replies.LOCAL_ERROR_CLOSING if count is None else reply, count)
        refusal.enforce(self._events, self._limits, connection, replies.reason_of(reply))


def _refusal_of(failure: Failure) -> Refusal:
    failure.trap(NotAdmitted)
    decision = failure.value
    assert isinstance(decision, NotAdmitted)
    return decision.refusal
