"""One fsync of a directory that serves all messages waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.threads import ThreadedReactor, in_thread


class SharedSync:
    """Calls `sync` in a thread, one call at a time. Each call serves all requests that came before it began."""

    def __init__(self, reactor: ThreadedReactor, sync: Callable[[], None]) -> None:
        self._reactor = reactor
        self._sync = sync
        self._busy = False
        self._waiting: deque[Deferred[None]] = deque()
        """The requests that no call serves yet. The thread takes them when its call begins."""

    def ask(self) -> Deferred[None]:
        """Request a synchronisation. It fires after a call of `sync` that began after this request, so everything done
        before is safe. If that call fails, all requests that it serves fail, and no others. Called in the reactor's
        thread."""
        answer: Deferred[None] = Deferred()
        self._waiting.append(answer)
        if not self._busy:
            self._begin()
        return answer

    def _begin(self) -> None:
        self._busy = True
        served: list[Deferred[None]] = []
        in_thread(self._reactor, self._work, served).addBoth(self._end, served)

    def _work(self, served: list[Deferred[None]]) -> None:
        # A request that is not taken here may come too late for this call.
        while self._waiting:
            served.append(self._waiting.popleft())
        self._sync()

    def _end(self, result: Failure | None, served: list[Deferred[None]]) -> None:
        self._busy = False
        if self._waiting:
            self._begin()
        for answer in served:
            answer.callback(result)
