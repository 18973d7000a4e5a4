"""Sharing records with other guards, in a counter store that keeps them. Nobody waits for it, and while the store is
away each guard goes on with what it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.faults import cancel
from twisted_smtpguard.hooks.later import call_hook, shielded, within
from twisted_smtpguard.interfaces import IRecordStore
from twisted_smtpguard.records.records import Records, checked_record
from twisted_smtpguard.records.recordtables import Change, Outbox, RecordTables
from twisted_smtpguard.values import FAULTS, CounterStoreUnavailable, Record, RecordsSince

MOST_IN_CALL = 100
"""How many records one call of the store puts."""

_LOOK_SECONDS = 1.0
"""How often the store is asked what others have changed, and how long an answer is waited for."""

_SAME_SECONDS = 2.0
"""Ends that differ by less are the same: they are translated from one clock to another, and back."""


class Events(Protocol):
    """What is told of the store."""

    def failure(self, failure: Failure, text: str) -> None: ...


class RecordSharing:
    """Puts each change of `tables` into `store`, and about once a second takes from it what other guards have put.

    If the store has lost its data, as at its restart, and where this guard meets it for the first time, it is given all
    that this guard has and nobody has put or removed since. `call_later` is the reactor's. `events` are told of an
    exception that does not say that the store is away, once until it answers again.
    """

    def __init__(
        self, store: IRecordStore, tables: RecordTables, call_later: Callable[..., Any], events: Events
    ) -> None:
        self._store = store
        self._tables = tables
        self._call_later = call_later
        self._events = events
        self._outbox = Outbox(tables, self._changed)
        self._marks = dict.fromkeys(tables.by_kind, "")
        self._next: Any = None
        """The next look; None: there is none, or one is going on."""
        self._looking: Deferred[Any] | None = None
        """The look that is going on."""
        self._stopped = True
        self._answers = self._told = False
        """Whether the store has answered the latest look; and whether it was told that it fails."""

    def start(self) -> None:
        """Called when the guard begins to listen, for the first time or again."""
        self._stopped = False
        if self._next is None and self._looking is None:
            self._plan(0)

    def stop(self) -> None:
        """Ask the store no more. Called when the last session has ended."""
        self._stopped = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        cancel(self._looking)

    def _changed(self) -> None:
        """Tell the others at once, unless the store is away. A look that is going on does so at its end."""
        if self._next is not None and self._answers:
            self._next.reset(0)

    def _plan(self, seconds: float) -> None:
        if not self._stopped:
            self._next = self._call_later(seconds, self._look)

    def _look(self) -> None:
        self._next = None
        looking = self._looking = Deferred.fromCoroutine(self._exchange())
        looking.addBoth(self._looked)

    def _looked(self, outcome: object) -> None:
        self._looking = None
        self._answers = not isinstance(outcome, Failure)
        if isinstance(outcome, Failure):
            self._failed(outcome)
        else:
            self._told = False
        self._plan(0 if self._answers and self._outbox else _LOOK_SECONDS)

    def _failed(self, failure: Failure) -> None:
        if not (self._told or failure.check(CounterStoreUnavailable, TimeoutError, CancelledError)):
            self._told = True
            self._events.failure(failure, "the store of records failed")

    async def _exchange(self) -> None:
        await self._send()
        for kind, table in self._tables.by_kind.items():
            await self._learn(kind, table)

    async def _send(self) -> None:
        """Put all own changes. If that fails they are put the next time."""
        while changes := self._outbox.take(MOST_IN_CALL):
            try:
                for kind in self._tables.by_kind:
                    records = {each.key: each.record for each in changes if each.kind == kind}
                    if records:
                        await self._put(kind, records)
            except FAULTS:
                self._outbox.put_back(changes)
                raise

    async def _learn(self, kind: str, table: Records) -> None:
        """Take what others have changed; and where that is all that the store has, put what it does not have."""
        anew: set[str] | None = None
        more = True
        while more:
            found = await self._answer(partial(self._store.records_since, kind, self._marks[kind]))
            records, mark, more, is_anew = RecordsSince(*found)
            if is_anew:
                anew = set()
            if anew is not None:
                anew.update(records)
            self._outbox.learn([Change(kind, *each) for each in _changed_records(table, records)])
            self._marks[kind] = mark
        if anew is not None:
            await self._offer(kind, table, (key for key in table.keys() if key not in anew))  # noqa: SIM118

    async def _offer(self, kind: str, table: Records, keys: Iterable[str]) -> None:
        keys = iter(keys)
        while some := list(islice(keys, MOST_IN_CALL)):
            records = {key: record for key in some if (record := table.get(key)) is not None}
            if records:
                await self._put(kind, records, only_new=True)

    def _put(
        self, kind: str, records: Mapping[str, Record | None], *, only_new: bool = False
    ) -> Deferred[Any]:
        return self._answer(partial(self._store.put_records, kind, records, only_new))

    def _answer(self, hook: Callable[[], Any]) -> Deferred[Any]:
        """The answer of the store, or TimeoutError after a second."""
        return within(_LOOK_SECONDS, self._call_later, shielded(call_hook(hook)))


def record_sharing(
    store: object, tables: RecordTables, call_later: Callable[..., Any], events: Events
) -> RecordSharing | None:
    """The sharing of `tables` in a counter store; None: it keeps no records, or there is none."""
    if not IRecordStore.providedBy(store):
        return None
    return RecordSharing(IRecordStore(store), tables, call_later, events)


def _changed_records(
    table: Records, records: Mapping[str, Record | None]
) -> Iterable[tuple[str, Record | None]]:
    """Those that say something new. What is no record is left out: others can write to the store."""
    for key, record in records.items():
        mine = table.get(key)
        if record is None:
            if mine is not None:
                yield key, None
            continue
        try:
            checked_record(key, record)
        except (AttributeError, TypeError, ValueError):
            continue
        if mine is None or mine.value != record.value or abs(mine.end - record.end) >= _SAME_SECONDS:
            yield key, record
