"""The limits per client, which apply to all its connections together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from socket import AF_INET, AF_INET6, inet_ntop

from twisted_smtpguard.counters.counting import Count, Counting, LookingCounting
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.values import Address, Wanted

TOTAL, PER_CLIENT = "max_connections", "max_connections_per_client"
"""The counters of the places that a connection takes."""


class ClientLimits:
    """What the clients of a guard may have and do, by `counting`."""

    def __init__(self, limits: Limits, counting: Counting | LookingCounting) -> None:
        self.limits = limits
        self.counting = counting

    def key_of(self, address: Address | None) -> str:
        """The key of the client at `address`."""
        limits = self.limits
        return client_key(address, limits.ipv4_client_prefix, limits.ipv6_client_prefix)

    def rate(self, name: str) -> ClientRate | None:
        """The rate limit `name`, a field of Limits; None if there is no such limit."""
        rate: Rate = getattr(self.limits, name)
        return (
            ClientRate(self.counting, name, rate, enforced=bool(self.limits.enforced(name))) if rate else None
        )


class ClientRate:
    """One of the rate limits per client: at most `most` events in each window."""

    __slots__ = ("_limit", "_seconds", "count", "most", "name")

    def __init__(
        self, counting: Counting | LookingCounting, name: str, rate: Rate, *, enforced: bool
    ) -> None:
        self.name = name
        self.most = rate.events
        self._limit = rate.events if enforced else 0
        self._seconds = rate.seconds
        self.count: Callable[[str], Count] = counting.one_event(name, self._limit, rate.seconds)
        """Counts an event of the client with a key, and returns how many its window has, this one included. One above
        `most` is not counted, unless the limit is in dry run."""

    def wanted(self, key: str) -> Wanted:
        """One more event of the client with this key."""
        return Wanted(self.name, key, self._limit, self._seconds)


class Place:
    """The places that one connection holds of `counters`. They are given back exactly once."""

    __slots__ = ("_counters", "_counting", "_key")

    def __init__(self, counting: Counting | LookingCounting, key: str, counters: Sequence[str]) -> None:
        self._counting = counting
        self._key = key
        self._counters = counters

    def take_all(self, counters: Sequence[str]) -> None:
        """Take those places of `counters` that are not held, whatever their limits say."""
        wanted = [place(each, self._key) for each in counters if each not in self._counters]
        if wanted:
            self._counters = [*self._counters, *(each.counter for each in wanted)]
            self._counting.add(wanted)

    def give_back(self) -> None:
        """Give back all places that are held. May be called twice."""
        given, self._counters = self._counters, ()
        if given:
            self._counting.give_back([place(each, self._key) for each in given])

    def give_back_one(self, counter: str) -> None:
        """Give back the place of `counter`, if it is held."""
        if counter in self._counters:
            self._counters = [each for each in self._counters if each != counter]
            self._counting.give_back([place(counter, self._key)])


def place(counter: str, key: str, limit: int = 0) -> Wanted:
    """A place of `counter` for the client with this key."""
    return Wanted(counter, "" if counter == TOTAL else key, limit)


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
