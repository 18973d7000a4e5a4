"""A shared counter store, at MAIL and RCPT: it answers now, late, never, by exception, or for a client that left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakes import Conversation
from logbook import Logbook, logbook
from tellingstore import AWAY, Store, each_fault, each_way, guard_with
from twisted.internet.defer import Deferred

from twisted_smtpguard.interfaces import CounterStoreUnavailable

TRY_AGAIN = "451 4.3.0 Internal error, try again later\r\n"
MAIL, RCPT = "MAIL FROM:<a@b>", "RCPT TO:<c@d>"
RATES = {
    "message_rate": (
        "450 4.7.1 Message rate exceeded, try again later\r\n",
        [],
        MAIL,
        "250 2.1.0 Sender OK\r\n",
    ),
    "recipient_rate": (
        "450 4.7.1 Recipient rate exceeded, try again later\r\n",
        [MAIL],
        RCPT,
        "250 2.1.5 Recipient OK\r\n",
    ),
}
in_session = pytest.mark.parametrize("limit", RATES)


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def asks(limit: str, store: Store, **limits: Any) -> tuple[Conversation, str]:
    """A session that has just sent the command that the rate counts, and what it heard."""
    client = guard_with(limit, store, **limits).greeted()
    _, before, command, _ = RATES[limit]
    client.say(*before)
    return client, client.say(command)


@in_session
@each_way
def test_an_answer_that_is_there_is_the_commands_answer(limit: str, wrapped: Any) -> None:
    refused, _, _, accepted = RATES[limit]
    for count, heard in ((2, accepted), (3, refused)):
        client, said = asks(limit, Store(lambda count=count: wrapped([count])))  # type: ignore[misc]
        assert said == heard
        assert client.codes("NOOP") == [250]


@in_session
@pytest.mark.parametrize("count", [2, 3])
def test_no_command_is_carried_out_before_the_store_has_answered(limit: str, count: int) -> None:
    refused, before, _, accepted = RATES[limit]
    store = Store()
    client, said = asks(limit, store)
    assert said == client.say("NOOP") == ""
    assert client.guard.delivery.calls == ["begin"] * len(before)
    client.guard.clock.advance(0.04)
    store.asked[0].callback([count])
    assert client.heard() == (accepted if count == 2 else refused) + "250 2.0.0 OK\r\n"


@in_session
def test_a_store_that_does_not_answer_a_command_in_time_refuses_nothing(limit: str, log: Logbook) -> None:
    _, _, command, accepted = RATES[limit]
    store = Store()
    client, _ = asks(limit, store)
    client.guard.clock.advance(0.06)
    assert client.heard() == accepted
    assert log.take("counters_away") == [AWAY + "no answer in 50 ms"]
    store.asked[0].callback([3])
    assert client.heard() == ""
    client.say(*["RSET"] * command.startswith("MAIL"), command)
    assert len(store.asked) == 1
    assert store.cancelled == []


@in_session
@each_fault
def test_a_guard_whose_store_fails_holds_the_client_to_its_rate(limit: str, fault: Any, log: Logbook) -> None:
    refused, _, command, accepted = RATES[limit]
    client, said = asks(limit, Store(fault))
    assert said == accepted
    again = "RSET\r\n" * command.startswith("MAIL")
    for heard in (accepted, refused):
        client.say(*again.split())
        assert client.say(command) == heard
    assert len(log.take("counters_away")) == 1
    log.take("failure")


@in_session
@pytest.mark.parametrize("late", ["answer", "exception", "never"])
def test_for_a_client_that_is_gone_the_delivery_is_not_asked(limit: str, late: str) -> None:
    store = Store()
    client, _ = asks(limit, store)
    client.disconnect()
    calls = list(client.guard.delivery.calls)
    assert calls == ["begin", "transaction.abort"][: 2 * len(RATES[limit][1])]
    if late == "answer":
        store.asked[0].callback([1])
    elif late == "exception":
        store.asked[0].errback(CounterStoreUnavailable("no store"))
    client.guard.clock.pump([0.06, 1, 1])
    assert client.guard.delivery.calls == calls
    assert client.guard.clock.getDelayedCalls() == []
    assert client.guard.factory.connections == 0


@in_session
def test_a_client_that_half_closes_while_the_store_thinks_still_gets_its_reply(limit: str) -> None:
    store = Store()
    client, _ = asks(limit, store)
    client.half_close()
    store.asked[0].callback([3])
    assert client.heard() == RATES[limit][0]
    assert client.transport.lost


def test_a_delivery_that_is_asked_after_a_slow_store_has_its_time_limit_all_the_same() -> None:
    store = Store()
    client, _ = asks("message_rate", store, delivery_timeout=5)
    client.guard.delivery.answers["begin"] = lambda *_: Deferred()
    client.guard.clock.advance(0.04)
    store.asked[0].callback([1])
    client.guard.clock.advance(5.1)
    assert client.heard() == "451 4.3.0 Delivery timed out, try again later\r\n"
