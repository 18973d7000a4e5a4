"""A client that leaves while the delivery makes up its mind: every hook but finish() is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import Conversation, codes
from test_transaction import ENDS, HOOKS, LINES, check_ends, pending, ready_for

CANCELLED = ["begin", "recipient", "data", "write"]


def hang_up(client: Conversation) -> None:
    """The guard itself ends the session, at once."""
    client.protocol.engine.shut_down(now=True)


LEAVE: list[Callable[[Conversation], object]] = [Conversation.disconnect, hang_up]


@pytest.mark.parametrize("leave", LEAVE)
@pytest.mark.parametrize("hook", CANCELLED)
def test_a_pending_hook_is_cancelled_once_and_its_transaction_aborted_once(
    hook: str, leave: Callable[[Conversation], object]
) -> None:
    client = ready_for(hook, "late")
    client.send(LINES[hook])
    one = pending(client)
    leave(client)
    assert one.cancels == 1
    assert client.guard.delivery.pending == []
    check_ends(client, ENDS[hook])
    assert client.guard.factory.statistics.failures == 0


@pytest.mark.parametrize("leave", LEAVE)
@pytest.mark.parametrize("how", ["succeed", "fail"])
@pytest.mark.parametrize("hook", CANCELLED)
def test_a_hook_that_goes_on_all_the_same_ends_its_transaction_once(
    hook: str, how: str, leave: Callable[[Conversation], object]
) -> None:
    client = ready_for(hook, "stubborn")
    client.send(LINES[hook])
    one = pending(client)
    leave(client)
    assert one.transaction.ends == ([] if hook == "data" else ENDS[hook])
    if how == "succeed":
        one.succeed()
    else:
        one.fail(ValueError())
    handed_over_late = {"begin": ["abort"], "data": ["sink.abort"]} if how == "succeed" else {}
    check_ends(client, handed_over_late.get(hook, ENDS[hook]))
    assert client.guard.factory.statistics.failures == (how == "fail")


@pytest.mark.parametrize("hook", [*CANCELLED, "finish"])
def test_the_slot_of_a_client_that_left_is_free_at_once(hook: str) -> None:
    client = ready_for(hook, "stubborn")
    client.send(LINES[hook])
    client.disconnect()
    assert client.guard.factory.connections == 0


@pytest.mark.parametrize("hook", HOOKS)
def test_a_client_that_half_closes_gets_the_reply_that_is_due(hook: str) -> None:
    client = ready_for(hook, "late")
    client.send(LINES[hook] + b"NOOP\r\n" * (hook != "data"))
    assert client.half_close() == ""
    one = pending(client)
    assert one.cancels == 0
    one.succeed()
    assert codes(client.heard()) == {"data": [354]}.get(hook, [250, 250])
    assert client.transport.lost
    delivered = {"data": ["sink.abort"], "write": ["finish"], "finish": ["finish"]}
    check_ends(client, delivered.get(hook, ["abort"]))


# finish()


def finishing(**limits: Any) -> tuple[Conversation, list[dict[str, Any]], list[str]]:
    """A client that waits for its verdict; what is logged as accepted, and why what is not is not."""
    client = ready_for("finish", "late", **limits)
    accepted: list[dict[str, Any]] = []
    refused: list[str] = []
    events = client.guard.factory.context.events
    events.accept = lambda *names, **fields: accepted.append(fields)  # type: ignore[method-assign]

    def reject(peer: str, reason: str, **fields: Any) -> None:
        if fields["client_gone"]:
            refused.append(reason)

    client.send(LINES["finish"])
    events.reject = reject  # type: ignore[method-assign]
    return client, accepted, refused


def test_finish_is_not_cancelled_and_its_success_is_logged() -> None:
    client, accepted, refused = finishing()
    client.disconnect()
    one = pending(client)
    assert one.cancels == 0
    assert accepted == []
    one.succeed()
    assert [(event["client_gone"], event["late"]) for event in accepted] == [(True, False)]
    assert refused == []
    check_ends(client, ["finish"])


def test_the_failure_of_a_finish_whose_client_left_is_logged() -> None:
    client, accepted, refused = finishing()
    client.disconnect()
    pending(client).fail(ValueError())
    assert (accepted, refused) == ([], ["internal_error"])
    check_ends(client, ["finish"])


@pytest.mark.parametrize("leave", LEAVE)
def test_finish_has_its_time_limit_even_when_the_client_left(leave: Callable[[Conversation], object]) -> None:
    client, accepted, refused = finishing(delivery_timeout=30)
    client.guard.clock.advance(10)
    leave(client)
    one = pending(client)
    client.guard.clock.advance(19)
    assert client.guard.factory.context.pending_deliveries == 1
    client.guard.clock.advance(2)
    assert one.cancels == 1
    assert (accepted, refused) == ([], ["delivery_timeout"])
    assert client.guard.factory.context.pending_deliveries == 0
    assert client.guard.clock.getDelayedCalls() == []


def test_verdicts_whose_clients_left_are_counted_and_bounded() -> None:
    client, _, _ = finishing(max_pending_deliveries=2)
    guard, delivery = client.guard, client.guard.delivery
    client.disconnect()
    other = guard.greeted()
    for line in LINES.values():
        other.send(line)
    assert guard.factory.context.pending_deliveries == 1
    other.disconnect()
    assert guard.factory.context.pending_deliveries == 2

    guard.factory.context.events.reject = lambda *args, **fields: None  # type: ignore[method-assign]
    third = guard.greeted()
    third.heard()
    transactions = len(delivery.transactions)
    mail = LINES["begin"]
    assert third.send(mail) == "451 4.3.2 Too many deliveries pending, try again later\r\n"
    assert len(delivery.transactions) == transactions
    assert not third.closed
    delivery.pending[0].succeed()
    assert guard.factory.context.pending_deliveries == 1
    assert codes(third.send(mail)) == [250]


def test_without_a_bound_any_number_of_verdicts_may_be_pending() -> None:
    client, _, _ = finishing(max_pending_deliveries=0)
    for _ in range(20):
        client.disconnect()
        client = client.guard.greeted()
        for line in LINES.values():
            client.send(line)
    assert client.guard.factory.context.pending_deliveries == 20


def test_a_verdict_that_comes_while_its_client_waits_is_no_orphan() -> None:
    client, accepted, _ = finishing()
    pending(client).succeed()
    client.disconnect()
    assert client.guard.factory.context.pending_deliveries == 0
    assert [event["client_gone"] for event in accepted] == [False]
