"""Two answers of the disk that messages in one directory share: the free space, and an fsync for all messages that wait
for one. The reactor's thread never waits for the disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.threads import ThreadedReactor, in_thread

GOOD_FOR_SECONDS = 1.0
"""How long an answer about the free space is used."""

_log = Logger()


class FreeSpace:
    """The free space on the disk of `directory`. The disk is asked in a thread, since a network disk may be slow."""

    def __init__(self, reactor: ThreadedReactor, directory: Path) -> None:
        self._reactor = reactor
        self._directory = directory
        self._octets: int | None = None
        self._asked = float("-inf")
        self._asking = False
        self._waiting: deque[Deferred[int | None]] = deque()

    def octets(self) -> int | Deferred[int | None] | None:
        """How many octets unprivileged users may still use; None: the disk could not be asked, which was logged. A
        recent answer is given at once, so that a busy guard asks the disk once a second; else a Deferred fires with
        it."""
        if not self._asking and 0 <= self._reactor.seconds() - self._asked < GOOD_FOR_SECONDS:
            return self._octets
        # A client that leaves must not stay here: while a network disk hangs, any number of them may come.
        waiter: Deferred[int | None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        if not self._asking:
            self._asking = True
            in_thread(self._reactor, os.statvfs, self._directory).addCallback(
                lambda disk: disk.f_bavail * disk.f_frsize
            ).addErrback(self._unknown).addCallback(self._answer)
        return waiter

    def _unknown(self, failure: Failure) -> None:
        _log.failure("The free space of {directory} is unknown", failure, directory=str(self._directory))

    def _answer(self, octets: int | None) -> None:
        self._octets = octets
        self._asked = self._reactor.seconds()
        self._asking = False
        while self._waiting:
            self._waiting.popleft().callback(octets)


class SharedSync:
    """Calls `sync` in a thread, one call at a time. Each call serves all requests that came before it began."""

    def __init__(self, reactor: ThreadedReactor, sync: Callable[[], None]) -> None:
        self._reactor = reactor
        self._sync = sync
        self._busy = False
        self._waiting: deque[Deferred[None]] = deque()
        """The requests that no call serves yet. The thread takes them when its call begins."""

    def ask(self) -> Deferred[None]:
        """Request a synchronisation. The Deferred fires after a call of `sync` that began after this request, so that
        everything done before the request is safe. If the call fails, all requests that it serves fail, and no others.
        Called in the reactor's thread."""
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
