"""The counters that processes share: never one too many, whoever is killed, and nothing kept of who is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from twisted_smtpguard.counters import sharedmemory
from twisted_smtpguard.counters.sharedmemory import SharedCounterStore, create_table
from twisted_smtpguard.values import Wanted

CAP = 5
PLACE = Wanted("max_connections", "", CAP)

WORKER = """
import sys
from twisted_smtpguard.counters.sharedmemory import SharedCounterStore
from twisted_smtpguard.values import Wanted
descriptor, process, cap, rounds = map(int, sys.argv[1:])
store = SharedCounterStore(descriptor, process)
wanted = [Wanted("max_connections", "", cap), Wanted("connection_rate", "192.0.2.1", 0, 3600)]
taken = 0
most = 0
print("ready", flush=True)
sys.stdin.readline()
for number in range(rounds):
    counts = store.take("me", wanted)
    if counts[0] <= cap:
        taken += 1
        ((held, _),) = store.look(wanted[:1])
        most = max(most, held)
        store.give_back("me", wanted[:1])
print(taken, most, flush=True)
"""


OF_A_NETWORK = """
import random, sys
from twisted_smtpguard.counters.sharedmemory import SharedCounterStore
from twisted_smtpguard.values import Wanted
descriptor, process, cap, rounds = map(int, sys.argv[1:])
store = SharedCounterStore(descriptor, process)
networks = [Wanted("c", "2001:db8::/56", cap), Wanted("c", "2001:db8::/48", 2 * cap)]
other = [Wanted("c", "2001:db8:0:100::/56", cap), networks[1]]
taken, most, held = 0, 0, []
print("ready", flush=True)
sys.stdin.readline()
dice = random.Random(process)
for number in range(rounds):
    client = Wanted("c", f"2001:db8:0:{dice.randrange(8):x}::/64", 2)
    wanted = [client, *dice.choice([networks, other])]
    counts = store.take("me", wanted)
    fits = all(count <= each.limit for each, count in zip(wanted, counts))
    taken += fits
    if fits:
        held.append(wanted)
    seen = store.look(wanted)
    most = max(most, *(count - each.limit for each, (count, _) in zip(wanted, seen)))
    if len(held) > 2 or not fits and held:
        store.give_back("me", held.pop(dice.randrange(len(held))))
for wanted in held:
    store.give_back("me", wanted)
