"""Counting clients: exact at the limit and at the end of a window, and no more kept than was allowed."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from twisted_smtpguard.admission.clients import client_key, networks_of
from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.counters.sharedmemory import SharedCounterStore, create_table
from twisted_smtpguard.testing import check_counter_store
from twisted_smtpguard.values import Wanted

ABUSER = "192.0.2.1"
Store: TypeAlias = "LocalCounterStore | SharedCounterStore"


class Counting:
    """A store, with one thing wanted at a time. `clock` is its clock."""

    def __init__(self, kind: str, max_clients: int = 1000) -> None:
        self.clock = Clock()
        self.clock.advance(100)
        self.store: Store
        if kind == "local":
            self.store = LocalCounterStore(max_clients, self.clock.seconds)
        else:
            self.store = SharedCounterStore(create_table(max_clients, 2), 0, self.clock.seconds)

    def take(self, client: str, limit: int = 0, counter: str = "c") -> int:
        return self.store.take("me", [Wanted(counter, client, limit)])[0]

    def give_back(self, client: str, counter: str = "c") -> None:
        self.store.give_back("me", [Wanted(counter, client)])

    def held(self, client: str, counter: str = "c") -> int:
        return self.store.look([Wanted(counter, client)])[0][0]

    def count(self, client: str, limit: int = 0, seconds: float = 60, events: int = 1) -> int:
        return self.store.take("me", [Wanted("r", client, limit, seconds, events)])[0]

    def events(self, client: str, seconds: float = 60) -> tuple[int, float]:
        return self.store.look([Wanted("r", client, 0, seconds)])[0]


@pytest.fixture(params=["local", "shared"])
def counting(request: pytest.FixtureRequest) -> Iterator[Counting]:
    counting = Counting(request.param)
    yield counting
    if isinstance(counting.store, SharedCounterStore):
        counting.store.close()


def test_it_keeps_the_contract(counting: Counting) -> None:
    def wait(seconds: float) -> Deferred[None]:
        counting.clock.advance(seconds)
        return succeed(None)

    decisions: list[Any] = []
    check_counter_store(counting.store, wait).addBoth(decisions.append)
    assert decisions == [113]


# Places.


def test_the_answer_is_how_many_are_held(counting: Counting) -> None:
    assert [counting.take("a") for _ in range(3)] == [1, 2, 3]


def test_a_place_above_the_limit_is_answered_above_it_and_not_taken(counting: Counting) -> None:
    assert [counting.take("a", 2) for _ in range(5)] == [1, 2, 3, 3, 3]
    counting.give_back("a")
    assert counting.take("a", 2) == 2


def test_clients_and_counters_are_counted_each_for_itself(counting: Counting) -> None:
    assert [counting.take(client, 1, counter) for counter in "cd" for client in "ab"] == [1] * 4


def test_giving_back_a_place_that_is_not_held_frees_none(counting: Counting) -> None:
    counting.give_back("a")
    counting.take("a", 1)
    for _ in range(3):
        counting.give_back("a")
    assert counting.held("a") == 0
    assert [counting.take("a", 1) for _ in range(2)] == [1, 2]


def test_what_is_wanted_together_is_taken_together_or_not_at_all(counting: Counting) -> None:
    total, client, rate = Wanted("t", "", 2), Wanted("c", "a", 1), Wanted("r", "a", 5, 60)
    take = counting.store.take
    assert take("me", [total, client, rate]) == [1, 1, 1]
    assert take("me", [total, client, rate]) == [2, 2, 2]
    assert counting.store.look([total, client, rate]) == [(1, 0), (1, 0), (1, 60)]
    assert take("me", [total, client._replace(client="b")]) == [2, 1]
    assert take("me", [total, client._replace(client="c")]) == [3, 1]
    assert counting.store.look([client._replace(client="c")]) == [(0, 0)]


# Windows.


def test_every_event_in_a_window_is_counted_up_to_the_limit(counting: Counting) -> None:
    assert [counting.count("a", 3) for _ in range(6)] == [1, 2, 3, 4, 4, 4]


@pytest.mark.parametrize(("seconds", "count"), [(0, 3), (59.999, 3), (60, 1), (60.001, 1), (1e9, 1)], ids=str)
def test_a_window_begins_with_its_first_event_and_is_over_after_its_seconds(
    counting: Counting, seconds: float, count: int
) -> None:
    counting.count("a")
    counting.count("a")
    counting.clock.advance(seconds)
    assert counting.count("a") == count


def test_attempts_do_not_make_a_window_longer(counting: Counting) -> None:
    counts = []
    for _ in range(9):
        counts.append(counting.count("a"))
        counting.clock.advance(20)
    assert counts == [1, 2, 3] * 3


def test_a_look_tells_when_a_window_ends_and_changes_nothing(counting: Counting) -> None:
    assert counting.events("a") == (0, 0)
    counting.count("a", events=3)
    counting.clock.advance(45)
    for _ in range(3):
        assert counting.events("a") == (3, 15)
    counting.clock.advance(15)
    assert counting.events("a") == (0, 0)


def test_an_event_is_taken_back_from_its_own_window_only(counting: Counting) -> None:
    counting.count("a", events=2)
    back = Wanted("r", "a", 0, 60)
    counting.store.give_back("me", [back, back._replace(client="b")])
    assert counting.events("a") == (1, 60)
    counting.clock.advance(60)
    counting.store.give_back("me", [back])
    assert counting.count("a") == 1
    counting.store.give_back("me", [back, back])
    assert counting.events("a")[0] == 0
    assert counting.count("a") == 1


def test_a_clock_set_back_holds_no_client_longer_than_a_window() -> None:
    counting = Counting("local")
    counts = []
    for now in (5000, 5001, 1000, 1059.9, 1060):
        counting.clock.rightNow = now
        counts.append(counting.count("a"))
    assert counts == [1, 2, 3, 4, 1], "and none is forgiven"


# Bounds.


def addresses(count: int) -> list[str]:
    numbers = random.Random(1)
    return [client_key(IPv4Address(numbers.getrandbits(32)), 32, 64) for _ in range(count)]


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_the_busiest_abuser_among_random_addresses_is_held_by_a_small_table(kind: str) -> None:
    counting = Counting(kind)
    for number, address in enumerate(addresses(20_000)):
        counting.count(address, seconds=3600)
        counting.take(address, 20)
        counting.give_back(address)
        counting.clock.advance(0.001)
        if number % 100 == 0:
            attempts = counting.count(ABUSER, seconds=3600)
            held = counting.take(ABUSER, 20)
    assert (attempts, held) == (200, 21)


def test_the_client_for_which_nothing_was_wanted_for_longest_is_forgotten_first() -> None:
    counting = Counting("local", 3)
    for client in "abca":
        counting.take(client)
    counting.take("d")
    assert [counting.held(client) for client in "abcd"] == [2, 0, 1, 1]
    counting.give_back("b")
    assert counting.held("b") == 0


@pytest.mark.parametrize("kind", ["local", "shared"])
@pytest.mark.parametrize("seconds", [0, 3600])
def test_a_network_is_not_pushed_out_by_its_own_clients_nor_by_strangers(kind: str, seconds: float) -> None:
    """A crowd uses each of its addresses once, and the table is too small for one tenth of them."""
    counting = Counting(kind, 300)
    taken = 0
    for number, stranger in enumerate(addresses(6_000)):
        counting.clock.advance(0.001)
        if number % 2:
            wanted = [
                Wanted("c", client_key(ip_address(f"2001:db8:0:{number:x}::1"), 32, bits), limit, seconds)
                for bits, limit in ((64, 1), (56, 100), (48, 150))
            ]
            counts = counting.store.take("me", wanted)
            taken += all(count <= each.limit for each, count in zip(wanted, counts, strict=True))
        else:
            counting.store.take("me", [Wanted("c", stranger, 0, seconds)])
    assert taken == 150


@given(
    st.lists(
        st.tuples(st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.3.1"]), st.sampled_from([0, 1, 9.5, 10])),
        max_size=60,
    ),
    st.integers(1, 4),
    st.integers(0, 4),
)
def test_events_at_several_widths_are_taken_as_a_whole_decision_takes_them(
    events: list[tuple[str, float]], limit: int, max_clients: int
) -> None:
    """The quicker function of the store in memory and its `take()`, side by side. With 3 clients in the table or fewer
    some are forgotten, so that only what is remembered of both can be compared."""

    def wanted_of(client: str) -> list[Wanted]:
        networks = networks_of(client, (24, 16), ())
        return [
            Wanted("r", each, limit * times, 10)
            for each, times in zip((client, *networks), (1, 2, 3), strict=True)
        ]

    quick, plain = Counting("local", 3 + max_clients), Counting("local", 0)
    refused: list[Any] = []

    def note(wanted: Any, counts: Any) -> str:
        refused.append((wanted, counts))
        return "refused"

    take = quick.store.events("r", 10, wanted_of, note)  # type: ignore[union-attr]
    for client, seconds in events:
        quick.clock.advance(seconds)
        plain.clock.advance(seconds)
        wanted = wanted_of(client)
        counts = plain.store.take("me", wanted)
        answer = take(client)
        if max_clients >= 3:
            if all(count <= each.limit for each, count in zip(wanted, counts, strict=True)):
                assert answer == counts[0]
            else:
                assert answer == "refused"
                assert refused.pop() == (wanted, counts)
            keys = [Wanted("r", each, 0, 10) for each in KEYS]
            assert quick.store.look(keys) == plain.store.look(keys)
        assert sum(quick.store.sizes().values()) <= 3 + max_clients  # type: ignore[union-attr]


KEYS = ("192.0.2.1", "192.0.2.2", "192.0.3.1", "192.0.2.0/24", "192.0.3.0/24", "192.0.0.0/16")


def test_a_refused_client_is_remembered_for_its_attempt() -> None:
    counting = Counting("local", 2)
    for client in "abacd":
        counting.take(client, 1)
    assert [counting.held(client) for client in "abcd"] == [0, 0, 1, 1]
    counting = Counting("local", 2)
    for client in "abac":
        counting.take(client, 1)
    assert counting.held("a") == 1


@pytest.mark.parametrize("kind", ["windows", "places"])
def test_random_addresses_take_no_more_memory_than_the_table_may_hold(kind: str) -> None:
    counting = Counting("local", 2000)
    strangers = addresses(50_000)
    tracemalloc.start()
    try:
        for number in range(len(strangers)):
            # A new string, as after each accept: what the table keeps of it is counted.
            address = "".join([strangers[number][:1], strangers[number][1:]])
            if kind == "windows":
                counting.count(address)
            else:
                counting.take(address, 20)
        octets, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert octets / 2000 < 500


def test_a_table_without_bound_forgets_no_client() -> None:
    counting = Counting("local", 0)
    for address in addresses(10_000):
        counting.count(address)
    assert all(counting.count(address) > 1 for address in addresses(10_000))


# Against a model that is too simple to be wrong.

CLIENTS = st.sampled_from("abcdef")


class Model(RuleBasedStateMachine):
    """For each client its places, and its windows with their beginnings. The table never is full."""

    kind = "local"

    def __init__(self) -> None:
        super().__init__()
        self.counting = Counting(self.kind)
        self.places: dict[str, int] = {}
        self.windows: dict[str, tuple[float, int]] = {}

    @property
    def now(self) -> float:
        return self.counting.clock.seconds()

    def window(self, client: str) -> tuple[float, int]:
        began, events = self.windows.get(client, (self.now, 0))
        return (began, events) if self.now < began + 10 else (self.now, 0)

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 9.75, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.counting.clock.advance(seconds)

    @rule(client=CLIENTS, limit=st.integers(0, 3), most=st.integers(0, 3), both=st.booleans())
    def take(self, client: str, limit: int, most: int, both: bool) -> None:
        wanted = [Wanted("c", client, limit), *([Wanted("r", client, most, 10)] if both else [])]
        began, events = self.window(client)
        counts = [self.places.get(client, 0) + 1, *([events + 1] if both else [])]
        assert self.counting.store.take("me", wanted) == counts
        if not any(0 < each.limit < count for each, count in zip(wanted, counts, strict=True)):
            self.places[client] = counts[0]
            if both:
                self.windows[client] = (self.now if not events else began, events + 1)

    @rule(client=CLIENTS)
    def give_back(self, client: str) -> None:
        self.places[client] = max(0, self.places.get(client, 0) - 1)
        self.counting.give_back(client)

    @invariant()
    def all_is_counted(self) -> None:
        for client in "abcdef":
            assert self.counting.held(client) == self.places.get(client, 0)
            assert self.counting.events(client, 10)[0] == self.window(client)[1]


class SharedModel(Model):
    kind = "shared"


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=75, stateful_step_count=40, deadline=None)
TestSharedModel = SharedModel.TestCase
TestSharedModel.settings = settings(max_examples=75, stateful_step_count=40, deadline=None)


@given(st.lists(st.floats(0, 1e9), max_size=40), st.floats(0.001, 1e6))
def test_whatever_the_clock_says_an_event_counts_as_the_next_or_the_first(
    times: list[float], seconds: float
) -> None:
    counting, last = Counting("local", 1), 0
    for now in times:
        counting.clock.rightNow = now
        count = counting.count("a", seconds=seconds)
        assert count in (1, last + 1)
        last = count
