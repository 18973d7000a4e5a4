"""The service: it listens on everything or on nothing, starts and stops again, and stops without losing anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from fakes import FakeDelivery, Guard, codes
from logbook import own_events
from loopback import Loopback, reactor
from twisted.application.service import IService, Service
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent
from zope.interface import implementer

from twisted_smtpguard import AcceptedDomains, SmtpDelivery, SMTPGuardService, UpstreamOptions
from twisted_smtpguard.interfaces import IConnectingDelivery
from twisted_smtpguard.testing import Clients
from twisted_smtpguard.transport.listener import Listener

ENVELOPE = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@guard.example>\r\n"
STOPPING = b"421 4.3.2 Server shutting down\r\n"


@pytest.fixture
def log() -> Iterator[list[LogEvent]]:
    with own_events() as events:
        yield events


def named(log: list[LogEvent], name: str) -> list[LogEvent]:
    return [event for event in log if event.get("event") == name]


@pytest_twisted.async_yield_fixture
async def guard() -> Any:
    loopback = Loopback(listeners=2, max_connections=10)
    loopback.start()
    yield loopback
    await loopback.close()


def stop(guard: Loopback) -> list[object]:
    """Ask for a stop; what it came to is in the list as soon as it is over."""
    outcome: list[object] = []
    guard.service.stopService().addBoth(outcome.append)
    return outcome


async def told(guard: Loopback) -> None:
    """Until the sessions have heard of the stop."""
    await guard.until(lambda: guard.factory.context.draining)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# Starting.


@pytest_twisted.ensureDeferred
async def test_it_listens_on_every_endpoint_and_logs_where(log: list[LogEvent]) -> None:
    guard = Loopback(listeners=2)
    assert guard.service.ports == ()
    guard.start()
    assert len(set(guard.ports)) == 2
    for listener in (0, 1):
        await guard.client(listener).hears(b"220 guard.example ESMTP ready\r\n")
    assert [event["address"] for event in named(log, "listening")] == [
        f"127.0.0.1:{port}" for port in guard.ports
    ]
    await guard.close()
    assert guard.service.ports == ()


@pytest_twisted.ensureDeferred
async def test_a_busy_port_is_an_error_and_leaves_no_listener() -> None:
    guard = Loopback(listeners=1)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        endpoint = TCP4ServerEndpoint(reactor, busy.getsockname()[1], interface="127.0.0.1")
        guard.service._listeners.append((endpoint, Listener(guard.factory, "busy")))
        with pytest.raises(CannotListenError):
            guard.service.startService()
        assert guard.service.ports == ()
        assert not guard.service.running
        readers = guard.before[0]
        await guard.until(lambda: set(reactor.getReaders()) <= readers)


@pytest_twisted.ensureDeferred
async def test_it_can_be_started_again_after_a_stop() -> None:
    guard = Loopback()
    for _ in range(3):
        guard.start()
        client = await guard.greeted()
        outcome = stop(guard)
        await client.hears(STOPPING)
        client.close()
        await guard.until(lambda: outcome)  # noqa: B023 - called in this round
        assert not listens(guard.ports[0])
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_it_can_be_started_again_after_a_start_that_failed() -> None:
    guard = Loopback()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        endpoint = TCP4ServerEndpoint(reactor, port, interface="127.0.0.1")
        guard.service._listeners[0] = (endpoint, Listener(guard.factory, "busy"))
        with pytest.raises(CannotListenError):
            guard.service.startService()
    guard.start()
    await guard.greeted()
    await guard.close()


@implementer(IStreamServerEndpoint)
class FaultyEndpoint:
    """Raises, where an endpoint should answer."""

    def listen(self, factory: object) -> Deferred[Any]:
        raise OSError("no network")


@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_raises_leaves_no_listener_either() -> None:
    guard = Loopback()
    guard.service._listeners.append((FaultyEndpoint(), Listener(guard.factory, "faulty")))
    with pytest.raises(OSError, match="no network"):
        guard.service.startService()
    assert guard.service.ports == ()
    assert not guard.service.running
    readers = guard.before[0]
    await guard.until(lambda: set(reactor.getReaders()) <= readers)


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_each_endpoint_has_one_name(names: list[str]) -> None:
    endpoints = [StuckEndpoint(), StuckEndpoint()]
    with pytest.raises(ValueError, match=r"^2 names are expected, one for each endpoint$"):
        SMTPGuardService(Clock(), endpoints, FakeDelivery(), names=names)
    SMTPGuardService(Clock(), endpoints, FakeDelivery(), names=["a", "b"])


class SlowEndpoint:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.answer: Deferred[Any] = Deferred()

    def listen(self, factory: object) -> Deferred[Any]:
        return self.answer


@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_fails_after_the_start_is_logged_and_the_others_go_on(
    log: list[LogEvent],
) -> None:
    guard = Loopback()
    slow = SlowEndpoint()
    guard.service._listeners.append((slow, Listener(guard.factory, "slow")))
    guard.start()
    slow.answer.errback(OSError("no network"))
    assert [event["text"] for event in named(log, "failure")] == ["failure listening on slow"]
    await guard.greeted()
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_listens_only_after_the_stop_is_closed() -> None:
    guard = Loopback()
    slow = SlowEndpoint()
    guard.service._listeners.append((slow, Listener(guard.factory, "slow")))
    guard.start()
    await guard.close()
    late = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(guard.factory)
    port = late.getHost().port
    slow.answer.callback(late)
    await guard.turn()
    assert guard.service.ports == ()
    assert not listens(port)


def descriptors(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (limit, limit))


@pytest.mark.parametrize(
    ("cap", "lingering", "upstream", "limit", "warning"),
    [
        (0, 1024, 0, 1024, "no_connection_cap"),
        (1023, 0, 0, 1024, None),
        (1024, 0, 0, 1024, "descriptors_below_cap"),
        (5000, 0, 0, 1024, "descriptors_below_cap"),
        (5000, 1024, 50, -1, None),
        (1000, 23, 0, 1024, None),
        (1000, 24, 0, 1024, "descriptors_below_cap"),
        (1000, 0, 23, 1024, None),
        (1000, 0, 24, 1024, "descriptors_below_cap"),
        (1000, 12, 12, 1024, "descriptors_below_cap"),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
@pytest_twisted.ensureDeferred
async def test_it_warns_once_at_the_start_of_too_few_descriptors(
    cap: int,
    lingering: int,
    upstream: int,
    limit: int,
    warning: str | None,
    wrapped: bool,
    log: list[LogEvent],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    descriptors(monkeypatch, limit)
    delivery: Any = FakeDelivery()
    if upstream:
        options = UpstreamOptions(connections=upstream, announce="xclient")
        unreachable = TCP4ClientEndpoint(MemoryReactorClock(), "192.0.2.1", 25)
        delivery = SmtpDelivery(unreachable, Clock(), hostname="g", options=options)
    if wrapped:
        delivery = AcceptedDomains(delivery, ["example.org"])
    guard = Loopback(delivery=delivery, max_connections=cap, max_lingering=lingering)
    guard.start()
    warnings = [event for event in log if event["log_level"].name == "warn"]
    assert [event["event"] for event in warnings] == ([warning] if warning else [])
    if warning:
        assert warnings[0]["descriptors"] == limit
    if warning == "descriptors_below_cap":
        assert (warnings[0]["cap"], warnings[0]["lingering"], warnings[0]["upstream"]) == (
            cap,
            lingering,
            upstream,
        )
    await guard.close()


@implementer(IConnectingDelivery)
class UnknowingDelivery(FakeDelivery):
    """Fails when it is asked about itself."""

    @property
    def max_connections(self) -> int:
        raise LookupError("no such setting")


@pytest_twisted.ensureDeferred
async def test_a_warning_that_cannot_be_made_does_not_keep_the_service_from_listening(
    log: list[LogEvent],
) -> None:
    guard = Loopback(delivery=UnknowingDelivery())
    guard.start()
    assert [event["text"] for event in named(log, "failure")] == ["failure looking for risks in the setup"]
    await guard.greeted()
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_it_warns_once_at_the_start_of_limits_in_dry_run(log: list[LogEvent]) -> None:
    guard = Loopback(dry_run=["max_errors", "connection_rate"])
    guard.start()
    lines = [event["text"] for event in log if event.get("event") == "dry_run"]
    assert lines == ["dry_run limits=connection_rate,max_errors"]
    await guard.close()


# Stopping.


@pytest_twisted.ensureDeferred
async def test_its_listeners_close_at_once(guard: Loopback) -> None:
    client = await guard.greeted()
    await client.says(ENVELOPE + b"DATA\r\n")
    await client.hears(b"354 ")
    outcome = stop(guard)
    await told(guard)
    await guard.turn()
    assert not any(map(listens, guard.ports))
    assert outcome == []
    client.close()
    await guard.until(lambda: outcome)


@pytest_twisted.ensureDeferred
async def test_idle_sessions_are_told_now(guard: Loopback) -> None:
    clients = [await guard.greeted() for _ in range(3)]
    outcome = stop(guard)
    for client in clients:
        assert await client.hears_the_end() == "FIN"
        assert client.heard == STOPPING
        assert outcome == []
        client.close()
    await guard.until(lambda: outcome)
    assert outcome == [None]


@pytest_twisted.ensureDeferred
async def test_a_session_in_data_finishes_gets_its_verdict_and_then_is_told(guard: Loopback) -> None:
    client = await guard.greeted()
    await client.says(ENVELOPE + b"DATA\r\ntext\r\n")
    await client.hears(b"354 ")
    client.heard = b""
    outcome = stop(guard)
    await told(guard)
    await client.says(b"more\r\n.\r\n")
    assert await client.hears_the_end() == "FIN"
    assert client.heard == b"250 2.0.0 Message accepted\r\n" + STOPPING
    assert guard.delivery.messages[0].octets == b"text\r\nmore\r\n"
    client.close()
    await guard.until(lambda: outcome)


@pytest_twisted.ensureDeferred
async def test_a_session_between_mail_and_data_is_told_at_its_next_command(guard: Loopback) -> None:
    client = await guard.greeted()
    await client.says(ENVELOPE)
    await client.hears(b"250 2.1.5")
    outcome = stop(guard)
    await told(guard)
    await client.says(b"DATA\r\n")
    assert await client.hears_the_end() == "FIN"
    assert client.heard.endswith(STOPPING)
    assert codes(client.heard.decode()) == [250, 250, 421]
    client.close()
    await guard.until(lambda: outcome)


@pytest_twisted.ensureDeferred
async def test_after_the_grace_the_rest_are_told_and_aborted_and_the_stop_is_over(guard: Loopback) -> None:
    client = await guard.greeted()
    await client.says(ENVELOPE + b"DATA\r\n")
    await client.hears(b"354 ")
    outcome = stop(guard)
    await told(guard)
    guard.clock.advance(29.9)
    await guard.turn()
    assert outcome == []
    guard.clock.advance(0.2)
    await guard.until(lambda: outcome)
    await client.hears_the_end()
    assert client.heard.endswith(STOPPING)
    assert guard.delivery.calls[-1] == "sink.abort"


@pytest.mark.parametrize("gone", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_pending_verdict_is_waited_for_also_when_its_client_is_gone(
    guard: Loopback, gone: bool
) -> None:
    verdict: Deferred[None] = Deferred()
    guard.delivery.answers["finish"] = lambda: verdict
    client = await guard.greeted()
    await client.says(ENVELOPE + b"DATA\r\ntext\r\n.\r\n")
    await guard.until(lambda: "finish" in guard.delivery.calls)
    if gone:
        client.reset()
        await guard.until(lambda: not guard.protocols)
    outcome = stop(guard)
    await told(guard)
    guard.clock.advance(29)
    await guard.turn()
    assert outcome == []
    verdict.callback(None)
    if not gone:
        await client.hears(b"250 2.0.0 Message accepted\r\n" + STOPPING)
        client.close()
    await guard.until(lambda: outcome)
    assert guard.factory.statistics.messages_accepted == 1


@pytest_twisted.ensureDeferred
async def test_a_verdict_that_does_not_come_is_waited_for_until_5_seconds_after_the_grace(
    guard: Loopback,
) -> None:
    verdict: Deferred[None] = Deferred(lambda _: None)
    guard.delivery.answers["finish"] = lambda: verdict
    client = await guard.greeted()
    await client.says(ENVELOPE + b"DATA\r\ntext\r\n.\r\n")
    await guard.until(lambda: "finish" in guard.delivery.calls)
    outcome = stop(guard)
    await told(guard)
    guard.clock.advance(30)
    await guard.turn()
    guard.clock.advance(4.9)
    await guard.turn()
    assert outcome == []
    guard.clock.advance(0.2)
    await guard.until(lambda: outcome)
    verdict.callback(None)


@pytest_twisted.ensureDeferred
async def test_the_end_of_a_stop_is_logged_with_all_statistics(guard: Loopback, log: list[LogEvent]) -> None:
    client = await guard.greeted()
    await client.says(b"QUIT\r\n")
    await client.hears_the_end()
    outcome = stop(guard)
    await guard.until(lambda: outcome)
    (stopped,) = named(log, "stopped")
    assert stopped["connections_accepted"] == stopped["sessions_ended"] == 1


@pytest_twisted.ensureDeferred
async def test_to_stop_what_was_never_started_is_no_error() -> None:
    guard = Loopback()
    outcome = stop(guard)
    await guard.until(lambda: outcome)
    assert outcome == [None]


# A delivery that is a service.


@implementer(IService)
class DeliveryService(FakeDelivery, Service):
    """Writes down what was going on when it was started and stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.guard: Any = None
        self.seen: list[tuple[str, bool, int]] = []
        self.stopping: Deferred[None] | None = None

    def startService(self) -> None:
        Service.startService(self)
        self.seen.append(("start", bool(self.guard.service.ports), len(self.guard.protocols)))

    def stopService(self) -> Deferred[None] | None:
        Service.stopService(self)
        self.seen.append(("stop", bool(self.guard.service.ports), len(self.guard.protocols)))
        return self.stopping


