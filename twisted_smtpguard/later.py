"""Answers that come later: what a hook may answer with instead of its value, and waiting no longer than agreed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import lru_cache, partial
from typing import Any, Protocol, TypeAlias, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

T = TypeVar("T")

_log = Logger()


class Timer(Protocol):
    """A call to come, of which a caller may think better."""

    def cancel(self) -> None:
        """Let it never come."""


CallLater: TypeAlias = Callable[[float, Callable[[], object]], Timer]
"""How a part that knows no reactor gets at time: `Deadlines.call_later`."""


def is_later(answer: Any) -> bool:
    """Whether a hook answered with a Deferred or something else to await, and not with its value."""
    return _can_be_awaited(type(answer))  # type: ignore[arg-type]  # a class is hashable, whatever mypy says


@lru_cache(maxsize=256)
def _can_be_awaited(kind: type) -> bool:
    # A Deferred can, too. It is an abstract type, of which to ask with isinstance() costs more.
    return hasattr(kind, "__await__")


def as_deferred(answer: Deferred[T] | Awaitable[T]) -> Deferred[T]:
    """A Deferred as it is; a coroutine or another awaitable converted."""
    return answer if isinstance(answer, Deferred) else Deferred.fromCoroutine(answer_of(answer))


def begun(coroutine: Coroutine[Any, Any, T]) -> T | Deferred[T]:
    """Run a coroutine as far as it comes. What it returns or raises, if it never waits: then no Deferred is made."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    return Deferred.fromCoroutine(_go_on(coroutine, waits_for))


def _go_on(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    while True:
        try:
            result = yield waits_for
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:  # noqa: BLE001 - a cancellation, too, is the coroutine's to deal with
            step = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, result)
        try:
            waits_for = step()
        except StopIteration as end:
            value: T = end.value
            return value


async def answer_of(answer: Any) -> Any:
    """The value that a hook answered with, whenever it comes."""
    return await answer if is_later(answer) else answer


def within(seconds: float, call_later: CallLater, promised: Deferred[T]) -> Deferred[T]:
    """What `promised` fires with, or TimeoutError after `seconds`; 0: it may take as long as it likes.

    `promised` is cancelled at the time limit, and when what is returned here is cancelled. It may go on in spite of
    that: nobody waits for it, and what comes of it is dropped.
    """
    timer: Timer | None = None

    def settle(outcome: Any) -> None:
        nonlocal timer
        if timer is not None:
            timer.cancel()
            timer = None
        if not waiter.called:
            waiter.callback(outcome)

    def expire() -> None:
        nonlocal timer
        timer = None
        waiter.errback(Failure(TimeoutError()))
        _cancel(promised)

    def give_up(_: object) -> None:
        nonlocal timer
        if timer is not None:
            timer.cancel()
            timer = None
        _cancel(promised)

    waiter: Deferred[T] = Deferred(give_up)
    promised.addBoth(settle)
    if seconds and not waiter.called:
        timer = call_later(seconds, expire)
    return waiter


def _cancel(promised: Deferred[Any]) -> None:
    try:
        promised.cancel()
    except Exception:  # noqa: BLE001 - somebody else's canceller must not keep us from going on
        # At debug: a client decides how often this happens.
        _log.failure("A canceller raised", level=LogLevel.debug)


def shielded(promised: Deferred[T]) -> Deferred[T]:
    """Fires as `promised` does. To cancel it does not cancel that: somebody else is to hear what comes of it."""
    shield: Deferred[T] = Deferred()

    def pass_on(outcome: Any) -> None:
        if not shield.called:
            shield.callback(outcome)

    promised.addBoth(pass_on)
    return shield
