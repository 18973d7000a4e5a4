"""Records of one kind, such as the clients that are known: a key, a small value, and an absolute end.

Pure: it reads the clock that it is given, and knows nothing of what keeps the records over a restart or shares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

from twisted_smtpguard.values import Record

MOST_OCTETS = 200
"""The longest key, and the longest value."""

_DROPS = 8
"""How many records whose end has passed are dropped at a change. More than one, so that they become fewer; few, so that
no change takes long when many end together."""

Listener = Callable[[str, Record | None], object]
"""Called with a key, and with its record; None: it was removed."""


class Records:
    """At most `most` records of one kind; 0: any number. If there is no room, the one whose end comes first goes: of
    bans the shortest. A record costs up to 600 octets with its key, as a tested number.

    A key is the network of a client, as `client_key` writes it, or a digest. Keys and values are printable ASCII of at
    most 200 octets; a key is not empty and has no space. `seconds` returns the time, in seconds since 1970.
    """

    def __init__(self, kind: str, most: int, seconds: Callable[[], float]) -> None:
        self.kind = kind
        self.most = most
        self._seconds = seconds
        self._records: dict[str, Record] = {}
        self._ends: list[tuple[float, str]] = []
        """A heap with the end of each record. Ends that records do not have any more are among them, so that a change
        need not look for its old one; they are at most as many as the others."""
        self._on_change: list[Listener] = []
        self._on_learnt: list[Listener] = []

    def on_change(self, listener: Listener) -> Callable[[], object]:
        """Have `listener` called after each `put()` and `remove()`, to tell it to others. What ends, or goes for lack
        of room, is not told: others see to that themselves. Returns the function that ends this."""
        self._on_change.append(listener)
        return lambda: self._on_change.remove(listener)

    def on_learnt(self, listener: Listener) -> None:
        """Have `listener` called after each `learn()`."""
        self._on_learnt.append(listener)

    def get(self, key: str) -> Record | None:
        """The record with this key; None if there is none, or its end has passed."""
        record = self._records.get(key)
        return record if record is not None and record.end > self._seconds() else None

    def put(self, key: str, value: str, end: float) -> None:
        """Make a record, in place of the one that the key has. ValueError: the key or the value is none, or the end is
        no time."""
        record = checked_record(key, Record(value, end))
        self._store(key, record)
        for listener in self._on_change:
            listener(key, record)

    def remove(self, key: str) -> Record | None:
        """Remove the record with this key. Returns it; None if there is none, or its end has passed."""
        record = self._records.pop(key, None)
        if record is None or record.end <= self._seconds():
            return None
        for listener in self._on_change:
            listener(key, None)
        return record

    def learn(self, key: str, record: Record | None) -> None:
        """Take a change that was made elsewhere, and do not tell it to others. None: the record was removed."""
        if record is None:
            self._records.pop(key, None)
        else:
            self._store(key, record)
        for listener in self._on_learnt:
            listener(key, record)

    def keys(self) -> list[str]:
        """The keys of all records. The end of some may have passed."""
        return list(self._records)

    def items(self) -> Iterator[tuple[str, Record]]:
        """The keys and records whose end has not passed. Nothing may change meanwhile."""
        now = self._seconds()
        return ((key, record) for key, record in self._records.items() if record.end > now)

    def __len__(self) -> int:
        """How many there are, without those whose end has passed. It takes time only if many have ended since the last
        look."""
        self._drop_ended(len(self._ends))
        return len(self._records)

    def set_most(self, most: int) -> None:
        """Keep at most so many from now on; 0: any number."""
        self.most = most
        while 0 < most < len(self._records):
            self._drop_first()

    def _store(self, key: str, record: Record) -> None:
        self._drop_ended(_DROPS)
        if record.end <= self._seconds():
            self._records.pop(key, None)
            return
        # The new one is not the one to go: a full table would take none that is shorter than all of its own.
        if key not in self._records and 0 < self.most <= len(self._records):
            self._drop_first()
        before = self._records.get(key)
        self._records[key] = record
        if before is None or before.end != record.end:
            heappush(self._ends, (record.end, key))
            if len(self._ends) > 2 * len(self._records):
                self._ends = [(each.end, name) for name, each in self._records.items()]
                heapify(self._ends)

    def _drop_ended(self, most: int) -> None:
        now, ends = self._seconds(), self._ends
        while most and ends and ends[0][0] <= now:
            self._drop(*heappop(ends))
            most -= 1

    def _drop_first(self) -> None:
        before = len(self._records)
        while len(self._records) == before:
            self._drop(*heappop(self._ends))

    def _drop(self, end: float, key: str) -> None:
        record = self._records.get(key)
        if record is not None and record.end == end:
            del self._records[key]


def checked_record(key: str, record: Record) -> Record:
    """`record`, if it may have this key. ValueError: it may not, and could not be kept everywhere."""
    texts = (key, record.value)
    if not key or " " in key or not all(each.isascii() and len(each) <= MOST_OCTETS for each in texts):
        raise ValueError(f"no record: {key[:40]!r}: {record.value[:40]!r}")
    if not all(each.isprintable() for each in texts) or not 0 <= record.end < 1e12:
        raise ValueError(f"no record: {key[:40]!r}: {record!r}")
    return record
