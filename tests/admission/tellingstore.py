"""A counter store that answers what a test says, when it says it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import Guard
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from twisted_smtpguard.interfaces import ICounterStore
from twisted_smtpguard.limits.units import Rate

FAILED = "failure the counter store failed"
"""The log's line where a store raises or does not answer in time."""


@implementer(ICounterStore)
class Store:
    """Answers acquire() and add() with what `answer` returns: by default a Deferred, kept in `asked`."""

    def __init__(self, answer: Callable[[], Any] | None = None) -> None:
        self.answer = answer or self._later
        self.asked: list[Deferred[int]] = []
        self.calls: list[tuple[str, ...]] = []
        self.cancelled: list[object] = []

    def _later(self) -> Deferred[int]:
        self.asked.append(Deferred(self.cancelled.append))
        return self.asked[-1]

    def acquire(self, counter: str, client: str, limit: int) -> Any:
        self.calls.append(("acquire", counter, client))
        return self.answer()

    def add(self, counter: str, client: str, events: int, seconds: float, now: float) -> Any:
        self.calls.append(("add", counter, client))
        return self.answer()

    def release(self, counter: str, client: str) -> Any:
        self.calls.append(("release", counter, client))
        return None

    @property
    def released(self) -> int:
        return self.calls.count(("release", "max_connections_per_client", "192.0.2.1"))


def guard_with(limit: str, store: Store, **limits: Any) -> Guard:
    """A guard that lets each client have two of what `limit` counts, or two in 60 s."""
    return Guard(counters=store, **{limit: 2 if limit.startswith("max") else Rate(2, 60)}, **limits)


async def coroutine(answer: Any) -> Any:
    return answer


def raises() -> Any:
    raise LookupError("no store")


async def raises_later() -> Any:
    raise LookupError("no store")


def fails() -> Any:
    return fail(LookupError("no store"))


def answers_nothing() -> None:
    return None


async def answers_a_word_later() -> str:
    return "7"


each_fault = pytest.mark.parametrize(
    "fault", [raises, raises_later, fails, answers_nothing, answers_a_word_later]
)
each_way = pytest.mark.parametrize(
    "wrapped", [lambda x: x, succeed, coroutine], ids=["value", "Deferred", "coroutine"]
)
