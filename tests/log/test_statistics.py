"""Statistics: the counts that an application reads."""

from __future__ import annotations

import json

import attrs
import pytest

from twisted_smtpguard.log.statistics import Statistics


def test_a_new_guard_has_counted_nothing() -> None:
    assert {name: count for name, count in Statistics().snapshot().items() if count} == {}


def test_a_snapshot_has_every_count_by_its_name() -> None:
    statistics = Statistics(messages_accepted=3, refusals={"not_smtp": 2})
    snapshot = statistics.snapshot()
    assert list(snapshot) == [field.name for field in attrs.fields(Statistics)]
    assert (snapshot["messages_accepted"], snapshot["refusals"]) == (3, {"not_smtp": 2})


def test_a_snapshot_stays_as_it_was_when_counting_goes_on() -> None:
    statistics = Statistics(refusals={"not_smtp": 1})
    snapshot = statistics.snapshot()
    statistics.refusals["not_smtp"] += 1
    statistics.failures += 1
    assert (snapshot["refusals"], snapshot["failures"]) == ({"not_smtp": 1}, 0)


def test_two_guards_do_not_share_their_counts() -> None:
    first, second = Statistics(), Statistics()
    first.refusals["not_smtp"] = 1
    assert second.refusals == {}


def test_a_snapshot_can_be_sent_as_json() -> None:
    snapshot = Statistics(refusals={"not_smtp": 1}).snapshot()
    assert json.loads(json.dumps(snapshot)) == snapshot


def test_a_count_that_does_not_exist_cannot_be_counted_by_mistake() -> None:
    with pytest.raises(AttributeError):
        Statistics().message_accepted = 1  # type: ignore[attr-defined]
