"""Which changes of operators outlast the process: rules and limits that have an end. The end is absolute."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, TypeAlias

from twisted_smtpguard.operations.changes import NO_CHANGES, Changes
from twisted_smtpguard.operations.limitsettings import check_settable
from twisted_smtpguard.operations.rules import check_rule

TABLE = """
    CREATE TABLE IF NOT EXISTS operator_changes (
        kind TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, origin TEXT NOT NULL, ends_at REAL NOT NULL,
        PRIMARY KEY (kind, name)
    ) WITHOUT ROWID
"""
"""`kind` is `limit` or `rule`. `name` is an option or a network, and `value` that of the option or the verb."""

LIMIT, RULE = "limit", "rule"

Rows: TypeAlias = "dict[tuple[str, str], tuple[str, str, float]]"
"""By kind and name: the value, who has made the change, and when it ends."""


def rows_of(changes: Changes) -> Rows:
    """Those of `changes` that have an end."""
    rows: Rows = {}
    for option, (value, origin, end) in changes["set"].items():
        if end is not None:
            rows[LIMIT, option] = (value, origin, end)
    for verb, network, end, by in changes["rules"]:
        if end is not None:
            rows[RULE, network] = (verb, by, end)
    return rows


def problem_of(key: tuple[str, str], row: tuple[str, str, float]) -> str:
    """Why one of the rows cannot be brought into force, as a limit that this version of the guard does not have; "" if
    it can."""
    (kind, name), (value, _, _) = key, row
    try:
        if kind == LIMIT:
            check_settable(name, value)
        else:
            check_rule(value, name)
    except ValueError as error:
        return str(error)
    return ""


def changes_in(rows: Rows) -> Changes:
    """The changes that `rows` are."""
    limits: dict[str, Any] = {}
    rules = []
    for (kind, name), (value, origin, end) in rows.items():
        if kind == LIMIT:
            limits[name] = [value, origin, end]
        else:
            rules.append([value, name, end, origin])
    return {**NO_CHANGES, "set": limits, "rules": rules}


def read(connection: sqlite3.Connection) -> Rows:
    """What the database has. sqlite3.Error: the table is damaged."""
    rows: Rows = {}
    found = connection.execute("SELECT kind, name, value, origin, ends_at FROM operator_changes")
    for *texts, end in found:
        if not (all(isinstance(text, str) for text in texts) and isinstance(end, float)):
            raise sqlite3.DatabaseError("malformed")
        kind, name, value, origin = texts
        rows[kind, name] = (value, origin, end)
    return rows


def differences(before: Rows, after: Rows) -> Callable[[sqlite3.Connection], None] | None:
    """What makes of a database that has `before` one that has `after`; None if they are the same."""
    gone = [key for key in before if key not in after]
    new = [(*key, *row) for key, row in after.items() if before.get(key) != row]
    if not gone and not new:
        return None

    def write(connection: sqlite3.Connection) -> None:
        connection.executemany("DELETE FROM operator_changes WHERE kind = ? AND name = ?", gone)
        connection.executemany("REPLACE INTO operator_changes VALUES (?, ?, ?, ?, ?)", new)

    return write