print(taken, most, flush=True)
"""


@pytest.fixture
def table() -> Iterator[int]:
    descriptor = create_table(1000, 6)
    yield descriptor
    os.close(descriptor)


def worker(table: int, process: int, rounds: int, program: str = WORKER) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", program, *map(str, (table, process, CAP, rounds))]
    started = subprocess.Popen(
        arguments, pass_fds=[table], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def test_processes_that_want_places_at_once_never_hold_more_than_the_cap(table: int) -> None:
    store = SharedCounterStore(table, 5)
    for _ in range(CAP - 1):
        store.take("me", [PLACE])
    workers = [worker(table, process, 2000) for process in range(3)]
    for each in workers:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    outcomes = [tuple(map(int, each.communicate(timeout=60)[0].split())) for each in workers]
    refused = 6000 - sum(taken for taken, _ in outcomes)
    assert max(most for _, most in outcomes) == CAP
    # Only the attempts that took the last place are counted, each of them once.
    rate = Wanted("connection_rate", "192.0.2.1", 0, 3600)
    assert store.look([PLACE, rate])[0] == (CAP - 1, 0)
    assert store.look([rate])[0][0] == 6000 - refused


def test_processes_whose_clients_are_in_one_network_never_hold_more_than_any_width_may(table: int) -> None:
    workers = [worker(table, process, 3000, OF_A_NETWORK) for process in range(3)]
    for each in workers:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    outcomes = [tuple(map(int, each.communicate(timeout=60)[0].split())) for each in workers]
    # Each width was full at some time, and never more than full.
    assert max(most for _, most in outcomes) == 0
    assert min(taken for taken, _ in outcomes) > 100
    keys = [f"2001:db8:0:{number:x}::/64" for number in range(8)]
    keys += ["2001:db8::/56", "2001:db8:0:100::/56", "2001:db8::/48"]
    assert SharedCounterStore(table, 5).look([Wanted("c", key) for key in keys]) == [(0, 0)] * len(keys)


def test_who_is_killed_keeps_neither_the_lock_nor_after_forget_a_place(table: int) -> None:
    store = SharedCounterStore(table, 5)
    for number in range(10):
        killed = worker(table, number % 3, 10**9)
        assert killed.stdin is not None
        killed.stdin.write("go\n")
        killed.stdin.flush()
        while not store.look([Wanted("connection_rate", "192.0.2.1", 0, 3600)])[0][0]:
            pass
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        ((held, _),) = store.look([PLACE])
        assert held <= 1
        store.forget(number % 3)
        assert store.look([PLACE])[0] == (0, 0)


def test_the_places_of_one_process_are_forgotten_and_those_of_others_stay(table: int) -> None:
    mine, other = SharedCounterStore(table, 0), SharedCounterStore(table, 1)
    clients = [Wanted("max_connections_per_client", f"192.0.2.{number}") for number in range(200)]
    for client in clients:
        mine.take("me", [client, client])
        other.take("other", [client])
    assert {count for count, _ in mine.look(clients)} == {3}
    mine.forget(1)
    assert {count for count, _ in mine.look(clients)} == {2}
    mine.give_back("me", clients)
    assert {count for count, _ in other.look(clients)} == {1}


def test_forgetting_a_process_gives_no_memory_to_parts_of_the_table_that_nobody_has_used() -> None:
    table = create_table(100_000, 128)
    store, other = SharedCounterStore(table, 127), SharedCounterStore(table, 0)
    clients = [Wanted("max_connections_per_client", f"192.0.2.{number}") for number in range(100)]
    store.take("me", clients)
    other.take("other", clients)
    before = os.fstat(table).st_blocks
    store.forget(127)
    assert {count for count, _ in other.look(clients)} == {1}
    assert os.fstat(table).st_blocks == before
    os.close(table)


def test_a_full_bucket_forgets_who_holds_no_place_before_who_holds_one() -> None:
    table = create_table(1, 1)
    store = SharedCounterStore(table, 0)
    holders = [Wanted("c", f"holder {number}") for number in range(31)]
    store.take("me", holders)
    for number in range(300):
        store.take("me", [Wanted("r", f"stranger {number}", 0, 60)])
    assert {count for count, _ in store.look(holders)} == {1}
    assert store.clients() == {"all": 32}


def test_a_number_that_no_process_may_have_is_refused(table: int) -> None:
    with pytest.raises(ValueError, match="process: a number below 6 is expected, not 6"):
        SharedCounterStore(table, 6)


def test_the_time_is_read_with_the_lock_since_a_window_would_begin_after_it_otherwise(
    table: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def seconds() -> float:
        happened.append("time")
        return 1.0

    def lockf(_: int, operation: int) -> None:
        happened.append("unlocked" if operation == sharedmemory.fcntl.LOCK_UN else "locked")

    store = SharedCounterStore(table, 0, seconds)
    monkeypatch.setattr(sharedmemory.fcntl, "lockf", lockf)
    wanted = [Wanted("connection_rate", "192.0.2.1", 5, 60)]
    for act in (store.take, store.give_back):
        act("me", wanted)
        assert happened == ["locked", "time", "unlocked"]
        happened.clear()


def test_a_lock_that_another_process_has_for_long_is_waited_for(
    table: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def lockf(_: int, operation: int) -> None:
        tried.append(operation)
        if operation & sharedmemory.fcntl.LOCK_NB:
            raise BlockingIOError

    store = SharedCounterStore(table, 0)
    monkeypatch.setattr(sharedmemory.fcntl, "lockf", lockf)
    assert store.take("me", [PLACE]) == [1]
    assert tried[-2:] == [sharedmemory.fcntl.LOCK_EX, sharedmemory.fcntl.LOCK_UN]
