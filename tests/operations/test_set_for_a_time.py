"""A limit that is set for a time: it gets its value back at the end, whatever was changed meanwhile."""

from __future__ import annotations

import pytest
from logbook import logbook
from operated import Operated

from twisted_smtpguard import Limits
from twisted_smtpguard.operations.changes import changes_of, make_changes


def test_it_holds_until_its_end_and_the_log_and_the_row_have_it() -> None:
    guard = Operated(max_connections=2)
    with logbook() as log:
        row = guard.operator.carry_out(
            "set", {"limit": "max-connections", "value": "1", "for": "10m"}, "uid:7"
        )
        assert log.take("operator") == [
            "operator by=uid:7 verb=set what=max-connections=1,until\\x201970-01-01T00:10:00Z"
        ]
    assert row["from"] == "set by uid:7 at 1970-01-01T00:00:00Z until 1970-01-01T00:10:00Z"
    guard.clock.advance(599)
    assert guard.row("max-connections")["value"] == "1"
    guard.clock.advance(1.1)
    assert guard.row("max-connections") == {**row_of(2), "from": "application"}
    assert guard.clock.getDelayedCalls() == []


def row_of(value: int) -> dict[str, object]:
    return {
        "limit": "max-connections",
        "value": str(value),
        "unit": "a count",
        "dry_run": False,
        "holds_from": "the next connection",
    }


def test_it_gets_back_what_a_reload_has_brought_meanwhile() -> None:
    guard = Operated(max_connections=2)
    guard.operator.set("max-connections", "1", 60)
    guard.operator.settings.configure(Limits(max_connections=5), {})
    assert guard.row("max-connections")["value"] == "1"
    guard.clock.advance(61)
    assert guard.row("max-connections")["value"] == "5"


def test_the_latest_set_counts_and_unset_leaves_nothing_to_come() -> None:
    guard = Operated(max_connections=2)
    guard.operator.set("max-connections", "1", 60)
    guard.operator.set("max-errors", "3", 30)
    guard.operator.set("max-connections", "7")
    guard.clock.advance(31)
    assert guard.factory.limits == Limits(max_connections=7)
    guard.operator.set("max-connections", "8", 60)
    guard.operator.unset("max-connections")
    guard.clock.advance(61)
    assert guard.factory.limits == Limits(max_connections=2)
    assert guard.clock.getDelayedCalls() == []


@pytest.mark.parametrize(("later", "value"), [(59, "1"), (61, "2")])
def test_another_process_takes_it_over_with_its_end(later: float, value: str) -> None:
    guard, other = Operated(max_connections=2), Operated(max_connections=2)
    guard.operator.set("max-connections", "1", 60)
    other.clock.advance(later)
    make_changes(other.operator, changes_of(guard.operator))
    assert other.row("max-connections")["value"] == value
    other.clock.advance(2)
    assert other.row("max-connections")["value"] == "2"


def test_a_time_that_is_none_is_refused() -> None:
    guard = Operated()
    for text in ("", "0", "soon", "-1m"):
        with pytest.raises(ValueError, match="a time such as 10m or 1h is expected"):
            guard.operator.carry_out("set", {"limit": "max-connections", "value": "1", "for": text})
