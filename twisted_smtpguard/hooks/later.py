"""Answers that come later: what a hook may answer with instead of its value, and waiting no longer than agreed.

A hook may answer with a Deferred or with whatever else can be awaited. Where an event loop of asyncio runs, as under
the asyncio reactor, a coroutine is run as a task of that loop: it may await whatever asyncio has, and Deferreds too.
Elsewhere it may await Deferreds only, and an error says so.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, TypeAlias, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure

from twisted_smtpguard.engine.port import FAULTS, Cancellable, Cancelled, is_later
from twisted_smtpguard.hooks.faults import Report, at_debug, cancel

T = TypeVar("T")


CallLater: TypeAlias = Callable[[float, Callable[[], object]], Cancellable]
"""How a part that knows no reactor gets at time: `Deadlines.call_later`."""


class HookCancelledError(CancelledError, Cancelled):
    """A hook has ended with asyncio's CancelledError. Where the guard has not cancelled it, it did so by itself."""

    def __str__(self) -> str:
        return "it ended with asyncio's CancelledError"


class AsyncioUnavailableError(RuntimeError):
    """A hook has used asyncio where that cannot work. Its text says what would."""


_NOT_HERE = (
    "asyncio is available to hooks on the asyncio reactor only, which `twist --reactor=asyncio` or "
    "asyncioreactor.install() chooses; on any other they may await Deferreds only"
)
_NOT_THIS_WAY = (
    "a coroutine that awaits something of asyncio is to be the answer of its hook as it is, or as a task of the event "
    "loop, but not through Deferred.fromCoroutine(), which knows Deferreds only"
)


def as_deferred(answer: Deferred[T] | Awaitable[T]) -> Deferred[T]:
    """The Deferred that a hook has answered with, or one of a coroutine, of a future of asyncio, of another awaitable.

    To cancel it cancels that, which may go on in spite of it. It fails with Exceptions only.
    """
    if isinstance(answer, Deferred):
        return answer.addErrback(_explained)
    loop = _running_loop()
    if asyncio.isfuture(answer):
        # That of another loop never fires here, or fires in another thread.
        return fail(AsyncioUnavailableError(_NOT_HERE)) if answer.get_loop() is not loop else _end_of(answer)
    coroutine = answer if isinstance(answer, types.CoroutineType) else _awaited(answer)
    if loop is None:
        return Deferred.fromCoroutine(coroutine).addErrback(_explained)
    return _end_of(_task(coroutine, loop)).addErrback(_explained)


def asked(hook: Callable[..., Any], *args: object) -> Deferred[Any]:
    """The answer of a hook, whenever it comes. What it raises is the Deferred's failure."""
    try:
        answer = hook(*args)
    except FAULTS:
        return fail(explained(Failure()))
    return as_deferred(answer) if is_later(answer) else succeed(answer)


def explained(failure: Failure) -> Failure:
    """A failure of a hook, with an Exception in the place of what is none, or does not say what to do."""
    error = failure.value
    if isinstance(error, asyncio.CancelledError):
        return _replaced(failure, HookCancelledError())
    if type(error) is RuntimeError and str(error).startswith(_ASYNCIO_WORDS):
        return _replaced(
            failure, AsyncioUnavailableError(_NOT_HERE if _running_loop() is None else _NOT_THIS_WAY)
        )
    return failure


_ASYNCIO_WORDS = ("no running event loop", "await wasn't used with future", "There is no current event loop")


def _explained(failure: Failure) -> Failure:
    return explained(failure)


def _replaced(failure: Failure, error: Exception) -> Failure:
    error.__cause__ = failure.value
    return Failure(error, type(error), failure.getTracebackObject())


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _awaited(answer: Awaitable[T]) -> T:
    return await answer


# On an event loop of asyncio.

_tasks: set[asyncio.Task[Any]] = set()
"""Those that run. The loop itself keeps none from being collected."""


