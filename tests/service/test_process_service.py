"""The service that has the process to itself: what it does on SIGHUP before, between and after start and stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from fakes import FakeDelivery
from loopback import reactor
from twisted.application.service import IService
from twisted.application.service import Service as TwistedService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from twisted_smtpguard.service.process import ProcessSignals, StandaloneService

HARMLESS = (signal.SIGUSR1, signal.SIGUSR2)
HANDLED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, *HARMLESS)


class Service(StandaloneService):
    """Counts how often it was asked to read its files anew."""

    reloads = 0

    def reload(self) -> Deferred[None]:
        self.reloads += 1
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What the process of the tests does on signals is afterwards what it was."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    signal.signal(signal.SIGHUP, before_the_start)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def before_the_start(number: int, frame: object) -> None:
    """Stands for whatever was done on SIGHUP before."""
    raise AssertionError("the service is started")


def service(delivery: object = None) -> Service:
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    return Service(reactor, [endpoint], delivery or FakeDelivery(), hostname="guard.example")


async def hang_up() -> None:
    """SIGHUP, and what it was to lead to in the next turns of the reactor."""
    os.kill(os.getpid(), signal.SIGHUP)
    for _ in range(3):
        await deferLater(reactor, 0, lambda: None)


@pytest_twisted.ensureDeferred
async def test_each_sighup_reloads_while_it_runs() -> None:
    guard = service()
    guard.startService()
    await hang_up()
    assert guard.reloads == 1
    await hang_up()
    assert guard.reloads == 2
    await guard.stopService()


@pytest.mark.parametrize("number", HARMLESS)
@pytest_twisted.ensureDeferred
async def test_signals_that_end_nothing_mean_what_they_meant_before_once_it_has_stopped(
    number: signal.Signals,
) -> None:
    signal.signal(number, before_the_start)
    guard = service()
    guard.startService()
    os.kill(os.getpid(), number)
    stopped = guard.stopService()
    os.kill(os.getpid(), number)
    await stopped
    assert signal.getsignal(number) is before_the_start


@pytest_twisted.ensureDeferred
async def test_sighup_is_handled_before_it_says_that_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = service()
    at_listening: list[object] = []
    monkeypatch.setattr(
        guard.factory.context.events,
        "listening",
        lambda *_: at_listening.append(signal.getsignal(signal.SIGHUP)),
    )
    guard.startService()
    assert at_listening == [signal.getsignal(signal.SIGHUP)]
    assert at_listening != [before_the_start]
    await guard.stopService()


@pytest_twisted.ensureDeferred
async def test_sighup_means_nothing_while_it_stops_and_afterwards_what_it_meant_before() -> None:
    guard = service()
    guard.startService()
    stopped = guard.stopService()
    assert not stopped.called
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    await stopped
    await deferLater(reactor, 0, lambda: None)
    assert guard.reloads == 0
    assert signal.getsignal(signal.SIGHUP) is before_the_start


@pytest_twisted.ensureDeferred
async def test_started_again_it_listens_to_sighup_again() -> None:
    guard = service()
    for _ in range(2):
        guard.startService()
        await hang_up()
        await guard.stopService()
    assert guard.reloads == 2
    assert signal.getsignal(signal.SIGHUP) is before_the_start


@pytest_twisted.ensureDeferred
async def test_after_a_drain_sighup_is_still_given_back_at_the_stop() -> None:
    guard = service()
    guard.startService()
    await guard.drain()
    guard.startService()
    await hang_up()
    assert guard.reloads == 1
    await guard.stopService()
    assert signal.getsignal(signal.SIGHUP) is before_the_start


@pytest_twisted.ensureDeferred
async def test_a_stop_that_fails_gives_sighup_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = service()
    guard.startService()

    def stopped() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(guard.factory.context.events, "stopped", stopped)
    with pytest.raises(ZeroDivisionError):
        await guard.stopService()
    assert signal.getsignal(signal.SIGHUP) is before_the_start


@pytest_twisted.ensureDeferred
async def test_where_there_is_no_sighup_none_is_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted_smtpguard.service.process.SIGHUP", None)
    guard = service()
    guard.startService()
    assert signal.getsignal(signal.SIGHUP) is before_the_start
    stopped = guard.stopService()
    assert signal.getsignal(signal.SIGHUP) is before_the_start
    await stopped


async def ask_to_stop(number: int = signal.SIGTERM, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)
    for _ in range(3):
        await deferLater(reactor, 0, lambda: None)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_to_stop_is_for_the_reactor_and_the_next_means_now(number: int) -> None:
    heard: list[int] = []
    signal.signal(number, lambda number, _: heard.append(number))
    guard = service()
    for _ in range(2):
        guard.startService()
        await ask_to_stop(number, times=2)
        assert heard == [number]
        assert guard.factory._drain.grace_over
        await guard.stopService()
        heard.clear()


class NotYetRunning(MemoryReactorClock):
    """A reactor between the start of the service and its own. It has no handlers of signals until it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.when_running: list[tuple[Any, ...]] = []

    def callWhenRunning(self, *call: Any) -> None:
        self.when_running.append(call)

    def begin(self) -> None:
        for function, *arguments in self.when_running:
            function(*arguments)


