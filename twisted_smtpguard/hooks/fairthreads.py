"""Expensive work in a few of the reactor's threads, shared fairly between clients."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf, log2
from typing import Any, NamedTuple, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.threads import ThreadedReactor, in_thread

P = ParamSpec("P")
T = TypeVar("T")

_MOST_CLIENTS = 10_000
_HALF_LIFE_SECONDS = 60.0
"""After so long, half of the time that a client has wasted is forgotten."""
_MOST_THREADS = 4
_FEW = 64


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
        self._waiting: dict[str, _Client] = {}
        self._turns: list[_Turn] = []
        """A heap of the turns of those that wait. Turns that were given up, or changed, are in it too."""
        self._numbers = count()
        self._wasted: OrderedDict[str, float] = OrderedDict()
        """What a client has wasted, in the form of `_more_wasted`."""

    def run(
        self, client: str, known: bool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """Call `function` in a thread, for the client with this name, which is known or not. Cancelling the Deferred
        keeps the call from beginning; a call that has begun goes on in its thread, and its outcome is dropped."""
        outcome: Deferred[T] = Deferred(partial(self._forget, client))
        waiting = self._waiting.setdefault(client, _Client())
        waiting.calls[outcome] = partial(_timed, function, *args, **kwargs)
        if waiting.turn is None or (known and not waiting.known):
            waiting.known = waiting.known or known
            self._line_up(client, next(self._numbers) if waiting.turn is None else waiting.turn.number)
        self._begin()
        return outcome

    def _forget(self, client: str, outcome: Deferred[Any]) -> None:
        waiting = self._waiting.get(client)
        if waiting is not None:
            waiting.calls.pop(outcome, None)
            if not waiting.calls:
                del self._waiting[client]

    def _line_up(self, client: str, number: int) -> None:
        """Give a client that waits its turn, in place of any that it has."""
        waiting = self._waiting[client]
        waiting.turn = _Turn(self._wasted.get(client, -inf), not waiting.known, number, client)
        heappush(self._turns, waiting.turn)
        if len(self._turns) > 2 * len(self._waiting) + _FEW:
            # Clients that leave again and again would make it grow.
            self._turns = [each.turn for each in self._waiting.values() if each.turn is not None]
            heapify(self._turns)

    def _begin(self) -> None:
        while self._waiting and self._running < self.most:
            turn = heappop(self._turns)
            client = turn.client
            waiting = self._waiting.get(client)
            if waiting is None or waiting.turn is not turn:
                continue
            outcome, call = waiting.calls.popitem(last=False)
            if waiting.calls:
                # It goes to the end of those that have wasted as much.
                self._line_up(client, next(self._numbers))
            else:
                del self._waiting[client]
            self._running += 1
            in_thread(self._reactor, call).addBoth(self._ended, client, outcome)

    def _ended(self, answer: tuple[float, Any] | Failure, client: str, outcome: Deferred[Any]) -> None:
        self._running -= 1
        seconds, value = (0.0, answer) if isinstance(answer, Failure) else answer
        if seconds > 0 and (isinstance(value, Failure) or self._is_wasted(value)):
            self._charge(client, seconds)
        if not outcome.called:
            outcome.callback(value)
        self._begin()

    def _charge(self, client: str, seconds: float) -> None:
        before = self._wasted.get(client, -inf)
        self._wasted[client] = _more_wasted(before, seconds, self._reactor.seconds())
        self._wasted.move_to_end(client)
        if len(self._wasted) > _MOST_CLIENTS:
            self._wasted.popitem(last=False)
        waiting = self._waiting.get(client)
        if waiting is not None and waiting.turn is not None:
            self._line_up(client, waiting.turn.number)


class _Turn(NamedTuple):
    """The least one comes first."""

    wasted: float
    is_new: bool
    number: int
    """Turns with the same waste have their order by it."""
    client: str


class _Client:
    """A client that waits."""

    __slots__ = ("calls", "known", "turn")

    def __init__(self) -> None:
        self.calls: OrderedDict[Deferred[Any], Callable[[], Any]] = OrderedDict()
        self.known = False
        self.turn: _Turn | None = None


def _more_wasted(before: float, seconds: float, now: float) -> float:
    """What a client has wasted that wastes so many seconds now.

    It is the logarithm of the seconds that it would be if they were all wasted at one moment, the same for all clients.
    So two of them compare as they do at any time, while both are forgotten by and by.
    """
    added = log2(seconds) + now / _HALF_LIFE_SECONDS
    most = max(before, added)
    return most + log2(1 + 2 ** (min(before, added) - most))


def _timed(function: Callable[..., T], *args: Any, **kwargs: Any) -> tuple[float, T | Failure]:
    """The seconds that a call has taken, and its value or its Failure. Called in a thread."""
    began = time.monotonic()
    value: T | Failure
    try:
        value = function(*args, **kwargs)
    except Exception:  # noqa: BLE001 - whoever waits gets it
        value = Failure()
    return time.monotonic() - began, value
