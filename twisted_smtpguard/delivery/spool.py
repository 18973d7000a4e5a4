"""One message body on its way to a file, without ever holding up the reactor.

A body stays in memory while it is small. From 64 KiB on it goes to a file, a piece at a time and in a thread,
and the client waits meanwhile, so that a session holds no more than 64 KiB and the piece that just came.
A small message costs one trip to a thread, at its end.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from threading import Lock
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.smtp.replies import INSUFFICIENT_STORAGE
from twisted_smtpguard.threads import ThreadedReactor, in_thread

MAX_HELD_OCTETS = 64 * 1024

_log = Logger()
_FULL = {errno.ENOSPC, errno.EDQUOT}

T = TypeVar("T")


def refuse_if_full(error: BaseException) -> None:
    """`Refused`, a 452, if `error` says that the disk is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        raise Refused(INSUFFICIENT_STORAGE) from error


class SpoolFile(Protocol):
    """Where a body goes. Everything is called in a thread, one call at a time."""

    def write(self, data: bytearray) -> None:
        """Take all of `data`."""

    def remove(self) -> None:
        """Close the file, and leave nothing of it on the disk. Called after any failure of it, and more
        than once."""


F = TypeVar("F", bound=SpoolFile)


class Discarded(Exception):  # noqa: N818 - it is an outcome
    """The body was discarded while a thread was about to work on it."""


class Spool(Generic[F]):
    """The body of one message. `open_file` is called once, in a thread, when the file is needed first.

    After a failure nothing is left of the file. A full disk fails with `Refused`, a 452; anything else fails
    as it is. Everything but `keep` is called in the reactor's thread.
    """

    def __init__(self, reactor: ThreadedReactor, open_file: Callable[[], F]) -> None:
        self._reactor = reactor
        self._open_file = open_file
        self._held = bytearray()
        self._threaded = False
        self._file: F | None = None
        self._discarded = False
        # Whoever holds it works on the file. Only threads wait for it.
        self._working = Lock()
        # Taken once and never given back, by whoever comes first: keep() or discard().
        self._fate = Lock()

    def write(self, data: bytes) -> Deferred[None] | None:
        """Take the next octets. While a returned Deferred is pending there is no other call but `discard`."""
        self._held += data
        if len(self._held) < MAX_HELD_OCTETS:
            return None
        return self._trip(lambda file: None)

    def in_memory(self) -> bytearray | None:
        """The whole body, if it never went to the file."""
        return None if self._threaded else self._held

    def finish(self, complete: Callable[[F], T]) -> Deferred[T]:
        """Write what is left, and answer what `complete(file)` answers, which is called in the thread.

        To cancel the Deferred stops nothing: that is what `discard` is for.
        """
        return self._trip(complete)

    def keep(self) -> None:
        """Called by `complete` in its thread: from here on `discard` comes too late. `Discarded` where it
        came first."""
        if not self._fate.acquire(blocking=False):
            raise Discarded

    def discard(self) -> None:
        """Leave nothing, no file and no descriptor, unless the body is kept already. At any time, any number
        of times; never raises."""
        if not self._fate.acquire(blocking=False):
            return
        self._discarded = True
        self._held = bytearray()
        if self._threaded:
            removed = maybeDeferred(in_thread, self._reactor, self._remove)
            removed.addErrback(lambda failure: _log.failure("An aborted message was not removed", failure))

    def _trip(self, then: Callable[[F], T]) -> Deferred[T]:
        self._threaded = True
        data, self._held = self._held, bytearray()
        return in_thread(self._reactor, self._work, data, then)

    def _work(self, data: bytearray, then: Callable[[F], T]) -> T:
        with self._working:
            if self._discarded:
                raise Discarded
            try:
                if self._file is None:
                    self._file = self._open_file()
                self._file.write(data)
                return then(self._file)
            except BaseException as error:
                self._discarded = True
                if self._file is not None:
                    self._file.remove()
                refuse_if_full(error)
                raise

    def _remove(self) -> None:
        with self._working:
            if self._file is not None:
                self._file.remove()
