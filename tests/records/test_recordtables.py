"""What has changed is told once, as it is when it is told, and no flood of changes queues without bound."""

from __future__ import annotations

from twisted.internet.task import Clock

from twisted_smtpguard.records.recordtables import (
    BAN,
    KINDS,
    KNOWN,
    Change,
    Outbox,
    RecordTables,
)
from twisted_smtpguard.values import MOST_RECORDS, Record

NOW = 1_800_000_000.0


class Told:
    """Tables with an outbox, and how often it has said that there is something in it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.tables = RecordTables(self.clock.seconds)
        self.calls = 0
        self.outbox = Outbox(self.tables, self._changed)

    def _changed(self) -> None:
        self.calls += 1

    def put(self, kind: str, key: str, value: str = "") -> Change:
        self.tables[kind].put(key, value, NOW + 100)
        return Change(kind, key, Record(value, NOW + 100))


def test_there_is_a_bounded_table_of_each_kind() -> None:
    tables = RecordTables(Clock().seconds)
    assert [(table.kind, table.most) for table in tables.by_kind.values()] == [
        (kind, MOST_RECORDS) for kind in KINDS
    ]


def test_changes_are_taken_once_in_their_order_and_the_latest_of_each_record() -> None:
    told = Told()
    told.put(BAN, "a", "1")
    second = told.put(BAN, "b")
    first = told.put(BAN, "a", "2")
    known = told.put(KNOWN, "a")
    assert (told.calls, len(told.outbox)) == (4, 3)
    assert told.outbox.take(2) == [known, second]
    assert told.outbox.take(2) == [first]
    assert told.outbox.take(2) == []


def test_what_a_record_is_when_it_is_told_counts() -> None:
    told = Told()
    told.put(BAN, "removed")
    told.put(BAN, "ended")
    told.tables[BAN].remove("removed")
    told.clock.advance(100)
    assert sorted(told.outbox.take(9)) == [Change(BAN, "ended", None), Change(BAN, "removed", None)]


def test_what_could_not_be_told_is_told_later_but_not_what_has_changed_since() -> None:
    told = Told()
    told.put(BAN, "a", "1")
    b = told.put(BAN, "b")
    taken = told.outbox.take(9)
    a = told.put(BAN, "a", "2")
    told.outbox.put_back(taken)
    assert sorted(told.outbox.take(9)) == [a, b]


def test_a_change_of_others_is_taken_and_not_told_back_unless_an_own_one_waits() -> None:
    told = Told()
    own = told.put(BAN, "a", "own")
    other = Record("other", NOW + 5)
    told.outbox.learn([Change(BAN, "a", other), Change(BAN, "b", other), Change("unknown", "c", other)])
    assert dict(told.tables[BAN].items()) == {"a": own.record, "b": other}
    assert told.outbox.take(9) == [own]
    told.outbox.learn([Change(BAN, "a", other), Change(BAN, "b", None)])
    assert dict(told.tables[BAN].items()) == {"a": other}
    assert len(told.outbox) == 0


def test_no_more_changes_wait_than_the_table_may_have_records() -> None:
    told = Told()
    told.tables[BAN].set_most(10)
    for number in range(1000):
        told.put(BAN, f"{number}")
        told.tables[BAN].remove(f"{number - 1}")
    told.put(KNOWN, "known")
    assert len(told.outbox) == 11
    keys = {change.key for change in told.outbox.take(99)}
    assert keys == {"known", *map(str, range(990, 1000))}


def test_all_that_there_is_can_be_told_anew_while_it_changes() -> None:
    told = Told()
    for key in "abc":
        told.put(BAN, key)
    told.outbox.take(9)
    told.outbox.add_all()
    (first,) = told.outbox.take(1)
    assert len(told.outbox) == 2
    told.tables[BAN].remove("b")
    told.put(BAN, "d")
    # Changes come first: what was removed is told too, in case it had been told before.
    changes = told.outbox.take(9)
    assert [(change.key, change.record is None) for change in changes] == [
        ("b", True),
        ("d", False),
        *((key, False) for key in "ca" if key != first.key),
    ]
    assert (len(told.outbox), told.outbox.take(9)) == (0, [])


def test_everything_is_told_anew_in_parts_and_nothing_that_has_ended_is_taken_for_its_end() -> None:
    told = Told()
    for number in range(1000):
        told.tables[KNOWN].learn(f"{number}", Record("", NOW + (1 if number < 300 else 100)))
    told.outbox.add_all()
    assert len(told.outbox) == 1000
    told.clock.advance(1)
    keys: set[str] = set()
    parts = 0
    while told.outbox:
        part = told.outbox.take(100)
        assert len(part) <= 100
        keys |= {change.key for change in part}
        parts += 1
    assert (keys, parts) == ({f"{number}" for number in range(300, 1000)}, 10)


def test_a_closed_outbox_notes_nothing_more() -> None:
    told = Told()
    told.outbox.close()
    told.put(BAN, "a")
    told.outbox.close()
    assert (told.calls, len(told.outbox)) == (0, 0)
