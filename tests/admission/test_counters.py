"""Counting clients: exact at the limit and at the end of a window, and no more kept than was allowed."""

from __future__ import annotations

import random
import tracemalloc
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from zope.interface.verify import verifyObject

from twisted_smtpguard.admission.clients import client_key
from twisted_smtpguard.admission.counters import LocalCounterStore
from twisted_smtpguard.interfaces import IReadableCounterStore

ABUSER = "192.0.2.1"


@pytest.fixture
def store() -> LocalCounterStore:
    return LocalCounterStore(3)


def places(store: LocalCounterStore, client: str) -> int:
    """How many places a client holds: one less than it would with another."""
    held = store.acquire("c", client, 0) - 1
    store.release("c", client)
    return held


def test_it_is_a_counter_store(store: LocalCounterStore) -> None:
    verifyObject(IReadableCounterStore, store)


# Places.


def test_the_answer_is_how_many_are_held(store: LocalCounterStore) -> None:
    assert [store.acquire("c", "a", 0) for _ in range(3)] == [1, 2, 3]


def test_a_place_above_the_limit_is_answered_above_it_and_not_taken(store: LocalCounterStore) -> None:
    assert [store.acquire("c", "a", 2) for _ in range(5)] == [1, 2, 3, 3, 3]
    store.release("c", "a")
    assert store.acquire("c", "a", 2) == 2


def test_clients_and_counters_are_counted_each_for_itself(store: LocalCounterStore) -> None:
    for counter, client in [("c", "a"), ("c", "b"), ("d", "a")]:
        assert store.acquire(counter, client, 1) == 1
        assert store.add(counter, client, 1, 60, 0) == 1


def test_releasing_a_place_that_is_not_held_frees_none(store: LocalCounterStore) -> None:
    store.release("c", "a")
    store.acquire("c", "a", 1)
    for _ in range(3):
        store.release("c", "a")
    assert places(store, "a") == 0
    assert [store.acquire("c", "a", 1) for _ in range(2)] == [1, 2]


def test_a_client_is_remembered_only_while_it_holds_a_place(store: LocalCounterStore) -> None:
    store.acquire("c", "a", 0)
    for number in range(10):
        store.acquire("c", f"b{number}", 0)
        store.release("c", f"b{number}")
    assert places(store, "a") == 1


def test_the_client_that_tried_least_recently_loses_its_places_first(store: LocalCounterStore) -> None:
    for client in "abca":
        store.acquire("c", client, 1)
    store.acquire("c", "d", 1)
    assert [places(store, client) for client in "acd"] == [1, 1, 1]
    assert places(store, "b") == 0


def test_the_places_of_a_forgotten_client_can_still_be_released(store: LocalCounterStore) -> None:
    for client in "abcd":
        store.acquire("c", client, 0)
    store.release("c", "a")
    assert places(store, "a") == 0


# Looking.


@pytest.mark.parametrize(
    ("now", "found"),
    [(100, (2, 60)), (130, (2, 30)), (159, (2, 1)), (160, (0, 0)), (1e9, (0, 0)), (50, (2, 60))],
)
def test_a_look_at_a_window_tells_its_events_and_how_long_it_lasts(
    store: LocalCounterStore, now: float, found: tuple[int, float]
) -> None:
    store.add("r", "a", 2, 60, 100)
    assert store.look("r", "a", 60, now) == found
    assert store.look("r", "b", 60, now) == (0, 0)
    # The code that counts sees as many.
    assert store.add("r", "a", 1, 60, now) == found[0] + 1


def test_a_look_at_places_tells_how_many_are_held(store: LocalCounterStore) -> None:
    store.acquire("c", "a", 0)
    store.acquire("c", "a", 0)
    assert store.look("c", "a", 0, 100) == (2, 0)
    assert store.look("c", "b", 0, 100) == (0, 0)


def test_who_is_looked_at_is_forgotten_as_soon_as_before(store: LocalCounterStore) -> None:
    for client in "abc":
        store.add("r", client, 1, 60, 0)
        store.acquire("c", client, 0)
    store.look("r", "a", 60, 1)
    store.look("c", "a", 0, 1)
    store.add("r", "d", 1, 60, 1)
    store.acquire("c", "d", 0)
    assert [store.look("r", client, 60, 1)[0] for client in "abcd"] == [0, 1, 1, 1]
    assert [store.look("c", client, 0, 1)[0] for client in "abcd"] == [0, 1, 1, 1]


# Windows.


def test_every_event_in_a_window_is_counted(store: LocalCounterStore) -> None:
    assert [store.add("r", "a", 1, 60, 100 + second) for second in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("now", "count"), [(100.0, 3), (159.999, 3), (160.0, 1), (160.001, 1), (1e9, 1)], ids=str
)
def test_a_window_begins_with_its_first_event_and_is_over_after_its_seconds(
    store: LocalCounterStore, now: float, count: int
) -> None:
    store.add("r", "a", 1, 60, 100.0)
    store.add("r", "a", 1, 60, 101.0)
    assert store.add("r", "a", 1, 60, now) == count


def test_attempts_do_not_make_a_window_longer(store: LocalCounterStore) -> None:
    counts = [store.add("r", "a", 1, 60, now) for now in range(0, 180, 20)]
    assert counts == [1, 2, 3] * 3


def test_a_clock_set_back_forgives_no_client_and_holds_none_longer_than_a_window(
    store: LocalCounterStore,
) -> None:
    assert [store.add("r", "a", 1, 60, now) for now in (5000, 5001, 1000, 1059.9)] == [1, 2, 3, 4]
    assert store.add("r", "a", 1, 60, 1060) == 1


