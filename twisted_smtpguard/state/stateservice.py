"""`StateService`: what a guard keeps over a restart, read before it listens and written at each change."""

# ruff: noqa: N802 - Twisted's own names

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.threads import OneThread, ThreadedReactor
from twisted_smtpguard.operations.changes import Changes
from twisted_smtpguard.records.recordtables import OF_CLIENTS, RecordTables
from twisted_smtpguard.state import keptchanges, keptrecords
from twisted_smtpguard.state.database import Database, StateError, sentence
from twisted_smtpguard.state.keptrecords import RecordKeeper


class StateService(Service):
    """Keeps in the state directory `directory` what operators have changed, and the `records`. It is made a child of a
    guard: then it is started before the guard listens, and stopped after its last session.

    `keeper` calls its `keep` after each change. `changes` returns those in force, and `take` brings such into force, at
    the start. `events` are told what was restored, and what could not be kept.
    """

    def __init__(
        self,
        reactor: ThreadedReactor,
        directory: str,
        keeper: Any,
        changes: Callable[[], Changes],
        take: Callable[[Changes], object],
        records: RecordTables,
        events: Any,
    ) -> None:
        self._reactor = reactor
        self._directory = directory
        self._keeper = keeper
        self._changes = changes
        self._take = take
        self._records = records
        self._record_keeper: RecordKeeper | None = None
        self._events = events
        self._thread = OneThread(reactor)
        self._database: Database | None = None
        self._on_disk: keptchanges.Rows = {}
        """What the database has. Changed in the thread alone."""

    def startService(self) -> None:
        """Open the database, and bring into force what it has. StateError: it cannot be opened or read."""
        super().startService()
        tables = [keptchanges.TABLE, *keptrecords.STATEMENTS]
        database = self._database = Database(self._directory, tables)
        try:
            self._on_disk = database.run(keptchanges.read)
            database.run(partial(keptrecords.read, tables=self._records))
        except sqlite3.Error as error:
            raise StateError(f"{database.path}: {sentence(error)}") from error
        now = self._reactor.seconds()
        good: keptchanges.Rows = {}
        for key, row in self._on_disk.items():
            if row[-1] > now:
                problem = keptchanges.problem_of(key, row)
                if problem:
                    self._events.setup_warning("state", f"a {key[0]} is not restored: {problem}")
                else:
                    good[key] = row
        if good:
            self._take(keptchanges.changes_in(good))
        limits = sum(kind == keptchanges.LIMIT for kind, _ in good)
        records = sum(len(self._records[kind]) for kind in OF_CLIENTS)
        if good or records:
            self._events.state_restored(self._directory, limits, len(good) - limits, records)
        self._record_keeper = RecordKeeper(
            self._reactor,
            self._thread,
            database,
            self._records,
            partial(self._events.state_failed, self._directory),
        )
        self._keeper.keep = self.keep

    def keep(self) -> Deferred[str]:
        """Write what differs from what the database has. Fires with "" when it is on the disk, or with what is wrong,
        and never fails."""
        assert self._database is not None
        rows = keptchanges.rows_of(self._changes())
        writing: Deferred[Any] = self._thread.run(self._write, self._database, rows)
        return writing.addCallbacks(lambda _: "", self._not_kept)

    def _write(self, database: Database, rows: keptchanges.Rows) -> None:
        """Called in the thread."""
        write = keptchanges.differences(self._on_disk, rows)
        if write is not None:
            database.run(write)
            self._on_disk = rows

    def _not_kept(self, failure: Failure) -> str:
        problem = failure.getErrorMessage()
        self._events.state_failed(self._directory, problem)
        return problem

    def stopService(self) -> Deferred[Any]:
        """Write what could not be written before, and close the database."""
        super().stopService()
        database, keeper = self._database, self._record_keeper
        if database is None or keeper is None:
            # It could not be opened, or read.
            return succeed(None)
        self.keep()
        self._keeper.keep = self._database = self._record_keeper = None
        return keeper.stop().addCallback(lambda _: self._thread.run(database.close))
