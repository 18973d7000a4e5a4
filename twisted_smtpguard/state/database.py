"""The database in a state directory: SQLite, which one guard has for itself.

A change is one transaction, and on the disk when it has returned, whatever becomes of the process then. The file is
bounded. Everything here blocks, and is called in one thread at a time.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

FILE = "state.sqlite"

_APPLICATION = 0x736D7467
"""In the header of each file that a guard has made."""
_VERSION = 1
"""The version of the tables. One that older guards cannot use gets another number."""
_MOST_OCTETS = 256 * 1024 * 1024
_LOG_OCTETS = 4 * 1024 * 1024
"""How much of the write-ahead log stays on the disk when it has been written back."""


class StateError(ValueError):
    """There can be no state in this directory. The text is a sentence that begins with the path."""


def check_directory(directory: str) -> None:
    """Check that there may be state in `directory`, and write nothing. StateError: there may be none.

    Whoever can write to it could put a database there that admits or refuses whom they like.
    """
    try:
        mode = os.stat(directory).st_mode  # noqa: PTH116 - as it was written
    except FileNotFoundError:
        raise StateError(
            f"{directory}: there is no such directory; make it with: mkdir -m 700 {directory}"
        ) from None
    except (OSError, ValueError) as error:
        raise StateError(f"{directory}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISDIR(mode):
        raise StateError(f"{directory}: it is no directory")
    if mode & stat.S_IWOTH:
        raise StateError(f"{directory}: everybody can write to this directory: chmod o-w {directory}")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise StateError(f"{directory}: the guard cannot write to this directory")
    for name in (FILE, f"{FILE}-wal"):
        path = os.path.join(directory, name)  # noqa: PTH118
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise StateError(f"{path}: it is no regular file")


class Database:
    """The database in `directory`, which no other process can open until `close()`. `tables` has the statement that
    makes each table, unless it is there.

    StateError: the directory or the file cannot be used, or another guard has it.
    """

    def __init__(self, directory: str, tables: Iterable[str]) -> None:
        check_directory(directory)
        self.path = os.path.join(directory, FILE)  # noqa: PTH118
        try:
            # The files beside it get its mode. SQLite itself would let everybody read it.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            raise StateError(f"{self.path}: {error.strerror}") from error
        # Each call may be in another thread.
        self._connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            self._open(tables)
        except sqlite3.Error as error:
            self.close()
            raise StateError(f"{self.path}: {sentence(error)}") from error
        except BaseException:
            self.close()
            raise

    def _open(self, tables: Iterable[str]) -> None:
        execute = self._connection.execute
        # The lock is taken by the first access, and ends with the process, however that ends.
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("BEGIN EXCLUSIVE")
        execute("COMMIT")
        application, version = self._number("application_id"), self._number("user_version")
        if application != _APPLICATION:
            if application or execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise StateError(f"{self.path}: it is the database of another program")
        elif version > _VERSION:
            raise StateError(f"{self.path}: it was made by a later version of the guard")
        if execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("malformed")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute(f"PRAGMA journal_size_limit = {_LOG_OCTETS}")
        execute(f"PRAGMA max_page_count = {_MOST_OCTETS // self._number('page_size')}")

        def make(connection: sqlite3.Connection) -> None:
            for statement in tables:
                connection.execute(statement)
            # Nothing is written where all is there: a guard has to start on a full disk too.
            if (application, version) != (_APPLICATION, _VERSION):
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")

        self.run(make)

    def _number(self, pragma: str) -> int:
        number: int = self._connection.execute(f"PRAGMA {pragma}").fetchone()[0]
        return number

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` in a transaction, and return what it returns when all of it is on the disk. sqlite3.Error, or
        what `work` raises: nothing has changed."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            outcome = work(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            # Some errors have ended the transaction already.
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        return outcome

    def close(self) -> None:
        """Close it, and let others have the directory."""
        with suppress(sqlite3.Error):
            self._connection.close()


def sentence(error: sqlite3.Error) -> str:
    """What is wrong with a file that cannot be opened or read."""
    text = str(error)
    if "locked" in text:
        return "another guard has this directory"
    if "not a database" in text or "malformed" in text:
        return (
            "it is no database, or a damaged one; without it, moved away, the guard begins with an empty one"
        )
    return text
