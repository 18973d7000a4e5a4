"""Messages that are stored several at a time: what a trip takes along, and that none suffers from another."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import pytest
from manual_threads import ManualThreads
from twisted.python.failure import Failure

from twisted_smtpguard.delivery.storing import MOST_TOGETHER, StoringThreads

MOST_THREADS = 3
"""Of the ten that ManualThreads has."""


class Disk:
    """Writes down what is done to it. `meanwhile` happens during the next synchronisation."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.meanwhile: Callable[[], Any] = lambda: None

    def sync(self) -> None:
        self.steps.append("sync")
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()

    @property
    def syncs(self) -> int:
        return self.steps.count("sync")


class Message:
    """A Storable. `fails` is the step in which it does; `during` is called in each step."""

    def __init__(
        self, disk: Disk, name: str = "", fails: str = "", during: Callable[[str], Any] = lambda step: None
    ) -> None:
        self._disk = disk
        self._name = name
        self._fails = fails
        self._during = during
        self.answers: list[Failure | None] = []
        self.answered = Event()

    def fill(self, *, together: bool) -> None:
        self._step("fill together" if together else "fill")

    def complete(self) -> None:
        self._step("complete")

    def take_back(self, error: Exception) -> None:
        self._step("take back")

    def answer(self, outcome: Failure | None) -> None:
        self.answers.append(outcome)
        self.answered.set()

    @property
    def outcome(self) -> object:
        """None for one that is safe; else what it has failed with."""
        [answer] = self.answers
        return answer and answer.value.args[0]

    def _step(self, step: str) -> None:
        self._disk.steps.append(f"{step} {self._name}".strip())
        self._during(step.partition(" ")[0])
        if step.startswith(self._fails or "none"):
            raise OSError(self._fails)


@pytest.fixture
def threads() -> ManualThreads:
    return ManualThreads()


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def store(threads: ManualThreads, disk: Disk) -> StoringThreads:
    return StoringThreads(threads, disk.sync)


@pytest.fixture
def stored(store: StoringThreads, disk: Disk) -> Callable[[int], list[Message]]:
    """So many messages that were given to it."""

    def give(number: int) -> list[Message]:
        messages = [Message(disk) for _ in range(number)]
        for message in messages:
            store.store(message)
        return messages

    return give


def outcomes(messages: list[Message]) -> list[object]:
    return [message.outcome for message in messages]


# What a trip takes along.


def test_a_lone_message_costs_one_trip_there_and_one_back(
    stored: Callable[[int], list[Message]], threads: ManualThreads, disk: Disk
) -> None:
    messages = stored(1)
    threads.work()
    assert outcomes(messages) == [None]
    assert (threads.trips, threads.wakes) == (1, 1)
    assert disk.steps == ["fill", "complete", "sync"]


def test_twenty_at_once_cost_two_trips_there_and_five_back(
    stored: Callable[[int], list[Message]], threads: ManualThreads, disk: Disk
) -> None:
    messages = stored(20)
    threads.work()
    assert outcomes(messages) == [None] * 20
    # Rounds of one, of sixteen and of three; the other thread and a call for a third one find nothing more to do.
    assert (threads.trips, threads.wakes, disk.syncs) == (2, 5, 3)


def test_all_of_a_trip_are_written_before_the_first_is_completed(
    store: StoringThreads, threads: ManualThreads, disk: Disk
) -> None:
    for name in "abc":
        store.store(Message(disk, name))
    threads.work()
    assert disk.steps[3:] == ["fill together b", "fill together c", "complete b", "complete c", "sync"]


def test_no_more_threads_are_taken_than_it_may_and_those_that_wait_are_stored_in_their_order(
    stored: Callable[[int], list[Message]], threads: ManualThreads, disk: Disk
) -> None:
    began: list[int] = []

    def more() -> None:
        began.append(len(messages))
        if len(messages) < 10 * MOST_TOGETHER:
            disk.meanwhile = more
            messages.extend(stored(MOST_TOGETHER))
        assert threads.waiting < MOST_THREADS

    disk.meanwhile = more
    messages = stored(1)
    threads.work()
    assert outcomes(messages) == [None] * len(messages)


def test_a_large_message_goes_alone_though_others_wait(
    store: StoringThreads, stored: Callable[[int], list[Message]], threads: ManualThreads, disk: Disk
) -> None:
    stored(2)
    large = Message(disk, "large")
    store.store_alone(large)
    threads.work()
    assert large.outcome is None
    assert disk.steps[-3:] == ["fill large", "complete large", "sync"]


# The synchronisation of the directory.


def test_one_that_gets_its_name_after_a_sync_began_waits_for_the_next(
    stored: Callable[[int], list[Message]], threads: ManualThreads, disk: Disk
) -> None:
    late: list[Message] = []
    disk.meanwhile = lambda: late.extend(stored(2))
    [first] = stored(1)
    first.answer = lambda outcome: seen.extend(len(message.answers) for message in late)  # type: ignore[method-assign]
    seen: list[int] = []
    threads.work()
    assert seen == [0, 0]
    assert outcomes(late) == [None, None]
    assert disk.syncs == 2


def test_a_failed_sync_is_that_of_all_that_it_served_and_of_no_other(
    stored: Callable[[int], list[Message]], threads: ManualThreads, disk: Disk
) -> None:
    late: list[Message] = []

    def fail() -> None:
        late.extend(stored(1))
        raise OSError("full")

    first = stored(1)
    disk.meanwhile = lambda: setattr(disk, "meanwhile", fail)
    messages = stored(3)
    threads.work()
    assert outcomes([*first, *messages, *late]) == [None, "full", "full", "full", None]
    assert disk.steps.count("take back") == 3


