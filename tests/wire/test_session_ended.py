"""A delivery that wants to know is told of the end of every session, once, when all its hooks have answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import Conversation, FakeDelivery, Guard
from hypothesis import settings
from strictdelivery import NOW, StrictDelivery, StrictTransaction
from test_contract_machine import Contract
from test_protocol_ends import ENDS, ENVELOPE
from test_transaction import HOOKS, LINES, pending
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_smtpguard.interfaces import Client, ISessionDelivery, Path


@implementer(ISessionDelivery)
class TellingDelivery(StrictDelivery):
    """Keeps the promises of the end of a session in its list, too."""

    def __init__(self, outcome: Callable[[str], str] = lambda hook: "now") -> None:
        super().__init__(outcome)
        self.sessions: dict[str, list[StrictTransaction]] = {}
        self.ended: list[str] = []

    def begin(self, client: Client, sender: Path) -> Any:
        self.promise(client.session not in self.ended, "begin after the session has ended")
        try:
            return super().begin(client, sender)
        finally:
            self.sessions.setdefault(client.session, []).append(self.transactions[-1])

    def session_ended(self, session: str) -> None:
        self.promise(session in self.sessions, "the end of a session that called no begin")
        self.promise(session not in self.ended, "the end of a session twice")
        self.ended.append(session)
        for transaction in self.sessions[session]:
            busy = [each.hook for each in self.pending if each.transaction is transaction]
            self.promise(not busy, f"the end of a session while {busy} is pending")
            ends = len(transaction.ends)
            self.promise(ends == transaction.handed_over, "the end of a session before its transaction's")


def ready(hook: str, outcome: str, **limits: Any) -> Conversation:
    """A client whose next line, LINES[hook], makes the guard call this hook, which has this outcome."""
    client = Guard(TellingDelivery(lambda name: outcome if name == hook else "now"), **limits).greeted()
    for line in list(LINES.values())[: min(HOOKS.index(hook), 3)]:
        client.send(line)
    return client


def told(client: Conversation) -> int:
    """How many ends of sessions the delivery was told of, all promises having been kept."""
    delivery = client.guard.delivery
    assert delivery.broken == []
    return len(delivery.ended)


def leave(client: Conversation) -> None:
    client.disconnect()


def cut_off(client: Conversation) -> None:
    client.protocol.engine.shut_down(now=True)


def drain(client: Conversation) -> None:
    """The service stops, and its grace is over."""
    client.guard.factory.drain()
    client.guard.clock.advance(31)


each_way = pytest.mark.parametrize("end", [leave, cut_off, drain])
each_hook = pytest.mark.parametrize("hook", HOOKS)


@each_way
@pytest.mark.parametrize("outcome", NOW)
@each_hook
def test_a_session_ends_when_nothing_is_pending(
    hook: str, outcome: str, end: Callable[[Conversation], None]
) -> None:
    client = ready(hook, outcome)
    client.send(LINES[hook])
    assert told(client) == 0
    end(client)
    assert told(client) == 1
    client.disconnect()
    assert told(client) == 1


@each_way
@each_hook
def test_a_hook_that_is_cancelled_delays_nothing_but_a_pending_verdict_does(
    hook: str, end: Callable[[Conversation], None]
) -> None:
    client = ready(hook, "late", delivery_timeout=0)
    client.send(LINES[hook])
    end(client)
    assert told(client) == (hook != "finish")
    if hook == "finish":
        pending(client).succeed()
    assert told(client) == 1


@each_way
@pytest.mark.parametrize("how", ["succeed", "fail"])
@each_hook
def test_a_hook_that_goes_on_in_spite_of_its_cancellation_is_waited_for(
    hook: str, how: str, end: Callable[[Conversation], None]
) -> None:
    client = ready(hook, "stubborn", delivery_timeout=0)
    client.send(LINES[hook])
    one = pending(client)
    end(client)
    client.disconnect()
    client.guard.clock.advance(1000)
    assert told(client) == 0
    if how == "succeed":
        one.succeed()
    else:
        one.fail(ValueError())
    assert told(client) == 1


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_whose_time_is_over_is_waited_for_though_the_session_went_on(hook: str) -> None:
    client = ready(hook, "stubborn", delivery_timeout=10)
    client.send(LINES[hook])
    one = pending(client)
    client.guard.clock.advance(11)
    client.guard.delivery.outcome = lambda name: "now"
    client.say("RSET")
    for line in LINES.values():
        client.send(line)
    client.say("QUIT")
    assert told(client) == 0
    one.succeed()
    assert told(client) == 1


def test_the_session_ends_after_the_last_of_several_hooks() -> None:
    client = ready("begin", "stubborn", delivery_timeout=10)
    for _ in range(3):
        client.send(LINES["begin"])
        client.guard.clock.advance(11)
    client.disconnect()
    first, *rest = client.guard.delivery.pending
    for one in reversed(rest):
        one.succeed()
        assert told(client) == 0
    first.succeed()
    assert told(client) == 1


def test_a_hook_that_ends_its_own_session_is_told_afterwards() -> None:
    for hook in HOOKS:
        client = ready(hook, "now")

        def end_and_answer(name: str, hook: str = hook, client: Conversation = client) -> str:
            if name == hook:
                client.disconnect()
                assert told(client) == 0
            return "now"

        client.guard.delivery.outcome = end_and_answer
        client.send(LINES[hook])
        assert told(client) == 1


def test_each_session_is_told_of_by_its_own_name() -> None:
    guard = Guard(TellingDelivery())
    clients = [guard.greeted() for _ in range(3)]
    for client in clients:
        client.send(LINES["begin"])
    names = [client.protocol.engine.name for client in clients]
    for number in (1, 0, 2):
        clients[number].say("QUIT")
    assert guard.delivery.ended == [names[1], names[0], names[2]]


def test_a_session_that_began_no_message_is_not_told_of() -> None:
    client = Guard(TellingDelivery(), max_message_size=10).greeted()
    client.say("MAIL FROM:<a@b> SIZE=11", "RCPT TO:<a@b>", "QUIT")
    assert told(client) == 0
    assert client.guard.delivery.transactions == []


class RaisingDelivery(TellingDelivery):
    def session_ended(self, session: str) -> None:
        super().session_ended(session)
        raise ValueError("secret")


@each_way
@pytest.mark.parametrize("outcome", ["now", "late"])
def test_what_it_raises_is_logged_and_nothing_else_comes_of_it(
    outcome: str, end: Callable[[Conversation], None]
) -> None:
    client = ready("recipient", outcome)
    context = client.guard.factory.context
    context.delivery = client.guard.delivery = RaisingDelivery(client.guard.delivery.outcome)
    context.begin, context.session_ended = context.delivery.begin, context.delivery.session_ended
    client.send(LINES["begin"] if client.guard.delivery.transactions == [] else b"")
    client.say("RSET")
    client.send(LINES["begin"] + LINES["recipient"])
    end(client)
    client.disconnect()
    assert told(client) == 1
    assert client.guard.factory.statistics.failures == 1
    assert client.guard.factory.connections == 0


@implementer(ISessionDelivery)
class Counting(FakeDelivery):
    def __init__(self) -> None:
        super().__init__()
        self.began: set[str] = set()
        self.ended: list[str] = []

    def begin(self, client: Client, sender: Path) -> Any:
        self.began.add(client.session)
        return super().begin(client, sender)

    def session_ended(self, session: str) -> None:
        self.ended.append(session)


@pytest.mark.parametrize("before", [(), (*ENVELOPE, "RSET"), (*ENVELOPE, "DATA", "x: y", ".")])
@pytest.mark.parametrize("end", ENDS)
def test_however_a_connection_ends_it_is_told_once(
    end: Callable[[Conversation], None], before: tuple[str, ...]
) -> None:
    guard = Guard(Counting())
    client = guard.greeted()
    client.say(*before)
    client.heard()
    end(client)
    guard.clock.advance(5)
    assert client.transport.lost
    assert guard.delivery.ended == list(guard.delivery.began)
    assert bool(guard.delivery.began) >= bool(before)


def test_a_drain_that_gives_up_waiting_does_not_tell_before_the_verdict() -> None:
    guard = Guard(Counting(), delivery_timeout=0)
    verdict: Deferred[None] = Deferred()
    guard.delivery.answers["finish"] = lambda: verdict
    client = guard.greeted()
    client.say(*ENVELOPE, "DATA", "x: y", ".")
    stopped: list[None] = []
    guard.factory.drain().addCallback(stopped.append)
    guard.clock.pump([31, 6])
    assert stopped == [None]
    assert guard.delivery.ended == []
    verdict.callback(None)
    assert len(guard.delivery.ended) == 1


class ContractWithEnds(Contract):
    """The same, and every session that began a message is told of once."""

    make_delivery = TellingDelivery

    def teardown(self) -> None:
        super().teardown()
        delivery: Any = self.delivery
        assert sorted(delivery.ended) == sorted(delivery.sessions)


TestContractWithEnds = ContractWithEnds.TestCase
TestContractWithEnds.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
