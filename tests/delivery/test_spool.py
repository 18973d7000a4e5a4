"""A body on its way to a file: where it is, and that nothing is left of it."""

from __future__ import annotations

import errno
import tracemalloc

import pytest
from manual_threads import ManualThreads
from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs

from twisted_smtpguard.delivery.spool import MAX_HELD_OCTETS, Discarded, Spool
from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.replies import INSUFFICIENT_STORAGE


class Recorder:
    """A file that remembers what was done to it, and can be told to fail."""

    def __init__(self):
        self.opened = 0
        self.written = b""
        self.removed = 0
        self.error = None
        self.on_write = lambda: None

    def open(self):
        self.opened += 1
        return self

    def write(self, data):
        self.on_write()
        if self.error:
            raise self.error
        assert self.removed == 0, "written to after its removal"
        self.written += data

    def remove(self):
        self.removed += 1


@pytest.fixture
def threads():
    return ManualThreads()


@pytest.fixture
def file():
    return Recorder()


@pytest.fixture
def spool(threads, file):
    return Spool(threads, file.open)


@pytest.fixture
def logged():
    with capturedLogs() as events:
        yield events


LARGE = b"x" * MAX_HELD_OCTETS


def outcome(deferred):
    """What a Deferred came to: a result, or an exception. One that has not fired fails the test."""
    fired = []
    deferred.addBoth(fired.append)
    assert fired, "it is still pending"
    return getattr(fired[0], "value", fired[0])


def test_a_small_body_costs_one_trip_to_a_thread(spool, threads, file):
    assert spool.write(b"a") is None
    assert spool.write(LARGE[2:]) is None
    done = spool.finish(lambda opened: "stored")
    threads.work()
    assert (outcome(done), threads.trips, file.written) == ("stored", 1, b"a" + LARGE[2:])


def test_a_body_that_was_never_large_is_in_memory(spool, file):
    spool.write(b"a")
    spool.write(b"b")
    assert spool.in_memory() == b"ab"
    assert file.opened == 0


def test_the_writer_waits_while_a_thread_writes(spool, threads, file):
    pending = spool.write(LARGE)
    assert not pending.called
    assert file.written == b""
    threads.work()
    assert outcome(pending) is None
    assert file.written == LARGE
    assert spool.in_memory() is None


def test_everything_arrives_in_order_and_the_file_is_opened_once(spool, threads, file):
    pieces = [bytes([number]) * 30_000 for number in range(20)]
    for piece in pieces:
        if spool.write(piece) is not None:
            threads.work()
    spool.finish(lambda opened: None)
    threads.work()
    assert file.written == b"".join(pieces)
    assert (file.opened, file.removed) == (1, 0)


def test_octets_that_come_singly_are_not_held_one_by_one(spool):
    for _ in range(50_000):
        spool.write(b"x")
    assert spool.in_memory().__sizeof__() < 2 * MAX_HELD_OCTETS


def test_to_discard_a_small_body_costs_no_thread(spool, threads, file):
    spool.write(b"a")
    spool.discard()
    assert (threads.trips, file.opened) == (0, 0)


def test_discarded_before_the_thread_came_to_it_the_file_is_never_opened(spool, threads, file):
    pending = spool.write(LARGE)
    spool.discard()
    threads.work()
    assert file.opened == 0
    assert isinstance(outcome(pending), Discarded)


def test_to_discard_what_no_thread_has_come_to_costs_no_further_trip(spool, threads, file):
    for _ in range(2):
        spool.write(LARGE).addErrback(lambda failure: None)
        if not file.opened:
            threads.work()
    spool.discard()
    assert threads.trips == 2
    threads.work()
    assert file.removed == 1


def test_discarded_while_a_thread_writes_that_thread_removes_the_file_once_it_has_written(
    spool, threads, file
):
    file.on_write = spool.discard
    pending = spool.write(LARGE)
    threads.work()
    assert outcome(pending) is None
    assert (file.removed, threads.trips) == (1, 1)


def test_discarded_after_a_write_the_file_is_removed_in_a_thread(spool, threads, file):
    spool.write(LARGE)
    threads.work()
    spool.discard()
    assert file.removed == 0
    threads.work()
    assert file.removed == 1


def test_a_cancelled_write_is_cancelled_at_once_and_can_be_discarded(spool, threads, file):
    pending = spool.write(LARGE)
    pending.cancel()
    assert isinstance(outcome(pending), CancelledError)
    spool.discard()
    threads.work()
    assert file.opened == file.removed


def test_to_discard_twice_is_to_discard_once(spool, threads, file):
    spool.write(LARGE)
    threads.work()
    spool.discard()
    spool.discard()
    threads.work()
    assert file.removed == 1


def test_whatever_is_kept_cannot_be_discarded(spool, threads, file):
    done = spool.finish(lambda opened: spool.keep())
    threads.work()
    outcome(done)
    spool.discard()
    threads.work()
    assert file.removed == 0


def test_whatever_is_discarded_cannot_be_kept(spool, threads, file):
    def complete(opened):
        spool.discard()
        spool.keep()

    done = spool.finish(complete)
    threads.work()
    assert isinstance(outcome(done), Discarded)
    assert file.removed


def test_kept_and_then_failed_is_discarded(spool, threads, file):
    def complete(opened):
        spool.keep()
        raise RuntimeError

    done = spool.finish(complete)
    threads.work()
    assert isinstance(outcome(done), RuntimeError)
    spool.discard()
    assert file.removed == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_refuses_and_leaves_nothing(spool, threads, file, number):
    file.error = OSError(number, "full")
    pending = spool.write(LARGE)
    threads.work()
    failed = outcome(pending)
    assert isinstance(failed, Refused)
    assert failed.reply == INSUFFICIENT_STORAGE
    assert file.removed == 1


@pytest.mark.parametrize("error", [OSError(errno.EIO, "io"), RuntimeError()])
def test_any_other_failure_stays_what_it_is_and_leaves_nothing(spool, threads, file, error):
    file.error = error
    pending = spool.write(LARGE)
    threads.work()
    assert outcome(pending) is error
    assert file.removed == 1


def test_after_a_failure_nothing_more_is_written(spool, threads, file):
    file.error = RuntimeError()
    outcome_of_write = spool.write(LARGE)
    threads.work()
    outcome(outcome_of_write)
    file.error = None
    done = spool.finish(lambda opened: "stored")
    threads.work()
    assert isinstance(outcome(done), Discarded)
    assert file.written == b""


def test_a_file_that_cannot_be_opened_fails_the_write(threads):
    def refuse():
        raise PermissionError

    spool = Spool(threads, refuse)
    pending = spool.write(LARGE)
    threads.work()
    assert isinstance(outcome(pending), PermissionError)
    spool.discard()
    threads.work()


def test_discard_never_raises_even_where_no_thread_can_be_started(spool, threads, logged):
    spool.write(LARGE)
    threads.work()

    def fail(*args):
        raise RuntimeError("can't start new thread")

    threads.callInThreadWithCallback = fail
    spool.discard()
    assert [event["log_failure"].type for event in logged] == [RuntimeError]


def test_bodies_that_are_discarded_while_the_disk_hangs_take_no_memory(threads, file):
    tracemalloc.start()
    try:
        for _ in range(100):
            spool = Spool(threads, file.open)
            spool.write(bytes(MAX_HELD_OCTETS)).addErrback(lambda failure: None)
            spool.discard()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10 * MAX_HELD_OCTETS
    threads.work()
    assert file.written == b""
