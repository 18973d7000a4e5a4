"""Stores in a real Redis, started and stopped by a test, and what Redis has of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

from processes import PATIENCE_SECONDS
from redisserver import RealRedis
from twisted.internet.task import deferLater

from twisted_smtpguard.counters.redisstore import RedisCounterStore, redis_counter_store
from twisted_smtpguard.values import Wanted

LEASE_SECONDS = 1.0
"""Short, so that a test need not wait for long."""


async def until(condition: Callable[[], object], what: Callable[[], str] | str) -> None:
    """Let the reactor run until `condition()` is true."""
    from twisted.internet import reactor

    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        await deferLater(reactor, 0.005)


class Stores:
    """All that are opened in the block are stopped at its end."""

    def __init__(self) -> None:
        self._opened: list[RedisCounterStore] = []

    def start(
        self, url: str, *, lease_seconds: float = LEASE_SECONDS, reactor: Any = None
    ) -> RedisCounterStore:
        """A store that has begun to connect."""
        if reactor is None:
            from twisted.internet import reactor
        store = redis_counter_store(url, reactor)
        store.lease_seconds = lease_seconds
        store.startService()
        self._opened.append(store)
        return store

    async def open(self, url: str, **how: Any) -> RedisCounterStore:
        """A store that is connected."""
        store = self.start(url, **how)
        await until(lambda: store.connected, lambda: store.problem)
        return store

    async def __aenter__(self) -> Stores:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for store in self._opened:
            if store.running:
                await store.stopService()


async def held(store: RedisCounterStore, *wanted: Wanted) -> list[int]:
    """How many places or events Redis counts of each."""
    return [count for count, _ in await store.look(wanted)]


def check_sums(server: RealRedis, prefix: str = "smtpguard") -> None:
    """Each sum is what the owners hold together, and every key ends at some time."""
    content = server.content()
    assert [key for key, (lives, _) in content.items() if lives < 0] == []
    sums: Counter[str] = Counter()
    for key, (_, value) in content.items():
        if key.startswith(f"{prefix}:o:"):
            assert all(count > 0 for count in value.values()), (key, value)
            sums.update(value)
    counted = {
        key.removeprefix(f"{prefix}:"): value[""] for key, (_, value) in content.items() if ":p:" in key
    }
    assert counted == sums
