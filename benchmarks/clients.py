"""What the tables of clients cost when strangers come without end: memory, and processor time of a call.

    python -m benchmarks.clients [ADDRESSES]

Ten million random addresses unless told otherwise, through each counter of the guard's own store, while one abuser
goes on among them. Exit status 1 if memory grows after the first tenth (of far fewer addresses that is too little for a
table to settle), or if the abuser is forgotten.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted_smtpguard.admission.clients import client_key
from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.interfaces import Address
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.values import Wanted

from .vitals import Vitals

ADDRESSES = 10_000_000
MAX_CLIENTS = Limits().max_tracked_clients
MAX_GROWTH = 1.05
BATCH = 10_000
"""Strangers between two attempts of the abuser. They are made a batch at a time, which is not measured."""
ABUSER = "192.0.2.1"
CALLS = 200_000
"""Of clients that are known already."""
MIB = 1024 * 1024


def event(store: LocalCounterStore, client: str) -> int:
    return store.take("", [Wanted("connection_rate", client, seconds=1e9)])[0]


def place(store: LocalCounterStore, client: str) -> int:
    return store.take("", [Wanted("max_connections_per_client", client)])[0]


def place_and_back(store: LocalCounterStore, client: str) -> None:
    place(store, client)
    store.give_back("", [Wanted("max_connections_per_client", client)])


def ipv4(numbers: random.Random) -> Address:
    return IPv4Address(numbers.getrandbits(32))


def ipv6(numbers: random.Random) -> Address:
    return IPv6Address(0x2 << 124 | numbers.getrandbits(124))


def key(address: Address) -> str:
    return client_key(address, 32, 64)


FAMILIES = {"IPv4": ipv4, "IPv6": ipv6}
COUNTING: dict[str, tuple[Callable[..., Any], Callable[..., int]]] = {
    "event": (event, event),
    "place": (place, place),
    "place and back": (place_and_back, place),
}
"""What strangers do, and what the abuser does."""


def _microseconds(call: Callable[..., Any], many: Iterable[tuple[Any, ...]]) -> float:
    """Processor time of all calls."""
    many = list(many)
    began = time.process_time()
    for arguments in many:
        call(*arguments)
    return (time.process_time() - began) * 1e6


def strangers(row: tuple[str, str, int]) -> bool:
    """Prints a row; whether it is as it should be. In a process of its own, so that memory is its own too."""
    counting, family, addresses = row
    (call, abuse), make = COUNTING[counting], FAMILIES[family]
    store, numbers, vitals = LocalCounterStore(MAX_CLIENTS), random.Random(1), Vitals(os.getpid())
    before = vitals.resident
    early, spent, counted = 0, 0.0, 0
    for number in range(BATCH, addresses + 1, BATCH):
        spent += _microseconds(call, [(store, key(make(numbers))) for _ in range(BATCH)])
        counted = abuse(store, ABUSER)
        if number == addresses // 10:
            early = vitals.resident
    late = vitals.resident
    memory = "".join(f"{octets / MIB:12.1f}" for octets in (before, early, late))
    each = f"{(late - before) / MAX_CLIENTS:14.0f}"
    abuser = f"{counted} of {addresses // BATCH}"
    print(f"{f'{counting}, {family}':28}{spent / addresses:8.2f}{memory}{each}{abuser:>16}", flush=True)
    return late <= early * MAX_GROWTH and counted == addresses // BATCH


def known(clients: int) -> None:
    """Prints what a call costs of one of so many clients in the table, chosen at random."""
    cells = ""
    for call, _ in COUNTING.values():
        store, numbers = LocalCounterStore(MAX_CLIENTS), random.Random(1)
        keys = [key(ipv4(numbers)) for _ in range(clients)]
        for each in keys:
            call(store, each)
        spent = _microseconds(call, [(store, numbers.choice(keys)) for _ in range(CALLS)])
        cells += f"{spent / CALLS:20.2f}"
    print(f"{f'{clients:,} clients':28}{cells}", flush=True)


def main() -> int:
    addresses = int(sys.argv[1]) if len(sys.argv) > 1 else ADDRESSES
    print(f"{'µs a call of one that is there':28}{''.join(f'{name:>20}' for name in COUNTING)}")
    for clients in (1000, MAX_CLIENTS):
        known(clients)
    print(f"\n{'µs to know the client':28}{'key':>8}{'str()':>12}")
    for name, make in FAMILIES.items():
        numbers = random.Random(1)
        many = [(make(numbers),) for _ in range(CALLS)]
        print(f"{name:28}{_microseconds(key, many) / CALLS:8.2f}{_microseconds(str, many) / CALLS:12.2f}")
    print(
        f"\n{f'{addresses:,} strangers':28}{'µs':>8}{'MiB before':>12}{'at a tenth':>12}{'at the end':>12}"
        f"{'octets each':>14}{'of the abuser':>16}"
    )
    rows = [(counting, family, addresses) for counting in COUNTING for family in FAMILIES]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return 0 if all(pool.map(strangers, rows, chunksize=1)) else 1


if __name__ == "__main__":
    sys.exit(main())
