"""A hook may raise what is no Exception, end its own connection, or answer with what cannot even be shown: the client
hears of it, the next input is taken, and the seat is given back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from fakes import Conversation, FakeDelivery, FakeFilter, FakeTransport, Guard, codes
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from zope.interface import implementer

from twisted_smtpguard.interfaces import ISessionDelivery
from twisted_smtpguard.values import refuse

SAID = ("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>", "DATA", "text", ".")
HOOKS = {"begin": SAID[:1], "recipient": SAID[:2], "data": SAID[:3], "write": SAID, "finish": SAID}
"""What has to be said until a hook has been called, and its answer is due."""
ENDS: dict[str, Callable[[Conversation], object]] = {
    "the network": Conversation.disconnect,
    "an abort": lambda client: client.transport.abortConnection(),
}


class Unshowable:
    """What nobody should answer with."""

    def __repr__(self) -> str:
        raise ValueError


@implementer(ISessionDelivery)
class ToldDelivery(FakeDelivery):
    """Is told of the end of sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = 0

    def session_ended(self, session: str) -> None:
        self.ended += 1


def raising(kind: type[BaseException]) -> Callable[..., Any]:
    def hook(*_: object) -> Any:
        raise kind

    return hook


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("hook", HOOKS)
def test_hook_that_raises_what_is_no_exception(hook: str, kind: type[BaseException]) -> None:
    guard = Guard()
    guard.delivery.answers[hook] = raising(kind)
    client = guard.greeted()
    client.heard()
    said = client.say(*HOOKS[hook])
    assert codes(said)[-1] in (421, 451)
    client.disconnect()
    assert guard.factory.connections == 0


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_hook_that_calls_exit_costs_one_message_only(kind: type[BaseException]) -> None:
    guard = Guard()
    guard.delivery.answers["finish"] = raising(kind)
    client = guard.greeted()
    assert client.codes(*SAID) == [250, 250, 354, 451]
    del guard.delivery.answers["finish"]
    assert client.codes(*SAID) == [250, 250, 354, 250]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_filter_that_raises_what_is_no_exception(kind: type[BaseException]) -> None:
    guard = Guard(ip_filters=[FakeFilter(raising(kind))])
    client = guard.connect()
    assert codes(client.heard()) == [421]
    client.disconnect()
    assert guard.factory.connections == 0


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("hook", HOOKS)
def test_connection_that_ends_within_a_hook_which_answers_later(hook: str, end: str) -> None:
    delivery = ToldDelivery()
    guard = Guard(delivery)
    client = guard.greeted()
    cancelled: list[Deferred[None]] = []

    def ends_its_client(*_: object) -> Deferred[None]:
        ENDS[end](client)
        return Deferred(cancelled.append)

    delivery.answers[hook] = ends_its_client
    client.say(*HOOKS[hook])
    assert guard.factory.connections == 0
    # A whole message is decided on all the same, and nobody cancels that.
    assert len(cancelled) == (hook != "finish")
    guard.clock.advance(guard.factory.context.limits.delivery_timeout)
    assert guard.factory.context.pending_deliveries == 0
    assert delivery.ended == 1


def test_verdict_that_cannot_be_shown_is_still_one() -> None:
    guard = Guard()
    verdict: Deferred[Any] = Deferred()
    guard.delivery.answers["finish"] = lambda: verdict
    client = guard.greeted()
    client.say(*SAID)
    client.disconnect()
    verdict.callback(Unshowable())
    assert guard.factory.context.pending_deliveries == 0
    assert guard.factory.drain().called


def test_transport_that_raises_does_not_cost_the_seat(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard()
    client = guard.greeted()
    monkeypatch.setattr(client.transport, "write", raising(OSError))
    monkeypatch.setattr(client.transport, "registerProducer", raising(OSError))
    client.say("NOOP")
    guard.clock.advance(guard.factory.context.limits.write_timeout)
    assert guard.factory.connections == 0
    assert client.transport.lost


@pytest.mark.parametrize("hook", ["begin", "data"])
def test_a_late_answer_that_is_none_leaves_no_circle_of_references_to_its_connection(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: Deferred[Any] = Deferred()
    guard = Guard()
    guard.delivery.answers[hook] = lambda *_: later
    # Twisted keeps what is logged before logging begins, tracebacks included.
    monkeypatch.setattr(guard.factory.context.events, "failure", lambda *_: None)
    client = guard.greeted()
    client.say(*HOOKS[hook])
    client.heard()
    gc.collect()
    gc.disable()
    try:
        later.callback(object())
        assert codes(client.heard()) == [451]
        client.disconnect()
        connection = weakref.ref(client.protocol)
        client.protocol = client.transport.protocol = None
        assert connection() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("hook", ["transaction.abort", "sink.abort"])
def test_end_of_input_within_a_hook_that_ends_the_session(hook: str) -> None:
    guard = Guard(delivery_timeout=0)
    client = guard.greeted()
    guard.delivery.answers[hook] = client.half_close
    client.say(*SAID[:2] if hook == "transaction.abort" else SAID[:4])
    with capturedLogs() as events:
        guard.factory.end_now()
        guard.factory.drain()
    assert not [event for event in events if "log_failure" in event]
    assert client.closed
    assert guard.factory.connections == 0


def test_end_of_input_within_a_filter_that_refuses() -> None:
    def hook(_: object) -> Any:
        transport.protocol.readConnectionLost()
        return refuse()

    guard = Guard(ip_filters=[FakeFilter(hook)])
    transport = FakeTransport()
    transport.protocol = guard.factory.buildProtocol(transport.getPeer())
    with capturedLogs() as events:
        transport.protocol.makeConnection(transport)
    assert not [event for event in events if "log_failure" in event]
    assert transport.lost
    assert guard.factory.connections == 0


class Unlookable:
    """Raises when it is asked for an attribute."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)


@pytest.mark.parametrize("when", ["as it is cancelled", "after it has expired"])
def test_an_answer_that_comes_too_late_and_cannot_be_looked_at_changes_no_reply(when: str) -> None:
    def canceller(pending: Deferred[Any]) -> None:
        if when == "after it has expired":
            raise ValueError("a hook that goes on")
        pending.callback(Unlookable())

    later: Deferred[Any] = Deferred(canceller)
    guard = Guard(delivery_timeout=20)
    guard.delivery.answers["begin"] = lambda *_: later
    client = guard.greeted()
    client.say(*HOOKS["begin"])
    client.heard()
    guard.clock.advance(21)
    assert codes(client.heard()) == [451]
    if not later.called:
        later.callback(Unlookable())
    assert codes(client.heard() + client.say("NOOP")) == [250]
