"""Whatever somebody else's code raises between "it is over" and "it is given back", the seat is given back, the client
is answered, and the others are served. One table of faults, walked by each way that a connection can end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fakes import Conversation, FakeDelivery, FakeTransport, codes
from logins import Checker, plain
from twisted.internet.defer import Deferred
from twisted.internet.ssl import ContextFactory
from twisted.internet.task import Clock
from twisted.logger import Logger, capturedLogs
from zope.interface import implementer

from twisted_smtpguard.interfaces import PASS, ICounterStore, IIPFilter, ISessionDelivery
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.testing import Clients
from twisted_smtpguard.transport.factory import SMTPGuardFactory
from twisted_smtpguard.transport.listener import Listener

ENVELOPE = ("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>")
PENDING = {
    "begin": ENVELOPE[:1],
    "recipient": ENVELOPE,
    "data": (*ENVELOPE, "DATA"),
    "write": (*ENVELOPE, "DATA", "text"),
    "finish": (*ENVELOPE, "DATA", "text", "."),
}
"""What brings a session to where this hook is pending."""


class Fault(Exception):
    """What somebody else's code raises."""


def faulty(*_: object) -> Any:
    raise Fault


def pending(*_: object) -> Deferred[Any]:
    """What never answers, and cannot be cancelled either."""
    return Deferred(faulty)


def pending_for_asyncio(*_: object) -> Deferred[Any]:
    """The same, where cancelling raises what is no Exception."""

    def canceller(_: object) -> None:
        raise asyncio.CancelledError

    return Deferred(canceller)


@implementer(ISessionDelivery)
class TellingDelivery(FakeDelivery):
    def session_ended(self, session: str) -> None:
        raise Fault


@implementer(ICounterStore)
class Store:
    lease_seconds = 0
    give_back = look = renew = faulty

    def take(self, *_: object) -> list[int]:
        return [1]


@implementer(IIPFilter)
class Filter:
    """Answers nobody but those who are called so."""

    def check(self, peer: Any) -> Any:
        return pending() if str(peer.address) == "192.0.2.66" else PASS


def guard(
    delivery: FakeDelivery | None = None,
    observer: Callable[..., object] | None = None,
    per_client: int = 0,
    **arguments: Any,
) -> Clients:
    clock = Clock()
    limits = Limits(
        delivery_timeout=100, read_timeout=200, max_connections=10, max_connections_per_client=per_client
    )
    if observer is not None:
        logger = Logger(namespace="twisted_smtpguard", observer=observer)  # type: ignore[arg-type]
        arguments["events"] = Events(Statistics(), clock, limits, logger=logger)
    factory = SMTPGuardFactory(
        clock, delivery or FakeDelivery(), limits=limits, hostname="guard.example", **arguments
    )
    return Clients(factory, clock)


# Each takes a guard's client to where the fault is next.


def a_hook(hook: str, answer: Callable[..., object] = pending) -> Callable[[], Conversation]:
    def make() -> Conversation:
        clients = guard()
        clients.delivery.answers[hook] = answer
        client = clients.greeted()
        client.say(*PENDING[hook])
        return client

    return make


def an_abort(which: str) -> Callable[[], Conversation]:
    def make() -> Conversation:
        clients = guard()
        clients.delivery.answers[which] = faulty
        client = clients.greeted()
        client.say(*PENDING["write" if which == "sink.abort" else "recipient"])
        return client

    return make


def a_session_told_of() -> Conversation:
    client = guard(TellingDelivery()).greeted()
    client.say(*ENVELOPE)
    return client


def a_checker() -> Conversation:
    client = guard(checkers=[Checker(pending())], auth_without_tls=True).greeted()
    client.say(f"AUTH PLAIN {plain()}")
    return client


def a_filter() -> Conversation:
    return guard(ip_filters=[Filter()]).connect("192.0.2.66")


def a_store() -> Conversation:
    return guard(counters=Store(), per_client=5).greeted()


def an_observer() -> Conversation:
    client = guard(observer=faulty).greeted()
    client.say(*ENVELOPE)
    return client


def a_transport(*names: str) -> Callable[[], Conversation]:
    """Whose methods fail from now on. What a slow client has not taken yet stands in the way of the end."""

    def make() -> Conversation:
        client = guard().greeted()
        client.say(*ENVELOPE, "DATA")
        for name in names:
            setattr(client.transport, name, faulty)
        return client

    return make


