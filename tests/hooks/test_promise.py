"""Promises: answers of the guard's own hooks that come later."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs

from twisted_smtpguard.engine.port import Cancelled
from twisted_smtpguard.hooks.faults import at_debug
from twisted_smtpguard.hooks.later import as_deferred, call_hook, mapped, start_coroutine, when_answered
from twisted_smtpguard.hooks.promise import LazyPromise, Promise, run

Outcome = tuple[Any, BaseException | None]


def outcomes(promise: Promise[Any]) -> list[Outcome]:
    heard: list[Outcome] = []
    promise.when_answered(lambda value, error: heard.append((value, error)))
    return heard


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
def test_the_listener_is_told_once(before: bool, error: BaseException | None) -> None:
    promise: Promise[int] = Promise()
    heard = [] if before else outcomes(promise)
    promise.settle(None if error else 7, error)
    promise.succeed(8)
    promise.fail(ValueError())
    promise.cancel()
    assert (outcomes(promise) if before else heard) == [(None if error else 7, error)]


def test_a_second_listener_would_take_the_answer_of_the_first() -> None:
    promise: Promise[int] = Promise()
    outcomes(promise)
    with pytest.raises(RuntimeError, match="a promise has one listener"):
        outcomes(promise)


def test_the_answer_of_a_hook_is_the_value_where_it_is_there() -> None:
    promise: Promise[int] = Promise()
    assert promise.now() is promise
    promise.succeed(7)
    assert promise.now() == 7
    failed: Promise[int] = Promise()
    failed.fail(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        failed.now()


@pytest.mark.parametrize("raises", [False, True])
def test_what_is_cancelled_is_ended_and_told_of_once(raises: bool) -> None:
    ended: list[bool] = []

    def end() -> None:
        ended.append(True)
        if raises:
            raise ZeroDivisionError

    promise: Promise[int] = Promise(end)
    heard = outcomes(promise)
    promise.cancel()
    promise.cancel()
    promise.succeed(7)
    assert ended == [True]
    ((value, error),) = heard
    assert value is None
    assert isinstance(error, Cancelled)
    assert isinstance(error, CancelledError)


@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
def test_what_a_canceller_makes_of_the_promise_is_replaced(error: BaseException | None) -> None:
    promise: Promise[int] = Promise(lambda: promise.settle(7, error))
    heard = outcomes(promise)
    promise.cancel()
    ((value, cancelled),) = heard
    assert value is None
    assert isinstance(cancelled, Cancelled)


def test_a_function_is_applied_to_the_answer() -> None:
    promise: Promise[int] = Promise()
    heard = outcomes(mapped(promise, str))  # type: ignore[arg-type]
    promise.succeed(7)
    assert heard == [("7", None)]
    wrong: Promise[str] = Promise()
    heard = outcomes(wrong.mapped(int))
    wrong.succeed("seven")
    assert isinstance(heard[0][1], ValueError)
    refused: Promise[str] = Promise()
    heard = outcomes(refused.mapped(int))
    refused.fail(ZeroDivisionError())
    assert isinstance(heard[0][1], ZeroDivisionError)
    cancelled: Promise[str] = Promise(lambda: None)
    heard = outcomes(both := cancelled.mapped(int))
    both.cancel()
    assert isinstance(heard[0][1], Cancelled)
    assert cancelled.there


def test_a_deferred_has_the_same_outcome_and_cancels_it() -> None:
    promise: Promise[int] = Promise()
    heard: list[Any] = []
    as_deferred(promise).addBoth(heard.append)
    promise.succeed(7)
    assert heard == [7]
    failed: Promise[int] = Promise()
    as_deferred(failed).addErrback(lambda failure: heard.append(failure.type))
    failed.fail(ZeroDivisionError())
    cancelled: Promise[int] = Promise(lambda: heard.append("ended"))
    deferred = as_deferred(cancelled).addErrback(lambda failure: heard.append(failure.check(CancelledError)))
    deferred.cancel()
    assert heard == [7, ZeroDivisionError, "ended", CancelledError]


async def waits_for(promise: Any) -> Any:
    try:
        return await promise
    except ZeroDivisionError:
        return "divided"


HOW: dict[str, Any] = {
    "run": lambda coroutine: run(coroutine).deferred(),
    "Twisted": Deferred.fromCoroutine,
    "without a Deferred where it does not wait": start_coroutine,
    "a hook": as_deferred,
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", [Promise, Deferred])
def test_it_can_be_awaited_like_a_deferred(how: str, kind: type) -> None:
    heard: list[Any] = []
    with capturedLogs() as events:
        for settle in (
            lambda later: later.succeed(7) if kind is Promise else later.callback(7),
            lambda later: (later.fail if kind is Promise else later.errback)(ZeroDivisionError()),
        ):
            later = kind()
            HOW[how](waits_for(later)).addBoth(heard.append)
            assert len(heard) != 2
            settle(later)
            del later
    assert heard == [7, "divided"]
    assert events == []


def test_it_can_be_awaited_in_a_hook_on_an_event_loop_of_asyncio() -> None:
    async def hook(promise: Promise[Any]) -> Any:
        await asyncio.sleep(0)
        return await waits_for(promise)

    async def main() -> list[Any]:
        good: Promise[int] = Promise()
        bad: Promise[int] = Promise()
        loop = asyncio.get_running_loop()
        answers = [as_deferred(hook(each)).asFuture(loop) for each in (good, bad)]
        await asyncio.sleep(0)
        good.succeed(7)
        bad.fail(ZeroDivisionError())
        return await asyncio.gather(*answers)

    assert asyncio.run(main()) == [7, "divided"]


@pytest.mark.parametrize("make", [lambda: Promise(lambda: None), Deferred], ids=["promise", "Deferred"])
def test_cancelling_a_coroutine_cancels_what_it_waits_for(make: Any) -> None:
    later = make()
    running = run(waits_for(later))
    heard: list[Outcome] = []
    when_answered(running, lambda value, error: heard.append((value, error)), at_debug).cancel()
    assert isinstance(heard[0][1], Cancelled)
    running.cancel()
    assert len(heard) == 1


def test_a_coroutine_that_goes_on_in_spite_of_its_cancellation_still_answers() -> None:
    async def stubborn(first: Promise[int], second: Promise[int]) -> int:
        try:
            return await first
        except Cancelled:
            return await second

    first: Promise[int] = Promise(lambda: None)
    second: Promise[int] = Promise()
    running = run(stubborn(first, second))
    running.cancel()
    assert not running.there
    second.succeed(7)
    assert running.result() == 7


def test_a_coroutine_that_does_not_wait_has_its_outcome_at_once() -> None:
    there: Promise[int] = Promise()
    there.succeed(7)
    assert run(waits_for(there)).result() == 7

    async def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(fails()).now()


def test_a_hook_that_answers_with_one_is_taken_for_one_that_answers_later() -> None:
    promise: Promise[int] = Promise()
    heard: list[Any] = []
    call_hook(lambda: promise).addBoth(heard.append)
    assert heard == []
    promise.succeed(7)
    assert heard == [7]


def test_the_work_of_a_lazy_one_begins_when_it_is_waited_for() -> None:
    work: list[Promise[int]] = []

    async def begin() -> int:
        work.append(Promise())
        return await work[0]

    promise = LazyPromise(begin)
    assert promise.now() is promise
    assert work == []
    heard = outcomes(promise)
    work[0].succeed(7)
    assert heard == [(7, None)]


def test_a_lazy_one_that_is_cancelled_before_never_begins() -> None:
    promise: LazyPromise[int] = LazyPromise(lambda: pytest.fail("it has begun"))
    promise.cancel()
    ((value, error),) = outcomes(promise)
    assert value is None
    assert isinstance(error, Cancelled)


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_becomes_of_the_work_of_a_lazy_one_that_is_cancelled_counts(goes_on: bool) -> None:
    work: Promise[int] = Promise(lambda: None)

    async def begin() -> int:
        try:
            return await work
        except Cancelled:
            if goes_on:
                return 7
            raise

    promise = LazyPromise(begin)
    heard = outcomes(promise)
    promise.cancel()
    ((value, error),) = heard
    assert value == (7 if goes_on else None)
    assert isinstance(error, Cancelled) == (not goes_on)
