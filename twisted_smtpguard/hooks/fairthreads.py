"""Expensive work in a few of the reactor's threads, shared fairly between clients."""

from __future__ import annotations

import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.threads import ThreadedReactor, in_thread

P = ParamSpec("P")
T = TypeVar("T")

_MOST_CLIENTS = 10_000
_HALF_LIFE_SECONDS = 60.0
"""After so long, half of the time that a client has wasted is forgotten."""
_MOST_THREADS = 4


class FairThreads:
    """Runs calls in as many threads as there are processors but one, from 1 to 4. The next call is one of the client
    that has wasted least of their time lately; among those that have wasted as much, one of a client that is known, and
    then of the one that has waited longest. So whoever wastes none waits for the calls that run, and not for a crowd.

    `wasted` is called with the value of a call, and tells whether its time was wasted, as by a wrong password. That of
    a call that raises was.
    """

    def __init__(self, reactor: ThreadedReactor, wasted: Callable[[Any], bool]) -> None:
        self.most = max(1, min(_MOST_THREADS, (os.cpu_count() or 1) - 1))
        self._reactor = reactor
        self._is_wasted = wasted
        self._running = 0
        self._waiting: dict[str, deque[tuple[Deferred[Any], Callable[[], Any]]]] = {}
        self._known: set[str] = set()
        """Those of them that are known."""
        self._wasted: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """How many seconds a client has wasted, and when that was counted."""

    def run(
        self, client: str, known: bool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """Call `function` in a thread, for the client with this name, which is known or not. Cancelling the Deferred
        keeps the call from beginning; a call that has begun goes on in its thread, and its outcome is dropped."""
        if known:
            self._known.add(client)
        outcome: Deferred[T] = Deferred(partial(self._forget, client))
        self._waiting.setdefault(client, deque()).append(
            (outcome, partial(_timed, function, *args, **kwargs))
        )
        self._begin()
        return outcome

    def _forget(self, client: str, outcome: Deferred[Any]) -> None:
        calls = self._waiting.get(client, deque())
        left = deque(each for each in calls if each[0] is not outcome)
        if left:
            self._waiting[client] = left
        else:
            self._waiting.pop(client, None)
            self._known.discard(client)

    def _begin(self) -> None:
        while self._waiting and self._running < self.most:
            client = min(self._waiting, key=self._rank)
            calls = self._waiting.pop(client)
            outcome, call = calls.popleft()
            if calls:
                # It goes to the end of those that have wasted as much.
                self._waiting[client] = calls
            else:
                self._known.discard(client)
            self._running += 1
            in_thread(self._reactor, call).addBoth(self._ended, client, outcome)

    def _ended(self, answer: tuple[float, Any] | Failure, client: str, outcome: Deferred[Any]) -> None:
        self._running -= 1
        seconds, value = (0.0, answer) if isinstance(answer, Failure) else answer
        if isinstance(value, Failure) or self._is_wasted(value):
            self._wasted[client] = (self._seconds_of(client) + seconds, self._reactor.seconds())
            self._wasted.move_to_end(client)
            if len(self._wasted) > _MOST_CLIENTS:
                self._wasted.popitem(last=False)
        if not outcome.called:
            outcome.callback(value)
        self._begin()

    def _rank(self, client: str) -> tuple[float, bool]:
        return self._seconds_of(client), client not in self._known

    def _seconds_of(self, client: str) -> float:
        wasted, counted_at = self._wasted.get(client, (0.0, 0.0))
        passed = max(0.0, self._reactor.seconds() - counted_at)
        return wasted * 0.5 ** (passed / _HALF_LIFE_SECONDS) if wasted else 0.0


def _timed(function: Callable[..., T], *args: Any, **kwargs: Any) -> tuple[float, T | Failure]:
    """The seconds that a call has taken, and its value or its Failure. Called in a thread."""
    began = time.monotonic()
    value: T | Failure
    try:
        value = function(*args, **kwargs)
    except Exception:  # noqa: BLE001 - whoever waits gets it
        value = Failure()
    return time.monotonic() - began, value
