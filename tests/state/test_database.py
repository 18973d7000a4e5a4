"""The database of a state directory: one guard has it, a change is whole or not there, mistakes are one sentence."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from twisted_smtpguard.state.database import FILE, Database, StateError

TABLE = "CREATE TABLE IF NOT EXISTS words (word TEXT NOT NULL)"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(0o700)
    return path


@pytest.fixture
def database(directory: Path) -> Iterator[Database]:
    database = Database(str(directory), [TABLE])
    yield database
    database.close()


def write(database: Database, *words: str) -> None:
    database.run(
        lambda connection: connection.executemany("INSERT INTO words VALUES (?)", [(each,) for each in words])
    )


def words(database: Database) -> list[str]:
    return database.run(lambda connection: [word for (word,) in connection.execute("SELECT word FROM words")])


def mistake(directory: Path) -> str:
    with pytest.raises(StateError) as error:
        Database(str(directory), [TABLE])
    return str(error.value).removeprefix(str(directory))


def test_what_was_written_is_there_again(directory: Path) -> None:
    first = Database(str(directory), [TABLE])
    write(first, "a", "b")
    first.close()
    second = Database(str(directory), [TABLE])
    assert words(second) == ["a", "b"]
    second.close()


def test_it_is_opened_where_nothing_can_be_written_as_on_a_full_disk(
    directory: Path, database: Database
) -> None:
    write(database, "a")
    database.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        again = Database(str(directory), [TABLE])
        kept = words(again)
        with pytest.raises(sqlite3.OperationalError):
            write(again, "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept == words(again) == ["a"]
    again.close()


def test_work_that_raises_has_changed_nothing(database: Database) -> None:
    write(database, "a")

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM words")
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError):
        database.run(half)
    assert words(database) == ["a"]


WRITER = f"""
import sys
sys.path[:] = {sys.path!r}
from twisted_smtpguard.state.database import Database
database = Database(sys.argv[1], [{TABLE!r}])
number = 0
while True:
    number += 1
    database.run(lambda connection: [
        connection.execute("INSERT INTO words VALUES (?)", (f"{{number}}{{half}}",)) for half in "ab"
    ])
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 40, 300])
def test_what_a_process_has_written_before_kill_9_is_there_and_nothing_by_halves(
    directory: Path, after: int
) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) >= after:
            break
    assert mistake(directory) == f"/{FILE}: another guard has this directory"
    writer.send_signal(signal.SIGKILL)
    told = max([after, *map(int, writer.stdout.read().split())])
    writer.wait()
    database = Database(str(directory), [TABLE])
    found = words(database)
    database.close()
    assert found[: 2 * told] == [f"{number}{half}" for number in range(1, told + 1) for half in "ab"]
    assert len(found) in (2 * told, 2 * told + 2)


def test_a_second_one_in_the_same_process_is_refused_too(directory: Path, database: Database) -> None:
    assert mistake(directory) == f"/{FILE}: another guard has this directory"
    write(database, "a")


def test_others_cannot_read_it(directory: Path, database: Database) -> None:
    before = os.umask(0)
    try:
        write(database, "a")
    finally:
        os.umask(before)
    assert {path.name for path in directory.iterdir()} == {FILE, f"{FILE}-wal"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_a_directory_that_is_not_there_or_is_open_to_all_is_refused(directory: Path, tmp_path: Path) -> None:
    assert mistake(tmp_path / "other") == (
        f": there is no such directory; make it with: mkdir -m 700 {tmp_path}/other"
    )
    (tmp_path / "file").touch()
    assert mistake(tmp_path / "file") == ": it is no directory"
    directory.chmod(0o777)
    assert mistake(directory) == f": everybody can write to this directory: chmod o-w {directory}"


DAMAGED = ": it is no database, or a damaged one; without it, moved away, the guard begins with an empty one"


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(directory: Path) -> None:
    (directory / FILE).write_text("the notes of somebody\n" * 100)
    assert mistake(directory) == f"/{FILE}{DAMAGED}"
    assert (directory / FILE).read_text().startswith("the notes")


@pytest.mark.parametrize("place", [0, 4096])
def test_a_damaged_file_is_refused(directory: Path, place: int) -> None:
    database = Database(str(directory), [TABLE])
    write(database, *[f"{number:0100}" for number in range(1000)])
    database.close()
    with (directory / FILE).open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 4096)
    assert mistake(directory) == f"/{FILE}{DAMAGED}"


def test_the_database_of_another_program_is_refused_and_left_as_it_is(directory: Path) -> None:
    other = sqlite3.connect(directory / FILE)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = (directory / FILE).read_bytes()
    assert mistake(directory) == f"/{FILE}: it is the database of another program"
    assert (directory / FILE).read_bytes() == before


def test_one_of_a_later_version_is_refused(directory: Path) -> None:
    database = Database(str(directory), [TABLE])
    database.run(lambda connection: connection.execute("PRAGMA user_version = 2"))
    database.close()
    assert mistake(directory) == f"/{FILE}: it was made by a later version of the guard"


@pytest.mark.parametrize("name", [FILE, f"{FILE}-wal"])
def test_a_link_or_a_pipe_in_its_place_is_refused(directory: Path, tmp_path: Path, name: str) -> None:
    (directory / name).symlink_to(tmp_path / "elsewhere")
    assert mistake(directory) == f"/{name}: it is no regular file"
    (directory / name).unlink()
    os.mkfifo(directory / name)
    assert mistake(directory) == f"/{name}: it is no regular file"


def test_it_grows_to_a_bound_and_what_does_not_fit_is_refused_whole(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twisted_smtpguard.state.database._MOST_OCTETS", 256 * 1024)
    database = Database(str(directory), [TABLE])
    for number in range(20):
        write(database, f"{number}" * 1000)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        write(database, *["x" * 100_000] * 10)
    assert len(words(database)) == 20
    write(database, "after")
    database.close()
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 256 * 1024
