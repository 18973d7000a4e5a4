"""A counter store that answers what a test says, when it says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from fakes import Guard
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from twisted_smtpguard.interfaces import CounterStoreUnavailable, ICounterStore, Wanted
from twisted_smtpguard.limits.units import Rate

AWAY = "counters_away this guard counts alone: "
"""The beginning of the log's line where a store raises or does not answer in time."""


@implementer(ICounterStore)
class Store:
    """Answers take() with what `answer` returns, once for each thing that is wanted: by default a Deferred, kept in
    `asked`. Calls are in `calls`, each with the counters that it is about."""

    lease_seconds = 0

    def __init__(self, answer: Callable[[], Any] | None = None) -> None:
        self.answer = answer
        self.asked: list[Deferred[Any]] = []
        self.calls: list[tuple[str, ...]] = []
        self.cancelled: list[object] = []
        self.renewed: list[Mapping[tuple[str, str], int]] = []

    def take(self, owner: str, wanted: Sequence[Wanted]) -> Any:
        self.calls.append(("take", *(each.counter for each in wanted)))
        if self.answer is None:
            self.asked.append(Deferred(self.cancelled.append))
            return self.asked[-1]
        return self.answer()

    def give_back(self, owner: str, taken: Sequence[Wanted]) -> Any:
        self.calls.append(("give_back", *(each.counter for each in taken)))

    def look(self, wanted: Sequence[Wanted]) -> Any:
        return [(0, 0.0) for _ in wanted]

    def renew(self, owner: str, places: Mapping[tuple[str, str], int]) -> Any:
        self.renewed.append(dict(places))
        return succeed(None)

    @property
    def given_back(self) -> int:
        return sum(call[0] == "give_back" for call in self.calls)


def guard_with(limit: str, store: Store, **limits: Any) -> Guard:
    """A guard that lets each client have two of what `limit` counts, or two in 60 s."""
    return Guard(counters=store, **{limit: 2 if limit.startswith("max") else Rate(2, 60)}, **limits)


async def coroutine(answer: Any) -> Any:
    return answer


def raises() -> Any:
    raise CounterStoreUnavailable("no store")


async def raises_later() -> Any:
    raise CounterStoreUnavailable("no store")


def fails() -> Any:
    return fail(CounterStoreUnavailable("no store"))


def answers_nothing() -> None:
    return None


async def answers_words_later() -> list[str]:
    return ["7"]


each_fault = pytest.mark.parametrize(
    "fault", [raises, raises_later, fails, answers_nothing, answers_words_later]
)
each_way = pytest.mark.parametrize(
    "wrapped", [lambda x: x, succeed, coroutine], ids=["value", "Deferred", "coroutine"]
)
