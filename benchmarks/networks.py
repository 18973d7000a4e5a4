"""What a list of networks costs: to load, to hold, to ask, and to load again beside other work.

    python -m benchmarks.networks

Each list is in random order, one line in ten an exception within the network before it, and is loaded in a process of
its own. Of times the best of some rounds. "beside": the list is read in a thread, as on reload, while another
thread wants to run every millisecond and has to wait for it: on average, at the 99th of 100, at worst.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from multiprocessing import get_context
from os import getpid
from pathlib import Path
from random import Random
from threading import Thread

import attrs

from twisted_smtpguard.filters.networklist import read_table
from twisted_smtpguard.filters.networktable import NetworkTable
from twisted_smtpguard.hooks.threads import yield_gil
from twisted_smtpguard.interfaces import PASS, Address

from .vitals import Vitals

FAMILIES = ("IPv4", "IPv6")
SIZES = (1_000, 1_000_000)
ROUNDS = 3
LOOK_UPS = 20_000
MIB = 1024 * 1024

# Somewhat more networks than are listed: a look-up beside one that is listed can miss.
_SPACE = 1 << 21


@attrs.frozen
class Cost:
    """Of one list."""

    load_seconds: float
    held_octets: int
    peak_octets: int
    hit_seconds: float
    miss_seconds: float
    beside_seconds: float
    waits: list[float]


def address(family: str, network: int, host: int) -> Address:
    if family == "IPv4":
        return IPv4Address(network << 8 | host)
    return IPv6Address(0x2001 << 112 | network << 80 | host)


def networks(size: int) -> list[int]:
    return Random(1).sample(range(_SPACE), size - size // 10)


def lines(family: str, size: int) -> Iterator[str]:
    length, longest = (24, 32) if family == "IPv4" else (48, 128)
    for count, network in enumerate(networks(size)):
        yield f"deny {address(family, network, 0)}/{length}\n"
        if count % 9 == 0:
            yield f"allow {address(family, network, 9)}/{longest}\n"


def cost(path: str, family: str, size: int) -> Cost:
    """Called in a fresh process."""
    vitals = Vitals(getpid())
    before = vitals.resident
    vitals.forget_peak()
    began = time.perf_counter()
    table = read_table(path)
    load = time.perf_counter() - began
    held, peak = vitals.resident - before, vitals.peak - before
    listed = networks(size)
    hits = [address(family, network, 1) for network in Random(2).choices(listed, k=LOOK_UPS)]
    free = sorted(set(range(_SPACE)).difference(listed))
    misses = [address(family, network, 1) for network in Random(3).choices(free, k=LOOK_UPS)]
    assert all(table.verdict(hit).kind == "refuse" for hit in hits)
    assert all(table.verdict(miss) is PASS for miss in misses)
    return Cost(load, held, peak, look_up(table, hits), look_up(table, misses), *beside(path))


def look_up(table: NetworkTable, addresses: list[Address]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for each in addresses:
            table.verdict(each)
        best = min(best, time.perf_counter() - began)
    return best / len(addresses)


def beside(path: str) -> tuple[float, list[float]]:
    """How long reading takes, and how much longer than a millisecond each sleep of one was meanwhile."""
    reading = Thread(target=read_table, args=(path, yield_gil))
    waits = []
    began = time.perf_counter()
    reading.start()
    while reading.is_alive():
        asleep = time.perf_counter()
        time.sleep(0.001)
        waits.append(time.perf_counter() - asleep - 0.001)
    return time.perf_counter() - began, sorted(waits)


def main() -> None:
    print(
        "lines            load s   held MiB   peak MiB   hit µs  miss µs   beside s   wait ms, mean, p99, max"
    )
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            for size in SIZES:
                path = Path(folder, f"{family}-{size}")
                path.write_text("".join(lines(family, size)))
                with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                    costs = [pool.apply(cost, (str(path), family, size)) for _ in range(ROUNDS)]
                waits = sorted(wait for each in costs for wait in each.waits)
                print(
                    f"{size:9,} {family}"
                    f"{min(each.load_seconds for each in costs):9.3f}"
                    f"{max(each.held_octets for each in costs) / MIB:11.1f}"
                    f"{max(each.peak_octets for each in costs) / MIB:11.1f}"
                    f"{min(each.hit_seconds for each in costs) * 1e6:9.2f}"
                    f"{min(each.miss_seconds for each in costs) * 1e6:9.2f}"
                    f"{min(each.beside_seconds for each in costs):11.3f}"
                    f"{sum(waits) / len(waits) * 1e3:11.2f}"
                    f"{waits[len(waits) * 99 // 100] * 1e3:8.2f}{waits[-1] * 1e3:8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())
