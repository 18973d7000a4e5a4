"""The tables of all kinds of records of one guard, and the changes in them that are to be told to others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from twisted_smtpguard.records.records import Records
from twisted_smtpguard.values import MOST_RECORDS, Record

KNOWN, BAN, FORMER_BAN, LOGIN, RULE = "known", "ban", "former_ban", "login", "rule"
"""The kinds: clients whose mail was accepted; clients and networks that are banned, and how often they were; from where
a user has logged in; and networks that operators deny, trust or allow for a time."""

KINDS = (KNOWN, BAN, FORMER_BAN, LOGIN, RULE)

OF_CLIENTS = (KNOWN, BAN, FORMER_BAN, LOGIN)
"""Those that are kept on the disk, and that workers tell each other. What operators change reaches both by itself."""


class Change(NamedTuple):
    """A change of one record. Its `record` is None if it was removed."""

    kind: str
    key: str
    record: Record | None


class RecordTables:
    """One table for each kind: `tables[KNOWN]`. `seconds` returns the time, in seconds since 1970."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.by_kind: Mapping[str, Records] = {kind: Records(kind, MOST_RECORDS, seconds) for kind in KINDS}

    def __getitem__(self, kind: str) -> Records:
        return self.by_kind[kind]

    def learn(self, changes: Sequence[Change]) -> None:
        """Take changes that were made elsewhere. Those of a kind that this version does not have are left out."""
        for kind, key, record in changes:
            table = self.by_kind.get(kind)
            if table is not None:
                table.learn(key, record)

    def make(self, changes: Sequence[Change]) -> None:
        """Make changes that a part of this guard has made, such as a worker: they are told onward."""
        for kind, key, record in changes:
            if record is None:
                self.by_kind[kind].remove(key)
            else:
                self.by_kind[kind].put(key, *record)


class Outbox:
    """The changes of `kinds` of `tables` that are to be told to others, the earliest first. Of each record there is
    one, the latest, and of each kind at most as many as its table may have: further ones push out the earliest. What
    is told anew, because the others have nothing, comes after the changes.

    `changed` is called after each change.
    """

    def __init__(
        self, tables: RecordTables, changed: Callable[[], object], kinds: Sequence[str] = KINDS
    ) -> None:
        self._tables = tables
        self._changed = changed
        self._keys: dict[str, OrderedDict[str, None]] = {kind: OrderedDict() for kind in kinds}
        self._anew: list[tuple[str, list[str]]] = []
        """What is told anew: of each kind the keys that are left, the last of the last kind first."""
        self._listens = [tables[kind].on_change(partial(self._note, kind)) for kind in kinds]

    def close(self) -> None:
        """Note no more changes."""
        for end in self._listens:
            end()
        self._listens = []

    def __len__(self) -> int:
        return sum(map(len, self._keys.values())) + sum(len(keys) for _, keys in self._anew)

    def learn(self, changes: Sequence[Change]) -> None:
        """Take changes that others have made, as `RecordTables.learn`, but none of a record whose own change they have
        not been told: for them that is the later one."""
        self._tables.learn([each for each in changes if each.key not in self._keys.get(each.kind, ())])

    def take(self, most: int) -> list[Change]:
        """At most so many changes, which are not in it any more. What a record is now is told: it may have been changed
        again, or have ended. Of what is told anew no record is left out but one that has ended, so that there may be
        fewer changes, or none, while more follow."""
        taken: list[Change] = []
        for kind, keys in self._keys.items():
            table = self._tables[kind]
            some = [key for key, _ in zip(keys, range(most - len(taken)), strict=False)]
            for key in some:
                del keys[key]
            taken += [Change(kind, key, table.get(key)) for key in some]
        for _ in range(most - len(taken)):
            while self._anew and not self._anew[-1][1]:
                self._anew.pop()
            if not self._anew:
                break
            kind, left = self._anew[-1]
            key = left.pop()
            record = self._tables[kind].get(key)
            if record is not None:
                taken.append(Change(kind, key, record))
        return taken

    def put_back(self, changes: Sequence[Change]) -> None:
        """Put changes back that were taken and could not be told."""
        for kind, key, _ in changes:
            self._add(kind, key)

    def add_all(self) -> None:
        """Put everything into it that the tables have, as for somebody who has lost it. No record is looked at before
        it is taken, since there may be hundreds of thousands."""
        self._anew = [(kind, self._tables[kind].keys()) for kind in self._keys]

    def _note(self, kind: str, key: str, _: Record | None) -> None:
        self._add(kind, key)
        self._changed()

    def _add(self, kind: str, key: str) -> None:
        keys, most = self._keys[kind], self._tables[kind].most
        keys[key] = None
        keys.move_to_end(key)
        if 0 < most < len(keys):
            keys.popitem(last=False)
