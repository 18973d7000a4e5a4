"""The counts of one guard, in a store that may answer late or not at all.

A decision waits for the store for 50 ms at most. Then, and until the store answers again, the guard goes on with its
own counts: it holds its clients to the same limits, but does not see what other guards admit. When the store is back it
is told what the guard holds; a store that says when it has connected is told at once, since it may have lost its data.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.python.reflect import safe_repr, safe_str

from twisted_smtpguard.counters.decision import ANSWER_SECONDS, Question, are_counts, fits
from twisted_smtpguard.counters.localstore import InMemoryStore, LocalCounterStore
from twisted_smtpguard.hooks.later import as_deferred, call_hook, explained, shielded, within
from twisted_smtpguard.interfaces import IConnectingCounterStore, ICounterStore
from twisted_smtpguard.values import FAULTS, CounterStoreUnavailable, Wanted, is_later

if TYPE_CHECKING:
    # It needs Linux.
    from twisted_smtpguard.counters.sharedmemory import SharedCounterStore

Count: TypeAlias = int | Deferred[int]
"""A count, at once or later."""
Counts: TypeAlias = Sequence[int] | Deferred[Sequence[int]]
Looks: TypeAlias = Sequence[tuple[int, float]] | Deferred[Sequence[tuple[int, float]]]

_PROBE_SECONDS = 1
"""How often a store that is away is asked whether it is back, and how long any other answer is waited for."""
_RENEWALS = 3
"""How often places are renewed in the time of a lease."""


class Counting:
    """The counts of one guard. No method raises or fails.

    `store` is the operator's, which other guards may share; None: there is none. `own` counts for this guard alone, if
    there is no store or it is away. `events` are told when it is lost and when it is back. `settled` is called whenever
    an answer that was pending has come, or is no longer waited for.
    """

    def __init__(
        self,
        store: ICounterStore | None,
        own: LocalCounterStore,
        reactor: IReactorTime,
        events: Any,
        settled: Callable[[], object],
    ) -> None:
        self.shared = store is not None
        """Whether other guards may count in the same store, so that it has the number of all connections too."""
        self.owner = secrets.token_hex(8)
        """The name of this run of the guard, which no other has."""
        self.pending = 0
        """How many answers of the store are waited for."""
        # 50 ms are too short for the guard's deadlines, which are rounded.
        self.call_later = reactor.callLater
        self.seconds = reactor.seconds
        self.store: ICounterStore = own if store is None else store
        self._own: LocalCounterStore | SharedCounterStore | None = own
        self.held_by_all: Callable[[str], int] = own.held_by_all
        """As that of the store, if it knows at once."""
        if isinstance(self.store, InMemoryStore):
            self._own = None
            self.held_by_all = self.store.held_by_all
        self._events = events
        self.outages: Any = events
        """Who is told when the store is lost and when it is back: instead of the events it may be whoever speaks for
        several processes."""
        self._settled = settled
        self._away_since: float | None = None
        self._told_away = False
        """Whether the log says that the store is away."""
        self._held: dict[tuple[str, str], int] = {}
        """The places of this guard, with those that it has asked for."""
        self._next: Any = None
        """The next renewal, or the next question whether the store is back."""
        self._stopped = False
        self._connecting = (
            IConnectingCounterStore(store) if IConnectingCounterStore.providedBy(store) else None
        )
        if self._connecting is not None:
            self._connecting.on_connected(self._connected)

    @property
    def is_away(self) -> bool:
        """Whether the store is away, so that this guard counts alone."""
        return self._away_since is not None

    @property
    def can_fail(self) -> bool:
        """Whether there is a store that may be away."""
        return self._own is not None

    @property
    def is_up(self) -> bool:
        """Whether the store can be asked now, as far as it is known."""
        return not self.is_away and (self._connecting is None or self._connecting.connected)

    def fall_back_on(self, own: LocalCounterStore | SharedCounterStore) -> None:
        """Count in `own`, which several processes may share, while the store is away. Called before the first
        decision."""
        if self._own is not None:
            self._own = own

    def take(self, wanted: Sequence[Wanted]) -> Counts:
        """Take all that is wanted, or nothing, and return the counts; a Deferred if they come later. Cancel it when
        they are no longer needed: what was taken is given back then."""
        if self._own is None:
            return self.store.take(self.owner, wanted)  # type: ignore[return-value]
        self._hold(wanted, 1)
        if self.is_away:
            return self._decide_alone(wanted)
        self._plan_next()
        try:
            answer: Any = self.store.take(self.owner, wanted)
            if not is_later(answer):
                return self.decided(wanted, answer)
            later = as_deferred(answer)
        except FAULTS:
            return self.decided_alone(wanted, explained(Failure()))
        self.pending += 1
        outcome: Deferred[Sequence[int]] = Deferred()
        later.addBoth(Question(self, wanted, outcome).answered)
        return outcome

    def one_event(self, counter: str, limit: int, seconds: float) -> Callable[[str], Count]:
        """A function that takes one event of a client and returns its count, at once or later."""
        if self._own is None and isinstance(self.store, LocalCounterStore):
            return self.store.one_event(counter, limit, seconds)
        return partial(_one_event, self, counter, limit, seconds)

    def events(
        self,
        counter: str,
        seconds: float,
        wanted_of: Callable[[str], Sequence[Wanted]],
        refused: Callable[[Sequence[Wanted], Sequence[int]], Any],
    ) -> Callable[[str], Any] | None:
        """As `LocalCounterStore.events`; None: there is another store, and `take()` is as quick."""
        if self._own is None and isinstance(self.store, LocalCounterStore):
            return self.store.events(counter, seconds, wanted_of, refused)
        return None

    def add(self, places: Sequence[Wanted]) -> None:
        """Take places that have no limit. They count at once, and may be given back before the store has answered."""
        if self._own is None:
            self.store.take(self.owner, places)
            return
        self._hold(places, 1)
        self._own.take("", places)
        if not self.is_away:
            self._plan_next()
            self._tell(lambda: self.store.take(self.owner, places))

    def give_back(self, taken: Sequence[Wanted]) -> None:
        """Give back what was taken."""
        if self._own is None:
            self.store.give_back(self.owner, taken)
            return
        self._hold(taken, -1)
        self._own.give_back("", taken)
        if not self.is_away:
            self._tell(lambda: self.store.give_back(self.owner, taken))

    def look(self, wanted: Sequence[Wanted]) -> Looks:
        """The present count of each, and the seconds until its window ends; a Deferred if they come later. If the store
        is away they are those of this guard alone."""
        own = self._own
        if own is None:
            return self.store.look(wanted)  # type: ignore[return-value]
        if self.is_away:
            return own.look(wanted)
        return self._answer(lambda: self.store.look(wanted)).addErrback(lambda _: own.look(wanted))

    def stop(self) -> None:
        """Renew nothing more, and ask a store that is away no more. Called when the last session has ended."""
        self._stopped = True
        self._cancel_next()

    def start(self) -> None:
        """Called when the guard begins to listen, for the first time or again. A store that has not connected yet has a
        second to do so before the log says that it is away; one that is away is asked again."""
        self._stopped = False
        if self._connecting is not None and not self._connecting.connected and not self.is_away:
            self._away_since = self.seconds()
        self._plan_next()

    # The store is away, or back.

    def lost(self, failure: Failure) -> None:
        """The store has failed, or has not answered in time: go on alone, and ask it again from time to time."""
        if self.is_away:
            return
        self._away_since = self.seconds()
        self._cancel_next()
        self._plan_next()
        self._tell_away(failure)

    def _tell_away(self, failure: Failure) -> None:
        self._told_away = True
        self.outages.counters_away(safe_str(failure.value) or type(failure.value).__name__)
        if not failure.check(CounterStoreUnavailable, TimeoutError):
            self._events.failure(failure, "the counter store failed")

    def _plan_next(self) -> None:
        """Ask a store that is away again in a second. Renew the places in time, if there are any and leases end."""
        if self._next is not None or self._stopped:
            return
        if self.is_away:
            self._next = self.call_later(_PROBE_SECONDS, self._probe)
        elif self._held and self.store.lease_seconds:
            self._next = self.call_later(self.store.lease_seconds / _RENEWALS, self._renew)

    def _cancel_next(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _probe(self) -> None:
        self._next = None
        self._hand_over().addCallback(self._is_quick).addCallbacks(self._is_back, self._is_still_away)

    def _is_quick(self, _: object) -> Deferred[Any]:
        """Fails if the store would not answer a decision in time. Otherwise a slow one would be away and back again
        at each decision."""
        return within(ANSWER_SECONDS, self.call_later, shielded(call_hook(lambda: self.store.look(()))))

    def _connected(self) -> None:
        """The store has connected, and is asked nothing before this."""
        if self._stopped:
            return
        self._cancel_next()
        if self.is_away:
            self._probe()
        else:
            self._renew()

    def _is_back(self, _: object) -> None:
        if self._away_since is None:
            return
        seconds, self._away_since = self.seconds() - self._away_since, None
        if self._told_away:
            self._told_away = False
            self.outages.counters_back(seconds)
        # What was decided since the question was sent is handed over too.
        self._cancel_next()
        self._renew()

    def _is_still_away(self, failure: Failure) -> None:
        if self.is_away and not self._told_away:
            self._tell_away(failure)
        self._plan_next()

    def _renew(self) -> None:
        self._next = None
        self._hand_over().addErrback(self.lost)
        self._plan_next()

    def _hand_over(self) -> Deferred[Any]:
        """Tell the store what this guard holds. Fails if it does not answer in time."""
        places = dict(self._held)
        return self._answer(lambda: self.store.renew(self.owner, places))

    def _answer(self, hook: Callable[[], Any]) -> Deferred[Any]:
        """The answer of the store, or TimeoutError after a second. The call itself goes on: none is cancelled."""
        return within(_PROBE_SECONDS, self.call_later, shielded(call_hook(hook)))

    # Decisions.

    def decided(self, wanted: Sequence[Wanted], counts: Any) -> Sequence[int]:
        """Called with the counts that the store has answered: this guard counts them for itself too."""
        if not are_counts(counts, len(wanted)):
            problem = TypeError(f"{safe_repr(counts)} is no list of {len(wanted)} whole numbers")
            return self.decided_alone(wanted, Failure(problem))
        assert self._own is not None
        if fits(wanted, counts):
            self._own.take("", [each._replace(limit=0) for each in wanted])
        else:
            self._hold(wanted, -1)
        taken: Sequence[int] = counts
        return taken

    def decided_alone(self, wanted: Sequence[Wanted], failure: Failure) -> Sequence[int]:
        """Called where the store has no answer: the counts of this guard decide."""
        self.lost(failure)
        return self._decide_alone(wanted)

    def measure(self, began_at: float) -> None:
        """Called when a decision has been made that was not made at once."""
        self._events.measured.counter_seconds.observe(self.seconds() - began_at)

    def answered(self) -> None:
        """Called when an answer that was pending is no longer waited for."""
        self.pending -= 1
        self._settled()

    def _decide_alone(self, wanted: Sequence[Wanted]) -> Sequence[int]:
        assert self._own is not None
        counts = self._own.take("", wanted)
        if not fits(wanted, counts):
            self._hold(wanted, -1)
        return counts

    def _hold(self, wanted: Iterable[Wanted], sign: int) -> None:
        for counter, client, _, seconds, places in wanted:
            if not seconds:
                held = self._held.get((counter, client), 0) + sign * places
                if held > 0:
                    self._held[counter, client] = held
                else:
                    self._held.pop((counter, client), None)

    def _tell(self, hook: Callable[[], Any]) -> None:
        """Call a method of the store whose answer nobody needs."""
        try:
            answer = hook()
        except FAULTS:
            self.lost(explained(Failure()))
            return
        if is_later(answer):
            self.pending += 1
            self._answer(lambda: answer).addErrback(self.lost).addBoth(lambda _: self.answered())


class LookingCounting:
    """Answers what `counting` would answer, and changes nothing in it."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        self.shared = counting.shared

    def take(self, wanted: Sequence[Wanted]) -> Counts:
        """The counts with what is wanted, of which nothing is taken."""

        def with_wanted(seen: Sequence[tuple[int, float]]) -> list[int]:
            return [count + each.events for (count, _), each in zip(seen, wanted, strict=True)]

        seen = self._counting.look(wanted)
        return seen.addCallback(with_wanted) if isinstance(seen, Deferred) else with_wanted(seen)

    def one_event(self, counter: str, limit: int, seconds: float) -> Callable[[str], Count]:
        """As `Counting.one_event`, but nothing is taken."""
        return partial(_one_event, self, counter, limit, seconds)

    def events(self, *_: object) -> None:
        """Nothing is quicker than `take()`."""

    def add(self, places: Sequence[Wanted]) -> None:
        """Nothing is taken."""

    def give_back(self, taken: Sequence[Wanted]) -> None:
        """Nothing was taken."""


def _one_event(
    counting: Counting | LookingCounting, counter: str, limit: int, seconds: float, client: str
) -> Count:
    counts = counting.take((Wanted(counter, client, limit, seconds),))
    return counts.addCallback(itemgetter(0)) if isinstance(counts, Deferred) else counts[0]
