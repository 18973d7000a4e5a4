"""Work that would hold up the reactor: in one of its threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

P = ParamSpec("P")
T = TypeVar("T")


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
