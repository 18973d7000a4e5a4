"""The file of --event-log: what stands in it, and what becomes of it when it is moved, deleted or cannot be written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_events import EVERY_EVENT, FORGERIES, log_of
from twisted.internet.task import Clock
from twisted.logger import LogEvent, Logger, LogLevel, globalLogPublisher

from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.eventfile import EventFile, as_line
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.statistics import Statistics


class Guarded:
    """Events that an EventFile and another log get, by a clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.others: list[LogEvent] = []
        self.file = EventFile(str(path))
        globalLogPublisher.addObserver(self.file)
        globalLogPublisher.addObserver(self.others.append)
        self.to = Events(Statistics(), self.clock, Limits(max_log_lines=0, max_log_lines_per_client=0))

    def tell(self, *sessions: str, after: float = 0) -> None:
        self.clock.advance(after)
        for session in sessions:
            self.to.connect(session, "192.0.2.1")

    def notices(self) -> list[str]:
        return [event["text"] for event in self.others if event["event"].startswith("event_log")]

    def close(self) -> None:
        globalLogPublisher.removeObserver(self.file)
        globalLogPublisher.removeObserver(self.others.append)
        self.file.close()


def sessions(path: Path) -> list[str]:
    """Of the lines of a file; of an event that has none, its name."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [event.get("session", event["event"]) for event in events]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Guarded]:
    guarded = Guarded(tmp_path / "events")
    yield guarded
    guarded.close()


# A line.


@pytest.mark.parametrize("name", EVERY_EVENT)
def test_an_event_is_a_line_with_its_fields(name: str) -> None:
    event = log_of(name).events[-1]
    line = as_line(event)
    assert line.count(b"\n") == 1
    assert line.isascii()
    found = json.loads(line)
    assert list(found)[:3] == ["time", "level", "event"]
    fields = {name: value for name, value in event.items() if not name.startswith("log_") and name != "text"}
    failed = "log_failure" in event
    if failed:
        assert found.pop("text") == event["text"]
    assert found == {"time": found["time"], "level": event["log_level"].name, **fields}


@pytest.mark.parametrize(
    ("now", "shown"), [(0, "1970-01-01T00:00:00.000Z"), (1769860800.25, "2026-01-31T12:00:00.250Z")]
)
def test_the_time_is_that_of_the_event_in_utc(now: float, shown: str) -> None:
    event = {**log_of("connect").events[-1], "log_time": now}
    assert json.loads(as_line(event))["time"] == shown


@pytest.mark.parametrize("text", FORGERIES)
def test_what_a_client_chose_is_what_the_log_has_of_it(text: str, log: Guarded) -> None:
    log.to.reject("192.0.2.1", "max_errors", sender=text, command=text)
    (line,) = log.path.read_bytes().splitlines()
    assert line.isascii()
    told = json.loads(line)
    assert {name: told[name] for name in ("sender", "command")} == {
        name: log.others[-1][name] for name in ("sender", "command")
    }


def test_events_of_others_are_not_in_it(log: Guarded) -> None:
    Logger("elsewhere").info("hello", event="connect")
    Logger("twisted_smtpguard").info("hello")
    log.tell("a")
    assert sessions(log.path) == ["a"]


def test_what_the_limits_on_lines_leave_out_is_left_out(log: Guarded) -> None:
    to = Events(Statistics(), log.clock, Limits(max_log_lines=3), LogLevel.info)
    for number in range(100):
        to.reject(f"192.0.2.{number}", "not_smtp")
    assert len(log.path.read_text().splitlines()) == 3


def test_a_file_goes_on_where_it_ended(log: Guarded) -> None:
    log.tell("a")
    log.file.reload()
    log.tell("b")
    assert sessions(log.path) == ["a", "b"]


# It is followed.


def test_a_file_that_was_moved_is_begun_anew_within_a_second(log: Guarded) -> None:
    log.tell("a")
    moved = log.path.rename(log.path.with_suffix(".1"))
    log.tell("b")
    log.tell("c", after=1)
    assert sessions(moved) == ["a", "b"]
    assert sessions(log.path) == ["c"]
    assert log.notices() == []


def test_a_reload_does_it_at_once(log: Guarded) -> None:
    log.tell("a")
    moved = log.path.rename(log.path.with_suffix(".1"))
    log.file.reload()
    log.tell("b")
    assert (sessions(moved), sessions(log.path)) == (["a"], ["b"])


def test_a_file_that_was_deleted_or_replaced_is_opened_anew(log: Guarded) -> None:
    log.tell("a")
    log.path.unlink()
    log.tell("b", after=1)
    assert sessions(log.path) == ["b"]
    other = log.path.with_name("other")
    other.touch()
    other.replace(log.path)
    log.tell("c", after=1)
    assert sessions(log.path) == ["c"]


def test_one_that_is_cut_goes_on_at_its_beginning(log: Guarded) -> None:
    log.tell("a")
    os.truncate(log.path, 0)
    log.tell("b", after=1)
    assert sessions(log.path) == ["b"]


def test_no_descriptor_is_left_behind(log: Guarded) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for number in range(20):
        log.path.rename(log.path.with_suffix(f".{number}"))
        log.tell("a", after=1)
    assert descriptors() == before


# It cannot be written.


def test_while_no_new_one_can_be_made_the_moved_file_is_written_on(log: Guarded) -> None:
    log.tell("a")
    folder = log.path.parent / "folder"
    moved = log.path.rename(log.path.with_suffix(".1"))
    log.path.mkdir()
    log.tell("b", "c", after=1)
    log.tell("d", after=1)
    assert sessions(moved) == ["a", "b", "event_log_failed", "c", "d"]
    assert log.notices() == [f"event_log_failed file={log.path} Is a directory"]
    with pytest.raises(IsADirectoryError):
        log.file.reload()
    log.path.rename(folder)
    log.tell("e", after=1)
    assert sessions(log.path) == ["e", "event_log_restored"]
    assert log.notices()[1:] == [f"event_log_restored file={log.path} lost=0"]


def test_what_would_go_into_a_deleted_file_is_counted(log: Guarded) -> None:
    log.path.unlink()
    log.path.mkdir()
    log.tell("a", "b", after=1)
    log.tell("c", after=1)
    log.path.rmdir()
    log.tell("d", after=1)
    assert sessions(log.path) == ["d", "event_log_restored"]
    # Three sessions, and the notice itself.
    assert log.notices() == [
        f"event_log_failed file={log.path} Is a directory",
        f"event_log_restored file={log.path} lost=4",
    ]


@pytest.fixture
def disk(log: Guarded, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many octets each write takes; no more of them fit on the disk then. Without a number all fit."""
    room: list[int] = []
    write = os.write

    def written(file: int, octets: bytes) -> int:
        if not room:
            return write(file, octets)
        fits = room.pop(0)
        if not fits:
            raise OSError(28, "No space left on device")
        return write(file, octets[:fits])

    monkeypatch.setattr("twisted_smtpguard.log.eventfile.os.write", written)
    return room


