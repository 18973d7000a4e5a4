"""Records are on the disk soon after they were put, in few writes however many there are, and bounded there too."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from logbook import Logbook, logbook
from statefulguard import NOW, StatefulGuard

from twisted_smtpguard.records.recordtables import BAN, KNOWN
from twisted_smtpguard.state.database import FILE
from twisted_smtpguard.state.keptrecords import PAUSE_SECONDS, RETRY_SECONDS
from twisted_smtpguard.values import Record


class Kept(StatefulGuard):
    """A guard that keeps its records."""

    def __init__(self, directory: Path, at: float = NOW) -> None:
        super().__init__(directory, at=at)
        self.records = self.service.factory.records

    def put(self, key: str, value: str = "", seconds: float = 100, kind: str = BAN) -> None:
        self.records[kind].put(key, value, self.threads.seconds() + seconds)

    def held(self, kind: str = BAN) -> dict[str, str]:
        return {key: record.value for key, record in self.records[kind].items()}

    def fails(self) -> Any:
        """The disk is full. Returns what makes room."""
        database: Any = self.state._database  # type: ignore[attr-defined]
        run = database.run

        def refuses(work: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        database.run = refuses
        return lambda: setattr(database, "run", run)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(0o700)
    return path


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def test_a_record_is_written_in_the_turn_after_it_was_put_and_holds_until_its_end(
    directory: Path, log: Logbook
) -> None:
    guard = Kept(directory)
    guard.put("192.0.2.1", "1", 100)
    guard.put("192.0.2.1", "2", 50, KNOWN)
    guard.turn()
    guard.ends()
    again = Kept(directory, NOW + 49.5)
    assert (again.held(), again.held(KNOWN)) == ({"192.0.2.1": "1"}, {"192.0.2.1": "2"})
    assert again.records[BAN].get("192.0.2.1") == Record("1", NOW + 100)
    assert log.take("state_restored") == [f"state_restored directory={directory} limits=0 rules=0 records=2"]
    again.ends()
    later = Kept(directory, NOW + 50)
    assert (later.held(), later.held(KNOWN)) == ({"192.0.2.1": "1"}, {})
    later.stop()


def test_what_was_removed_is_gone_on_the_disk_too(directory: Path) -> None:
    guard = Kept(directory)
    guard.put("192.0.2.1")
    guard.put("192.0.2.2")
    guard.turn()
    guard.records[BAN].remove("192.0.2.1")
    guard.turn(PAUSE_SECONDS)
    guard.ends()
    again = Kept(directory)
    assert set(again.held()) == {"192.0.2.2"}
    again.stop()


def test_changes_that_come_while_others_are_written_are_one_batch(directory: Path) -> None:
    guard = Kept(directory)
    guard.put("first")
    guard.threads.advance(0)
    for number in range(1000):
        guard.put(f"{number}")
        guard.threads.advance(0)
    assert guard.threads.waiting == 1
    guard.threads.work()
    assert guard.turn(PAUSE_SECONDS) == 1
    assert guard.turn(PAUSE_SECONDS) == 0
    guard.ends()
    again = Kept(directory)
    assert len(again.held()) == 1001
    again.stop()


def test_a_disk_that_hangs_makes_nothing_queue_without_bound(directory: Path) -> None:
    guard = Kept(directory)
    guard.records[BAN].set_most(100)
    for number in range(5000):
        guard.put(f"{number}", seconds=100 + number)
        guard.threads.advance(0)
    keeper: Any = guard.state._record_keeper  # type: ignore[attr-defined]
    assert (guard.threads.waiting, len(keeper._outbox)) == (1, 100)
    guard.threads.work()
    guard.stop()
    again = Kept(directory)
    assert set(again.held()) == {f"{number}" for number in range(4900, 5000)}
    again.stop()


def test_what_has_not_been_written_is_written_at_the_stop(directory: Path) -> None:
    guard = Kept(directory)
    guard.put("first")
    guard.threads.advance(0)
    guard.put("second")
    guard.stop()
    again = Kept(directory)
    assert set(again.held()) == {"first", "second"}
    again.stop()


def test_a_batch_that_cannot_be_written_is_told_once_and_tried_again(directory: Path, log: Logbook) -> None:
    guard = Kept(directory)
    makes_room = guard.fails()
    guard.put("192.0.2.1")
    guard.turn()
    guard.put("192.0.2.2")
    for _ in range(3):
        assert guard.turn(RETRY_SECONDS) == 1
    assert set(guard.held()) == {"192.0.2.1", "192.0.2.2"}
    told = [f"state_failed directory={directory} database or disk is full"]
    assert log.take("state_failed") == told
    makes_room()
    guard.turn(RETRY_SECONDS)
    guard.fails()
    guard.put("192.0.2.3")
    guard.turn(PAUSE_SECONDS)
    assert log.take("state_failed") == told
    guard.ends()
    again = Kept(directory)
    assert set(again.held()) == {"192.0.2.1", "192.0.2.2"}
    again.stop()


def rows(directory: Path) -> int:
    with closing(sqlite3.connect(directory / FILE)) as connection:
        return int(connection.execute("SELECT count(*) FROM records").fetchone()[0])


def test_the_database_has_no_more_than_the_table_may_have_and_the_longest_stay(directory: Path) -> None:
    guard = Kept(directory)
    guard.records[BAN].set_most(10)
    guard.put("known", kind=KNOWN, seconds=1)
    for number in range(30):
        guard.put(f"{number}", seconds=1000 - number)
        guard.turn(PAUSE_SECONDS)
    guard.ends()
    assert rows(directory) == 11
    again = Kept(directory)
    assert set(again.held()) == {*map(str, range(10))}
    again.stop()


def test_what_has_ended_goes_with_the_next_change(directory: Path) -> None:
    guard = Kept(directory)
    for number in range(30):
        guard.put(f"{number}", seconds=10)
    guard.turn()
    guard.threads.advance(10)
    guard.put("new")
    guard.turn()
    guard.ends()
    assert rows(directory) == 1


def test_a_service_that_is_started_again_has_what_it_had(directory: Path) -> None:
    guard = Kept(directory)
    guard.put("first")
    guard.stop()
    guard.service.startService()
    guard.put("second")
    guard.turn()
    guard.stop()
    again = Kept(directory)
    assert set(again.held()) == {"first", "second"}
    again.stop()


@pytest.mark.parametrize(
    "row", ["('ban', 'a', '', 'x')", "('ban', 'a', x'00', 9e9)", "('ban', 'a b', '', 9e9)"]
)
def test_a_damaged_table_is_a_mistake_in_one_sentence(directory: Path, row: str) -> None:
    guard = Kept(directory)
    guard.put("192.0.2.1")
    guard.stop()
    with sqlite3.connect(directory / FILE) as connection:
        connection.execute(f"INSERT INTO records VALUES {row}")
    connection.close()
    with pytest.raises(SystemExit, match="a damaged one"):
        Kept(directory)


def test_a_kind_that_this_version_does_not_have_is_left_out(directory: Path) -> None:
    Kept(directory).stop()
    with sqlite3.connect(directory / FILE) as connection:
        connection.execute("INSERT INTO records VALUES ('mood', 'a', '', 9e9)")
    connection.close()
    again = Kept(directory)
    assert again.held() == {}
    again.stop()
