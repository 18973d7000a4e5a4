"""Deadlines: never early, at most a tick late, one call on the clock for all, nothing kept of the dead."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.protocols.policies import TimeoutMixin

from twisted_smtpguard.transport.deadlines import Deadline, Deadlines

TICK = 0.1
ROUNDING = 1e-6


class Bench:
    """A clock, its deadlines, and a list of what came when."""

    def __init__(self, start: float = 0.0) -> None:
        self.clock = Clock()
        self.clock.advance(start)
        self.deadlines = Deadlines(self.clock)
        self.came: list[tuple[str, float]] = []

    def call(self, seconds: float, name: str, then: Callable[[], object] = lambda: None) -> Deadline:
        def come() -> None:
            self.came.append((name, self.clock.seconds()))
            then()

        return self.deadlines.call_later(seconds, come)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.came]

    @property
    def scheduled(self) -> int:
        return len(self.clock.getDelayedCalls())


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture(autouse=True)
def failures() -> Iterator[list[type[BaseException]]]:
    """What was logged. A test that expects failures takes them out."""
    kinds: list[type[BaseException]] = []

    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            kinds.append(event["log_failure"].type)

    globalLogPublisher.addObserver(observe)
    yield kinds
    globalLogPublisher.removeObserver(observe)
    assert kinds == []


# When it comes.


@pytest.mark.parametrize("start", [0.0, 0.05, 12.34, 1_795_369_475.513942])
@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.1, 0.25, 0.3, 5, 299.99, 300])
def test_it_comes_not_early_and_at_most_a_tick_late(start: float, seconds: float) -> None:
    bench = Bench(start)
    bench.call(seconds, "it")
    due = bench.clock.seconds() + seconds
    while not bench.came:
        assert bench.clock.seconds() <= due + TICK + ROUNDING
        bench.clock.advance(0.01 if bench.clock.seconds() > due - 1 else 0.5)
    assert due <= bench.came[0][1] <= due + TICK + 0.01 + ROUNDING


def test_it_comes_once(bench: Bench) -> None:
    bench.call(1, "it")
    bench.clock.pump([1.1, 1, 10])
    assert bench.names == ["it"]


def test_a_time_just_after_a_tick_is_not_taken_for_that_tick(bench: Bench) -> None:
    # Ten times this is 17.0 in floating point.
    when = 1.7000000000000002
    bench.call(when, "it")
    bench.clock.advance(1.7)
    assert bench.came == []
    bench.clock.advance(TICK)
    assert bench.names == ["it"]


def test_a_clock_that_jumps_over_many_deadlines_calls_all_in_their_order(bench: Bench) -> None:
    for seconds in (30, 10, 20):
        bench.call(seconds, str(seconds))
    bench.clock.advance(1_000_000)
    assert bench.names == ["10", "20", "30"]


def test_a_deadline_in_the_past_comes_at_the_next_tick(bench: Bench) -> None:
    bench.call(-5, "it")
    assert bench.came == []
    # The reactor refuses a negative delay.
    assert [call.getTime() for call in bench.clock.getDelayedCalls()] == [0]
    bench.clock.advance(0)
    assert bench.names == ["it"]


# reset(), cancel(), active().


def test_a_reset_to_later_holds(bench: Bench) -> None:
    deadline = bench.call(1, "it")
    bench.clock.advance(0.9)
    deadline.reset(5)
    bench.clock.advance(4.9)
    assert bench.came == []
    bench.clock.advance(0.2)
    assert bench.names == ["it"]


def test_a_reset_to_earlier_holds(bench: Bench) -> None:
    bench.call(300, "it").reset(1)
    bench.clock.advance(1.1)
    assert bench.names == ["it"]


def test_a_reset_to_later_and_then_to_earlier_holds(bench: Bench) -> None:
    deadline = bench.call(10, "it")
    deadline.reset(300)
    deadline.reset(5)
    bench.clock.advance(5.1)
    assert bench.names == ["it"]


def test_a_reset_to_later_leaves_the_clock_alone(bench: Bench) -> None:
    deadline = bench.call(10, "it")
    (call,) = bench.clock.getDelayedCalls()
    for _ in range(100):
        bench.clock.advance(0.05)
        deadline.reset(300)
    assert bench.clock.getDelayedCalls() == [call]
    assert call.getTime() == 10


def test_a_cancelled_deadline_never_comes(bench: Bench) -> None:
    bench.call(1, "it").cancel()
    bench.clock.advance(10)
    assert bench.came == []


def test_it_is_active_until_it_has_come(bench: Bench) -> None:
    deadline = bench.call(1, "it")
    assert deadline.active()
    bench.clock.advance(2)
    assert not deadline.active()


def test_it_is_active_until_it_is_cancelled(bench: Bench) -> None:
    deadline = bench.call(1, "it")
    deadline.cancel()
    assert not deadline.active()


def test_what_has_come_can_be_neither_cancelled_nor_reset(bench: Bench) -> None:
    deadline = bench.call(1, "it")
    bench.clock.advance(2)
    with pytest.raises(AlreadyCalled):
        deadline.cancel()
    with pytest.raises(AlreadyCalled):
        deadline.reset(1)
    assert bench.scheduled == 0


def test_what_is_cancelled_can_be_neither_cancelled_nor_reset(bench: Bench) -> None:
    deadline = bench.call(1, "it")
    deadline.cancel()
    with pytest.raises(AlreadyCancelled):
        deadline.cancel()
    with pytest.raises(AlreadyCancelled):
        deadline.reset(1)
    assert bench.scheduled == 0


def test_timeout_mixin_works_with_it(bench: Bench) -> None:
    class Connection(TimeoutMixin):
        timed_out = 0

        def callLater(self, period: float, func: Callable[[], object]) -> Deadline:
            return bench.deadlines.call_later(period, func)

        def timeoutConnection(self) -> None:
            self.timed_out += 1
            self.setTimeout(None)

    connection = Connection()
    connection.setTimeout(10)
    bench.clock.advance(9)
    connection.resetTimeout()
    bench.clock.advance(9)
    connection.setTimeout(1)
    assert connection.timed_out == 0
    bench.clock.advance(1.1)
    assert (connection.timed_out, bench.scheduled) == (1, 0)
    connection.setTimeout(10)
    connection.setTimeout(None)
    assert bench.scheduled == 0


# One call on the clock.


def test_nothing_is_scheduled_before_the_first_deadline(bench: Bench) -> None:
    assert bench.scheduled == 0


def test_any_number_of_deadlines_is_one_call_on_the_clock(bench: Bench) -> None:
    for seconds in range(1000, 0, -1):
        bench.call(seconds, "it")
        assert bench.scheduled == 1


def test_a_deadline_after_the_first_leaves_the_clock_alone(bench: Bench) -> None:
    bench.call(1, "first")
    (call,) = bench.clock.getDelayedCalls()
    for seconds in range(1, 100):
        bench.call(seconds, "it").cancel()
    assert bench.clock.getDelayedCalls() == [call]


def test_nothing_is_scheduled_once_all_have_come(bench: Bench) -> None:
    bench.call(1, "a")
    bench.call(2, "b")
    bench.clock.pump([1.1, 1])
    assert (bench.names, bench.scheduled) == (["a", "b"], 0)


def test_nothing_is_scheduled_once_all_are_cancelled(bench: Bench) -> None:
    deadlines = [bench.call(seconds, "it") for seconds in (1, 2, 2, 3)]
    for deadline in deadlines:
        assert bench.scheduled == 1
        deadline.cancel()
    assert bench.scheduled == 0


def test_nothing_is_scheduled_once_a_reset_one_is_cancelled(bench: Bench) -> None:
    deadline = bench.call(1, "it")
    deadline.reset(10)
    bench.clock.advance(5)
    deadline.cancel()
    assert bench.scheduled == 0


# What the functions may do.


def test_a_function_that_raises_is_logged_and_the_others_are_called(
    bench: Bench, failures: list[type[BaseException]]
) -> None:
    def leave() -> None:
        raise SystemExit

    bench.call(1, "first", then=lambda: 1 / 0)
    bench.call(1, "exit", then=leave)
    bench.call(1, "last")
    bench.clock.advance(2)
    assert bench.names == ["first", "exit", "last"]
    assert failures == [ZeroDivisionError, SystemExit]
    failures.clear()
    bench.call(1, "afterwards")
    bench.clock.advance(2)
    assert bench.names[-1] == "afterwards"


def test_a_function_may_set_the_next_deadline(bench: Bench) -> None:
    bench.call(1, "a", then=lambda: bench.call(1, "b"))
    bench.clock.advance(1.1)
    assert bench.names == ["a"]
    assert bench.scheduled == 1
    bench.clock.advance(1.1)
    assert bench.names == ["a", "b"]


def test_a_function_that_asks_for_no_time_at_all_does_not_hold_up_the_reactor(bench: Bench) -> None:
    def again() -> None:
        if len(bench.came) < 1000:
            bench.call(0, "again", then=again)

    bench.call(0, "again", then=again)
    (call,) = bench.clock.getDelayedCalls()
    bench.clock.calls.remove(call)
    call.func()
    assert (len(bench.came), bench.scheduled) == (1, 1)


def test_a_function_may_cancel_another_that_is_due_at_the_same_time(bench: Bench) -> None:
    def cancel_b() -> None:
        b.cancel()

    bench.call(1, "a", then=cancel_b)
    b = bench.call(1, "b")
    bench.clock.advance(2)
    assert (bench.names, bench.scheduled) == (["a"], 0)


def test_a_function_may_put_off_another_that_is_due_at_the_same_time(bench: Bench) -> None:
    def put_off_b() -> None:
        b.reset(5)

    bench.call(1, "a", then=put_off_b)
    b = bench.call(1, "b")
    bench.clock.advance(1)
    assert bench.names == ["a"]
    bench.clock.advance(5.1)
    assert bench.names == ["a", "b"]


def test_a_function_may_put_off_one_whose_turn_was_just_put_off(bench: Bench) -> None:
    first = bench.call(1, "first")
    first.reset(8)
    bench.call(1, "a", then=lambda: first.reset(3))
    bench.clock.advance(1)
    bench.clock.advance(3.1)
    assert bench.names == ["a", "first"]


def test_a_function_may_cancel_the_last_one_left(bench: Bench) -> None:
    other = bench.call(100, "other")
    bench.call(1, "a", then=other.cancel)
    bench.clock.advance(1.1)
    assert (bench.names, bench.scheduled) == (["a"], 0)


# What is kept.


class Held:
    """Something that a deadline's function holds, as a protocol is held."""

    def come(self) -> None:
        pass


