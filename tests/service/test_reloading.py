"""Reload: every part reads its data anew, all change at once, and one that cannot keeps the old."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeDelivery
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface import implementer

from twisted_smtpguard import FilterEntry, SMTPGuardService
from twisted_smtpguard.interfaces import PASS, IIPFilter, IPreparedReload, IReloadable, Peer, Verdict


@implementer(IIPFilter, IReloadable)
class Reloadable:
    def __init__(self, answer: Callable[[], Any] = lambda: None) -> None:
        self.answer = answer
        self.reloads = 0

    def check(self, peer: Peer) -> Verdict:
        return PASS

    def reload(self) -> Any:
        self.reloads += 1
        return self.answer()


@implementer(IPreparedReload)
class Prepared(Reloadable):
    """Notes in `notes` when it has read, and when it has switched."""

    def __init__(self, notes: list[str], answer: Callable[[], Any] = lambda: None) -> None:
        super().__init__(answer)
        self.notes = notes

    async def prepare_reload(self) -> Callable[[], object]:
        await (self.answer() or succeed(None))
        self.notes.append("read")
        return lambda: self.notes.append("switched")


def raises() -> Any:
    raise ValueError("/etc/networks line 3: no network")


def service(*filters: Any, delivery: Any = None) -> SMTPGuardService:
    entries = [FilterEntry(each, f"f{number}") for number, each in enumerate(filters)]
    return SMTPGuardService(Clock(), [], delivery or FakeDelivery(), ip_filters=entries)


def reload(guard: SMTPGuardService) -> list[str]:
    """The log of a reload that ends at once."""
    done: list[object] = []
    with capturedLogs() as events:
        guard.reload().addBoth(done.append)
    assert done == [None]
    return [event.get("text", event) for event in events]


async def coroutine() -> None:
    return None


@pytest.mark.parametrize("answer", [lambda: None, lambda: succeed(None), coroutine])
def test_a_filter_that_can_is_asked_to_read_its_data_anew(answer: Callable[[], Any]) -> None:
    part = Reloadable(answer)
    assert reload(service(part)) == ["reloaded what=f0 option=--ip-filter"]
    assert part.reloads == 1


@pytest.mark.parametrize("answer", [raises, lambda: fail(ValueError("/etc/networks line 3: no network"))])
def test_one_that_cannot_is_logged_with_its_reason_and_the_others_go_on(answer: Callable[[], Any]) -> None:
    assert reload(service(Reloadable(answer), Reloadable())) == [
        "reload_failed what=f0 option=--ip-filter /etc/networks line 3: no network",
        "reloaded what=f1 option=--ip-filter",
    ]


def test_what_cannot_be_read_anew_is_left_alone() -> None:
    guard = SMTPGuardService(Clock(), [], FakeDelivery())
    assert reload(guard) == []


def test_a_delivery_is_asked_too() -> None:
    @implementer(IReloadable)
    class Delivery(FakeDelivery):
        reloads = 0

        def reload(self) -> None:
            self.reloads += 1

    delivery = Delivery()
    assert reload(service(delivery=delivery)) == ["reloaded what=delivery option=--deliver"]
    assert delivery.reloads == 1


def test_all_have_read_before_the_first_one_changes() -> None:
    notes: list[str] = []
    slow: Deferred[None] = Deferred()
    guard = service(Prepared(notes), Prepared(notes, lambda: slow), Prepared(notes, raises), Prepared(notes))
    done = guard.reload()
    assert notes == ["read", "read"]
    slow.callback(None)
    assert notes == ["read"] * 3 + ["switched"] * 3
    assert done.called


def test_a_switch_that_raises_keeps_no_other_from_changing_nor_the_next_reload() -> None:
    @implementer(IPreparedReload)
    class Broken(Reloadable):
        def prepare_reload(self) -> Callable[[], object]:
            return raises

    guard = service(Broken(), Reloadable())
    for _ in range(2):
        assert reload(guard) == [
            "reload_failed what=f0 option=--ip-filter /etc/networks line 3: no network",
            "reloaded what=f1 option=--ip-filter",
        ]


def test_one_that_never_answers_has_two_minutes_and_keeps_no_other_from_changing() -> None:
    guard = service(Reloadable(Deferred), Reloadable())
    clock: Clock = guard.factory.context.seconds.__self__  # type: ignore[attr-defined]
    for _ in range(2):
        done = guard.reload()
        clock.advance(119)
        assert not done.called
        with capturedLogs() as events:
            clock.advance(1.1)
        assert [event["text"] for event in events] == [
            "reload_failed what=f0 option=--ip-filter no answer in 120 seconds",
            "reloaded what=f1 option=--ip-filter",
        ]
        assert done.called
    assert clock.getDelayedCalls() == []


def test_a_stop_gives_up_a_reload_that_hangs_and_the_next_start_knows_nothing_of_it() -> None:
    hanging = Reloadable(Deferred)
    guard = service(hanging, Reloadable())
    clock: Clock = guard.factory.context.seconds.__self__  # type: ignore[attr-defined]
    guard.startService()
    waiting = [guard.reload() for _ in range(3)]
    with capturedLogs() as events:
        stopped = guard.stopService()
    assert stopped.called
    assert all(done.called for done in waiting)
    assert [event["text"] for event in events][:2] == [
        "reload_failed what=f0 option=--ip-filter the reload was cancelled by a stop",
        "reloaded what=f1 option=--ip-filter",
    ]
    # Nobody who waited for another reload had it begin.
    assert hanging.reloads == 1
    assert clock.getDelayedCalls() == []
    hanging.answer = lambda: None
    guard.startService()
    assert reload(guard) == ["reloaded what=f0 option=--ip-filter", "reloaded what=f1 option=--ip-filter"]
    guard.stopService()


def test_a_drain_lets_a_reload_go_on() -> None:
    reading: Deferred[None] = Deferred()
    guard = service(Reloadable(lambda: reading))
    guard.startService()
    done = guard.reload()
    assert guard.drain().called
    assert not done.called
    reading.callback(None)
    assert done.called


def test_one_that_was_cancelled_from_within_stops_no_later_reload() -> None:
    async def answer() -> None:
        raise asyncio.CancelledError

    guard = service(Reloadable(answer), Reloadable())
    for _ in range(2):
        assert reload(guard) == [
            "reload_failed what=f0 option=--ip-filter it ended with asyncio's CancelledError",
            "reloaded what=f1 option=--ip-filter",
        ]


def test_a_file_that_is_not_there_is_named_as_a_file_and_without_an_error_number() -> None:
    def answer() -> None:
        open("/missing/file")  # noqa: PTH123, SIM115 - it does not open

    assert reload(service(Reloadable(answer))) == [
        "reload_failed what=f0 option=--ip-filter file=/missing/file No such file or directory"
    ]


def test_an_exception_that_has_no_text_stops_no_later_reload() -> None:
    class Speechless(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def answer() -> None:
        raise Speechless

    guard = service(Reloadable(answer), Reloadable())
    for _ in range(2):
        assert reload(guard)[1:] == ["reloaded what=f1 option=--ip-filter"]


def test_who_asks_during_a_reload_gets_one_more_and_a_thousand_who_ask_get_the_same() -> None:
    reading: list[Deferred[None]] = []

    def answer() -> Deferred[None]:
        reading.append(Deferred())
        return reading[-1]

    part = Reloadable(answer)
    guard = service(part)
    first = guard.reload()
    others = [guard.reload() for _ in range(1000)]
    assert part.reloads == 1
    reading[0].callback(None)
    assert first.called
    assert part.reloads == 2
    assert not any(other.called for other in others)
    reading[1].callback(None)
    assert all(other.called for other in others)
    assert part.reloads == 2


def test_a_filter_that_is_a_service_runs_while_the_guard_does() -> None:
    @implementer(IIPFilter)
    class Running(Service):  # type: ignore[misc]
        def check(self, peer: Peer) -> Verdict:
            return PASS

    part = Running()
    guard = service(part)
    assert not part.running
    guard.startService()
    assert part.running
    guard.stopService()
    assert not part.running


def test_a_filter_that_does_not_stop_has_five_seconds() -> None:
    @implementer(IIPFilter)
    class Hanging(Service):  # type: ignore[misc]
        def check(self, peer: Peer) -> Verdict:
            return PASS

        def stopService(self) -> Deferred[None]:
            return Deferred()

    guard = service(Hanging())
    clock: Clock = guard.factory.context.seconds.__self__  # type: ignore[attr-defined]
    guard.startService()
    stopped: list[object] = []
    guard.stopService().addBoth(stopped.append)
    clock.advance(4.9)
    assert stopped == []
    with capturedLogs() as events:
        clock.advance(0.2)
    assert stopped == [None]
    assert [event.get("event", event) for event in events] == ["failure", "stopped"]


def test_a_filter_that_does_not_start_stops_those_that_have() -> None:
    @implementer(IIPFilter)
    class Broken(Service):  # type: ignore[misc]
        def check(self, peer: Peer) -> Verdict:
            return PASS

        def startService(self) -> None:
            raise LookupError("no database")

    guard = service(Broken())
    with pytest.raises(LookupError):
        guard.startService()
    assert not guard.running
