"""One decision of a counter store: whether all was taken, and how long its answer is waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.values import CounterStoreUnavailable, Wanted

ANSWER_SECONDS = 0.05
"""How long a decision waits for the store."""


class Asker(Protocol):
    """Who asks the store. It is a Counting."""

    call_later: Callable[..., Any]
    seconds: Callable[[], float]

    def decided(self, wanted: Sequence[Wanted], counts: Any) -> Sequence[int]: ...
    def decided_alone(self, wanted: Sequence[Wanted], failure: Failure) -> Sequence[int]: ...
    def give_back(self, taken: Sequence[Wanted]) -> None: ...
    def measure(self, began_at: float) -> None: ...
    def answered(self) -> None: ...


def fits(wanted: Sequence[Wanted], counts: Sequence[int]) -> bool:
    """Whether no count exceeds its limit, so that all was taken."""
    for each, count in zip(wanted, counts, strict=True):  # noqa: SIM110 - all() takes three times as many steps
        if count > each.limit > 0:
            return False
    return True


def are_counts(answer: Any, number: int) -> bool:
    """Whether a store has answered with so many whole numbers."""
    return (
        isinstance(answer, (list, tuple))
        and len(answer) == number
        and all(isinstance(count, int) for count in answer)
    )


class Question:
    """A decision whose answer comes later. It ends by the answer or the time limit, whatever its caller does."""

    __slots__ = ("_began_at", "_counting", "_outcome", "_timer", "_wanted")

    def __init__(self, counting: Asker, wanted: Sequence[Wanted], outcome: Deferred[Sequence[int]]) -> None:
        self._counting = counting
        self._wanted = wanted
        self._outcome = outcome
        self._began_at = counting.seconds()
        self._timer: Any = counting.call_later(ANSWER_SECONDS, self._expired)

    def answered(self, answer: Any) -> None:
        """Called with the answer of the store, or a Failure."""
        if self._timer is None:
            # The guard has decided alone. What it holds is handed over when the store is back.
            return
        self._timer.cancel()
        if isinstance(answer, Failure):
            self._end(self._counting.decided_alone(self._wanted, answer))
        else:
            self._end(self._counting.decided(self._wanted, answer))

    def _expired(self) -> None:
        # If this process was held up, the answer may be there unread: the reactor reads before it makes the next call.
        self._timer = self._counting.call_later(0, self._not_answered)

    def _not_answered(self) -> None:
        late = Failure(CounterStoreUnavailable(f"no answer in {ANSWER_SECONDS * 1000:.0f} ms"))
        self._end(self._counting.decided_alone(self._wanted, late))

    def _end(self, counts: Sequence[int]) -> None:
        self._timer = None
        self._counting.measure(self._began_at)
        if not self._outcome.called:
            self._outcome.callback(counts)
        elif fits(self._wanted, counts):
            # The client has left.
            self._counting.give_back(self._wanted)
        self._counting.answered()
