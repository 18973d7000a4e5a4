"""A table of networks that gives the verdict on an address: the network with the longest prefix decides.

Nested networks are flattened once into ranges that do not overlap, in sorted arrays. A look-up is one bisection,
whatever the number of networks, and a range takes 8 octets (IPv4) or 20 (IPv6).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from heapq import merge
from ipaddress import IPv4Network, IPv6Network
from itertools import chain

import attrs

from twisted_smtpguard.values import PASS, TRUST, Address, Verdict

IPV4_BITS = 32
IPV6_BITS = 128

ALLOWED = 0
TRUSTED = 1
FIRST_REFUSAL = 2

MAPPED = 0xFFFF
"""The bits before the last 32 of an IPv4-mapped IPv6 address (RFC 4291 2.5.5.2)."""

_INDEX_BITS = 24
"""The low bits of a range's entry, which are the index of its verdict. The bits above are the prefix length of its
network, so that a refusal can name the network."""
_MASK_INDEX = (1 << _INDEX_BITS) - 1

_MASK_32 = (1 << 32) - 1
_MASK_64 = (1 << 64) - 1

# How many networks are sorted, and how many ranges are made, in less than a millisecond.
_RUN = 2048
_WORK = 256


class NetworkTable:
    """Gives the verdict on any address. It is made by `TableBuilder`, and never changes."""

    def __init__(self, verdicts: list[Verdict], ipv4: _IPv4Ranges, ipv6: _IPv6Ranges) -> None:
        self._verdicts = verdicts
        self._ipv4 = ipv4
        self._ipv6 = ipv6

    def verdict(self, address: Address) -> Verdict:
        """The verdict on `address`; PASS if it is in no network. It is a Peer's address, and so never IPv4-mapped. The
        rule of a refusal is the network."""
        found = (self._ipv4 if address.version == 4 else self._ipv6).find(int(address))
        index = found & _MASK_INDEX
        verdict = self._verdicts[index]
        return verdict if index < FIRST_REFUSAL else _by_network(verdict, address, found >> _INDEX_BITS)


@lru_cache(maxsize=1024)
def _by_network(verdict: Verdict, address: Address, length: int) -> Verdict:
    """The refusal with the network as its rule. It is cached, since a client that is refused tries again and again."""
    kind = IPv4Network if address.version == 4 else IPv6Network
    return attrs.evolve(verdict, rule=str(kind((int(address), length), strict=False)))


class TableBuilder:
    """Collects networks in any order. If one is added twice, a refusal wins over trust, and trust over allow; of two
    refusals the one whose verdict was added first wins."""

    def __init__(self) -> None:
        self._verdicts = [PASS, TRUST]
        self._indexes = {PASS: ALLOWED, TRUST: TRUSTED}
        self._runs: dict[int, list[list[int]]] = {IPV4_BITS: [[]], IPV6_BITS: [[]]}
        """The networks as numbers, which are sorted a run at a time: sorting a million at once would block every other
        thread."""

    def index(self, verdict: Verdict) -> int:
        """The index of `verdict` for `add`: ALLOWED, TRUSTED, or a number from FIRST_REFUSAL on. Equal verdicts are
        kept once."""
        index = self._indexes.setdefault(verdict, len(self._verdicts))
        if index > _MASK_INDEX:
            raise ValueError(f"at most {_MASK_INDEX} different replies are expected")
        if index == len(self._verdicts):
            self._verdicts.append(verdict)
        return index

    def add(self, bits: int, start: int, length: int, index: int) -> None:
        """Add the network of `bits` (IPV4_BITS or IPV6_BITS) that begins with the address `start`, of which only the
        first `length` bits may be set."""
        run = self._runs[bits][-1]
        run.append(start << 40 | length << 32 | index)
        if len(run) == _RUN:
            run.sort(reverse=True)
            self._runs[bits].append([])

    def build(self, yield_gil: Callable[[], object]) -> NetworkTable:
        """Make the table; the builder cannot be used afterwards. `yield_gil` is called after each short piece of
        work."""
        ipv4, ipv6 = _IPv4Ranges(), _IPv6Ranges()
        for bits, ranges in ((IPV4_BITS, ipv4), (IPV6_BITS, ipv6)):
            last = -1
            runs = self._runs[bits]
            runs[-1].sort(reverse=True)
            # A run is emptied while it is merged, so that its memory is free before the end.
            for count, (start, found) in enumerate(_flattened(merge(*map(_popped, runs)), bits)):
                if found != last:
                    ranges.append(start, found)
                    last = found
                if count % _WORK == 0:
                    yield_gil()
        return NetworkTable(self._verdicts, ipv4, ipv6)


def _popped(run: list[int]) -> Iterator[int]:
    while run:
        yield run.pop()


def _flattened(keys: Iterable[int], bits: int) -> Iterator[tuple[int, int]]:
    """The beginning and the entry of each range, over all addresses from 0 on. `keys` are sorted, so that a network
    comes before those within it."""
    everything = 1 << bits
    # The ends and indexes of the networks around the current address, the narrowest last.
    around = [(everything + 1, ALLOWED)]
    begin, index = 0, ALLOWED
    previous = -1
    for key in chain(keys, (everything << 40,)):
        start = key >> 40
        while around[-1][0] <= start:
            end, _ = around.pop()
            if begin < end:
                yield begin, index
                begin = end
            index = around[-1][1]
        if key >> 32 == previous and index & _MASK_INDEX >= FIRST_REFUSAL:
            continue
        previous = key >> 32
        if begin < start:
            yield begin, index
            begin = start
        index, length = key & _MASK_32, previous & 0xFF
        if index >= FIRST_REFUSAL:
            index |= length << _INDEX_BITS
        around.append((start + (1 << bits - length), index))


class _IPv4Ranges:
    """The beginnings of the ranges, sorted, and the entry of each."""

    def __init__(self) -> None:
        self._starts = array("I")
        self._indexes = array("I")

    def append(self, start: int, index: int) -> None:
        self._starts.append(start)
        self._indexes.append(index)

    def find(self, number: int) -> int:
        return self._indexes[bisect_right(self._starts, number) - 1]


class _IPv6Ranges:
    """The same for IPv6. A beginning is split over two arrays, since the items of an array have at most 64 bits."""

    def __init__(self) -> None:
        self._high = array("Q")
        self._low = array("Q")
        self._indexes = array("I")

    def append(self, start: int, index: int) -> None:
        self._high.append(start >> 64)
        self._low.append(start & _MASK_64)
        self._indexes.append(index)

    def find(self, number: int) -> int:
        high = number >> 64
        place = bisect_right(self._high, high)
        if self._high[place - 1] == high:
            first = bisect_left(self._high, high, 0, place)
            place = bisect_right(self._low, number & _MASK_64, first, place)
        return self._indexes[place - 1]
