"""Work that would hold up the reactor: in one of its threads."""

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
    """What deliveries and filters use of a reactor: its clock, which tells seconds since 1970, and its threads."""

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
    """Work that is done in one of the reactor's threads and never in two, so that what a disk holds up indefinitely
    does not take them all."""

    def __init__(self, reactor: ThreadedReactor) -> None:
        self._reactor = reactor
        self._busy = DeferredLock()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `function` when what was asked for before has ended. To cancel it keeps it from beginning; what has
        begun goes on in its thread, and its result is dropped."""

        def begin(busy: DeferredLock) -> Deferred[T]:
            working: Deferred[T] = maybeDeferred(lambda: in_thread(self._reactor, function, *args, **kwargs))
            working.addBoth(_leave, busy)
            return shielded(working)

        return self._busy.acquire().addCallback(begin)


def _leave(outcome: Any, busy: DeferredLock) -> Any:
    busy.release()
    return outcome


def yield_gil() -> None:
    """Called in a thread, after each short piece of work: let the reactor have the interpreter. It would get it back
    only 5 ms after each of its system calls, and do a few hundred of them a second; a sleep of 0 gives it back to us
    at once."""
    time.sleep(_REST_SECONDS)