@pytest_twisted.ensureDeferred
async def test_a_delivery_that_is_a_service_starts_before_any_listener_and_stops_after_the_last_session() -> (
    None
):
    delivery = DeliveryService()
    guard = delivery.guard = Loopback(delivery=delivery)
    guard.start()
    assert delivery.seen == [("start", False, 0)]
    client = await guard.greeted()
    await client.says(ENVELOPE + b"DATA\r\n")
    await client.hears(b"354 ")
    delivery.stopping = Deferred()
    outcome = stop(guard)
    await told(guard)
    assert len(delivery.seen) == 1
    await client.says(b"text\r\n.\r\n")
    await client.hears(STOPPING)
    assert len(delivery.seen) == 1
    client.close()
    await guard.until(lambda: len(delivery.seen) == 2)
    assert delivery.seen[1] == ("stop", False, 0)
    assert outcome == []
    delivery.stopping.callback(None)
    await guard.until(lambda: outcome)
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_delivery_is_stopped_once_a_start_however_often_the_guard_is_stopped() -> None:
    delivery = DeliveryService()
    guard = delivery.guard = Loopback(delivery=delivery)
    for _ in range(2):
        delivery.seen.clear()
        guard.start()
        delivery.stopping = Deferred()
        outcomes = [stop(guard), stop(guard)]
        await guard.until(lambda: len(delivery.seen) == 2)
        outcomes.append(stop(guard))
        # None of them is over before the delivery has stopped.
        await guard.turn()
        assert outcomes == [[], [], []]
        delivery.stopping.callback(None)
        assert outcomes == [[None], [None], [None]]
        again = stop(guard)
        await guard.until(lambda: again)  # noqa: B023 - called in this round
        assert [what for what, *_ in delivery.seen] == ["start", "stop"]


