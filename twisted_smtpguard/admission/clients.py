"""The limits per client, which apply to all its connections together. The counts are in a counter store."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any, TypeAlias

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

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
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.values import FAULTS, Address, is_later

Count: TypeAlias = int | Deferred[int | None] | None
"""A count from the store, at once or later; None if the store has failed."""

_CONNECTIONS = "max_connections_per_client"

_STORE_SECONDS = 10
"""How long a store may take to answer. It is the default of `ip_filter_timeout`, and cannot be changed."""


class ClientLimits:
    """The counts of a guard's clients in the counter store. If the store fails, or does not answer in time, that is
    logged and the count is None.

    `settled()` is called whenever an answer that was pending has come.
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
        self.limits = limits
        self.store = store
        self._seconds = seconds
        self._call_later = call_later
        self._events = events
        self._settled = settled
        self.pending = 0
        """How many answers of the store are pending."""

    def key_of(self, address: Address | None) -> str:
        """The key of the client at `address`."""
        limits = self.limits
        return client_key(address, limits.ipv4_client_prefix, limits.ipv6_client_prefix)

    def rate(self, name: str) -> ClientRate | None:
        """The rate limit `name`, a field of Limits; None if there is no such limit."""
        rate: Rate = getattr(self.limits, name)
        return ClientRate(self, self.store, self._seconds, name, rate) if rate else None

    def take_place(self, place: Place, limit: int) -> Count:
        """Ask for one more of `limit` places (0: any number), and return how many the client then holds. If that is
        more than `limit`, none was taken."""
        try:
            answer = self.store.acquire(_CONNECTIONS, place.key, limit)
        except FAULTS:
            self.failed()
            return None
        return self.read(partial(place.take, limit), answer)

    def give_place_back(self, key: str) -> None:
        """Give back a place that was taken."""
        try:
            answer = self.store.release(_CONNECTIONS, key)
        except FAULTS:
            self.failed()
            return
        if answer is not None:
            self.read(lambda _: 0, answer)

    def failed(self) -> None:
        """Called in the handler of an exception that the store has raised: log it."""
        self._failed(explained(Failure()))

    def read(self, read: Callable[[object], int], answer: Any) -> Count:
        """Return `read(answer)`; a Deferred of it if the answer comes later. `read` also gets an answer that comes
        after the time limit or a cancellation, so that a place that was taken too late is given back."""
        try:
            if not is_later(answer):
                return read(answer)
            self.pending += 1
            later: Deferred[Any] = as_deferred(answer).addCallback(read)
            later = shielded(later.addBoth(self._answered))
            return within(_STORE_SECONDS, self._call_later, later).addErrback(self._failed)
        except Exception:  # noqa: BLE001 - the answer is no whole number
            self._failed(Failure())
            return None

    def _answered(self, outcome: object) -> object:
        self.pending -= 1
        self._settled()
        return outcome

    def _failed(self, failure: Failure) -> None:
        if failure.check(HookCancelledError) or not failure.check(CancelledError):
            self._events.failure(failure, "the counter store failed")


class ClientRate:
    """One of the rate limits per client: at most `most` events in each window."""

    __slots__ = ("_add", "_clients", "_now", "_seconds", "most", "name")

    def __init__(
        self,
        clients: ClientLimits,
        store: ICounterStore,
        now: Callable[[], float],
        name: str,
        rate: Rate,
    ) -> None:
        self._clients = clients
        self._add = store.add
        self._now = now
        self.name = name
        self.most = rate.events
        self._seconds = rate.seconds

    def count(self, key: str, events: int = 1) -> Count:
        """Count events of the client with this key, and return how many its window has, these included. -1 takes one
        back."""
        try:
            answer = self._add(self.name, key, events, self._seconds, self._now())
        except FAULTS:
            self._clients.failed()
            return None
        # The usual answer, an int, takes a short path, since this is called at every recipient.
        return answer if type(answer) is int else self._clients.read(_whole, answer)


class Place:
    """One connection's place among those that its client may hold at once. It is given back exactly once."""

    __slots__ = ("_clients", "_held", "_over", "key")

    def __init__(self, clients: ClientLimits, key: str) -> None:
        self._clients = clients
        self.key = key
        self._held = self._over = False

    def take(self, limit: int, answer: object) -> int:
        """Take the store's answer to the request for this place, and return how many places the client holds. If that
        is more than `limit` (0: no limit), this place was not granted. If it was, but the connection has ended
        meanwhile, it is given back at once."""
        held = _whole(answer)
        if not 0 < limit < held:
            if self._over:
                self._clients.give_place_back(self.key)
            else:
                self._held = True
        return held

    def give_back(self) -> None:
        """Give the place back. May be called twice, and before the store has answered."""
        self._over = True
        if self._held:
            self._held = False
            self._clients.give_place_back(self.key)


def _whole(answer: object) -> int:
    if not isinstance(answer, int):
        raise TypeError(f"{answer!r} is no whole number")
    return answer


UNIX = "unix"
"""The key of all peers on UNIX sockets, which are one client."""


def client_key(address: Address | None, ipv4_bits: int, ipv6_bits: int) -> str:
    """The key of the client at `address`, made of its leading bits: `192.0.2.1` with all of them, else `192.0.2.0/24`
    or `2001:db8::/64`.

    A Peer's address is never IPv4-mapped. The zone of a link-local address (`%eth0`) is left out. The key is made for
    every connection: str() of an IPv6Address would take three times as long, and ip_network() six times.
    """
    if address is None:
        return UNIX
    number = int(address)
    family, length, bits = AF_INET, 32, ipv4_bits
    if address.version == 6:
        family, length, bits = AF_INET6, 128, ipv6_bits
    if bits == length:
        return inet_ntop(family, number.to_bytes(length // 8, "big"))
    rest = length - bits
    network = number >> rest << rest
    return f"{inet_ntop(family, network.to_bytes(length // 8, 'big'))}/{bits}"
