"""One fsync for all who wait for one: never one that began before somebody asked."""

from __future__ import annotations

import errno
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import pytest
from manual_threads import ManualThreads
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.delivery.directory import SharedSync


class Disk:
    """Counts its synchronisations. `meanwhile` happens during the next one."""

    def __init__(self) -> None:
        self.syncs = 0
        self.meanwhile: Callable[[], Any] = lambda: None

    def sync(self) -> None:
        self.syncs += 1
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()


@pytest.fixture
def threads() -> ManualThreads:
    return ManualThreads()


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def shared(threads: ManualThreads, disk: Disk) -> SharedSync:
    return SharedSync(threads, disk.sync)


def full() -> None:
    raise OSError(errno.ENOSPC, "full")


def test_a_lone_request_has_its_own_sync(shared: SharedSync, threads: ManualThreads, disk: Disk) -> None:
    for number in (1, 2):
        answer = shared.ask()
        assert not answer.called
        threads.work()
        assert (answer.called, disk.syncs) == (True, number)


def test_all_who_ask_before_it_begins_share_it(
    shared: SharedSync, threads: ManualThreads, disk: Disk
) -> None:
    answers = [shared.ask() for _ in range(10)]
    threads.work()
    assert [answer.called for answer in answers] == [True] * 10
    assert disk.syncs == 1


def test_who_asks_while_it_is_going_on_waits_for_the_next_and_shares_that(
    shared: SharedSync, threads: ManualThreads, disk: Disk
) -> None:
    late: list[Deferred[None]] = []
    disk.meanwhile = lambda: late.extend([shared.ask(), shared.ask()])
    first = shared.ask()
    first.addCallback(lambda _: late_when_first.extend(answer.called for answer in late))
    late_when_first: list[bool] = []
    threads.work()
    assert late_when_first == [False, False]
    assert [answer.called for answer in late] == [True, True]
    assert disk.syncs == 2


def test_a_failure_is_that_of_all_who_shared_the_sync_and_of_no_other(
    shared: SharedSync, threads: ManualThreads, disk: Disk
) -> None:
    ends: list[object] = []
    late: list[Deferred[None]] = []

    def fail() -> None:
        late.append(shared.ask())
        full()

    disk.meanwhile = fail
    for _ in range(3):
        shared.ask().addBoth(ends.append)
    threads.work()
    assert [type(end) for end in ends] == [Failure] * 3
    assert all(isinstance(end, Failure) and end.value.args[0] == errno.ENOSPC for end in ends)
    assert [answer.result for answer in late] == [None]


def test_who_asks_as_it_is_answered_gets_the_next(
    shared: SharedSync, threads: ManualThreads, disk: Disk
) -> None:
    again: list[Deferred[None]] = []
    shared.ask().addCallback(lambda _: again.append(shared.ask()))
    threads.work()
    assert again[0].called
    assert disk.syncs == 2


def test_one_is_going_on_at_a_time(shared: SharedSync, threads: ManualThreads, disk: Disk) -> None:
    disk.meanwhile = lambda: waiting.append((shared.ask(), threads.waiting))
    waiting: list[tuple[Deferred[None], int]] = []
    shared.ask()
    threads.work()
    assert [number for _, number in waiting] == [0]


def test_a_real_thread_that_has_begun_answers_no_later_request(disk: Disk) -> None:
    begun, go_on = Event(), Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(10)

    disk.meanwhile = hold
    threads = ManualThreads()
    shared = SharedSync(threads, disk.sync)
    first = shared.ask()
    worker = Thread(target=threads.work)
    worker.start()
    assert begun.wait(10)
    second = shared.ask()
    assert not (first.called or second.called)
    go_on.set()
    worker.join(10)
    assert (first.called, second.called, disk.syncs) == (True, True, 2)
