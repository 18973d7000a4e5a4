"""A counter store that only looks: with it, the code that counts decides as if it had counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from zope.interface import implementer

from twisted_smtpguard.hooks.later import mapped
from twisted_smtpguard.interfaces import ICounterStore, IReadableCounterStore, Later
from twisted_smtpguard.values import is_later


@implementer(ICounterStore)
class LookingStore:
    """Answers what `store` would answer, and changes nothing in it. If `store` cannot be read (it does not provide
    IReadableCounterStore), no client has anything, and `blind` is True.

    `seconds` returns the time.
    """

    def __init__(self, store: Any, seconds: Callable[[], float]) -> None:
        self.blind = not IReadableCounterStore.providedBy(store)
        self._store = store
        self._seconds = seconds

    def look(self, counter: str, client: str, seconds: float = 0) -> Later[tuple[int, float]]:
        """What the client has now, and how many seconds its window still lasts: as IReadableCounterStore says."""
        if self.blind:
            return 0, 0
        found: Later[tuple[int, float]] = self._store.look(counter, client, seconds, self._seconds())
        return found

    def acquire(self, counter: str, client: str, limit: int) -> Later[int]:
        held: Later[int] = _with(1, self.look(counter, client))
        return held

    def release(self, counter: str, client: str) -> None:
        """Nothing was taken."""

    def add(self, counter: str, client: str, events: int, seconds: float, now: float) -> Later[int]:
        counted: Later[int] = _with(max(0, events), self.look(counter, client, seconds))
        return counted


def _with(more: int, found: Any) -> Any:
    return mapped(found, partial(_plus, more)) if is_later(found) else _plus(more, found)


def _plus(more: int, found: tuple[int, float]) -> int:
    return found[0] + more
