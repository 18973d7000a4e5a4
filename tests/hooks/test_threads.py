"""Work in one thread: one piece after the other, and a piece that hangs takes no second thread."""

from __future__ import annotations

from manual_threads import ManualThreads
from twisted.internet.defer import CancelledError, Deferred

from twisted_smtpguard.hooks.threads import OneThread


def settled(deferred: Deferred[object]) -> list[object]:
    """What it fires with, as soon as it has; the type of an exception."""
    outcome: list[object] = []
    deferred.addCallbacks(outcome.append, lambda failure: outcome.append(failure.type))
    return outcome


def test_each_piece_of_work_begins_when_the_one_before_has_ended() -> None:
    reactor = ManualThreads()
    thread = OneThread(reactor)
    done = [settled(thread.run(int, text)) for text in ("1", "x", "3")]
    assert reactor.waiting == 1
    reactor.work()
    assert done == [[1], [ValueError], [3]]


def test_one_that_has_begun_and_is_cancelled_is_over_for_who_asked_and_keeps_its_thread() -> None:
    reactor = ManualThreads()
    thread = OneThread(reactor)
    hangs = thread.run(int, "1")
    outcome = settled(hangs)
    hangs.cancel()
    assert outcome == [CancelledError]
    after = [thread.run(int, "2") for _ in range(20)]
    assert reactor.trips == 1
    # Who does not wait any longer wants nothing done.
    for each in after[1:]:
        each.addErrback(lambda failure: failure.trap(CancelledError))
        each.cancel()
    reactor.work()
    assert settled(after[0]) == [2]
    assert reactor.trips == 2
    assert outcome == [CancelledError]


def test_a_reactor_without_threads_is_an_error_at_once() -> None:
    thread = OneThread(object())  # type: ignore[arg-type]
    for _ in range(2):
        assert settled(thread.run(int, "1")) == [AttributeError]
