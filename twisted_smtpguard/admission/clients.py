"""What each client may have and do, in all its connections together: the counts stand in a counter store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.admission.clientkey import client_key
from twisted_smtpguard.engine.port import FAULTS, is_later
from twisted_smtpguard.hooks.later import (
    CallLater,
    HookCancelledError,
    as_deferred,
    explained,
    shielded,
    within,
)
from twisted_smtpguard.interfaces import ICounterStore
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.values import Address

Count: TypeAlias = int | Deferred[int | None] | None
"""None: the store has failed."""

_CONNECTIONS = "max_connections_per_client"

_STORE_SECONDS = 10
"""For a store to answer: as long as an IP filter has by default, but never without end."""


class ClientLimits:
    """Asks the store. A store that fails, or does not answer in time, is logged, and its answer is None.

    `settled()` is called whenever a store that took its time has answered.
    """

    def __init__(
        self,
        limits: Limits,
        store: ICounterStore,
        seconds: Callable[[], float],
        call_later: CallLater,
        events: Events,
        settled: Callable[[], object],
    ) -> None:
        self._limits = limits
        rates = ("connection_rate", "message_rate", "recipient_rate")
        self._windows: dict[str, float] = {rate: getattr(limits, rate).seconds for rate in rates}
        self._store = store
        self._seconds = seconds
        self._call_later = call_later
        self._events = events
        self._settled = settled
        self.pending = 0
        """Answers that the store still owes: what was taken or given back is not known to be."""

    def key_of(self, address: Address | None) -> str:
        """The client that an address belongs to."""
        limits = self._limits
        return client_key(address, limits.ipv4_client_prefix, limits.ipv6_client_prefix)

    def count(self, rate: str, key: str, events: int = 1) -> Count:
        """Count events of the client against `rate`, a field of Limits; how many there were in its window. -1 takes
        one back."""
        try:
            answer = self._store.add(rate, key, events, self._windows[rate], self._seconds())
        except FAULTS:
            self._failed(explained(Failure()))
            return None
        # Plainly: it is asked at every recipient.
        return answer if type(answer) is int else self._read(_whole, answer)

    def take_place(self, place: Place, limit: int) -> Count:
        """Take one more of `limit` places (0: of any number); how many the client then holds."""

        def took(answer: object) -> int:
            count = _whole(answer)
            place.answered(taken=not 0 < limit < count)
            return count

        return self._ask(took, self._store.acquire, _CONNECTIONS, place.key, limit)

    def give_place_back(self, key: str) -> None:
        """A place that was taken is free."""
        self._ask(lambda _: 0, self._store.release, _CONNECTIONS, key)

    def _ask(self, read: Callable[[object], int], question: Callable[..., Any], *args: object) -> Count:
        try:
            answer = question(*args)
        except FAULTS:
            self._failed(explained(Failure()))
            return None
        return self._read(read, answer)

    def _read(self, read: Callable[[object], int], answer: Any) -> Count:
        """What `read` makes of the answer. It is called even if the answer is not wanted any more."""
        try:
            if not is_later(answer):
                return read(answer)
            self.pending += 1
            later: Deferred[Any] = as_deferred(answer).addCallback(read)
            later = shielded(later.addBoth(self._answered))
            return within(_STORE_SECONDS, self._call_later, later).addErrback(self._failed)
        except Exception:  # noqa: BLE001 - an answer that is none
            self._failed(Failure())
            return None

    def _answered(self, outcome: object) -> object:
        self.pending -= 1
        self._settled()
        return outcome

    def _failed(self, failure: Failure) -> None:
        if failure.check(HookCancelledError) or not failure.check(CancelledError):
            self._events.failure(failure, "the counter store failed")


class Place:
    """What one connection takes of the connections that its client may have at once; given back exactly once."""

    __slots__ = ("_clients", "_held", "_over", "key")

    def __init__(self, clients: ClientLimits, key: str) -> None:
        self._clients = clients
        self.key = key
        self._held = self._over = False

    def answered(self, *, taken: bool) -> None:
        """The store has answered. If the place is not needed any more it goes back at once."""
        if taken and self._over:
            self._clients.give_place_back(self.key)
        else:
            self._held = taken

    def give_back(self) -> None:
        """The connection needs it no more. May be called twice, and before the store has answered."""
        self._over = True
        if self._held:
            self._held = False
            self._clients.give_place_back(self.key)


def _whole(answer: object) -> int:
    if not isinstance(answer, int):
        raise TypeError(f"{answer!r} is no whole number")
    return answer