def _task(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
    """A plain task, and not one of the loop's factory, which may make what it likes."""
    # As far as it comes at once, where Python can: a hook that never waits costs no turn of the loop.
    eager: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
    task = asyncio.Task(_run(coroutine, loop), loop=loop, **eager)
    if not task.done():
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        # Cancelled before its first step, it leaves a coroutine that was never awaited.
        task.add_done_callback(lambda _: coroutine.close())
    return task


async def _run(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T | Failure:
    """What it returns, or how it failed: a task that raises SystemExit would end the loop."""
    outcome: T | Failure = await _step_by_step(coroutine, loop)
    return outcome


@types.coroutine
def _step_by_step(
    coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop
) -> Generator[Any, Any, Any]:
    """Inside a task, which waits for what asyncio has; for Deferreds it is waited here."""
    step: Callable[[], Any] = partial(coroutine.send, None)
    while True:
        try:
            waits_for = step()
        except StopIteration as end:
            return end.value
        except BaseException:  # noqa: BLE001 - it is told to whoever waits for the hook
            return Failure()
        try:
            result = None
            if isinstance(waits_for, Deferred):
                yield from _fired(waits_for, loop)
            else:
                result = yield waits_for
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:  # noqa: BLE001 - a cancellation, too, is the coroutine's to deal with
            step = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, result)


def _fired(deferred: Deferred[Any], loop: asyncio.AbstractEventLoop) -> Generator[Any, Any, None]:
    """Wait until it has fired. It keeps its result, which the coroutine takes from there. To cancel the task cancels
    it, and what comes of that is told to the coroutine, as without a task."""
    while True:
        future = loop.create_future()
        deferred.addBoth(partial(_wake, future))
        try:
            yield from future
        except asyncio.CancelledError:
            cancel(deferred)
        else:
            return


def _wake(future: asyncio.Future[None], result: Any) -> Any:
    if not future.done():
        future.set_result(None)
    return result


def _end_of(future: asyncio.Future[T]) -> Deferred[T]:
    """What a future ends with."""
    settled = False

    def end(_: object) -> None:
        nonlocal settled
        settled = True
        if not outcome.called:
            _settle_as(future, outcome)

    def cancelled(failure: Failure) -> Any:
        if settled:
            return failure
        # It is the future's to say what comes of it.
        future.cancel()
        return _end_of(future)

    outcome: Deferred[T] = Deferred()
    outcome.addErrback(cancelled)
    if future.done():
        # A task that never waited.
        end(future)
    else:
        future.add_done_callback(end)
    return outcome


def _settle_as(future: asyncio.Future[T], outcome: Deferred[T]) -> None:
    try:
        value = future.result()
    except BaseException:  # noqa: BLE001 - it is told to whoever waits for the hook
        outcome.errback(explained(Failure()))
    else:
        outcome.callback(value)


# Without one.


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
    return await as_deferred(answer) if is_later(answer) else answer


def within(
    seconds: float, call_later: CallLater, promised: Deferred[T], report: Report = at_debug
) -> Deferred[T]:
    """What `promised` fires with, or TimeoutError after `seconds`; 0: it may take as long as it likes.

    `promised` is cancelled at the time limit, and when what is returned here is cancelled. It may go on in spite of
    that: what comes of it is dropped. `report` is told of a canceller that raises.
    """
    timer: Cancellable | None = None

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
        cancel(promised, report)

    def give_up(_: object) -> None:
        nonlocal timer
        if timer is not None:
            timer.cancel()
            timer = None
        cancel(promised, report)

    waiter: Deferred[T] = Deferred(give_up)
    promised.addBoth(settle)
    if seconds and not waiter.called:
        timer = call_later(seconds, expire)
    return waiter


def shielded(promised: Deferred[T]) -> Deferred[T]:
    """Fires as `promised` does. To cancel it does not cancel that: somebody else is to hear what comes of it."""
    shield: Deferred[T] = Deferred()

    def pass_on(outcome: Any) -> None:
        if not shield.called:
            shield.callback(outcome)

    promised.addBoth(pass_on)
    return shield


class Waiting:
    """An answer that somebody waits for."""

    __slots__ = ("_promised", "_report")

    def __init__(self, promised: Deferred[Any], report: Report) -> None:
        self._promised = promised
        self._report = report

    def cancel(self) -> None:
        """It is not wanted any more. Its hook may go on in spite of that."""
        cancel(self._promised, self._report)


def when_answered(
    answer: Any, answered: Callable[[Any, BaseException | None], None], report: Report
) -> Waiting:
    """Call `answered` once: with what a hook answers, or with None and what it has raised; `Cancelled` where that is
    its own kind of cancellation. `report` is told of a canceller that raises."""

    def failed(failure: Failure) -> None:
        error = failure.value
        assert error is not None
        if type(error) is CancelledError:
            error = Cancelled()
        answered(None, error.with_traceback(failure.getTracebackObject()))

    promised = as_deferred(answer)
    promised.addCallbacks(lambda value: answered(value, None), failed)
    promised.addErrback(report, "an answer could not be taken")
    return Waiting(promised, report)
