"""The free space on the disk of a directory, asked at most once a second and never in the reactor's thread."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.threads import ThreadedReactor, in_thread

GOOD_FOR_SECONDS = 1.0

_log = Logger()


class FreeSpace:
    """Asks the disk in a thread, since a network disk may be slow, and remembers the answer."""

    def __init__(self, reactor: ThreadedReactor, directory: Path) -> None:
        self._reactor = reactor
        self._directory = directory
        self._octets: int | None = None
        self._asked = float("-inf")
        self._waiting: list[Deferred[int | None]] = []

    def octets(self) -> int | Deferred[int | None] | None:
        """The space that unprivileged users may still use. While the last answer is recent it comes at once, so that a
        busy guard asks once a second. None: the disk could not be asked, which was logged."""
        if not self._waiting and 0 <= self._reactor.seconds() - self._asked < GOOD_FOR_SECONDS:
            return self._octets
        waiter: Deferred[int | None] = Deferred()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            in_thread(self._reactor, os.statvfs, self._directory).addCallback(
                lambda disk: disk.f_bavail * disk.f_frsize
            ).addErrback(self._unknown).addCallback(self._answer)
        return waiter

    def _unknown(self, failure: Failure) -> None:
        _log.failure("The free space of {directory} is unknown", failure, directory=str(self._directory))

    def _answer(self, octets: int | None) -> None:
        self._octets = octets
        self._asked = self._reactor.seconds()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(octets)
