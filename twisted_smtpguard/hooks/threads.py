"""Work in the reactor's threads, such as reading files, which would block the reactor itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from twisted_smtpguard.hooks.later import shielded

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

_YIELD_SECONDS = 0.00005
"""How long a thread sleeps to let the reactor's thread run."""


class ThreadedReactor(Protocol):
    """The part of a reactor that deliveries and filters use: its clock, in seconds since 1970, and its threads."""

    def seconds(self) -> float: ...

    def getThreadPool(self) -> ThreadPool: ...  # noqa: N802 - Twisted's name

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None: ...  # noqa: N802


def in_thread(
    reactor: ThreadedReactor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Deferred[T]:
    """Call `function` in one of the reactor's threads. Fires with its result."""
    return deferToThreadPool(
        cast(IReactorFromThreads, reactor), reactor.getThreadPool(), function, *args, **kwargs
    )


class OneThread:
    """Runs calls in the reactor's threads, one at a time, so that a disk that hangs blocks one thread and not all."""

    def __init__(self, reactor: ThreadedReactor) -> None:
        self._reactor = reactor
        self._busy = DeferredLock()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `function` in a thread, after all earlier calls have ended. Cancelling the Deferred keeps the call from
        beginning; a call that has begun goes on in its thread, and its outcome is dropped."""

        def begin(busy: DeferredLock) -> Deferred[T]:
            working: Deferred[T] = maybeDeferred(lambda: in_thread(self._reactor, function, *args, **kwargs))
            working.addBoth(_leave, busy)
            return shielded(working)

        return self._busy.acquire().addCallback(begin)


def _leave(outcome: Any, busy: DeferredLock) -> Any:
    busy.release()
    return outcome


class ReadInThread(Generic[T]):
    """The base class of objects whose data come from files, and which provide IPreparedReload. A reload reads the files
    in one of the reactor's threads; without a reactor it blocks until they are read."""

    def __init__(self, reactor: ThreadedReactor | None) -> None:
        # One at a time, so that a later reading never ends before an earlier one.
        self._thread = None if reactor is None else OneThread(reactor)

    def _read(self) -> T:
        """Read the data. Called in the thread. An exception keeps the old data."""
        raise NotImplementedError

    def _take(self, data: T) -> None:
        """Switch to new data."""
        raise NotImplementedError

    def _in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        """Call `function` in the thread, if there is one."""
        call = self._thread.run if self._thread else maybeDeferred
        return call(function, *args, **kwargs)

    def prepare_reload(self) -> Deferred[Callable[[], None]]:
        """Read the data. Fires with the function that switches to them."""
        return self._in_thread(self._read).addCallback(lambda data: lambda: self._take(data))

    def reload(self) -> Deferred[None]:
        """Read the data and switch to them, for a caller that reloads nothing else."""
        return self.prepare_reload().addCallback(lambda take: take())


def yield_gil() -> None:
    """Let the reactor's thread run. Called in a thread, after each short piece of work.

    Otherwise the reactor would wait 5 ms for the GIL, the interpreter's switch interval, after each of its system
    calls, and so make only a few hundred of them a second. A sleep of 0 would return to this thread at once.
    """
    time.sleep(_YIELD_SECONDS)
