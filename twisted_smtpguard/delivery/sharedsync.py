"""One fsync of a directory for all who wait for one."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.threads import ThreadedReactor, in_thread


class SharedSync:
    """Calls `sync` in a thread, one call at a time, each for all who have asked before it began."""

    def __init__(self, reactor: ThreadedReactor, sync: Callable[[], None]) -> None:
        self._reactor = reactor
        self._sync = sync
        self._busy = False
        self._lock = Lock()
        """On the two lists, which a thread exchanges as it begins."""
        self._waiting: list[Deferred[None]] = []
        self._to_answer: list[Deferred[None]] = []

    def ask(self) -> Deferred[None]:
        """What was done before is safe when this answers: the call that answers it has begun since. It fails as that
        call did, for all whom it was to answer and for nobody else. Asked in the reactor's thread."""
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
            # Whoever asks from here on may be too late for this call.
            self._to_answer, self._waiting = self._waiting, []
        self._sync()

    def _end(self, result: Failure | None) -> None:
        answered, self._to_answer = self._to_answer, []
        self._busy = False
        if self._waiting:
            self._begin()
        for answer in answered:
            answer.callback(result)
