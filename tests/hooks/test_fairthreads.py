"""A few threads that clients share fairly."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
from manual_threads import ManualThreads
from twisted.python.failure import Failure

from twisted_smtpguard.hooks import fairthreads
from twisted_smtpguard.hooks.fairthreads import FairThreads


class Work:
    """One thread, and calls that take as long as they say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 1) -> None:
        self.reactor = ManualThreads()
        self.threads = FairThreads(self.reactor, wasted=lambda name: not str(name).startswith("honest"))
        self.threads.most = most
        self.now = 0.0
        self.done: list[str] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def ask(self, client: str, seconds: float = 1, name: str = "", *, known: bool = False) -> Any:
        def call() -> str:
            self.now += seconds
            self.done.append(name or client)
            return name or client

        return self.threads.run(client, known, call)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def test_a_call_has_its_value_or_its_exception(work: Work) -> None:
    outcomes: list[Any] = []
    work.ask("a").addBoth(outcomes.append)
    work.threads.run("a", False, lambda: 1 / 0).addBoth(outcomes.append)
    assert outcomes == []
    work.reactor.work()
    assert outcomes[0] == "a"
    assert isinstance(outcomes[1], Failure)
    assert outcomes[1].check(ZeroDivisionError)


def test_calls_of_one_client_come_in_their_order(work: Work) -> None:
    for name in "abcde":
        work.ask("client", name=name)
    work.reactor.work()
    assert work.done == [*"abcde"]


def test_who_comes_for_the_first_time_waits_for_the_call_that_runs_and_not_for_the_crowd(work: Work) -> None:
    for number in range(30):
        work.ask(f"guesser{number}")
    work.reactor.work()
    work.done.clear()
    for number in range(30):
        for _ in range(10):
            work.ask(f"guesser{number}")
    work.ask("honest")
    work.reactor.work()
    assert work.done.index("honest") == 1


def test_who_wastes_nothing_is_not_charged_however_often_it_comes(work: Work) -> None:
    for _ in range(50):
        work.ask("honest", 9)
    work.reactor.work()
    work.done.clear()
    for number in range(30):
        work.ask(f"guesser{number}")
    work.ask("honest")
    work.reactor.work()
    work.done.clear()
    for number in range(30):
        work.ask(f"guesser{number}")
    work.ask("honest")
    work.reactor.work()
    assert work.done.index("honest") == 1


def test_clients_that_waste_nothing_take_turns(work: Work) -> None:
    for _ in range(3):
        work.ask("honest one")
    for _ in range(3):
        work.ask("honest other")
    work.reactor.work()
    # The first had no other beside it.
    assert work.done == ["honest one", *["honest one", "honest other"] * 2, "honest other"]


def test_who_has_wasted_less_comes_first(work: Work) -> None:
    work.ask("slow", 5)
    work.ask("quick", 1)
    work.reactor.work()
    work.done.clear()
    work.ask("other")
    for client in ("slow", "quick"):
        for _ in range(3):
            work.ask(client)
    work.reactor.work()
    assert work.done == ["other", "quick", "quick", "quick", "slow", "slow", "slow"]


def test_what_was_wasted_is_forgotten_by_and_by(work: Work) -> None:
    work.ask("early", 4)
    work.reactor.work()
    work.reactor.advance(120)
    work.ask("late", 2)
    work.reactor.work()
    work.done.clear()
    work.ask("other")
    work.ask("late")
    work.ask("early")
    work.reactor.work()
    assert work.done == ["other", "early", "late"]


def test_so_many_run_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch, most=2)
    for number in range(5):
        work.ask(str(number))
    assert work.reactor.waiting == 2
    work.reactor.work()
    assert len(work.done) == 5


def test_a_call_that_is_cancelled_does_not_begin_and_one_that_runs_goes_on(work: Work) -> None:
    running, waiting, last = (work.ask("a", name=name) for name in ("running", "waiting", "last"))
    for each in (waiting, running):
        each.addErrback(lambda _: None)
        each.cancel()
    work.reactor.work()
    assert work.done == ["running", "last"]
    assert last.result == "last"
    assert work.threads._waiting == {}


def test_the_clients_that_are_remembered_are_bounded(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairthreads, "_MOST_CLIENTS", 10)
    for number in range(50):
        work.ask(str(number))
    work.reactor.work()
    assert len(work.threads._wasted) == 10


def test_what_a_client_wastes_counts_for_its_calls_that_wait_already(work: Work) -> None:
    work.ask("other", 1)
    work.reactor.work()
    work.done.clear()
    for _ in range(3):
        work.ask("greedy", 5)
    work.ask("other", 1)
    work.reactor.work()
    assert work.done == ["greedy", "other", "greedy", "greedy"]


def test_clients_that_come_and_leave_again_and_again_leave_nothing(work: Work) -> None:
    work.ask("running")
    work.ask("waiting")
    for number in range(5000):
        left = work.ask(f"client{number}")
        left.addErrback(lambda _: None)
        left.cancel()
    assert len(work.threads._turns) < 100
    assert work.threads._waiting.keys() == {"waiting"}
    work.reactor.work()
    assert work.done == ["running", "waiting"]


def test_the_next_of_ten_thousand_is_found_in_few_steps(work: Work) -> None:
    """In so many calls of functions for each call that waits, however many wait."""

    def steps(clients: int) -> int:
        taken = 0

        def count(_: Any, event: str, __: Any) -> None:
            nonlocal taken
            taken += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            for number in range(clients):
                work.ask(f"guesser{number}")
            work.reactor.work()
        finally:
            sys.setprofile(None)
        return taken

    steps(1)
    assert steps(10_000) < 1.5 * 10 * steps(1000)


def test_a_clock_that_is_set_back_a_year_breaks_nothing(work: Work) -> None:
    work.ask("early", 4)
    work.reactor.work()
    work.reactor.rightNow -= 365 * 86400
    work.ask("early", 4)
    work.ask("late", 1)
    work.reactor.work()
    work.done.clear()
    for client in ("other", "early", "late"):
        work.ask(client)
    work.reactor.work()
    assert work.done == ["other", "late", "early"]


def test_a_client_that_is_known_comes_before_a_crowd_that_is_new(work: Work) -> None:
    for number in range(30):
        work.ask(f"guesser{number}")
    work.ask("honest", known=True)
    work.reactor.work()
    assert work.done.index("honest") == 1
    # It is no excuse for one that guesses itself.
    work.ask("guesser0", known=True)
    work.ask("other")
    work.ask("guesser0", known=True)
    work.reactor.work()
    assert work.done[-3:] == ["guesser0", "other", "guesser0"]
    assert work.threads._waiting == {}
