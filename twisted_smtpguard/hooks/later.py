"""Hooks that answer later: their answers as Deferreds, and time limits for them.

A hook may answer with a Deferred or another awaitable. If an event loop of asyncio runs, as under the asyncio reactor,
a coroutine is run as a task of that loop: it may await everything that asyncio has, and Deferreds too. Under another
reactor it may await Deferreds only, and an error says so.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, TypeAlias, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.python.failure import Failure

from twisted_smtpguard.engine.port import Cancellable, Cancelled
from twisted_smtpguard.hooks.faults import Report, at_debug, cancel
from twisted_smtpguard.hooks.promise import Promise
from twisted_smtpguard.values import FAULTS, is_later

T = TypeVar("T")
S = TypeVar("S")


CallLater: TypeAlias = Callable[[float, Callable[[], object]], Cancellable]
"""Schedules a call, for parts that know no reactor: `Deadlines.call_later`."""


class HookCancelledError(CancelledError, Cancelled):
    """A hook has ended with asyncio's CancelledError. If the guard has not cancelled it, that came from the hook
    itself."""

    def __str__(self) -> str:
        return "it ended with asyncio's CancelledError"


class AsyncioUnavailableError(RuntimeError):
    """A hook has used asyncio in a way that cannot work. The text says what would work."""


_WRONG_REACTOR = (
    "asyncio is available to hooks on the asyncio reactor only, which `twist --reactor=asyncio` or "
    "asyncioreactor.install() chooses; on any other reactor they may await Deferreds only"
)
_WRONG_WRAPPER = (
    "a hook must answer with a coroutine that awaits something of asyncio as it is, or with a task of the event loop, "
    "and not with Deferred.fromCoroutine(), which knows Deferreds only"
)


def as_deferred(answer: Deferred[T] | Awaitable[T]) -> Deferred[T]:
    """The Deferred that a hook has answered with, or a Deferred for its coroutine, future of asyncio or other
    awaitable.

    Cancelling it cancels the answer, which may ignore that and go on. It fails with HookCancelledError instead of
    asyncio's CancelledError, which is no Exception.
    """
    if isinstance(answer, Deferred):
        return answer.addErrback(explained)
    if isinstance(answer, Promise):
        return answer.deferred()
    loop = _running_loop()
    if asyncio.isfuture(answer):
        if answer.get_loop() is loop:
            return _outcome_of(answer)
        # A future of another loop never fires here, or fires in another thread.
        return fail(AsyncioUnavailableError(_WRONG_REACTOR))
    coroutine = answer if isinstance(answer, types.CoroutineType) else _as_coroutine(answer)
    promised = Deferred.fromCoroutine(coroutine) if loop is None else _outcome_of(_task(coroutine, loop))
    return promised.addErrback(explained)


def call_hook(hook: Callable[..., Any], *args: object) -> Deferred[Any]:
    """Call a hook. The Deferred fires with its answer, whenever that comes, or fails with its exception."""
    try:
        answer = hook(*args)
    except FAULTS:
        return fail(explained(Failure()))
    return as_deferred(answer) if is_later(answer) else succeed(answer)


def explained(failure: Failure) -> Failure:
    """The failure of a hook, in a form that can be handled and logged: with an Exception instead of asyncio's
    CancelledError, and with a text that says what to do instead of asyncio's own."""
    error = failure.value
    plain: Exception
    if isinstance(error, asyncio.CancelledError):
        plain = HookCancelledError()
    elif type(error) is RuntimeError and str(error).startswith(_ASYNCIO_WORDS):
        plain = AsyncioUnavailableError(_WRONG_REACTOR if _running_loop() is None else _WRONG_WRAPPER)
    else:
        return failure
    plain.__cause__ = error
    return Failure(plain, type(plain), failure.getTracebackObject())


_ASYNCIO_WORDS = ("no running event loop", "await wasn't used with future", "There is no current event loop")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _as_coroutine(answer: Awaitable[T]) -> T:
    return await answer


# On an event loop of asyncio.

_tasks: set[asyncio.Task[Any]] = set()
"""The running tasks. The loop itself does not keep them from being garbage-collected."""


