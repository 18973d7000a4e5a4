"""The spool of one message body, which is written to a file without blocking the reactor.

A body stays in memory while it is small. From 64 KiB on it is written to a file, a piece at a time and in a thread.
The client waits meanwhile, so a session holds no more than 64 KiB and the piece that just came. A small message is in
memory until its end, and is written then.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from twisted_smtpguard.hooks.threads import ThreadedReactor, in_thread
from twisted_smtpguard.replies import INSUFFICIENT_STORAGE
from twisted_smtpguard.values import Refused

MAX_HELD_OCTETS = 64 * 1024

_log = Logger()
_FULL = {errno.ENOSPC, errno.EDQUOT}

T = TypeVar("T")


def refuse_if_full(error: BaseException) -> None:
    """Raise `Refused`, with a 452, if `error` says that the disk is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        raise Refused(INSUFFICIENT_STORAGE) from error


class Discarded(Exception):  # noqa: N818 - it is an outcome
    """The body was discarded before the thread could do its work."""


class Spool:
    """The body of one message. `open_file` is called once, in a thread, when the file is first needed.

    The file's `write(data)` writes all of `data`. Its `remove()` closes the file and removes it from the disk. It is
    called after any failure, perhaps more than once, and raises no OSError, which would hide why the body was not
    stored. Both are called in a thread, one call at a time.

    After a failure nothing is left of the file. A full disk raises `Refused` with a 452; any other error is raised as
    it is. Called in the reactor's thread, but for `fill`, `use` and `keep`.
    """

    def __init__(self, reactor: ThreadedReactor, open_file: Callable[[], Any]) -> None:
        self._reactor = reactor
        self._open_file = open_file
        self._held = bytearray()
        self._to_write = bytearray()
        """The octets that the thread has to write. They are not an argument of its job, since a job that waits for a
        disk which hangs would keep them after `discard`."""
        self._threaded = False
        """Whether a thread has been asked to write to the file."""
        self._thread_comes = False
        """Whether a thread will come to the file, or is at it. If the body is discarded meanwhile, it removes the file:
        while the disk hangs, another thread would only wait too."""
        self._file: Any = None
        self._discarded = False
        # Held while a thread works on the file. Only threads wait for it.
        self._working = Lock()
        # Acquired once and never released, by keep() or discard(), whichever comes first.
        self._decision = Lock()

    def write(self, data: bytes) -> Deferred[None] | None:
        """Take the next octets. A Deferred fires when they are in the file; until then only `discard` may be called."""
        self._held += data
        if len(self._held) < MAX_HELD_OCTETS:
            return None
        self.hand_over()
        return in_thread(self._reactor, self._fill)

    def in_memory(self) -> bytearray | None:
        """The whole body, if nothing was written to the file; else None."""
        return None if self._threaded else self._held

    def finish(self, complete: Callable[[Any], T]) -> Deferred[T]:
        """Write what is left, then call `complete(file)`, in one call in a thread. Fires with its result.

        Cancelling the Deferred stops nothing; `discard` does.
        """
        self.hand_over()
        return in_thread(self._reactor, self._finish, complete)

    def hand_over(self) -> None:
        """Called before `fill`: what is held now is what it has to write. Whoever calls `fill` goes on with `use`
        until the body is kept or has failed."""
        self._threaded = self._thread_comes = True
        self._to_write, self._held = self._held, bytearray()

    def fill(self) -> None:
        """Called in a thread: write what was handed over. `Discarded`: the body was discarded before."""
        with self._working:
            # Taken before the test: if `discard` has emptied it by now, the test in _attempt finds that out.
            data, self._to_write = self._to_write, bytearray()
            self._attempt(lambda: self._write(data))

    def use(self, use: Callable[[Any], T]) -> T:
        """Called in a thread after `fill`: call `use(file)`. `Discarded`: the body was discarded before."""
        with self._working:
            return self._attempt(lambda: use(self._file))

    def keep(self) -> None:
        """Called by `complete` in its thread: from here on `discard` comes too late. `Discarded`: it came first."""
        if not self._decision.acquire(blocking=False):
            raise Discarded

    def discard(self) -> None:
        """Remove the file and close its descriptor, unless the body is kept already. May be called at any time and any
        number of times; never raises."""
        if not self._decision.acquire(blocking=False):
            return
        self._discarded = True
        self._held, self._to_write = bytearray(), bytearray()
        if self._threaded and not self._thread_comes:
            removed = maybeDeferred(in_thread, self._reactor, self._remove)
            removed.addErrback(lambda failure: _log.failure("An aborted message was not removed", failure))

    def _fill(self) -> None:
        self.fill()
        self._leave()

    def _finish(self, complete: Callable[[Any], T]) -> T:
        self.fill()
        result = self.use(complete)
        self._leave()
        return result

    def _leave(self) -> None:
        # In this order: a discard() that comes in between has the file removed too, which does no harm.
        self._thread_comes = False
        if self._discarded:
            self._remove()

    def _write(self, data: bytearray) -> None:
        if self._file is None:
            self._file = self._open_file()
        self._file.write(data)

    def _attempt(self, step: Callable[[], T]) -> T:
        """Call `step`, which is the last one if it fails."""
        try:
            if self._discarded:
                raise Discarded
            return step()
        except BaseException as error:
            self._discarded = True
            if self._file is not None:
                self._file.remove()
            refuse_if_full(error)
            raise

    def _remove(self) -> None:
        with self._working:
            self._file.remove()
