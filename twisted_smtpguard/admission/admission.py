"""Whether a connection may come in: the IP filters first, then what its client may have at once and how often."""

from __future__ import annotations

from collections.abc import Sequence

from twisted_smtpguard.admission.chain import FilterChain, FilterEntry
from twisted_smtpguard.admission.clients import ClientLimits, Place
from twisted_smtpguard.admission.refusal import refusal_of
from twisted_smtpguard.admission.visitor import Visitor
from twisted_smtpguard.events import Events
from twisted_smtpguard.later import CallLater, answer_of
from twisted_smtpguard.limits import Limits
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply


class Admission:
    """One for a guard and all its listeners."""

    def __init__(
        self,
        limits: Limits,
        entries: Sequence[FilterEntry],
        clients: ClientLimits,
        call_later: CallLater,
        events: Events,
    ) -> None:
        self.chain = FilterChain(entries, limits, call_later, events)
        self._limits = limits
        self._clients = clients
        self._events = events
        self.asks_nothing = not (entries or limits.max_connections_per_client or limits.connection_rate)
        """Everybody is let in, and nobody is trusted."""

    async def decide(self, visitor: Visitor) -> None:
        """Let the visitor in, trusted or not, or raise NotAdmitted. Cancelled when the visitor leaves.

        While a filter takes its time the visitor already counts among its client's connections: else one client
        could have any number of filters at work.
        """
        counted = False

        async def count() -> None:
            nonlocal counted
            counted = True
            await self._count(visitor)

        trusted = await self.chain.judge(visitor, count)
        if not (trusted or counted):
            await self._count(visitor)
        if trusted and counted:
            self._take_back(visitor)
        visitor.trusted = trusted

    def _take_back(self, visitor: Visitor) -> None:
        """Who turns out to be trusted should not have been counted."""
        if visitor.place is not None:
            visitor.place.give_back()
        if self._limits.connection_rate:
            self._clients.count("connection_rate", visitor.key, -1)

    async def _count(self, visitor: Visitor) -> None:
        limits, clients = self._limits, self._clients
        cap, rate = limits.max_connections_per_client, limits.connection_rate
        if cap:
            visitor.place = Place(clients, visitor.key)
            enforced = limits.enforced("max_connections_per_client")
            held = await answer_of(clients.take_place(visitor.place, enforced))
            self._hold(visitor, replies.TOO_MANY_CONNECTIONS_OF_CLIENT, held, cap)
        if rate:
            count = await answer_of(clients.count("connection_rate", visitor.key))
            self._hold(visitor, replies.CONNECTION_RATE_EXCEEDED, count, rate.events)

    def _hold(self, visitor: Visitor, reply: Reply, count: int | None, limit: int) -> None:
        """Hold the visitor to `limit`. No count: the store has failed."""
        visitor.stays()
        if count is None or count > limit:
            refusal = refusal_of(replies.LOCAL_ERROR_CLOSING if count is None else reply, count)
            refusal.enforce(self._events, self._limits, visitor, replies.reason_of(reply))
