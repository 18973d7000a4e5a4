"""Records of one kind, such as the clients that are known: a key, a small value, and an absolute end.

Pure: it reads the clock that it is given, and knows nothing of what keeps the records over a restart or shares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush

from twisted_smtpguard.values import Record

MOST_OCTETS = 200
"""The longest key, and the longest value."""

_DROPS, _DROPS_AT_LOOK = 8, 1000
"""How many records whose end has passed, or that are too many, are dropped at a change, and at a look at how many there
are. More than one, so that they become fewer; few, so that no connection waits when a hundred thousand end together."""

_End = tuple[float, str]

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
        self._ends: list[_End] = []
        """A heap with the end of each record. Ends that records do not have any more are among them, so that a change
        need not look for its old one. When they are a quarter as many as the others the heap becomes `_former_ends`,
        and each change brings some of the others back: so they stay few, and no change takes long."""
        self._former_ends: list[_End] = []
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
        """How many there are, without those whose end has passed. If very many have ended since the last look, some of
        them are counted."""
        self._drop_ended(_DROPS_AT_LOOK)
        self._drop_surplus(_DROPS_AT_LOOK, 0)
        return len(self._records)

    def set_most(self, most: int) -> None:
        """Keep at most so many from now on; 0: any number. If very many are too many, each change and each look drops
        some of them."""
        self.most = most
        self._drop_surplus(_DROPS_AT_LOOK, 0)

    def _store(self, key: str, record: Record) -> None:
        self._drop_ended(_DROPS)
        if record.end <= self._seconds():
            self._records.pop(key, None)
            return
        before = self._records.get(key)
        # The new one is not the one to go: a full table would take none that is shorter than all that it has.
        self._drop_surplus(_DROPS, before is None)
        self._records[key] = record
        if before is None or before.end != record.end:
            heappush(self._ends, (record.end, key))
            if 4 * len(self._ends) > 5 * len(self._records) and not self._former_ends:
                self._ends, self._former_ends = [], self._ends
        for _ in range(min(_DROPS, len(self._former_ends))):
            # The last of a heap may go, and leaves a heap.
            end = self._former_ends.pop()
            if self._is_of_record(*end):
                heappush(self._ends, end)

    def _drop_ended(self, most: int) -> None:
        """Drop at most so many that have ended, and ends of no record, which would be in the way of `_drop_surplus`."""
        now = self._seconds()
        for ends in (self._ends, self._former_ends):
            for _ in range(most):
                if not ends or (ends[0][0] > now and self._is_of_record(*ends[0])):
                    break
                self._drop(*heappop(ends))

    def _drop_surplus(self, most: int, more: int) -> None:
        """Drop at most so many of the records that are too many if there are `more`."""
        for _ in range(min(most, len(self._records) + more - self.most) if self.most else 0):
            before = len(self._records)
            while len(self._records) == before:
                heaps = filter(None, (self._ends, self._former_ends))
                self._drop(*heappop(min(heaps, key=lambda heap: heap[0])))

    def _drop(self, end: float, key: str) -> None:
        if self._is_of_record(end, key):
            del self._records[key]

    def _is_of_record(self, end: float, key: str) -> bool:
        record = self._records.get(key)
        return record is not None and record.end == end


def renewed_after(seconds: float) -> float:
    """How many seconds old a record that is kept for `seconds` has to be, so that the next mail or login renews it: a
    day, or half its time. A busy client may send or log in a hundred times a second, and what keeps the records has one
    change a day for it."""
    return min(86_400, seconds / 2)


def checked_record(key: str, record: Record) -> Record:
    """`record`, if it may have this key. ValueError: it may not, and could not be kept everywhere."""
    texts = (key, record.value)
    if not key or " " in key or not all(each.isascii() and len(each) <= MOST_OCTETS for each in texts):
        raise ValueError(f"no record: {key[:40]!r}: {record.value[:40]!r}")
    if not all(each.isprintable() for each in texts) or not 0 <= record.end < 1e12:
        raise ValueError(f"no record: {key[:40]!r}: {record!r}")
    return record
