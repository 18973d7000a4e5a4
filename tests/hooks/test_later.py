"""Waiting for an answer, and no longer than agreed."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.later import as_deferred, within
from twisted_smtpguard.values import is_later


def waiting(promised: Deferred[Any], seconds: float = 10) -> tuple[Clock, Deferred[Any], list[Any]]:
    clock = Clock()
    outcomes: list[Any] = []
    waiter = within(seconds, clock.callLater, promised)
    waiter.addBoth(outcomes.append)
    return clock, waiter, outcomes


def kind(outcome: Any) -> Any:
    return outcome.type if isinstance(outcome, Failure) else outcome


@pytest.mark.parametrize(("promised", "outcome"), [(succeed(7), 7), (fail(KeyError()), KeyError)])
def test_what_is_there_needs_no_timer(promised: Deferred[Any], outcome: object) -> None:
    clock, _, outcomes = waiting(promised)
    assert list(map(kind, outcomes)) == [outcome]
    assert clock.getDelayedCalls() == []


def test_an_answer_in_time_stops_the_timer() -> None:
    promised: Deferred[int] = Deferred()
    clock, _, outcomes = waiting(promised)
    clock.advance(9.9)
    promised.callback(7)
    assert outcomes == [7]
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("late", [8, ValueError()])
def test_a_late_answer_was_cancelled_and_is_dropped(late: Any) -> None:
    cancelled: list[object] = []
    # One that was not told how to end when it is cancelled, and goes on.
    inner: Deferred[int] = Deferred()
    promised: Deferred[int] = Deferred(cancelled.append)
    promised.addErrback(lambda _: inner)
    clock, _, outcomes = waiting(promised)
    clock.advance(10)
    assert list(map(kind, outcomes)) == [TimeoutError]
    assert len(cancelled) == 1
    inner.callback(late) if isinstance(late, int) else inner.errback(late)
    assert len(outcomes) == 1


def test_to_cancel_it_cancels_what_was_promised() -> None:
    promised: Deferred[int] = Deferred()
    clock, waiter, outcomes = waiting(promised)
    waiter.cancel()
    assert list(map(kind, outcomes)) == [CancelledError]
    assert promised.called
    assert clock.getDelayedCalls() == []


def test_without_a_limit_it_waits_indefinitely() -> None:
    promised: Deferred[int] = Deferred()
    clock, _, outcomes = waiting(promised, 0)
    assert clock.getDelayedCalls() == []
    promised.callback(7)
    assert outcomes == [7]


async def coroutine() -> int:
    return 7


class AwaitableOnly:
    def __await__(self) -> Any:
        return coroutine().__await__()


@pytest.mark.parametrize("make", [coroutine, AwaitableOnly, lambda: succeed(7)])
def test_a_deferred_a_coroutine_and_any_awaitable_come_later(make: Any) -> None:
    answer = make()
    assert is_later(answer)
    outcomes: list[int] = []
    as_deferred(answer).addCallback(outcomes.append)
    assert outcomes == [7]


@pytest.mark.parametrize("value", [None, 7, "", object(), AwaitableOnly])
def test_a_value_is_there_now(value: object) -> None:
    assert not is_later(value)
