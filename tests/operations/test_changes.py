"""What operators have changed goes to another process whole, and what is damaged changes nothing of it silently."""

from __future__ import annotations

import json
from typing import Any

import pytest
from operated import Operated

from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import RESTART
from twisted_smtpguard.operations.changes import NO_CHANGES, changes_of, make_changes


def copy_of(guard: Operated) -> Operated:
    """Another guard with the changes of this one, which went there as JSON."""
    other = Operated()
    other.clock.advance(guard.clock.seconds())
    make_changes(other.operator, json.loads(json.dumps(changes_of(guard.operator))))
    return other


def test_a_guard_in_which_nothing_was_changed_has_no_changes() -> None:
    assert changes_of(Operated().operator) == NO_CHANGES


def test_every_limit_that_is_set_is_set_there_with_its_origin() -> None:
    guard = Operated()
    for spec in Limits.specs():
        if spec.holds_from != RESTART:
            guard.operator.set(spec.option, spec.unit.format(spec.edge), by="uid:7")
    other = copy_of(guard)
    assert list(other.operator.limits()) == list(guard.operator.limits())


def test_a_rule_keeps_its_end_and_its_maker() -> None:
    guard = Operated()
    guard.operator.deny("192.0.2.0/24", 60, by="uid:7")
    guard.operator.allow("192.0.2.1", by="uid:8")
    guard.clock.advance(20)
    other = copy_of(guard)
    assert list(other.operator.rules()) == list(guard.operator.rules())
    other.clock.advance(41)
    assert [row["rule"] for row in other.operator.rules()] == ["allow"]


@pytest.mark.parametrize("text", ["", "Come back at noon"])
def test_mail_is_deferred_there_with_the_same_words(text: str) -> None:
    guard = Operated()
    guard.operator.defer("on", text)
    assert copy_of(guard).operator.context.deferral == guard.operator.context.deferral


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"set": {}},
        {**NO_CHANGES, "set": {"fnord": ["1", "x", None]}},
        {**NO_CHANGES, "rules": [1]},
        {**NO_CHANGES, "set": 1},
        {**NO_CHANGES, "set": {"max-errors": ["7", "x", "soon"]}},
        {**NO_CHANGES, "rules": [["deny", "192.0.2.1", "soon", "x"]]},
        {**NO_CHANGES, "rules": [["fnord", "192.0.2.1", None, "x"]]},
        {**NO_CHANGES, "set": {"max-errors": ["7", "x", None]}, "rules": [["deny", 5, None, "x"]]},
        {**NO_CHANGES, "rules": [["deny", "192.0.2.1", None, "x"]], "defer": 5},
    ],
)
def test_what_is_no_change_is_refused_and_nothing_of_it_is_in_force(changes: Any) -> None:
    operator = Operated().operator
    with pytest.raises(ValueError, match=r"cannot be read|there is no limit|one of deny, trust, allow"):
        make_changes(operator, changes)
    assert changes_of(operator) == NO_CHANGES