def test_on_a_full_disk_it_is_told_once_and_tried_again_each_second(log: Guarded, disk: list[int]) -> None:
    disk += [0, 0, 0]
    for _ in range(3):
        log.tell("a", "b", after=1)
    # No write but one in each second.
    assert disk == []
    assert log.notices() == [f"event_log_failed file={log.path} No space left on device"]
    log.tell("c", after=1)
    assert sessions(log.path) == ["c", "event_log_restored"]
    assert log.notices()[1:] == [f"event_log_restored file={log.path} lost=7"]


@pytest.mark.parametrize("pieces", [[10], [10, 1], [10, 0, 1, 20]])
def test_a_line_that_was_cut_takes_no_other_with_it(log: Guarded, disk: list[int], pieces: list[int]) -> None:
    disk += pieces
    for _ in pieces:
        log.tell("a", after=1)
    log.tell("b", after=1)
    lines = log.path.read_text().splitlines()
    assert lines[0] == '{"time": "'
    assert [json.loads(line)["event"] for line in lines[-2:]] == ["connect", "event_log_restored"]
    assert "" not in lines


def test_a_disk_that_is_full_again_is_told_again(log: Guarded, disk: list[int]) -> None:
    for _ in range(2):
        disk += [0]
        log.tell("a", after=1)
        log.tell("b", after=1)
    assert [notice.split()[0] for notice in log.notices()] == ["event_log_failed", "event_log_restored"] * 2


def test_nothing_is_kept_of_what_could_not_be_written(log: Guarded, disk: list[int]) -> None:
    def held() -> list[Any]:
        return [value for value in vars(log.file).values() if isinstance(value, list | dict | bytes)]

    disk += [0] * 100
    for _ in range(100):
        log.tell(*["a"] * 10, after=1)
    assert held() == []


def test_a_pipe_that_nobody_reads_holds_up_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = Guarded(path)
    try:
        for _ in range(3):
            log.tell(*["a"] * 1000, after=1)
        assert log.notices() == [f"event_log_failed file={path} Resource temporarily unavailable"]
    finally:
        log.close()
        os.close(reading)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_what_cannot_be_opened_at_first_is_an_error(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "events")
    with pytest.raises(OSError, match=r"Is a directory|No such device"):
        EventFile(str(tmp_path / "events"))
