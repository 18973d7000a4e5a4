"""The limits per client: what all its connections together, and the networks in which it is, may hold and do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any, NamedTuple, TypeAlias

from twisted.internet.defer import Deferred

from twisted_smtpguard.admission.peaks import NOTED, ClientPeaks
from twisted_smtpguard.admission.seats import TOTAL
from twisted_smtpguard.counters.counting import Counting, LookingCounting
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.records.records import Records
from twisted_smtpguard.values import Address, Wanted

PER_CLIENT = "max_connections_per_client"
"""The counter of the places of one client."""

_KEPT = 1024
"""For so many clients the networks are kept, since making them takes longer than counting in them."""


class ClientLimits:
    """What the clients of a guard may have and do, by `counting`.

    What they have at most is noted in `peaks`. `seconds` returns the time, in seconds since 1970. `bans` has those that
    are banned."""

    def __init__(
        self,
        limits: Limits,
        counting: Counting | LookingCounting,
        seconds: Callable[[], float],
        bans: Records | None = None,
    ) -> None:
        self.limits = limits
        self.counting = counting
        self.peaks = ClientPeaks(limits, seconds, bans)

    def key_of(self, address: Address | None) -> str:
        """The key of the client at `address`."""
        limits = self.limits
        return client_key(address, limits.ipv4_client_prefix, limits.ipv6_client_prefix)

    def widest_network(self, key: str) -> str:
        """The key of the widest network that limits the client with this key; of its /24 or /48 if none does."""
        # Ten thousand sessions may be asked for theirs in one turn of the reactor.
        widest = (self.limits.networks(6) or (48,) if ":" in key else self.limits.networks(4) or (24,))[-1:]
        networks = networks_of(key, widest, widest)
        return networks[0] if networks else key

    def limit(self, name: str) -> ClientLimit | None:
        """The limit `name`, a field of Limits; None if there is no such limit."""
        return ClientLimit(self.limits, name) if getattr(self.limits, name) else None

    def rate(self, name: str) -> ClientRate | None:
        """The rate limit `name`, a field of Limits; None if there is no such limit."""
        return (
            ClientRate(self.limits, name, self.counting, self.peaks) if getattr(self.limits, name) else None
        )


class ClientLimit:
    """One of the limits per client, which holds for the client, and for each network in which it is."""

    __slots__ = ("_limit", "_limits", "_of_networks", "most", "name", "networks", "seconds", "wanted")

    def __init__(self, limits: Limits, name: str) -> None:
        self.name = name
        self._limits = limits
        value: int | Rate = getattr(limits, name)
        self.most = value.events if isinstance(value, Rate) else value
        """What one client may have or do."""
        self.seconds = value.seconds if isinstance(value, Rate) else 0
        self.networks = (limits.networks(4), limits.networks(6))
        """The leading bits of the networks, for each IP version."""
        # In dry run the store is given no limit.
        self._limit = 0 if name in limits.dry_run else self.most
        self._of_networks = [
            [self._limit * limits.network_factor**step for step, _ in enumerate(bits, 1)]
            for bits in self.networks
        ]
        alone = partial(Wanted, name, limit=self._limit, seconds=self.seconds)
        self.wanted: Callable[[str], tuple[Wanted, ...]] = lambda key: (alone(key),)
        """What one more connection or event of the client with a key wants of the counter store: first for the client,
        then for its networks, the narrowest first."""
        if any(self.networks):
            self.wanted = lru_cache(_KEPT)(self._wanted_at_all_widths)

    def _wanted_at_all_widths(self, key: str) -> tuple[Wanted, ...]:
        keys, limits = networks_of(key, *self.networks), self._of_networks[":" in key]
        # A client from before the limits were changed may be wider than the narrowest network.
        limits = limits[len(limits) - len(keys) :]
        name, seconds = self.name, self.seconds
        own = Wanted(name, key, self._limit, seconds)
        return own, *[Wanted(name, each, limit, seconds) for each, limit in zip(keys, limits, strict=True)]


class Exceeded(NamedTuple):
    """What a network has had of a rate limit, which is too much."""

    events: int
    network: str


Answer: TypeAlias = int | Exceeded
"""How many events the window of a client has with one more; or what the network has that has exceeded the limit."""


class ClientRate(ClientLimit):
    """One of the rate limits per client: at most `most` events in each window."""

    noted = NOTED
    """The counts of a client that have to be noted."""
    __slots__ = ("_peaks", "_take", "count")

    def __init__(
        self, limits: Limits, name: str, counting: Counting | LookingCounting, peaks: ClientPeaks
    ) -> None:
        super().__init__(limits, name)
        self._take = counting.take
        self._peaks = peaks
        self.count: Callable[[str], Any] = self._count_at_all_widths
        """Counts an event of the client with a key, and returns an Answer, or a Deferred of it. An event above the
        limit, of the client or of a network, is counted nowhere, unless the limit is in dry run."""
        if not any(self.networks):
            self.count = counting.one_event(name, self._limit, self.seconds)
        elif self._limit:
            quicker = counting.events(name, self.seconds, self.wanted, self._answer)
            self.count = quicker or self.count

    def note(self, key: str, count: int) -> None:
        """Called at least with those counts of a client that are in `noted`, and those above the limit."""
        self._peaks.note(key, self.name, count)

    def _count_at_all_widths(self, key: str) -> Answer | Deferred[Answer]:
        wanted = self.wanted(key)
        counts = self._take(wanted)
        if isinstance(counts, Deferred):
            return counts.addCallback(partial(self._answer, wanted))
        return self._answer(wanted, counts)

    def _answer(self, wanted: Sequence[Wanted], counts: Sequence[int]) -> Answer:
        own = counts[0]
        if own <= self.most:
            for each, count in zip(wanted, counts, strict=True):
                # The limit of the store is 0 in dry run.
                if count > (each.limit or self._limits.of_client(self.name, each.client).events):
                    return Exceeded(count, each.client)
        return own


class Place:
    """The places that one connection holds: one of all connections if it holds `total`, and those by `per_client`, a
    limit. They are given back exactly once."""

    __slots__ = ("_counting", "_key", "_per_client", "_total")

    def __init__(
        self,
        counting: Counting | LookingCounting,
        key: str,
        total: Sequence[Wanted] = (),
        per_client: ClientLimit | None = None,
    ) -> None:
        self._counting = counting
        self._key = key
        self._total = total
        self._per_client = per_client

    def take_all(self, total: Sequence[Wanted], per_client: ClientLimit | None) -> None:
        """Take those of these places that are not held, whatever their limits say."""
        wanted: list[Wanted] = []
        if total and not self._total:
            self._total = total
            wanted += total
        if per_client is not None:
            held, self._per_client = self._per_client, per_client
            if held is None or held.networks != per_client.networks:
                before = () if held is None else held.wanted(self._key)
                now = per_client.wanted(self._key)
                wanted += _others(now, before)
                self._give_back(_others(before, now))
        if wanted:
            self._counting.add([each._replace(limit=0) for each in wanted])

    def give_back(self) -> None:
        """Give back all places that are held. May be called twice."""
        given = *self._total, *self._of_client()
        self._total, self._per_client = (), None
        self._give_back(given)

    def give_back_of_client(self) -> None:
        """Give back the places that the client holds, if there are any."""
        given, self._per_client = self._of_client(), None
        self._give_back(given)

    def _of_client(self) -> Sequence[Wanted]:
        return () if self._per_client is None else self._per_client.wanted(self._key)

    def _give_back(self, given: Sequence[Wanted]) -> None:
        if given:
            self._counting.give_back(given)


def _others(some: Sequence[Wanted], known: Sequence[Wanted]) -> list[Wanted]:
    clients = {each.client for each in known}
    return [each for each in some if each.client not in clients]


def total_place(limit: int = 0) -> Wanted:
    """One of the places of all connections."""
    return Wanted(TOTAL, "", limit)


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
    return _network(family, length, number, bits)


def networks_of(key: str, ipv4_bits: Sequence[int], ipv6_bits: Sequence[int]) -> tuple[str, ...]:
    """The keys of the networks with so many leading bits in which the client with this key is: `192.0.2.0/24`. One that
    is not wider than the client is left out."""
    host, _, own_bits = key.partition("/")
    if key == UNIX:
        return ()
    family, length, widths = (AF_INET6, 128, ipv6_bits) if ":" in host else (AF_INET, 32, ipv4_bits)
    octets = inet_pton(family, host)
    number, most = int.from_bytes(octets, "big"), int(own_bits or length)
    return tuple(_network(family, length, number, bits) for bits in widths if bits < most)


def _network(family: int, length: int, number: int, bits: int) -> str:
    rest = length - bits
    return f"{inet_ntop(family, (number >> rest << rest).to_bytes(length // 8, 'big'))}/{bits}"
