"""Which records outlast the process: all of them, until their end. A change is on the disk within a second, unless the
disk is slower than that."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.threads import OneThread, ThreadedReactor
from twisted_smtpguard.records.records import checked_record
from twisted_smtpguard.records.recordtables import OF_CLIENTS, Change, Outbox, RecordTables
from twisted_smtpguard.state.database import Database
from twisted_smtpguard.values import Record

STATEMENTS = (
    """
    CREATE TABLE IF NOT EXISTS records (
        kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, ends_at REAL NOT NULL, PRIMARY KEY (kind, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX IF NOT EXISTS records_by_end ON records (kind, ends_at)",
)

PAUSE_SECONDS = 0.2
"""How long changes are gathered after a batch, so that a crowd does not keep the disk busy."""

RETRY_SECONDS = 10
"""How long a batch waits that could not be written."""

_BATCH = 2000
"""How many changes are written together."""


def read(connection: sqlite3.Connection, tables: RecordTables) -> None:
    """Put what the database has into `tables`. sqlite3.Error: the table is damaged."""
    for *texts, end in connection.execute("SELECT kind, key, value, ends_at FROM records"):
        try:
            kind, key, value = texts
            change = Change(kind, key, checked_record(key, Record(value, end)))
        except (AttributeError, TypeError, ValueError) as error:
            raise sqlite3.DatabaseError("malformed") from error
        tables.learn([change])


def writing(
    changes: Sequence[Change], most: dict[str, int], now: float
) -> Callable[[sqlite3.Connection], None]:
    """What writes `changes`, and drops what has ended, and of each kind what is too much: the records that end first.
    `most` has how many there may be of each kind; 0: any number."""

    def write(connection: sqlite3.Connection) -> None:
        gone = [(kind, key) for kind, key, record in changes if record is None]
        connection.executemany("DELETE FROM records WHERE kind = ? AND key = ?", gone)
        new = [(kind, key, *record) for kind, key, record in changes if record is not None]
        connection.executemany("REPLACE INTO records VALUES (?, ?, ?, ?)", new)
        for kind in {change.kind for change in changes}:
            connection.execute("DELETE FROM records WHERE kind = ? AND ends_at <= ?", (kind, now))
            count = connection.execute("SELECT count(*) FROM records WHERE kind = ?", (kind,)).fetchone()[0]
            if 0 < most[kind] < count:
                connection.execute(
                    "DELETE FROM records WHERE kind = ?1 AND key IN "
                    "(SELECT key FROM records WHERE kind = ?1 ORDER BY ends_at LIMIT ?2)",
                    (kind, count - most[kind]),
                )

    return write


class RecordKeeper:
    """Writes each change of `tables` into `database`, in `thread`: one batch after the other, so that however many
    there are, only one batch waits for the disk. `failed` is called with what is wrong when a batch cannot be written,
    and not again before one has been. Such a batch is tried again, with what has changed since.

    Made when the tables have what the database has.
    """

    def __init__(
        self,
        reactor: ThreadedReactor,
        thread: OneThread,
        database: Database,
        tables: RecordTables,
        failed: Callable[[str], object],
    ) -> None:
        self._reactor: Any = reactor
        self._thread = thread
        self._database = database
        self._tables = tables
        self._failed = failed
        self._told = False
        self._outbox = Outbox(tables, self._changed, OF_CLIENTS)
        self._next: Any = None
        """The next batch, if it is planned. None: there is nothing to write, or a batch is being written."""
        self._writing = self._stopped = False

    def stop(self) -> Deferred[Any]:
        """Write what has not been written. Fires when that is on the disk, or has failed, and never fails."""
        self._stopped = True
        self._outbox.close()
        if self._next is not None:
            self._next.cancel()
        # First the batch has to end that is being written: it may have to be written again.
        return self._thread.run(lambda: None).addCallback(lambda _: self._write(len(self._outbox)))

    def _changed(self) -> None:
        if self._next is None and not self._writing:
            self._plan(0)

    def _plan(self, seconds: float) -> None:
        self._writing = False
        self._next = None if self._stopped else self._reactor.callLater(seconds, self._batch)

    def _batch(self) -> None:
        self._next = None
        if self._outbox:
            self._writing = True
            self._write(_BATCH)

    def _write(self, number: int) -> Deferred[Any]:
        changes = self._outbox.take(number)
        if not changes:
            return succeed(None)
        most = {kind: table.most for kind, table in self._tables.by_kind.items()}
        work = writing(changes, most, self._reactor.seconds())
        written: Deferred[Any] = self._thread.run(self._database.run, work)
        return written.addCallbacks(self._written, self._not_written, errbackArgs=(changes,))

    def _written(self, _: object) -> None:
        self._told = False
        self._plan(PAUSE_SECONDS)

    def _not_written(self, failure: Failure, changes: Sequence[Change]) -> None:
        self._outbox.put_back(changes)
        if not self._told:
            self._told = True
            self._failed(failure.getErrorMessage())
        self._plan(RETRY_SECONDS)
