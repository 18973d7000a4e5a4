"""A counter store that says when it has connected: the guard tells it at once what it holds, and tells the log once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes import Guard
from logbook import Logbook, logbook
from tellingstore import AWAY, Store
from twisted.internet.defer import fail, succeed
from zope.interface import implementer

from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.interfaces import CounterStoreUnavailable, IConnectingCounterStore, Wanted

TOTAL = ("max_connections", "")
BACK = "the limits apply to the clients of all guards again"


@implementer(IConnectingCounterStore)
class Connecting(Store):
    """Answers while it is connected, and fails at once while it is not."""

    lease_seconds = 9

    def __init__(self, *, connected: bool = True) -> None:
        super().__init__(lambda: [1] if self.connected else fail(CounterStoreUnavailable("not connected")))
        self.connected = connected
        self.listeners: list[Callable[[], object]] = []

    def on_connected(self, call: Callable[[], object]) -> None:
        self.listeners.append(call)

    def connect(self) -> None:
        self.connected = True
        for call in self.listeners:
            call()

    def renew(self, owner: str, places: Any) -> Any:
        if not self.connected:
            return fail(CounterStoreUnavailable("not connected"))
        self.renewed.append(dict(places))
        return succeed(None)


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def told(log: Logbook) -> list[str]:
    return [*log.take("counters_away"), *log.take("counters_back")]


def guard_of(store: Connecting) -> Guard:
    guard = Guard(counters=store, max_connections=9)
    guard.factory.counting.start()
    return guard


def test_a_store_that_has_connected_again_is_told_at_once_what_is_held(log: Logbook) -> None:
    store = Connecting()
    guard = guard_of(store)
    guard.connect()
    guard.connect()
    store.connect()
    assert store.renewed == [{TOTAL: 2}]
    assert told(log) == [], "nobody has missed it"
    guard.clock.pump([1] * 3)
    assert store.renewed == [{TOTAL: 2}] * 2, "the next renewal is a third of a lease later"


def test_an_outage_ends_when_the_store_connects_and_not_a_second_later(log: Logbook) -> None:
    store = Connecting()
    guard = guard_of(store)
    store.connected = False
    guard.connect()
    assert log.take("counters_away") == [AWAY + "not connected"]
    assert not guard.factory.counting.is_up
    guard.clock.advance(0.25)
    store.connect()
    assert store.renewed[0] == {TOTAL: 1}
    assert log.take("counters_back") == [f"counters_back seconds=0.25 {BACK}"]
    assert guard.factory.counting.is_up


def test_a_store_that_connects_within_a_second_of_the_start_was_never_away(log: Logbook) -> None:
    store = Connecting(connected=False)
    guard = guard_of(store)
    assert not guard.factory.counting.is_up
    guard.connect()
    guard.clock.advance(0.9)
    store.connect()
    assert store.renewed[0] == {TOTAL: 1}
    guard.connect()
    assert store.calls == [("take", "max_connections")]
    guard.clock.advance(60)
    assert told(log) == []


def test_a_store_that_does_not_connect_is_told_of_though_nobody_comes(log: Logbook) -> None:
    store = Connecting(connected=False)
    guard = guard_of(store)
    guard.clock.pump([0.5] * 10)
    assert told(log) == [AWAY + "not connected"]
    store.connect()
    assert told(log) == [f"counters_back seconds=5.0 {BACK}"]


def test_a_guard_that_starts_again_asks_whether_the_store_is_back(log: Logbook) -> None:
    store = Connecting(connected=False)
    guard = guard_of(store)
    guard.clock.advance(1)
    guard.factory.counting.stop()
    store.connected = True
    guard.clock.advance(60)
    assert not guard.factory.counting.is_up
    guard.factory.counting.start()
    guard.clock.advance(1)
    assert guard.factory.counting.is_up
    assert len(log.take("counters_back")) == 1


def test_the_other_store_is_counted_in_too_and_decides_while_the_first_is_away() -> None:
    store, table = Connecting(), LocalCounterStore(0)
    guard = Guard(counters=store, max_connections=2)
    guard.factory.counting.fall_back_on(table)
    guard.connect()
    assert table.look([Wanted(*TOTAL)]) == [(1, 0)]
    # Another process of this host has one too.
    table.take("", [Wanted(*TOTAL)])
    store.connected = False
    assert guard.connect().heard().startswith("421")


def test_the_time_of_a_decision_that_was_waited_for_is_measured() -> None:
    store = Store()
    guard = Guard(counters=store, max_connections=9)
    seconds = guard.factory.context.events.measured.counter_seconds
    guard.connect()
    guard.clock.advance(0.002)
    store.asked[0].callback([1])
    assert (seconds.total, round(seconds.seconds, 6)) == (1, 0.002)
    guard.connect()
    guard.clock.advance(0.05)
    assert seconds.counts[-2:] == [1, 0]
    assert seconds.total == 2
    store.answer = lambda: [1]
    guard.connect()
    assert seconds.total == 2, "one that is there at once costs no time"
