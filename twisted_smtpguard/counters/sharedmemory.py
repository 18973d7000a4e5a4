"""The counter store that the processes of one host share: a table in memory that all of them have mapped.

The table is a row of buckets. A client is always in the same bucket, so that it is found at once and the memory never
grows; if its bucket is full, the client of that bucket that was used least recently is forgotten. A bucket is

    32 keys of 16 octets | 32 times of last use | 32 beginnings of windows | 32 numbers of events | 32 rows of places

and a row of places has one number for each process. A process takes the lock of the file for each decision. The kernel
gives it back if the process is killed, which leaves at most one count of one client half-written. A process that is
stopped with the lock stops all others, so the process that watches them has to kill it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b

from zope.interface import implementer

from twisted_smtpguard.counters.localstore import InMemoryStore
from twisted_smtpguard.interfaces import ICounterStore
from twisted_smtpguard.values import Wanted

_WAYS = 32
_KEY_OCTETS = 16
_NO_KEY = bytes(_KEY_OCTETS)
_USED = _WAYS * _KEY_OCTETS
_BEGAN = _USED + _WAYS * 8
_EVENTS = _BEGAN + _WAYS * 8
_PLACES = _EVENTS + _WAYS * 8
_HEADER = struct.Struct("=16sIIQ")
_HEADER_OCTETS = 64
_CLIENTS = 24
"""Where the header has the number of clients in the table."""
_TIME, _NUMBER, _PLACE = struct.Struct("=d"), struct.Struct("=Q"), struct.Struct("=I")
_TIMES = struct.Struct(f"={_WAYS}d")
_TRIES = 20
"""How often the lock is tried before a process falls asleep to wait for it: for some 30 µs."""
_FLOCK = struct.Struct("@hhqqi4x")
"""The C structure `flock`: the kind of a lock, whence, its start, its length, and the process that has it."""


def create_table(max_clients: int, processes: int) -> int:
    """Make a table for `max_clients` clients, of all counters together, and return the descriptor of its memory.

    Pass it to the processes, each of which makes a SharedCounterStore of it.
    """
    # A quarter more, since some buckets fill before others.
    buckets = max(1, max_clients * 5 // 4 // _WAYS)
    descriptor = os.memfd_create("smtpguard-counters")
    os.ftruncate(descriptor, _HEADER_OCTETS + buckets * (_PLACES + _WAYS * processes * _PLACE.size))
    # Nobody outside can find out which clients share a bucket, and so push one out on purpose.
    os.pwrite(descriptor, _HEADER.pack(os.urandom(16), buckets, processes, 0), 0)
    return descriptor


@implementer(ICounterStore)
class SharedCounterStore(InMemoryStore):
    """A counter store for the process with the number `process`, on the table behind `descriptor`. It always answers
    at once. `seconds` is a clock that all processes share. The names of owners are not looked at: a process is one."""

    lease_seconds = 0

    def __init__(self, descriptor: int, process: int, seconds: Callable[[], float] = time.monotonic) -> None:
        self._lock = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        self._memory = mmap.mmap(self._lock, 0)
        self._secret, self._buckets, self._processes, _ = _HEADER.unpack_from(self._memory)
        if not 0 <= process < self._processes:
            raise ValueError(f"process: a number below {self._processes} is expected, not {process}")
        self._process = process
        self._row = struct.Struct(f"={self._processes}I")
        self._bucket_octets = _PLACES + _WAYS * self._row.size
        self._seconds = seconds
        # A client asks several times in a session, and every one for the place of all connections.
        self._bucket = lru_cache(maxsize=1024)(self._bucket_of)

    def take(self, owner: str, wanted: Sequence[Wanted]) -> list[int]:
        """Take all that is wanted, or nothing, and return the counts."""
        buckets = [self._bucket(each.counter, each.client) for each in wanted]
        self._acquire()
        try:
            # A time from before another process had the lock could be before the beginning of a window.
            now = self._seconds()
            counts, fits = self._count(wanted, buckets, now)
            if fits:
                for each, (bucket, key) in zip(wanted, buckets, strict=True):
                    self._add(each, key, bucket, now)
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)
        return counts

    def _acquire(self) -> None:
        """Take the lock."""
        # Whoever has it gives it back sooner than this process would have fallen asleep and been woken.
        for _ in range(_TRIES):
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return
        fcntl.lockf(self._lock, fcntl.LOCK_EX)

    def _count(
        self, wanted: Sequence[Wanted], buckets: Sequence[tuple[int, bytes]], now: float
    ) -> tuple[list[int], bool]:
        """The counts with what is wanted, and whether they are within their limits. Whoever asks is remembered."""
        counts = []
        fits = True
        for (_, _, limit, seconds, events), (bucket, key) in zip(wanted, buckets, strict=True):
            way, held = self._way(bucket, key), 0
            if way >= 0:
                held = self._window(bucket, way, seconds, now)[0] if seconds else sum(self._held(bucket, way))
                _TIME.pack_into(self._memory, bucket + _USED + 8 * way, now)
            counts.append(held + events)
            if 0 < limit < held + events:
                fits = False
        return counts, fits

    def give_back(self, owner: str, taken: Iterable[Wanted]) -> None:
        """Give back what was taken. What belongs to a client that was forgotten meanwhile changes nothing."""
        found = [(each, *self._bucket(each.counter, each.client)) for each in taken]
        self._acquire()
        try:
            now = self._seconds()
            for (_, _, _, seconds, events), bucket, key in found:
                way = self._way(bucket, key)
                if way < 0:
                    continue
                if seconds:
                    count, _ = self._window(bucket, way, seconds, now)
                    _NUMBER.pack_into(self._memory, bucket + _EVENTS + 8 * way, max(0, count - events))
                else:
                    self._change_places(bucket, way, -events)
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def look(self, wanted: Iterable[Wanted]) -> list[tuple[int, float]]:
        """Return the count of each, and the seconds after which its window ends."""
        seen = []
        self._acquire()
        try:
            for counter, client, _, seconds, _ in wanted:
                bucket, key = self._bucket(counter, client)
                way = self._way(bucket, key)
                if way < 0:
                    seen.append((0, 0.0))
                elif seconds:
                    seen.append(self._window(bucket, way, seconds, self._seconds()))
                else:
                    seen.append((sum(self._held(bucket, way)), 0.0))
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)
        return seen

    def held_by_all(self, counter: str) -> int:
        """How many places all processes hold of a counter that has no clients."""
        # It does not wait for the lock, so that a flood that is refused does not hold up those that are not.
        bucket, key = self._bucket(counter, "")
        way = self._way(bucket, key)
        return sum(self._held(bucket, way)) if way >= 0 else 0

    def renew(self, owner: str, places: Mapping[tuple[str, str], int]) -> None:
        """Never called: places end when they are given back, or when their process ends."""

    def forget(self, process: int) -> None:
        """Give back all places of a process that has ended. Called by the process that watches the others.

        It does not wait for the lock, which a process that is stopped may have. Nobody else changes these places, and
        whoever counts them meanwhile sees them or not.
        """
        size, step = self._bucket_octets, self._bucket_octets // _PLACE.size
        none = memoryview(array("I", bytes(_PLACE.size * self._buckets)))
        with memoryview(self._memory) as table, table.cast("I") as places:
            for start, end in self._used_parts():
                for way in range(_WAYS):
                    first = _HEADER_OCTETS + _PLACES + way * self._row.size + process * _PLACE.size
                    # The buckets that have this place in the part.
                    low, high = max(0, -((first - start) // size)), -((first - end) // size)
                    at = first // _PLACE.size + low * step
                    places[at : at + (high - low) * step : step] = none[: max(0, high - low)]

    def _used_parts(self) -> Iterator[tuple[int, int]]:
        """Where parts of the table begin and end that have memory. A part that was never used has none, but would get
        some as soon as it was looked at."""
        end = 0
        # The last part is followed by an error.
        with suppress(OSError):
            while True:
                start = os.lseek(self._lock, end, os.SEEK_DATA)
                end = os.lseek(self._lock, start, os.SEEK_HOLE)
                yield start, end

    def lock_holder(self) -> int:
        """The ID of the process that has the lock at this instant; 0: none, or this one."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0)
        *_, pid = _FLOCK.unpack(fcntl.fcntl(self._lock, fcntl.F_GETLK, asked))
        return int(pid)

    def clients(self) -> dict[str, int]:
        """How many clients are in the table, which has those of all counters."""
        return {"all": _NUMBER.unpack_from(self._memory, _CLIENTS)[0]}

    def close(self) -> None:
        """Unmap the table. The store cannot be used after that."""
        self._memory.close()
        os.close(self._lock)

    def _bucket_of(self, counter: str, client: str) -> tuple[int, bytes]:
        """The offset of a client's bucket, and its key."""
        key = blake2b(f"{counter} {client}".encode(), digest_size=_KEY_OCTETS, key=self._secret).digest()
        bucket = int.from_bytes(key[:8], "big") % self._buckets
        return _HEADER_OCTETS + bucket * self._bucket_octets, key

    # All of these are called with the lock, where it is not said otherwise.

    def _way(self, bucket: int, key: bytes) -> int:
        """The number of a client in its bucket; -1: it is not there."""
        keys = self._memory[bucket : bucket + _USED]
        at = keys.find(key)
        while at % _KEY_OCTETS and at >= 0:
            at = keys.find(key, at + 1)
        return at // _KEY_OCTETS

    def _held(self, bucket: int, way: int) -> tuple[int, ...]:
        """The places of a client in each process."""
        return self._row.unpack_from(self._memory, bucket + _PLACES + way * self._row.size)

    def _window(self, bucket: int, way: int, seconds: float, now: float) -> tuple[int, float]:
        """How many events the client's window has, and after how many seconds it ends; 0 and 0 if it is over."""
        began: float = _TIME.unpack_from(self._memory, bucket + _BEGAN + 8 * way)[0]
        events: int = _NUMBER.unpack_from(self._memory, bucket + _EVENTS + 8 * way)[0]
        return (events, began + seconds - now) if events and 0 <= now - began < seconds else (0, 0.0)

    def _add(self, wanted: Wanted, key: bytes, bucket: int, now: float) -> None:
        memory = self._memory
        # A client that was wanted together with this one may have taken its place in the bucket.
        way = self._way(bucket, key)
        if way < 0:
            way = self._make_room(bucket, key)
        _TIME.pack_into(memory, bucket + _USED + 8 * way, now)
        if not wanted.seconds:
            self._change_places(bucket, way, wanted.events)
            return
        count, _ = self._window(bucket, way, wanted.seconds, now)
        if not count:
            _TIME.pack_into(memory, bucket + _BEGAN + 8 * way, now)
        _NUMBER.pack_into(memory, bucket + _EVENTS + 8 * way, count + wanted.events)

    def _change_places(self, bucket: int, way: int, change: int) -> None:
        at = bucket + _PLACES + way * self._row.size + self._process * _PLACE.size
        _PLACE.pack_into(self._memory, at, max(0, _PLACE.unpack_from(self._memory, at)[0] + change))

    def _make_room(self, bucket: int, key: bytes) -> int:
        """Put a client into its bucket, and return its number there. If the bucket is full, the client that was used
        least recently goes: if possible one that holds no places."""
        way = self._way(bucket, _NO_KEY)
        if way >= 0:
            clients = _NUMBER.unpack_from(self._memory, _CLIENTS)[0]
            _NUMBER.pack_into(self._memory, _CLIENTS, clients + 1)
        else:
            used = _TIMES.unpack_from(self._memory, bucket + _USED)
            way = min(range(_WAYS), key=lambda each: (sum(self._held(bucket, each)) > 0, used[each]))
        # Its counts are cleared first: if this process is killed here, no client has those of another.
        self._row.pack_into(self._memory, bucket + _PLACES + way * self._row.size, *[0] * self._processes)
        _NUMBER.pack_into(self._memory, bucket + _EVENTS + 8 * way, 0)
        at = bucket + way * _KEY_OCTETS
        self._memory[at : at + _KEY_OCTETS] = key
        return way
