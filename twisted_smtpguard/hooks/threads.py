"""Work that would block the reactor, and so is done in one of its threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from twisted_smtpguard.hooks.later import shielded

P = ParamSpec("P")
T = TypeVar("T")

_REST_SECONDS = 0.00005


class ThreadedReactor(Protocol):
    """The part of a reactor that deliveries and filters use: its clock, in seconds since 1970, and its threads."""

    def seconds(self) -> float: ...

    def getThreadPool(self) -> ThreadPool: ...  # noqa: N802 - Twisted's name


def in_thread(
    reactor: ThreadedReactor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Deferred[T]:
    """Call `function` in one of the reactor's threads."""
    return deferToThreadPool(
        cast(IReactorFromThreads, reactor), reactor.getThreadPool(), function, *args, **kwargs
    )


class OneThread:
    """Work that is done in one of the reactor's threads at a time, so that a disk which hangs indefinitely does not
    block all threads."""

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


def yield_gil() -> None:
    """Let the reactor's thread run. Called in a thread, after each short piece of work.

    Otherwise the reactor would get the interpreter back only 5 ms after each of its system calls, and make a few
    hundred of them in a second. A sleep of 0 would return to this thread at once.
    """
    time.sleep(_REST_SECONDS)