@pytest.mark.parametrize("events", [-1, 0])
@pytest.mark.parametrize("now", [159.9, 160, 1e9])
def test_to_take_back_or_to_ask_begins_no_window_and_makes_no_event_free(
    store: LocalCounterStore, events: int, now: float
) -> None:
    store.add("r", "a", 1, 60, 100)
    in_its_window = now < 160
    assert store.add("r", "a", events, 60, now) == (1 + events if in_its_window else 0)
    counts = [store.add("r", "a", 1, 60, now + second) for second in range(3)]
    before = 1 + events
    assert counts == ([before + 1, 1, 2] if in_its_window else [1, 2, 3])
    # The window that follows has begun with its own first event.
    assert store.add("r", "a", 0, 60, now + 60) == (2 if in_its_window else 0)


@pytest.mark.parametrize("events", [-1, -5, 0])
def test_of_a_client_that_is_not_known_there_is_nothing_to_take_back(
    store: LocalCounterStore, events: int
) -> None:
    assert store.add("r", "a", events, 60, 0) == 0
    assert store.add("r", "a", 1, 60, 0) == 1
    assert store.add("r", "a", -5, 60, 0) == 0
    assert store.add("r", "a", 1, 60, 0) == 1


def test_the_client_that_did_nothing_for_longest_is_forgotten_first(store: LocalCounterStore) -> None:
    for client in "abca":
        store.add("r", client, 1, 60, 0)
    store.add("r", "d", 1, 60, 0)
    assert [store.add("r", client, 1, 60, 0) for client in "acd"] == [3, 2, 2]
    assert store.add("r", "b", 1, 60, 0) == 1


# Bounds.


def addresses(count: int) -> list[str]:
    numbers = random.Random(1)
    return [client_key(IPv4Address(numbers.getrandbits(32)), 32, 64) for _ in range(count)]


def test_the_busiest_abuser_among_random_addresses_is_held_by_a_small_table() -> None:
    store = LocalCounterStore(1000)
    for number, address in enumerate(addresses(100_000)):
        store.add("r", address, 1, 3600, number / 1000)
        store.acquire("c", address, 20)
        if number % 500 == 0:
            attempts = store.add("r", ABUSER, 1, 3600, number / 1000)
            held = store.acquire("c", ABUSER, 20)
    assert (attempts, held) == (200, 21)


@pytest.mark.parametrize("kind", ["add", "acquire"])
def test_random_addresses_take_no_more_memory_than_the_table_may_hold(kind: str) -> None:
    store = LocalCounterStore(2000)
    strangers = addresses(50_000)
    tracemalloc.start()
    try:
        for number in range(len(strangers)):
            # A new string, as after each accept: what the table keeps of it is counted.
            address = "".join([strangers[number][:1], strangers[number][1:]])
            if kind == "add":
                store.add("r", address, 1, 60, number / 1000)
            else:
                store.acquire("c", address, 20)
        octets, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert octets / 2000 < 500


def test_a_table_without_bound_forgets_no_client() -> None:
    store = LocalCounterStore(0)
    for address in addresses(10_000):
        store.add("r", address, 1, 60, 0)
    assert all(store.add("r", address, 1, 60, 0) > 1 for address in addresses(10_000))


# Against a model that is too simple to be wrong.

CLIENTS = st.sampled_from("abcdef")
COUNTERS = st.sampled_from(["c", "d"])


class Model(RuleBasedStateMachine):
    """Lists of (client, ...) for each counter, the least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.store = LocalCounterStore(3)
        self.places: dict[str, list[tuple[str, int]]] = {"c": [], "d": []}
        self.windows: dict[str, list[tuple[str, float, int]]] = {"c": [], "d": []}
        self.now = 1000.0

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 9.75, 10.0, -1.0, -500.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(counter=COUNTERS, client=CLIENTS, limit=st.integers(0, 3))
    def acquire(self, counter: str, client: str, limit: int) -> None:
        table = self.places[counter]
        held = dict(table).get(client, 0)
        others = [each for each in table if each[0] != client]
        kept = held + 1 if not limit or held < limit else held
        self.places[counter] = [*others, (client, kept)][-3:]
        assert self.store.acquire(counter, client, limit) == held + 1

    @rule(counter=COUNTERS, client=CLIENTS)
    def release(self, counter: str, client: str) -> None:
        less = [(name, held - (name == client)) for name, held in self.places[counter]]
        self.places[counter] = [each for each in less if each[1]]
        self.store.release(counter, client)

    @rule(counter=COUNTERS, client=CLIENTS)
    def add(self, counter: str, client: str) -> None:
        table = self.windows[counter]
        begun, count = {name: window for name, *window in table}.get(client, (self.now, 0))
        if self.now >= begun + 10:
            begun, count = self.now, 0
        window = (client, min(begun, self.now), count + 1)
        self.windows[counter] = [*(each for each in table if each[0] != client), window][-3:]
        assert self.store.add(counter, client, 1, 10, self.now) == count + 1

    @invariant()
    def nobody_else_is_remembered(self) -> None:
        for counter in "cd":
            assert list(self.store._places[counter].items()) == self.places[counter]
            assert list(self.store._windows[counter]) == [name for name, *_ in self.windows[counter]]


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(st.floats(0, 1e9), max_size=40), st.floats(0.001, 1e6))
def test_whatever_the_clock_says_an_event_counts_as_the_next_or_the_first(
    times: list[float], seconds: float
) -> None:
    store, last = LocalCounterStore(1), 0
    for now in times:
        count = store.add("r", "a", 1, seconds, now)
        assert count in (1, last + 1)
        last = count