@pytest_twisted.ensureDeferred
async def test_a_delivery_that_is_a_service_is_stopped_again_when_a_port_is_busy() -> None:
    delivery = DeliveryService()
    guard = delivery.guard = Loopback(delivery=delivery)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        endpoint = TCP4ServerEndpoint(reactor, busy.getsockname()[1], interface="127.0.0.1")
        guard.service._listeners[0] = (endpoint, Listener(guard.factory, "busy"))
        with pytest.raises(CannotListenError):
            guard.service.startService()
    assert [what for what, *_ in delivery.seen] == ["start", "stop"]


@pytest_twisted.ensureDeferred
async def test_after_a_failed_start_the_next_one_is_refused_until_the_delivery_has_stopped() -> None:
    delivery = DeliveryService()
    guard = delivery.guard = Loopback(delivery=delivery)
    faulty = (FaultyEndpoint(), Listener(guard.factory, "faulty"))
    guard.service._listeners.append(faulty)
    delivery.stopping = Deferred()
    with pytest.raises(OSError, match="no network"):
        guard.service.startService()
    guard.service._listeners.remove(faulty)
    with pytest.raises(RuntimeError, match="a stop or drain is under way"):
        guard.service.startService()
    delivery.stopping.callback(None)
    delivery.stopping = None
    guard.start()
    assert [what for what, *_ in delivery.seen] == ["start", "stop", "start"]
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_nothing_listens_if_the_delivery_does_not_start() -> None:
    class Broken(DeliveryService):
        def startService(self) -> None:
            raise OSError("no disk")

    delivery = Broken()
    guard = delivery.guard = Loopback(delivery=delivery)
    with pytest.raises(OSError, match="no disk"):
        guard.service.startService()
    assert guard.service.ports == ()