def test_one_that_cannot_be_taken_back_fails_with_what_that_raised(
    store: StoringThreads, threads: ManualThreads, disk: Disk
) -> None:
    messages = [Message(disk, fails=fails) for fails in ("", "take back", "")]

    def fail() -> None:
        raise OSError("full")

    disk.meanwhile = lambda: setattr(disk, "meanwhile", fail)
    for message in messages:
        store.store(message)
    threads.work()
    assert outcomes(messages) == [None, "take back", "full"]


# One that fails.


@pytest.mark.parametrize("step", ["fill", "complete"])
@pytest.mark.parametrize("number", [0, 1, 5, 9])
def test_one_that_fails_fails_alone(
    store: StoringThreads, threads: ManualThreads, disk: Disk, step: str, number: int
) -> None:
    messages = [Message(disk, fails=step if each == number else "") for each in range(10)]
    for message in messages:
        store.store(message)
    threads.work()
    assert outcomes(messages) == [step if each == number else None for each in range(10)]


def test_if_all_of_a_trip_fail_nothing_is_synchronised(
    store: StoringThreads, threads: ManualThreads, disk: Disk
) -> None:
    messages = [Message(disk, fails="complete") for _ in range(10)]
    for message in messages:
        store.store(message)
    threads.work()
    assert outcomes(messages) == ["complete"] * 10
    assert disk.syncs == 0


# Threads.


def test_where_no_thread_can_be_started_the_message_fails_and_a_later_one_is_stored(
    store: StoringThreads,
    stored: Callable[[int], list[Message]],
    threads: ManualThreads,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without:
        without.setattr(threads, "callInThreadWithCallback", fail)
        messages = stored(2)
        large = Message(disk)
        store.store_alone(large)
        assert outcomes([*messages, large]) == ["can't start new thread"] * 3
    messages = stored(1)
    with monkeypatch.context() as without:
        without.setattr(threads, "callInThreadWithCallback", fail)
        messages += stored(2)
    threads.work()
    assert outcomes(messages) == [None] * 3


@pytest.mark.parametrize("threads_in_all", [1, 2, 3, 5])
def test_of_few_threads_it_takes_one(
    stored: Callable[[int], list[Message]], threads: ManualThreads, threads_in_all: int
) -> None:
    threads.max = threads_in_all
    messages = stored(5)
    assert threads.waiting == 1
    threads.work()
    assert outcomes(messages) == [None] * 5


def test_one_that_comes_as_the_last_thread_ends_is_stored(
    stored: Callable[[int], list[Message]], threads: ManualThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads.max = 1
    real = threads.callFromThread
    late: list[Message] = []

    def call_later(function: Callable[..., Any], *args: Any) -> None:
        if not late:
            late.extend(stored(1))
        real(function, *args)

    monkeypatch.setattr(threads, "callFromThread", call_later)
    messages = stored(1)
    threads.work()
    assert outcomes([*messages, *late]) == [None, None]


class Worker(Thread):
    """A real thread that does the jobs which wait."""

    def __init__(self, threads: ManualThreads) -> None:
        super().__init__(target=threads.work, daemon=True)
        self.start()


@pytest.mark.parametrize("number", [1, MOST_TOGETHER])
def test_one_whose_fsync_hangs_keeps_the_others_of_its_trip_waiting_only_until_another_comes(
    store: StoringThreads, threads: ManualThreads, disk: Disk, number: int
) -> None:
    hangs, go_on = Event(), Event()

    def hang(step: str) -> None:
        if step == "complete":
            hangs.set()
            assert go_on.wait(10)

    alone = Message(disk)
    stuck = Message(disk, during=hang)
    before, *after = (Message(disk) for _ in range(MOST_TOGETHER - 1))
    later = [Message(disk) for _ in range(number)]
    for message in (alone, before, stuck, *after):
        store.store(message)
    worker = Worker(threads)
    try:
        assert hangs.wait(10)
        assert alone.answered.wait(10)
        for message in later:
            store.store(message)
        threads.work()
        assert outcomes([before, *after, *later]) == [None] * (MOST_TOGETHER - 1 + number)
        assert stuck.answers == []
    finally:
        go_on.set()
        worker.join(10)
    assert stuck.outcome is None


def test_a_disk_that_hangs_takes_no_more_threads_than_it_may(
    stored: Callable[[int], list[Message]], store: StoringThreads, threads: ManualThreads, disk: Disk
) -> None:
    go_on = Event()
    hanging: list[Event] = []
    workers: list[Worker] = []
    messages: list[Message] = []
    for _ in range(MOST_THREADS):
        hangs = Event()
        hanging.append(hangs)
        message = Message(disk, during=lambda step, hangs=hangs: (hangs.set(), go_on.wait(10)))
        messages.append(message)
        store.store(message)
        workers.append(Worker(threads))
        assert hangs.wait(10)
    messages += stored(100)
    assert (threads.trips, threads.waiting) == (MOST_THREADS, 0)
    go_on.set()
    for worker in workers:
        worker.join(10)
    threads.work()
    assert outcomes(messages) == [None] * len(messages)


def test_where_a_second_thread_cannot_be_started_it_is_asked_for_once_and_the_first_stores_all(
    threads: ManualThreads, disk: Disk, store: StoringThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Message(disk, "a"), Message(disk, "b")
    store.store(first)
    asked: list[object] = []

    def no_thread(*arguments: object) -> None:
        asked.append(arguments)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "callInThreadWithCallback", no_thread)
    store.store(second)
    assert len(asked) == 1
    assert second.answers == []
    threads.work()
    assert [first.outcome, second.outcome] == [None, None]
