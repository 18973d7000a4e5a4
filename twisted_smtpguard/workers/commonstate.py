"""`CommonState`: a state that each worker tells of by itself, such as stress, and that is one event for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SETTLE_SECONDS = 10.0
"""How long the state goes on after the only worker that has told of it is gone. Another one tells of it in less, if it
is still so: it looks at its counter store at least every few seconds."""


class CommonState:
    """Called with what each worker tells, it calls `begins` when the first worker is in the state, and `ends` with the
    seconds that it has lasted when the last has left it. `judges` returns whether there are workers that would tell.

    A worker that is gone says nothing about the others. If it was the last, and none has told that the state has ended,
    that is waited for: a worker in its place may be in the state at once.
    """

    def __init__(
        self,
        reactor: Any,
        judges: Callable[[], object],
        begins: Callable[[Any], object],
        ends: Callable[[float], object],
    ) -> None:
        self._reactor = reactor
        self._judges = judges
        self._begins = begins
        self._ends = ends
        self._workers: set[object] = set()
        """Those that are in the state."""
        self._since: float | None = None
        """When it began; None: it has ended."""
        self._one_has_left = False
        self._settling: Any = None

    def enter(self, worker: object, told: Any) -> None:
        """A worker is in the state, of which it tells this."""
        self._workers.add(worker)
        self._wait_no_more()
        self._one_has_left = False
        if self._since is None:
            self._since = self._reactor.seconds()
            self._begins(told)

    def leave(self, worker: object) -> None:
        """A worker is not in the state any more, or has never been."""
        if worker in self._workers:
            self._workers.remove(worker)
            self._one_has_left = True
            self._end_if_over()

    def gone(self, worker: object) -> None:
        """A worker has ended."""
        if worker in self._workers:
            self._workers.remove(worker)
            self._end_if_over()

    def forget(self) -> None:
        """Begin anew, without a word. Called when all workers have ended, as at a stop."""
        self._workers.clear()
        self._since = None
        self._wait_no_more()

    def _wait_no_more(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None

    def _end_if_over(self) -> None:
        if self._workers or self._since is None:
            return
        if self._one_has_left:
            since, self._since = self._since, None
            self._ends(self._reactor.seconds() - since)
        else:
            self._settling = self._reactor.callLater(SETTLE_SECONDS, self._settle)

    def _settle(self) -> None:
        self._settling = None
        self._one_has_left = bool(self._judges())
        self._end_if_over()
