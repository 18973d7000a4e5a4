"""Records end exactly, are bounded, and say what has changed here."""

from __future__ import annotations

import heapq
import tracemalloc
from random import Random
from typing import Any

import pytest
from twisted.internet.task import Clock

from twisted_smtpguard.records import records as module
from twisted_smtpguard.records.records import Records
from twisted_smtpguard.values import Record

NOW = 1_800_000_000.0


class Kept:
    """A table with a clock, and what it has told."""

    def __init__(self, most: int = 0) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.records = Records("ban", most, self.clock.seconds)
        self.changes: list[tuple[str, Record | None]] = []
        self.learnt: list[tuple[str, Record | None]] = []
        self.records.on_change(lambda key, record: self.changes.append((key, record)))
        self.records.on_learnt(lambda key, record: self.learnt.append((key, record)))

    @property
    def keys(self) -> set[str]:
        return {key for key, _ in self.records.items()}


def ends_of(records: Records) -> int:
    """How many ends it keeps, those that no record has any more included."""
    return len(records._ends) + len(records._former_ends)


def test_a_record_is_there_until_its_end_and_not_a_moment_longer() -> None:
    kept = Kept()
    kept.records.put("192.0.2.1", "a", NOW + 10)
    kept.clock.advance(9.999)
    assert kept.records.get("192.0.2.1") == Record("a", NOW + 10)
    assert len(kept.records) == 1
    kept.clock.advance(0.001)
    assert kept.records.get("192.0.2.1") is None
    assert (list(kept.records.items()), len(kept.records)) == ([], 0)
    assert kept.records.remove("192.0.2.1") is None


def test_a_later_record_takes_the_place_of_an_earlier_one() -> None:
    kept = Kept()
    kept.records.put("192.0.2.1", "a", NOW + 10)
    kept.records.put("192.0.2.1", "b", NOW + 5)
    assert kept.records.get("192.0.2.1") == Record("b", NOW + 5)
    kept.records.put("192.0.2.1", "c", NOW + 20)
    kept.clock.advance(10)
    assert (kept.records.get("192.0.2.1"), len(kept.records)) == (Record("c", NOW + 20), 1)


def test_what_is_changed_here_is_told_and_what_was_changed_elsewhere_is_not() -> None:
    kept = Kept()
    kept.records.put("a", "1", NOW + 10)
    kept.records.learn("b", Record("2", NOW + 10))
    assert kept.records.remove("b") == Record("2", NOW + 10)
    kept.records.learn("a", None)
    assert kept.records.remove("a") is None
    assert kept.changes == [("a", Record("1", NOW + 10)), ("b", None)]
    assert kept.learnt == [("b", Record("2", NOW + 10)), ("a", None)]
    assert kept.keys == set()


def test_in_a_full_table_the_record_that_ends_first_goes_and_is_not_told() -> None:
    kept = Kept(3)
    for key, seconds in (("long", 1000), ("short", 10), ("middle", 100)):
        kept.records.put(key, "", NOW + seconds)
    # Even if the new one would end before all others.
    kept.records.put("new", "", NOW + 1)
    assert kept.keys == {"long", "middle", "new"}
    # A record that is put anew takes no room.
    kept.records.put("new", "", NOW + 2000)
    kept.records.learn("learnt", Record("", NOW + 50))
    assert kept.keys == {"long", "learnt", "new"}
    assert None not in dict(kept.changes).values()


def test_what_has_ended_makes_room_before_anything_else_goes() -> None:
    kept = Kept(2)
    kept.records.put("a", "", NOW + 1)
    kept.records.put("b", "", NOW + 100)
    kept.clock.advance(1)
    kept.records.put("c", "", NOW + 50)
    assert kept.keys == {"b", "c"}


def test_a_record_that_has_ended_already_is_none() -> None:
    kept = Kept()
    kept.records.put("a", "1", NOW + 10)
    kept.records.put("a", "2", NOW)
    kept.records.learn("b", Record("", NOW - 1))
    assert (len(kept.records), kept.records.keys()) == (0, [])


def test_a_smaller_bound_holds_at_once() -> None:
    kept = Kept()
    for number in range(10):
        kept.records.put(f"{number}", "", NOW + 100 - number)
    kept.records.set_most(4)
    assert kept.keys == {"0", "1", "2", "3"}
    kept.records.set_most(0)
    kept.records.put("more", "", NOW + 1)
    assert len(kept.records) == 5


@pytest.mark.parametrize(
    ("key", "value", "end"),
    [
        ("", "", 1),
        ("a b", "", 1),
        ("a\nb", "", 1),
        ("ä", "", 1),
        ("a" * 201, "", 1),
        ("a", "x\ny", 1),
        ("a", "é", 1),
        ("a", "x" * 201, 1),
        ("a", "", float("inf")),
        ("a", "", float("nan")),
        ("a", "", -1),
    ],
)
def test_what_could_not_be_kept_everywhere_is_no_record(key: str, value: str, end: float) -> None:
    kept = Kept()
    with pytest.raises(ValueError, match="no record"):
        kept.records.put(key, value, end)
    assert (kept.records.keys(), kept.changes) == ([], [])


