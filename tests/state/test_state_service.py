"""What an operator has changed with an end holds after a restart, until that end; what has none does not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes import codes
from logbook import Logbook, logbook
from statefulguard import NOW, StatefulGuard
from twisted.application.service import MultiService

from twisted_smtpguard.cli.statedirectory import keep_state_of_workers
from twisted_smtpguard.operations.changes import NO_CHANGES
from twisted_smtpguard.operations.rules import MAX_RULES
from twisted_smtpguard.records.recordtables import RecordTables
from twisted_smtpguard.state.database import FILE


class Kept(StatefulGuard):
    """A guard whose operator changes it."""

    def __init__(self, directory: Path, *, at: float = NOW, **limits: Any) -> None:
        super().__init__(directory, at=at, **limits)
        self.operator = self.service.operator

    def does(self, verb: str, **arguments: str) -> Any:
        """What is answered, once the threads have worked."""
        outcome: list[Any] = []
        answer = self.operator.carry_out(verb, arguments, "uid:7")
        answer.addBoth(outcome.append)
        assert outcome == [], "it is answered when it is on the disk"
        self.threads.work()
        return getattr(outcome[0], "value", outcome[0])

    def rules(self) -> list[tuple[object, ...]]:
        return [(row["rule"], row["network"], row["until"], row["from"]) for row in self.operator.rules()]

    def limit(self, name: str) -> tuple[object, object]:
        (row,) = [row for row in self.operator.limits() if row["limit"] == name]
        return row["value"], row["from"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(0o700)
    return path


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


@pytest.mark.parametrize("end", ["stop", "ends"])
def test_rules_and_limits_with_an_end_hold_again_until_that_end(
    directory: Path, end: str, log: Logbook
) -> None:
    guard = Kept(directory)
    guard.does("deny", network="192.0.2.0/24", **{"for": "1h"})
    guard.does("allow", network="192.0.2.7", **{"for": "30m"})
    guard.does("trust", network="2001:db8::/32", **{"for": "1h"})
    guard.does("set", limit="max-connections", value="1", **{"for": "2h"})
    before, limit = guard.rules(), guard.limit("max-connections")
    getattr(guard, end)()
    again = Kept(directory, at=NOW + 1799)
    assert again.rules() == before
    assert again.limit("max-connections") == limit
    assert limit == ("1", "set by uid:7 at 2027-01-15T08:00:00Z until 2027-01-15T10:00:00Z")
    assert log.take("state_restored") == [f"state_restored directory={directory} limits=1 rules=3"]
    assert [codes(again.connect(f"192.0.2.{host}").heard())[0] for host in (6, 7)] == [421, 220]
    again.threads.advance(2)
    assert codes(again.connect("192.0.2.7").heard())[0] == 421, "its rule has ended"
    again.ends()
    later = Kept(directory, at=NOW + 7200)
    assert later.rules() == []
    assert later.limit("max-connections") == ("0", "default")
    later.stop()
    assert log.take("state_restored") == []


def test_what_has_no_end_and_what_was_taken_back_is_not_kept(directory: Path) -> None:
    guard = Kept(directory)
    guard.does("deny", network="192.0.2.0/24")
    guard.does("set", limit="max-errors", value="3")
    guard.does("deny", network="192.0.2.1", **{"for": "1h"})
    guard.does("set", limit="max-connections", value="1", **{"for": "1h"})
    guard.does("remove", network="192.0.2.1")
    guard.does("unset", limit="max-connections")
    guard.does("deny", network="192.0.2.2", **{"for": "1h"})
    guard.does("deny", network="192.0.2.2")
    guard.stop()
    again = Kept(directory)
    assert again.rules() == []
    assert again.limit("max-connections") == ("0", "default")
    again.stop()


def test_a_change_by_the_application_is_kept_too(directory: Path) -> None:
    guard = Kept(directory)
    guard.operator.deny("192.0.2.1", 60)
    guard.threads.work()
    guard.ends()
    again = Kept(directory)
    assert again.rules() == [("deny", "192.0.2.1", "2027-01-15T08:01:00Z", "application")]
    again.stop()


def test_a_change_that_cannot_be_written_holds_and_the_operator_is_told(
    directory: Path, log: Logbook
) -> None:
    guard = Kept(directory)
    state: Any = next(part for part in guard.service if hasattr(part, "keep"))
    run = state._database.run

    def fails(work: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    state._database.run = fails
    problem = guard.does("deny", network="192.0.2.1", **{"for": "1h"})
    assert isinstance(problem, ValueError)
    assert str(problem) == (
        "the change holds until the process ends, but it cannot be kept: database or disk is full"
    )
    assert log.take("state_failed") == [f"state_failed directory={directory} database or disk is full"]
    assert len(guard.rules()) == 1
    state._database.run = run
    # What could not be written is written with the next change.
    guard.does("deny", network="192.0.2.2", **{"for": "1h"})
    guard.ends()
    again = Kept(directory)
    assert len(again.rules()) == 2
    again.stop()


def test_what_another_version_has_kept_and_this_one_does_not_know_is_left_out(
    directory: Path, log: Logbook
) -> None:
    guard = Kept(directory)
    guard.does("deny", network="192.0.2.1", **{"for": "1h"})
    guard.stop()
    other = sqlite3.connect(directory / FILE)
    for kind, name, value in (("limit", "xyzzy", "1"), ("rule", "192.0.2.2", "tickle")):
        other.execute("INSERT INTO operator_changes VALUES (?, ?, ?, 'x', ?)", (kind, name, value, NOW + 9))
    other.commit()
    other.close()
    again = Kept(directory)
    assert len(again.rules()) == 1
    assert log.take("setup_warning") == [
        "setup_warning what=state a limit is not restored: there is no limit 'xyzzy'",
        "setup_warning what=state a rule is not restored: one of deny, trust, allow is expected, not 'tickle'",
    ]
    again.stop()


def test_as_many_rules_as_there_may_be_are_restored_in_a_second(directory: Path) -> None:
    guard = Kept(directory)
    changes = [
        ["deny", f"10.{number >> 8}.{number & 255}.1", NOW + 60, "uid:7"] for number in range(MAX_RULES - 1)
    ]
    guard.operator.networks.restore(changes)
    guard.does("deny", network="192.0.2.1", **{"for": "1m"})
    guard.stop()
    again = Kept(directory)
    assert len(again.rules()) == MAX_RULES
    again.stop()


def test_a_mistake_ends_the_process_with_one_sentence(directory: Path) -> None:
    guard = Kept(directory)
    with pytest.raises(SystemExit) as error:
        Kept(directory)
    assert str(error.value) == f"--state: {directory}/{FILE}: another guard has this directory"
    guard.stop()
    guard.service.startService()
    guard.stop()


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE operator_changes DROP COLUMN value",
        "UPDATE operator_changes SET ends_at = 'soon'",
        "UPDATE operator_changes SET value = x'ff00'",
    ],
)
def test_a_damaged_table_ends_the_process_with_one_sentence(directory: Path, damage: str) -> None:
    guard = Kept(directory)
    guard.does("deny", network="192.0.2.1", **{"for": "1h"})
    guard.stop()
    with closing(sqlite3.connect(directory / FILE)) as connection, connection:
        connection.execute(damage)
    with pytest.raises(SystemExit) as error:
        Kept(directory)
    assert str(error.value).startswith(f"--state: {directory}/{FILE}: ")


class Supervisor(MultiService):
    """What is needed of one."""

    changes: Any = NO_CHANGES
    keep: Any = None
    events: Any = None
    records: Any = None


def test_the_workers_begin_with_what_was_kept(directory: Path) -> None:
    guard = Kept(directory)
    guard.does("deny", network="192.0.2.1", **{"for": "1h"})
    guard.stop()
    supervisor = Supervisor()
    supervisor.events = guard.factory.context.events
    supervisor.records = RecordTables(guard.threads.seconds)
    keep_state_of_workers(supervisor, [str(directory)], guard.threads)
    supervisor.startService()
    assert supervisor.changes["rules"] == [["deny", "192.0.2.1", NOW + 3600, "uid:7"]]
    supervisor.changes = NO_CHANGES
    kept: list[str] = []
    supervisor.keep().addCallback(kept.append)
    guard.threads.work()
    assert kept == [""]
    supervisor.stopService()
    guard.threads.work()
    again = Kept(directory)
    assert again.rules() == []
    again.stop()
