"""Everything has the same time, and one timer tells of all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from twisted_smtpguard.transport.deadlines import Deadlines, ExpiryQueue


class Old:
    def __init__(self, tell: Callable[[], object]) -> None:
        self.time_over = tell


def test_each_is_told_at_its_own_time_and_one_timer_is_enough() -> None:
    clock = Clock()
    ages, told = ExpiryQueue(Deadlines(clock), 10), []
    for number in range(5):
        ages.add(Old(lambda number=number: told.append((number, clock.seconds()))))  # type: ignore[misc]
        clock.advance(1)
    assert len(clock.getDelayedCalls()) == 1
    clock.pump([0.1] * 200)
    assert [number for number, _ in told] == [0, 1, 2, 3, 4]
    assert all(10 + number <= when < 10.15 + number for number, when in told)
    assert not clock.getDelayedCalls()


def test_who_is_removed_is_not_told_and_the_next_is_in_time() -> None:
    clock, told = Clock(), []
    ages = ExpiryQueue(Deadlines(clock), 10)
    first, second = Old(lambda: told.append("first")), Old(lambda: told.append("second"))
    ages.add(first)
    clock.advance(5)
    ages.add(second)
    ages.remove(first)
    ages.remove(first)
    clock.advance(9.9)
    assert told == []
    clock.advance(0.1)
    assert told == ["second"]


def test_nothing_is_scheduled_when_the_queue_is_empty_or_there_is_no_limit() -> None:
    clock = Clock()
    ages, unlimited = ExpiryQueue(Deadlines(clock), 10), ExpiryQueue(Deadlines(clock), 0)
    only = Old(lambda: None)
    ages.add(only)
    unlimited.add(only)
    ages.remove(only)
    unlimited.remove(only)
    assert not clock.getDelayedCalls()


def test_a_fault_of_one_keeps_no_other_from_being_told() -> None:
    clock, told = Clock(), []
    ages = ExpiryQueue(Deadlines(clock), 10)

    def fault() -> None:
        raise ZeroDivisionError

    ages.add(Old(fault))
    ages.add(Old(lambda: told.append("second")))
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        clock.advance(10)
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert told == ["second"]
    assert [event["log_failure"].type for event in events if "log_failure" in event] == [ZeroDivisionError]


@pytest.mark.parametrize("again", [False, True])
def test_whom_it_tells_may_remove_itself(again: bool) -> None:
    clock = Clock()
    ages = ExpiryQueue(Deadlines(clock), 10)

    def leave() -> None:
        ages.remove(old)
        if again:
            ages.add(old)

    old = Old(leave)
    ages.add(old)
    clock.advance(10)
    assert len(clock.getDelayedCalls()) == again