def test_a_cancelled_deadline_holds_nothing(bench: Bench) -> None:
    held = Held()
    gone = weakref.ref(held)
    deadline = bench.deadlines.call_later(300, held.come)
    bench.call(300, "another")
    deadline.cancel()
    del held
    gc.collect()
    assert gone() is None


def test_a_deadline_that_has_come_holds_nothing(bench: Bench) -> None:
    held = Held()
    gone = weakref.ref(held)
    deadline = bench.deadlines.call_later(1, held.come)
    bench.clock.advance(2)
    del held
    gc.collect()
    assert gone() is None
    assert not deadline.active()


def _entries(deadlines: Deadlines) -> int:
    """All that the table and its heap hold."""
    return len(deadlines._ticks) + sum(len(slot) + 1 for slot in deadlines._table.values())


@pytest.mark.parametrize("others", [0, 1, 50])
def test_ten_thousand_connections_that_came_and_went_leave_no_state(bench: Bench, others: int) -> None:
    for number in range(others):
        bench.call(250 + number, "other")
    before = _entries(bench.deadlines)
    for _ in range(10_000):
        deadline = bench.call(300, "it")
        deadline.reset(250)
        deadline.reset(300)
        deadline.cancel()
        bench.clock.advance(0.007)
    assert _entries(bench.deadlines) <= before + 200