@pytest_twisted.ensureDeferred
async def test_to_start_what_listens_already_changes_nothing(guard: Loopback) -> None:
    ports = list(guard.service.ports)
    with pytest.raises(RuntimeError, match="listens already"):
        guard.service.startService()
    assert guard.service.ports == tuple(ports)
    assert guard.service.running
    assert listens(guard.ports[0])


class StuckPort:
    """Never closes."""

    def getHost(self) -> object:
        return UNIXAddress("stuck")

    def stopListening(self) -> Deferred[None]:
        return Deferred()


@implementer(IStreamServerEndpoint)
class StuckEndpoint:
    def listen(self, factory: object) -> Deferred[Any]:
        return succeed(StuckPort())


def test_a_port_that_does_not_close_has_a_tenth_of_a_second_and_then_the_sessions_are_told() -> None:
    clock = Clock()
    stuck = SMTPGuardService(clock, [StuckEndpoint()], FakeDelivery())
    stuck.startService()
    client = Clients(stuck.factory, clock).connect()
    stopped: list[object] = []
    stuck.stopService().addBoth(stopped.append)
    clock.advance(0.2)
    assert client.heard().endswith("421 4.3.2 Server shutting down\r\n")
    assert stopped == []
    client.disconnect()
    assert stopped == [None]


def test_a_factory_is_reopened_only_when_its_drain_is_over() -> None:
    guard = Guard()
    client = guard.connect()
    client.say("EHLO a", "MAIL FROM:<a@b.example>")
    guard.factory.drain()
    with pytest.raises(RuntimeError, match="before the drain is over"):
        guard.factory.reopen()
    client.disconnect()
    guard.factory.reopen()
    assert guard.connect().heard().startswith("220 ")
