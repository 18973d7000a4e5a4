"""A shared counter store, at the connection: it answers now, late, never, by exception, or for a client that left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes import Conversation, SlowFilter
from logbook import Logbook, logbook
from tellingstore import FAILED, Store, each_fault, each_way, fails, guard_with, raises, raises_later
from twisted.internet.defer import Deferred

from twisted_smtpguard.interfaces import TRUST
from twisted_smtpguard.limits.units import Rate

GREETING = "220 guard.example ESMTP ready\r\n"
CLOSING = "421 4.3.0 Internal error, try again later\r\n"
OK = {"max_connections_per_client": GREETING, "connection_rate": GREETING}
REFUSED = {
    "max_connections_per_client": "421 4.7.0 Too many connections from your address, try again later\r\n",
    "connection_rate": "421 4.7.0 Connection rate exceeded, try again later\r\n",
}
at_connection = pytest.mark.parametrize("limit", OK)


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


@at_connection
@each_way
def test_an_answer_that_is_there_decides_at_once(limit: str, wrapped: Any) -> None:
    for count, heard in ((2, OK[limit]), (3, REFUSED[limit])):
        store = Store(lambda count=count: wrapped(count))  # type: ignore[misc]
        client = guard_with(limit, store).connect()
        assert client.heard() == heard
        assert store.calls == [("acquire" if limit.startswith("max") else "add", limit, "192.0.2.1")]


@at_connection
@pytest.mark.parametrize("count", [2, 3])
def test_no_client_is_greeted_before_the_store_has_answered(limit: str, count: int) -> None:
    store = Store()
    guard = guard_with(limit, store)
    client = guard.connect()
    guard.clock.advance(9.9)
    assert client.say("EHLO x") == ""
    store.asked[0].callback(count)
    assert client.heard().startswith(OK[limit] if count == 2 else REFUSED[limit])
    assert guard.factory.connections == (1 if count == 2 else 0)


@at_connection
def test_a_store_that_does_not_answer_in_time_refuses(limit: str, log: Logbook) -> None:
    store = Store()
    guard = guard_with(limit, store, ip_filter_timeout=0)
    client = guard.connect()
    guard.clock.advance(9.9)
    assert client.heard() == ""
    guard.clock.advance(0.2)
    assert client.heard() == CLOSING
    assert log.take("reject") == ["reject peer=192.0.2.1 reason=internal_error code=421 port=4711"]
    assert log.take("failure") == [FAILED]
    assert guard.factory.connections == 0
    assert store.cancelled == []


@at_connection
@each_fault
def test_a_store_that_fails_refuses(limit: str, fault: Any, log: Logbook) -> None:
    guard = guard_with(limit, Store(fault))
    client = guard.connect()
    assert client.heard() == CLOSING
    assert client.closed
    assert guard.factory.statistics.refusals == {"internal_error": 1}
    assert guard.factory.statistics.failures == 1
    assert log.take("failure") == [FAILED]
    assert guard.factory.connections == 0


@at_connection
@each_fault
def test_a_store_that_fails_refuses_no_client_whose_limit_is_in_dry_run(
    limit: str, fault: Any, log: Logbook
) -> None:
    guard = guard_with(limit, Store(fault), dry_run=[limit])
    assert guard.connect().heard() == GREETING
    assert log.take("failure") == [FAILED]
    assert log.take("reject") == ["reject peer=192.0.2.1 reason=internal_error dry_run=true port=4711"]


def disconnects(client: Conversation) -> None:
    client.disconnect()


def half_closes(client: Conversation) -> None:
    client.half_close()


def waits_too_long(client: Conversation) -> None:
    client.guard.clock.advance(10.1)
    client.guard.clock.advance(5.1)
    assert client.transport.aborted


def sees_the_service_stop(client: Conversation) -> None:
    client.guard.factory.drain()


each_way_to_leave = pytest.mark.parametrize(
    "leave", [disconnects, half_closes, waits_too_long, sees_the_service_stop]
)


@each_way_to_leave
def test_a_place_that_is_granted_after_the_client_has_left_goes_back_at_once(
    leave: Callable[[Conversation], None], log: Logbook
) -> None:
    store = Store()
    guard = guard_with("max_connections_per_client", store)
    client = guard.connect()
    leave(client)
    assert guard.factory.connections == 0
    assert store.released == 0, "nothing has been taken yet"
    store.asked[0].callback(2)
    assert store.released == 1
    client.disconnect()
    guard.clock.advance(60)
    assert (store.released, store.cancelled) == (1, [])
    assert guard.clock.getDelayedCalls() == []
    log.take("failure")


@each_way_to_leave
@pytest.mark.parametrize("late", [3, LookupError("no store")], ids=["refusal", "exception"])
def test_where_no_place_was_taken_none_goes_back(
    leave: Callable[[Conversation], None], late: Any, log: Logbook
) -> None:
    store = Store()
    guard = guard_with("max_connections_per_client", store)
    client = guard.connect()
    leave(client)
    if isinstance(late, int):
        store.asked[0].callback(late)
    else:
        store.asked[0].errback(late)
    client.disconnect()
    assert store.released == 0
    log.take("failure")


@pytest.mark.parametrize("leave", [disconnects, half_closes, waits_too_long, sees_the_service_stop])
def test_a_place_goes_back_when_the_second_question_is_not_answered(
    leave: Callable[[Conversation], None], log: Logbook
) -> None:
    store = Store()
    guard = guard_with("max_connections_per_client", store, connection_rate=Rate(2, 60))
    client = guard.connect()
    store.asked[0].callback(1)
    assert client.heard() == ""
    assert [call[:2] for call in store.calls] == [
        ("acquire", "max_connections_per_client"),
        ("add", "connection_rate"),
    ]
    leave(client)
    assert store.released == 1
    store.asked[1].callback(1)
    client.disconnect()
    assert store.released == 1
    log.take("failure")


@pytest.mark.parametrize("first", ["filter", "store"])
def test_a_slow_filter_and_a_slow_store_are_both_heard(first: str) -> None:
    store, slow = Store(), SlowFilter()
    guard = guard_with("max_connections_per_client", store, ip_filters=[slow])
    client = guard.connect()
    answers = [lambda: slow.asked[0].callback(TRUST), lambda: store.asked[0].callback(1)]
    for answer in answers if first == "filter" else reversed(answers):
        assert client.heard() == ""
        answer()
    assert client.heard() == GREETING
    assert store.released == 1, "who is trusted needs no place"


def test_a_client_that_leaves_while_filter_and_store_are_pending_cancels_the_filter_alone() -> None:
    store, slow = Store(), SlowFilter()
    guard = guard_with("max_connections_per_client", store, ip_filters=[slow])
    guard.connect().disconnect()
    assert (slow.cancelled, store.cancelled) == (1, [])
    store.asked[0].callback(1)
    assert store.released == 1


@pytest.mark.parametrize("answer", [raises, raises_later, fails, Deferred])
def test_a_store_that_does_not_take_a_place_back_is_logged_and_harms_no_client(
    answer: Any, log: Logbook
) -> None:
    store = Store(lambda: 1)
    store.release = lambda *_: answer()  # type: ignore[method-assign]
    guard = guard_with("max_connections_per_client", store)
    client = guard.connect()
    assert client.codes("QUIT") == [220, 221]
    guard.clock.advance(10.1)
    assert log.take("failure") == [FAILED]
    assert guard.factory.connections == 0
    assert guard.clock.getDelayedCalls() == []


def test_a_stop_waits_for_what_the_store_has_not_yet_taken_back() -> None:
    pending: list[Deferred[None]] = []

    class Slow(Store):
        def release(self, counter: str, client: str) -> Any:
            pending.append(Deferred())
            return pending[-1]

    guard = guard_with("max_connections_per_client", Slow(lambda: 1))
    guard.connect().disconnect()
    stopped: list[object] = []
    guard.factory.drain().addCallback(stopped.append)
    assert stopped == []
    pending[0].callback(None)
    assert stopped == [None]


def test_a_client_that_leaves_while_a_limit_in_dry_run_is_looked_up_is_not_checked_further(
    log: Logbook,
) -> None:
    store, slow = Store(), SlowFilter()
    guard = guard_with(
        "max_connections_per_client",
        store,
        ip_filters=[slow],
        connection_rate=Rate(2, 60),
        dry_run=["max_connections_per_client"],
    )
    guard.connect().disconnect()
    assert slow.cancelled == 1
    store.asked[0].callback(1)
    assert [call[0] for call in store.calls] == ["acquire", "release"]
    assert log.take("reject") == []
