"""One fsync of a directory that serves all messages waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.threads import ThreadedReactor, in_thread


class SharedSync:
    """Calls `sync` in a thread, one call at a time. Each call serves all requests that came before it began."""

    def __init__(self, reactor: ThreadedReactor, sync: Callable[[], None]) -> None:
        self._reactor = reactor
        self._sync = sync
        self._busy = False
        self._lock = Lock()
        """Guards the two lists, which the thread exchanges when its call begins."""
        self._waiting: list[Deferred[None]] = []
        self._to_answer: list[Deferred[None]] = []

    def ask(self) -> Deferred[None]:
        """Request a synchronisation. It fires after a call of `sync` that began after this request, so everything done
        before is safe. If that call fails, all requests that it serves fail, and no others. Called in the reactor's
        thread."""
        answer: Deferred[None] = Deferred()
        with self._lock:
            self._waiting.append(answer)
        if not self._busy:
            self._begin()
        return answer

    def _begin(self) -> None:
        self._busy = True
        in_thread(self._reactor, self._work).addBoth(self._end)

    def _work(self) -> None:
        with self._lock:
            # A request from here on may come too late for this call.
            self._to_answer, self._waiting = self._waiting, []
        self._sync()

    def _end(self, result: Failure | None) -> None:
        answered, self._to_answer = self._to_answer, []
        self._busy = False
        if self._waiting:
            self._begin()
        for answer in answered:
            answer.callback(result)
