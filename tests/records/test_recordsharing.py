"""Records are shared through a store: soon, without loss while it is away, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.interfaces import IRecordStore
from twisted_smtpguard.records.recordsharing import MOST_IN_CALL, RecordSharing
from twisted_smtpguard.records.recordtables import BAN, KINDS, KNOWN, RecordTables
from twisted_smtpguard.values import CounterStoreUnavailable, Record, RecordsSince

NOW = 1_800_000_000.0
PAGE = 10


@implementer(IRecordStore)
class Store:
    """A store in memory, that is away if the test says so."""

    def __init__(self) -> None:
        self.problem: Exception | None = None
        self.silent = False
        self.calls: list[str] = []
        self.most = 0
        self.lose()

    def lose(self) -> None:
        self.age = getattr(self, "age", 0) + 1
        self.changes: dict[str, dict[str, tuple[int, Record | None]]] = {}
        self.number = 0

    def answer(self, call: str, answer: Any) -> Any:
        self.calls.append(call)
        if self.silent:
            return Deferred()
        if self.problem is not None:
            raise self.problem
        return answer()

    def put_records(self, kind: str, records: Mapping[str, Record | None], only_new: bool) -> Any:
        assert 0 < len(records) <= MOST_IN_CALL
        return self.answer("put", lambda: self._put(kind, records, only_new))

    def _put(self, kind: str, records: Mapping[str, Record | None], only_new: bool) -> None:
        held = self.changes.setdefault(kind, {})
        for key, record in records.items():
            if not (only_new and key in held):
                self.number += 1
                held[key] = self.number, record

    def records_since(self, kind: str, mark: str) -> Any:
        return self.answer("since", lambda: self._since(kind, mark))

    def _since(self, kind: str, mark: str) -> RecordsSince:
        age, since = map(int, (mark or "0 0").split())
        anew = age != self.age
        held = self.changes.get(kind, {})
        found = sorted(
            (number, key, record) for key, (number, record) in held.items() if anew or number > since
        )
        page = found[:PAGE]
        last = page[-1][0] if page else 0 if anew else since
        return RecordsSince(
            {key: record for _, key, record in page}, f"{self.age} {last}", len(found) > PAGE, anew
        )


class Guard:
    """Tables that are shared in a store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.clock = clock
        self.tables = RecordTables(clock.seconds)
        self.failures: list[tuple[Failure, str]] = []
        self.sharing = RecordSharing(store, self.tables, clock.callLater, self)
        self.sharing.start()

    def failure(self, failure: Failure, text: str) -> None:
        self.failures.append((failure, text))

    def put(self, key: str, value: str = "", kind: str = BAN) -> None:
        self.tables[kind].put(key, value, NOW + 10_000)

    def held(self, kind: str = BAN) -> dict[str, str]:
        return {key: record.value for key, record in self.tables[kind].items()}