def test_a_stop_that_is_asked_before_the_reactor_runs_is_done_when_it_does() -> None:
    """For process 1 of a container the kernel drops a signal without a handler."""
    heard: list[int] = []
    early = NotYetRunning()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signals = ProcessSignals(early, [])
    signals.handle()
    assert callable(signal.getsignal(signal.SIGTERM))
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    early.begin()
    assert heard == [signal.SIGTERM]


@pytest.mark.parametrize("runs", [True, False])
def test_without_handlers_of_the_reactor_a_signal_to_stop_ends_the_process_as_before(runs: bool) -> None:
    early = NotYetRunning()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signals = ProcessSignals(early, [])
    signals.handle()
    if runs:
        early.begin()
    else:
        signals.stopped(None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest_twisted.ensureDeferred
async def test_after_a_stop_a_signal_to_stop_means_what_it_meant_before() -> None:
    heard: list[int] = []

    def before(number: int, frame: object) -> None:
        heard.append(number)

    signal.signal(signal.SIGTERM, before)
    guard = service()
    guard.startService()
    assert signal.getsignal(signal.SIGTERM) != before
    await guard.stopService()
    assert signal.getsignal(signal.SIGTERM) is before


@implementer(IService)
class SlowlyStopped(FakeDelivery, TwistedService):
    """A delivery that is a service and stops when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped: Deferred[None] = Deferred()

    def stopService(self) -> Deferred[None]:
        TwistedService.stopService(self)
        return self.stopped


@pytest_twisted.ensureDeferred
async def test_a_start_that_is_refused_during_a_stop_does_not_change_what_signals_mean_after_it() -> None:
    heard: list[int] = []

    def before(number: int, frame: object) -> None:
        heard.append(number)

    signal.signal(signal.SIGTERM, before)
    delivery = SlowlyStopped()
    guard = service(delivery)
    guard.startService()
    stopped = guard.stopService()
    while guard.running:
        await deferLater(reactor, 0.01, lambda: None)
    with pytest.raises(RuntimeError, match="a stop or drain is under way"):
        guard.startService()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    delivery.stopped.callback(None)
    await stopped
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGHUP) is before_the_start


@pytest_twisted.ensureDeferred
async def test_a_hurried_stop_has_no_grace() -> None:
    guard = service()
    guard.startService()
    guard.factory.end_now()
    stopped = guard.stopService()
    assert guard.factory._drain._last_wait is not None or guard.factory.connections == 0
    await stopped
    guard.startService()
    assert not guard.factory._drain.grace_over
    await guard.stopService()