HOOKS: dict[str, Callable[[], Conversation]] = {
    **{f"the canceller of {hook}": a_hook(hook) for hook in PENDING},
    "the canceller of asyncio": a_hook("recipient", pending_for_asyncio),
    "transaction.abort": an_abort("transaction.abort"),
    "sink.abort": an_abort("sink.abort"),
    "session_ended": a_session_told_of,
    "the canceller of a checker": a_checker,
    "the canceller of a filter": a_filter,
    "a store's give_back": a_store,
}
FAULTS = {
    **HOOKS,
    "an observer of the log": an_observer,
    "abortConnection": a_transport("abortConnection"),
    "loseWriteConnection": a_transport("loseWriteConnection"),
    "loseConnection": a_transport("loseConnection"),
    "pauseProducing, resumeProducing": a_transport("pauseProducing", "resumeProducing"),
    "registerProducer": a_transport("registerProducer"),
    "whatever a transport has": a_transport(
        "abortConnection", "loseConnection", "loseWriteConnection", "registerProducer", "write"
    ),
}


def leaves(client: Conversation) -> None:
    client.disconnect()


def has_had_its_time(client: Conversation) -> None:
    client.guard.clock.pump([100.5, 100.5, 100.5, 10])


def stops(client: Conversation) -> None:
    client.guard.factory.drain()
    client.guard.clock.pump([30.5, 0.7, 5])


def stops_now(client: Conversation) -> None:
    client.guard.factory.drain()
    client.guard.factory.end_now()
    client.guard.clock.pump([0.7, 5])


ENDS = [leaves, has_had_its_time, stops, stops_now]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_raises_the_seat_is_given_back_and_the_others_are_served(
    fault: str, end: Callable[[Conversation], None]
) -> None:
    client = FAULTS[fault]()
    clients = client.guard
    others = [clients.greeted(f"192.0.2.{number}") for number in range(100, 104)]
    for other in others:
        other.heard()
    end(client)
    client.disconnect()
    stopped: list[None] = []
    clients.factory.drain().addCallback(stopped.append)
    for other in others:
        assert codes(other.heard()) == [421]
        other.disconnect()
    # A verdict that must not be cancelled is waited for, but not indefinitely.
    clients.clock.pump([30.5, 5.5])
    assert stopped == [None]
    assert clients.factory.connections == 0
    assert clients.factory.statistics.live_connections == 0
    clients.clock.advance(100)
    assert clients.clock.getDelayedCalls() == []


@pytest.mark.parametrize("hook", PENDING)
def test_a_client_whose_delivery_cannot_be_cancelled_hears_of_its_time_limit_all_the_same(hook: str) -> None:
    client = a_hook(hook)()
    client.heard()
    client.guard.clock.advance(100.5)
    heard = client.say(".") if hook == "write" else client.heard()
    assert heard == "451 4.3.0 Delivery timed out, try again later\r\n"
    # And the session goes on.
    assert client.codes("RSET", "NOOP") == [250, 250]


# What a checker does after its time limit is no failure, whatever it is.
@pytest.mark.parametrize(
    "fault",
    [*sorted(HOOKS.keys() - {"the canceller of a checker"}), "abortConnection", "loseWriteConnection"],
)
def test_the_operator_is_told_of_it(fault: str) -> None:
    client = FAULTS[fault]()
    client.guard.factory.drain()
    client.guard.clock.advance(30.5)
    client.disconnect()
    client.guard.clock.advance(100)
    assert client.guard.factory.statistics.failures >= 1


def test_an_observer_that_raises_is_told_of_once_a_minute() -> None:
    with capturedLogs() as events:
        client = an_observer()
        for _ in range(3):
            client.disconnect()
            client = client.guard.greeted()
        client.guard.clock.advance(60)
        client.disconnect()
    told = [event for event in events if "an observer of the log raised" in event["log_format"]]
    assert len(told) == 2


# TLS.


@pytest.mark.parametrize("implicit", [False, True])
def test_a_handshake_that_cannot_be_begun_ends_the_connection_and_costs_no_seat(implicit: bool) -> None:
    clients = guard(tls=ContextFactory())
    if implicit:
        transport = FakeTransport()
        transport.protocol = protocol = Listener(clients.factory, "tls", implicit_tls=True).buildProtocol(
            transport.getPeer()
        )
        protocol.makeConnection(transport)
    else:
        client = clients.greeted()
        transport = client.transport
        client.say("STARTTLS")
    assert transport.lost
    assert clients.factory.connections == 0
    assert clients.factory.statistics.live_connections == 0
    assert clients.factory.statistics.failures == 1
    assert clients.clock.getDelayedCalls() == []
