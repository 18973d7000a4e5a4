"""Whether a connection may come in: the IP filters first, then what its client may have at once and how often."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard import replies
from twisted_smtpguard.admission.chain import FilterChain, FilterEntry
from twisted_smtpguard.admission.clients import ClientLimits, Place
from twisted_smtpguard.admission.guest import Guest, stays
from twisted_smtpguard.engine.refusal import NotAdmitted, Refusal, refusal_of
from twisted_smtpguard.hooks.later import CallLater, answer_of, begun
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.replies import Reply


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
        """There is nothing to ask: every connection is let in, and none is trusted."""

    def decide(self, guest: Guest) -> Refusal | Deferred[Refusal | None] | None:
        """Why the guest is not let in; None where it is, trusted or not. A Deferred where somebody takes time to
        answer: it is cancelled when the guest leaves."""
        try:
            answer = begun(self._decide(guest))
        except NotAdmitted as decision:
            return decision.refusal
        return answer.addErrback(_refusal_of) if isinstance(answer, Deferred) else answer

    async def _decide(self, guest: Guest) -> None:
        """NotAdmitted where the guest is refused.

        While a filter takes its time the guest already counts among its client's connections: else one client
        could have any number of filters at work.
        """
        counted = False

        async def count() -> None:
            nonlocal counted
            counted = True
            await self._count(guest)

        trusted = await self.chain.judge(guest, count)
        if not (trusted or counted):
            await self._count(guest)
        if trusted and counted:
            self._take_back(guest)
        guest.trusted = trusted

    def _take_back(self, guest: Guest) -> None:
        """Who turns out to be trusted should not have been counted."""
        if guest.place is not None:
            guest.place.give_back()
        if self._limits.connection_rate:
            self._clients.count("connection_rate", guest.key, -1)

    async def _count(self, guest: Guest) -> None:
        limits, clients = self._limits, self._clients
        cap, rate = limits.max_connections_per_client, limits.connection_rate
        if cap:
            guest.place = Place(clients, guest.key)
            enforced = limits.enforced("max_connections_per_client")
            held = await answer_of(clients.take_place(guest.place, enforced))
            self._hold(guest, replies.TOO_MANY_CONNECTIONS_OF_CLIENT, held, cap)
        if rate:
            count = await answer_of(clients.count("connection_rate", guest.key))
            self._hold(guest, replies.CONNECTION_RATE_EXCEEDED, count, rate.events)

    def _hold(self, guest: Guest, reply: Reply, count: int | None, limit: int) -> None:
        """Hold the guest to `limit`. No count: the store has failed."""
        stays(guest)
        if count is None or count > limit:
            refusal = refusal_of(replies.LOCAL_ERROR_CLOSING if count is None else reply, count)
            refusal.enforce(self._events, self._limits, guest, replies.reason_of(reply))


def _refusal_of(failure: Failure) -> Refusal:
    failure.trap(NotAdmitted)
    decision = failure.value
    assert isinstance(decision, NotAdmitted)
    return decision.refusal