def _task(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
    """A task for `coroutine`. The loop's task factory is not used, since it may make anything."""
    # With eager_start, a hook that never waits costs no turn of the loop.
    eager: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
    task = asyncio.Task(_run(coroutine, loop), loop=loop, **eager)
    if not task.done():
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        # A task that is cancelled before its first step leaves a coroutine that was never awaited.
        task.add_done_callback(lambda _: coroutine.close())
    return task


async def _run(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> Any:
    """The result of the coroutine, or its failure as a value: a task that raises SystemExit would end the loop."""
    return await _in_task(coroutine, loop)


@types.coroutine
def _in_task(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> Generator[Any, Any, Any]:
    """Run `coroutine` inside a task. The task itself waits for asyncio's futures; Deferreds are waited for here."""

    def wait(waits_for: Any) -> Generator[Any, Any, Any]:
        if isinstance(waits_for, Deferred):
            return (yield from _wait_for(waits_for, loop))
        if isinstance(waits_for, Promise):
            # It then waits by a Deferred.
            return waits_for
        return (yield waits_for)

    try:
        return (yield from _continue(coroutine, coroutine.send(None), wait))
    except StopIteration as end:
        return end.value
    except BaseException:  # noqa: BLE001 - the caller of the hook gets it
        return Failure()


def _wait_for(deferred: Deferred[Any], loop: asyncio.AbstractEventLoop) -> Generator[Any, Any, None]:
    """Wait until `deferred` has fired. It keeps its result, which the coroutine takes from it. Cancelling the task
    cancels the Deferred, and the coroutine gets the outcome, as it would without a task."""
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


def _outcome_of(future: asyncio.Future[T]) -> Deferred[T]:
    """A Deferred with the outcome of `future`. Cancelling it cancels the future, whose outcome still counts then."""
    # A task that never waited costs no turn of the loop.
    promised = maybeDeferred(future.result) if future.done() else Deferred.fromFuture(future)
    return promised.addErrback(explained)


# Without an event loop of asyncio.


def start_coroutine(coroutine: Coroutine[Any, Any, T]) -> T | Deferred[T]:
    """Run a coroutine up to its first wait. If it never waits, its result is returned or its exception raised, and no
    Deferred is made."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    return Deferred.fromCoroutine(_continue(coroutine, waits_for, _wait))


def _wait(waits_for: Any) -> Generator[Any, Any, Any]:
    return (yield waits_for)


def _continue(
    coroutine: Coroutine[Any, Any, T], waits_for: Any, wait: Callable[[Any], Generator[Any, Any, Any]]
) -> Generator[Any, Any, T]:
    """Run a coroutine from its first wait, which is for `waits_for`, to its end. `wait` does the waiting, and the
    coroutine gets its result or its exception."""
    while True:
        try:
            result = yield from wait(waits_for)
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:  # noqa: BLE001 - the coroutine handles a cancellation too
            step = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, result)
        try:
            waits_for = step()
        except StopIteration as end:
            value: T = end.value
            return value


def mapped(answer: Deferred[T] | Awaitable[T], function: Callable[[T], S]) -> Deferred[S] | Promise[S]:
    """The answer of a hook, with `function` applied to it."""
    if isinstance(answer, Promise):
        return answer.mapped(function)
    return as_deferred(answer).addCallback(function)


async def answer_of(answer: Any) -> Any:
    """The value of a hook's answer, awaited if it comes later."""
    return await as_deferred(answer) if is_later(answer) else answer


def within(
    seconds: float, call_later: CallLater, promised: Deferred[T], report: Report = at_debug
) -> Deferred[T]:
    """A Deferred with the outcome of `promised`, or with TimeoutError after `seconds`; 0 is no limit.

    `promised` is cancelled at the time limit, and when the returned Deferred is cancelled. If it goes on in spite of
    that, its outcome is dropped. `report` gets the exception of a canceller that raises.
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
        waiter.errback(TimeoutError())
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
    """A Deferred that fires as `promised` does. Cancelling it does not cancel `promised`, whose outcome others need."""
    shield: Deferred[T] = Deferred()

    def pass_on(outcome: Any) -> None:
        if not shield.called:
            shield.callback(outcome)

    promised.addBoth(pass_on)
    return shield


class PendingAnswer:
    """The handle of a pending answer, by which it can be cancelled."""

    __slots__ = ("_promised", "_report")

    def __init__(self, promised: Deferred[Any], report: Report) -> None:
        self._promised = promised
        self._report = report

    def cancel(self) -> None:
        """Cancel the answer. Its hook may go on in spite of that."""
        cancel(self._promised, self._report)


def when_answered(
    answer: Any, answered: Callable[[Any, BaseException | None], None], report: Report
) -> Cancellable:
    """Call `answered` once: with the value of a hook's answer, or with None and its exception. The exception is
    `Cancelled` for every kind of cancellation. `report` gets the exception of a canceller that raises."""

    if isinstance(answer, Promise):
        answer.when_answered(answered)
        return answer

    def failed(failure: Failure) -> None:
        error = failure.value
        assert error is not None
        if type(error) is CancelledError:
            error = Cancelled()
        answered(None, error.with_traceback(failure.getTracebackObject()))

    promised = as_deferred(answer)
    promised.addCallbacks(lambda value: answered(value, None), failed)
    promised.addErrback(report, "an answer could not be taken")
    return PendingAnswer(promised, report)