def test_many_changes_leave_a_table_as_a_plain_dict_would_be() -> None:
    random, kept = Random(7), Kept()
    plain: dict[str, Record] = {}
    for _ in range(5000):
        key = f"{random.randrange(50)}"
        if random.random() < 0.2:
            plain.pop(key, None)
            kept.records.remove(key)
        else:
            plain[key] = Record("", kept.clock.seconds() + random.randrange(1, 40))
            kept.records.put(key, *plain[key])
        kept.clock.advance(random.choice([0, 0, 1]))
        now = kept.clock.seconds()
        plain = {name: record for name, record in plain.items() if record.end > now}
        assert dict(kept.records.items()) == plain
    assert ends_of(kept.records) <= 2 * len(plain) + 1
    assert len(kept.records) == len(plain)


def test_a_change_takes_about_the_same_however_many_end_together() -> None:
    """A thousand records whose end has passed are dropped over many changes, and none of them counts meanwhile."""
    kept = Kept()
    for number in range(1000):
        kept.records.put(f"{number}", "", NOW + 1)
    kept.clock.advance(1)
    kept.records.put("new", "", NOW + 10)
    assert len(kept.records.keys()) > 900
    assert kept.keys == {"new"}
    assert len(kept.records) == len(kept.records.keys()) == 1


MOST, OCTETS = 20_000, 600


def test_a_record_at_the_bound_costs_no_more_than_is_said() -> None:
    """With the longest network for a key and a value of its own, after three times as many have come as there is room
    for, and each of the last has got another end."""
    kept = Kept(MOST)
    kept.records = Records("ban", MOST, kept.clock.seconds)
    tracemalloc.start()
    try:
        for number in range(3 * MOST):
            key = f"2001:db8:ffff:{number:x}::/64"
            kept.records.put(key, f"{number} early_talker=10,auth_failed=10", NOW + 1000 + number)
        for key in kept.records.keys():  # noqa: SIM118 - it is no dict
            kept.records.put(key, f"{key} again", NOW + 100_000)
        assert len(kept.records) == MOST
        assert ends_of(kept.records) <= 2 * MOST
        octets, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert octets / MOST <= OCTETS


def test_no_change_takes_longer_where_all_of_a_full_table_are_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, number = Kept(10_000), 10_000
    steps = 0

    def counted(heap: list[Any], *item: Any) -> Any:
        nonlocal steps
        steps += 1
        return (heapq.heappush if item else heapq.heappop)(heap, *item)

    monkeypatch.setattr(module, "heappush", counted)
    monkeypatch.setattr(module, "heappop", counted)
    worst = most = 0
    for turn in range(5):
        for each in range(number):
            steps = 0
            kept.records.put(f"{each}", "", NOW + 1000 + turn * 100 + each % 7)
            worst = max(worst, steps)
        most = max(most, ends_of(kept.records))
    assert len(kept.records) == number
    assert most <= 1.5 * number
    assert worst <= 20
    # Where the table is full, one more may have to pass by the ends of those that were renewed, which are few.
    for each in range(number):
        steps = 0
        kept.records.put(f"new{each}", "", NOW + 5000)
        worst = max(worst, steps)
    assert worst <= number / 4
    assert all(key.startswith("new") for key in kept.keys)


def test_an_end_that_comes_and_goes_is_not_kept_many_times() -> None:
    kept = Kept()
    for each in range(10_000):
        kept.records.put("192.0.2.1", "", NOW + 10 + each % 2)
        assert ends_of(kept.records) < 50


def test_of_very_many_that_end_together_a_look_drops_some() -> None:
    kept = Kept()
    for each in range(10_000):
        kept.records.learn(f"{each}", Record("", NOW + 10))
    kept.clock.advance(10)
    assert kept.records.get("1") is None
    sizes = [len(kept.records) for _ in range(10)]
    assert sizes == list(range(9000, -1, -1000))


def test_a_much_smaller_bound_is_reached_by_looks_and_changes() -> None:
    kept = Kept()
    for each in range(10_000):
        kept.records.learn(f"{each}", Record("", NOW + 1000 + each))
    kept.records.set_most(100)
    assert len(kept.records.keys()) == 9000
    for each in range(1000):
        kept.records.put("new", "", NOW + 5 + each)
    assert len(kept.records.keys()) < 2100
    for _ in range(3):
        len(kept.records)
    assert kept.keys == {*map(str, range(9900, 10_000))}
    kept.records.put("new", "", NOW + 5)
    assert (len(kept.records), "new" in kept.keys) == (100, True)
