"""The free space of a disk, which the reactor's thread never waits for."""

from __future__ import annotations

import os
from collections import deque
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