def test_deadlines_cancelled_in_any_order_leave_no_state(bench: Bench) -> None:
    last = bench.call(100_000, "last")
    alive = [bench.call(seconds, "it") for seconds in range(1, 5001)]
    for deadline in alive[::2] + alive[1::2][::-1]:
        deadline.cancel()
    bench.call(1, "one more").cancel()
    assert _entries(bench.deadlines) <= 200
    last.cancel()
    assert (_entries(bench.deadlines), bench.scheduled) == (0, 0)


# Against a model in which each deadline is a name and a time.

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.floats(0, 5)),
        st.tuples(st.just("reset"), st.integers(0, 20), st.floats(0, 5)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("advance"), st.one_of(st.floats(0, 3), st.sampled_from([0.0, 0.1, 0.2, 1.0]))),
    ),
    max_size=60,
)


@given(STEPS, st.one_of(st.just(0.0), st.floats(0, 2e9)))
def test_it_agrees_with_a_naive_model(steps: list[tuple[str, ...]], start: float) -> None:
    bench = Bench(start)
    made: list[Deadline] = []
    due: dict[int, float] = {}
    came: list[int] = []
    for step in steps:
        now = bench.clock.seconds()
        match step:
            case ("call", seconds):
                number = len(made)
                due[number] = now + seconds
                made.append(bench.deadlines.call_later(seconds, lambda number=number: came.append(number)))
            case ("reset", number, seconds) if number in due:
                due[number] = now + seconds
                made[number].reset(seconds)
            case ("cancel", number) if number in due:
                del due[number]
                made[number].cancel()
            case ("advance", seconds):
                bench.clock.advance(seconds)
                now = bench.clock.seconds()
                assert all(due[number] <= now for number in came), "early"
                for number in came:
                    del due[number]
                came.clear()
                assert all(when + TICK + ROUNDING > now for when in due.values()), "late"
        assert [number for number, deadline in enumerate(made) if deadline.active()] == sorted(due)
        assert bench.scheduled == (1 if due else 0)
    bench.clock.advance(10)
    assert sorted(came) == sorted(due)
    assert bench.scheduled == 0
