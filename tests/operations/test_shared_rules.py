"""Rules of operators that have an end are those of all guards that share a store."""

from __future__ import annotations

from typing import Any

import pytest
from operated import Operated

from twisted_smtpguard.operations.changes import changes_of, make_changes
from twisted_smtpguard.operations.rules import MAX_RULES
from twisted_smtpguard.records.recordtables import OF_CLIENTS, RULE, Change, Outbox
from twisted_smtpguard.values import Record

ADDRESS = "192.0.2.1"


class Sharing:
    """Some guards, each of which learns what another changes, as through a store."""

    def __init__(self, count: int = 2) -> None:
        self.guards = [Operated() for _ in range(count)]
        for guard in self.guards:
            guard.factory.records[RULE].on_change(
                lambda key, record, guard=guard: self._tell(guard, key, record)  # type: ignore[misc]
            )

    def _tell(self, teller: Operated, key: str, record: Record | None) -> None:
        for guard in self.guards:
            if guard is not teller:
                guard.factory.records[RULE].learn(key, record)


def rows(guard: Operated) -> list[tuple[object, ...]]:
    return [(row["rule"], row["network"], row["from"]) for row in guard.operator.rules()]


def test_what_is_denied_for_a_time_is_denied_by_all_until_then() -> None:
    first, second = Sharing().guards
    first.operator.deny("192.0.2.0/24", 60, by="uid:7")
    assert rows(first) == [("deny", "192.0.2.0/24", "uid:7")]
    assert rows(second) == [("deny", "192.0.2.0/24", "uid:7 on guard.example")]
    assert second.tries() == 421
    second.clock.advance(60)
    assert second.tries() == 220
    assert rows(second) == []


def test_a_rule_is_changed_and_removed_anywhere() -> None:
    first, second = Sharing().guards
    first.operator.deny(ADDRESS, 60)
    second.operator.trust(ADDRESS, 60)
    assert first.tries() == 220
    assert rows(first)[0][0] == "trust"
    first.operator.deny(ADDRESS, 60)
    assert second.operator.unban(ADDRESS)["rule"] == "deny"
    assert (first.tries(), rows(first), rows(second)) == (220, [], [])


def test_a_rule_without_an_end_is_of_one_guard_and_takes_the_place_of_one_that_is_shared() -> None:
    first, second = Sharing().guards
    first.operator.deny(ADDRESS)
    assert (first.tries(), second.tries()) == (421, 220)
    first.operator.deny("192.0.2.2", 60)
    first.operator.deny("192.0.2.2")
    assert [row[1] for row in rows(second)] == []


def test_a_thousand_rules_that_are_learnt_together_make_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Operated()
    guard.operator.deny("198.51.100.1", 60)
    made: list[None] = []
    networks: Any = guard.operator.networks
    make_table = networks._make_table
    monkeypatch.setattr(networks, "_make_table", lambda: (made.append(None), make_table()))
    for number in range(1000):
        guard.factory.records[RULE].learn(f"10.0.{number >> 8}.{number & 255}", Record("deny x on y", 60))
    assert made == []
    assert guard.tries("10.0.3.1") == 421
    assert guard.tries("10.0.3.2") == 421
    assert len(made) == 1


def test_no_more_rules_are_learnt_than_there_may_be() -> None:
    guard = Operated()
    for number in range(MAX_RULES + 10):
        guard.factory.records[RULE].learn(f"10.0.{number >> 8}.{number & 255}", Record("deny x on y", 60))
    assert len(rows(guard)) == MAX_RULES


@pytest.mark.parametrize(
    ("network", "value"),
    [("x", "deny y"), (ADDRESS, "tickle y"), (ADDRESS, ""), ("192.0.2.0/99", "deny y"), ("/", "deny y")],
)
def test_what_another_program_has_written_is_no_rule(network: str, value: str) -> None:
    guard = Operated()
    guard.factory.records[RULE].learn(network, Record(value, 60))
    assert (guard.tries(), rows(guard)) == (220, [])


def test_rules_that_are_restored_keep_their_maker_and_are_there_for_others_to_get() -> None:
    first, second = Operated(), Operated()
    first.operator.deny(ADDRESS, 60, by="uid:7")
    first.operator.deny("192.0.2.2", by="uid:7")
    make_changes(second.operator, changes_of(first.operator))
    assert rows(second) == rows(first)
    assert dict(second.factory.records[RULE].items()) == {ADDRESS: Record("deny uid:7 on guard.example", 60)}


def test_a_worker_that_has_learnt_of_a_removal_before_removes_it_all_the_same() -> None:
    guard = Operated()
    with pytest.raises(ValueError, match="no operator has made a rule"):
        guard.operator.remove(ADDRESS)
    guard.operator.told_elsewhere = True
    assert guard.operator.remove(ADDRESS) == {"network": ADDRESS}


def test_a_maker_of_any_name_and_an_end_of_any_time_can_be_shared() -> None:
    first, second = Sharing().guards
    first.operator.deny(ADDRESS, 1e15, by="\u2603 \n" + "x" * 1000)
    assert second.tries() == 421


def test_workers_and_the_disk_have_rules_by_another_way() -> None:
    guard = Operated()
    outbox = Outbox(guard.factory.records, lambda: None, OF_CLIENTS)
    guard.operator.deny(ADDRESS, 60)
    outbox.add_all()
    assert outbox.take(9) == []
    everything = Outbox(guard.factory.records, lambda: None)
    everything.add_all()
    assert [type(each) for each in everything.take(9)] == [Change]