class Two:
    """Two guards on one store."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.store = Store()
        self.first, self.second = Guard(self.store, self.clock), Guard(self.store, self.clock)
        self.clock.advance(0)

    def away(self, problem: Exception | None) -> None:
        self.store.problem = problem


AWAY = CounterStoreUnavailable("it is away")


def test_what_one_guard_puts_or_removes_another_knows_within_a_second() -> None:
    two = Two()
    two.first.put("192.0.2.1", "a")
    two.first.put("192.0.2.2", "b", KNOWN)
    two.clock.advance(1)
    assert (two.second.held(), two.second.held(KNOWN)) == ({"192.0.2.1": "a"}, {"192.0.2.2": "b"})
    assert two.second.tables[BAN].get("192.0.2.1") == Record("a", NOW + 10_000)
    two.second.tables[BAN].remove("192.0.2.1")
    two.clock.advance(1)
    assert two.first.held() == {}


def test_a_change_is_put_in_the_next_turn_and_costs_one_call_for_a_hundred() -> None:
    two = Two()
    two.store.calls.clear()
    for number in range(250):
        two.first.put(f"{number}")
    two.clock.advance(0)
    assert two.store.calls.count("put") == 3
    assert len(two.store.changes[BAN]) == 250


def test_a_store_is_asked_once_a_second_for_each_kind_and_not_after_a_stop() -> None:
    two = Two()
    two.second.sharing.stop()
    two.store.calls.clear()
    for _ in range(40):
        two.clock.advance(0.25)
    assert two.store.calls == ["since"] * len(KINDS) * 10
    two.first.sharing.stop()
    assert two.clock.getDelayedCalls() == []
    two.first.sharing.start()
    two.first.sharing.start()
    two.clock.advance(0)
    assert len(two.clock.getDelayedCalls()) == 1


def test_while_the_store_is_away_nothing_is_lost_and_no_change_asks_it() -> None:
    two = Two()
    two.first.put("removed")
    two.clock.advance(1)
    two.away(AWAY)
    two.clock.advance(1)
    two.store.calls.clear()
    for number in range(100):
        two.first.put(f"{number}")
        two.clock.advance(0)
    two.first.tables[BAN].remove("removed")
    two.second.put("other")
    assert two.store.calls == []
    two.away(None)
    two.clock.pump([1, 1])
    assert two.first.held() == two.second.held()
    assert set(two.second.held()) == {"other", *map(str, range(100))}
    assert two.first.failures == []


def test_a_store_that_has_lost_its_data_is_given_them_by_those_that_have_them() -> None:
    two = Two()
    two.first.put("a")
    two.clock.advance(1)
    two.store.lose()
    two.second.put("b")
    two.clock.pump([1, 1])
    assert set(two.store.changes[BAN]) == {"a", "b"}
    assert two.first.held() == two.second.held() == {"a": "", "b": ""}


def test_a_guard_that_comes_with_records_gives_those_that_the_store_has_never_had() -> None:
    two = Two()
    for number in range(3 * PAGE):
        two.first.put(f"{number}", "shared")
    two.first.put("removed")
    two.clock.advance(1)
    two.first.tables[BAN].remove("removed")
    two.clock.advance(1)
    third = Guard(two.store, two.clock)
    for key in ("0", "removed", "own"):
        third.tables[BAN].learn(key, Record("kept", NOW + 10_000))
    two.clock.pump([0, 1])
    assert third.held() == two.first.held() == two.second.held()
    assert third.held() == {**{f"{number}": "shared" for number in range(3 * PAGE)}, "own": "kept"}


def test_an_own_change_that_the_store_has_not_got_is_the_later_one() -> None:
    two = Two()
    two.away(AWAY)
    two.clock.advance(1)
    two.first.put("a", "first")
    two.away(None)
    two.second.put("a", "second")
    two.clock.pump([1, 1, 1])
    assert two.first.held() == two.second.held()


def test_a_store_that_does_not_answer_holds_up_nothing_and_is_asked_again() -> None:
    two = Two()
    two.store.silent = True
    two.first.put("a")
    two.store.calls.clear()
    for _ in range(20):
        two.clock.advance(0.5)
    assert 4 <= len(two.store.calls) <= 14
    two.store.silent = False
    two.clock.pump([1, 1])
    assert two.second.held() == {"a": ""}
    assert two.first.failures == []


def test_a_stop_while_the_store_is_silent_leaves_nothing_scheduled_and_loses_nothing() -> None:
    two = Two()
    two.second.sharing.stop()
    two.store.silent = True
    two.first.put("a")
    two.clock.advance(1)
    two.first.sharing.stop()
    assert two.clock.getDelayedCalls() == []
    two.store.silent = False
    two.first.sharing.start()
    two.clock.advance(0)
    assert set(two.store.changes[BAN]) == {"a"}


@pytest.mark.parametrize("problem", [ZeroDivisionError("a bug"), TypeError()])
def test_a_store_that_raises_anything_is_told_once_until_it_answers(problem: Exception) -> None:
    two = Two()
    for _ in range(2):
        two.away(problem)
        two.clock.pump([1, 1, 1])
        two.away(None)
        two.clock.advance(1)
    told = [(failure.value, text) for failure, text in two.first.failures]
    assert told == [(problem, "the store of records failed")] * 2


@pytest.mark.parametrize(
    "record", [Record("x\ny", NOW + 5), Record("x", float("nan")), Record("x" * 999, NOW + 5), ("x",), 7]
)
def test_what_is_no_record_is_left_out_and_all_else_is_taken(record: Any) -> None:
    two = Two()
    two.store._put(BAN, {"a": record, "b": Record("", NOW + 5)}, False)
    two.clock.advance(1)
    assert two.first.held() == {"b": ""}
    assert two.first.failures == []


def test_an_answer_that_makes_no_sense_is_a_failure_and_no_more() -> None:
    two = Two()
    for answer in (None, (), (1, 2, 3, 4)):
        two.store.records_since = lambda *_, answer=answer: answer  # type: ignore[method-assign, misc]
        two.clock.advance(1)
    assert len(two.first.failures) == 1


def test_an_end_that_differs_by_a_little_is_the_same() -> None:
    two = Two()
    two.first.put("a")
    two.clock.advance(1)
    two.store._put(BAN, {"a": Record("", NOW + 10_001.5)}, False)
    two.clock.advance(1)
    assert two.first.tables[BAN].get("a") == Record("", NOW + 10_000)
    two.store._put(BAN, {"a": Record("", NOW + 10_002)}, False)
    two.clock.advance(1)
    assert two.first.tables[BAN].get("a") == Record("", NOW + 10_002)
