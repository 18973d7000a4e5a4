"""A shared counter store, at the connection: it answers now, late, never, by exception, or for a client that left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from fakes import Conversation, Guard, SlowFilter
from logbook import Logbook, logbook
from tellingstore import (
    AWAY,
    Store,
    answers_nothing,
    answers_words_later,
    each_fault,
    each_way,
    fails,
    guard_with,
    raises,
    raises_later,
)
from twisted.internet.defer import Deferred, fail, succeed

from twisted_smtpguard.interfaces import PASS, TRUST, CounterStoreUnavailable, Wanted
from twisted_smtpguard.limits.units import NO_RATE, Rate

GREETING = "220 guard.example ESMTP ready\r\n"
REFUSED = {
    "max_connections": "421 4.7.0 Too many connections, try again later\r\n",
    "max_connections_per_client": "421 4.7.0 Too many connections from your address, try again later\r\n",
    "connection_rate": "421 4.7.0 Connection rate exceeded, try again later\r\n",
}
at_connection = pytest.mark.parametrize("limit", REFUSED)
a_place = pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_client"])
ALL: dict[str, Any] = {"max_connections": 9, "max_connections_per_client": 3, "connection_rate": Rate(5, 60)}


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


# What it is asked, and its answer.


@at_connection
@each_way
def test_an_answer_that_is_there_decides_at_once(limit: str, wrapped: Any) -> None:
    for count, heard in ((2, GREETING), (3, REFUSED[limit])):
        store = Store(lambda count=count: wrapped([count]))  # type: ignore[misc]
        client = guard_with(limit, store).connect()
        assert client.heard() == heard
        assert store.calls == [("take", limit)]


def test_all_that_a_connection_wants_is_asked_for_in_one_call() -> None:
    store = Store(lambda: [1, 1, 1])
    guard = Guard(counters=store, **ALL)
    client = guard.connect()
    assert store.calls == [("take", *ALL)]
    assert client.codes("QUIT") == [220, 221]
    assert store.calls[1:] == [("give_back", "max_connections", "max_connections_per_client")]


@pytest.mark.parametrize(("place", "limit"), list(enumerate(REFUSED)))
def test_the_first_limit_that_is_exceeded_gives_the_reply(place: int, limit: str, log: Logbook) -> None:
    counts = [1, 1, 1]
    counts[place:] = [10, 4, 6][place:]
    store = Store(lambda: counts)
    client = Guard(counters=store, **ALL).connect()
    assert client.heard() == REFUSED[limit]
    (line,) = log.take("reject")
    shown = {"max_connections": "9", "max_connections_per_client": "3", "connection_rate": "5/60"}[limit]
    assert f" reason={limit} limit={shown} value={counts[place]} code=421" in line
    assert store.given_back == 0, "nothing was taken"


@at_connection
def test_a_limit_in_dry_run_is_counted_without_a_limit_and_only_logged(limit: str, log: Logbook) -> None:
    store = Store(lambda: [3])
    client = guard_with(limit, store, dry_run=[limit]).connect()
    assert client.heard() == GREETING
    (line,) = log.take("reject")
    assert f" reason={limit} dry_run=true limit=2" in line.replace("/60", "")


@at_connection
@pytest.mark.parametrize("count", [2, 3])
def test_no_client_is_greeted_before_the_store_has_answered(limit: str, count: int) -> None:
    store = Store()
    guard = guard_with(limit, store)
    client = guard.connect()
    guard.clock.advance(0.049)
    assert client.say("EHLO x") == ""
    store.asked[0].callback([count])
    assert client.heard().startswith(GREETING if count == 2 else REFUSED[limit])
    assert guard.factory.connections == (1 if count == 2 else 0)


# A store that is away.


def lost(limit: str, fault: Callable[[], Any] = raises) -> Any:
    """A guard whose store has failed at its first client, and the store, which is still away."""
    store = Store(fault)
    store.renew = lambda *_: fail(CounterStoreUnavailable("no store"))  # type: ignore[method-assign]
    guard = guard_with(limit, store)
    first = guard.connect()
    assert first.heard() == GREETING
    return guard, store


@at_connection
@each_fault
def test_a_store_that_fails_refuses_nobody_and_the_guard_counts_alone(
    limit: str, fault: Any, log: Logbook
) -> None:
    guard, _ = lost(limit, fault)
    assert [guard.connect().heard() for _ in range(2)] == [GREETING, REFUSED[limit]]
    assert len(log.take("counters_away")) == 1
    assert len(log.take("failure")) == (fault in (answers_nothing, answers_words_later))
    guard.clock.advance(3600)
    assert log.take("counters_away") == []


@at_connection
def test_a_store_that_does_not_answer_in_time_refuses_nobody(limit: str, log: Logbook) -> None:
    store = Store()
    guard = guard_with(limit, store)
    client = guard.connect()
    guard.clock.advance(0.049)
    assert client.heard() == ""
    guard.clock.advance(0.002)
    assert client.heard() == GREETING
    assert log.take("counters_away") == [AWAY + "no answer in 50 ms"]
    assert store.cancelled == []


@at_connection
def test_while_the_store_is_away_no_decision_waits_for_it(limit: str) -> None:
    guard, store = lost(limit)
    store.calls.clear()
    assert guard.connect().heard() == GREETING
    assert store.calls == []


@a_place
def test_a_guard_alone_counts_what_it_took_before_too(limit: str) -> None:
    store = Store(lambda: [1])
    guard = guard_with(limit, store)
    assert guard.connect().heard() == GREETING
    store.answer = raises
    assert [guard.connect().heard() for _ in range(2)] == [GREETING, REFUSED[limit]]


@a_place
def test_a_store_that_is_back_is_told_what_the_guard_holds(limit: str, log: Logbook) -> None:
    guard, store = lost(limit)
    second = guard.connect()
    key = (limit, "" if limit == "max_connections" else "192.0.2.1")
    del store.renew
    store.answer = lambda: [3]
    guard.clock.advance(0.9)
    assert store.renewed == []
    guard.clock.advance(0.2)
    assert store.renewed[0] == {key: 2}
    assert log.take("counters_back") == [
        "counters_back seconds=1.1 the limits apply to the clients of all guards again"
    ]
    assert guard.connect().heard() == REFUSED[limit], "it decides again"
    second.disconnect()
    assert store.calls[-1] == ("give_back", limit)


def test_places_are_renewed_three_times_in_a_lease_while_there_are_any() -> None:
    store = Store(lambda: [1])
    store.lease_seconds = 9
    guard = guard_with("max_connections_per_client", store)
    clients = [guard.connect() for _ in range(2)]
    guard.clock.pump([1] * 7)
    assert store.renewed == [{("max_connections_per_client", "192.0.2.1"): 2}] * 2
    for client in clients:
        client.disconnect()
    guard.clock.pump([1] * 3)
    assert store.renewed[2:] == [{}]
    assert guard.clock.getDelayedCalls() == []


def test_a_renewal_that_fails_is_an_outage(log: Logbook) -> None:
    store = Store(lambda: [1])
    store.lease_seconds = 9
    store.renew = lambda *_: fail(CounterStoreUnavailable("no store"))  # type: ignore[method-assign]
    guard = guard_with("max_connections_per_client", store)
    guard.connect()
    guard.clock.advance(3)
    assert log.take("counters_away") == [AWAY + "no store"]


# Clients that leave.


def disconnects(client: Conversation) -> None:
    client.disconnect()


def half_closes(client: Conversation) -> None:
    client.half_close()


def sees_the_service_stop(client: Conversation) -> None:
    client.guard.factory.drain()


each_way_to_leave = pytest.mark.parametrize("leave", [disconnects, half_closes, sees_the_service_stop])


@each_way_to_leave
@a_place
def test_a_place_that_is_granted_after_the_client_has_left_goes_back_at_once(
    leave: Callable[[Conversation], None], limit: str
) -> None:
    store = Store()
    guard = guard_with(limit, store)
    client = guard.connect()
    leave(client)
    assert guard.factory.connections == 0
    assert store.given_back == 0, "nothing has been taken yet"
    store.asked[0].callback([2])
    assert store.given_back == 1
    client.disconnect()
    guard.clock.advance(60)
    assert (store.given_back, store.cancelled) == (1, [])
    assert guard.clock.getDelayedCalls() == []


@each_way_to_leave
@pytest.mark.parametrize("late", [[3], CounterStoreUnavailable("no store")], ids=["refusal", "exception"])
def test_where_no_place_was_taken_none_goes_back(leave: Callable[[Conversation], None], late: Any) -> None:
    store = Store()
    guard = guard_with("max_connections_per_client", store)
    client = guard.connect()
    leave(client)
    if isinstance(late, list):
        store.asked[0].callback(late)
    else:
        store.asked[0].errback(late)
    client.disconnect()
    assert store.given_back == 0
    guard.clock.advance(2)
    # After a stop nothing is asked any more.
    asks_again = not (isinstance(late, list) or leave is sees_the_service_stop)
    assert store.renewed == [{}, {}] * asks_again
    assert guard.clock.getDelayedCalls() == []


def test_an_answer_after_the_time_limit_changes_nothing() -> None:
    for count in (1, 3):
        store = Store()
        guard = guard_with("max_connections_per_client", store)
        client = guard.connect()
        guard.clock.advance(0.05)
        store.asked[0].callback([count])
        assert client.heard() == GREETING
        assert store.given_back == 0
        guard.clock.advance(1)
        assert store.renewed[0] == {("max_connections_per_client", "192.0.2.1"): 1}


@pytest.mark.parametrize("first", ["filter", "store"])
def test_a_slow_filter_and_a_slow_store_are_both_heard(first: str) -> None:
    store, slow = Store(), SlowFilter()
    guard = Guard(counters=store, ip_filters=[slow], **ALL)
    client = guard.connect()
    answers = [lambda: slow.asked[0].callback(TRUST), lambda: store.asked[0].callback([1, 1, 1])]
    for answer in answers if first == "filter" else reversed(answers):
        assert client.heard() == ""
        answer()
    assert client.heard() == GREETING
    given = [call[1:] for call in store.calls if call[0] == "give_back"]
    assert given == [("max_connections_per_client",), ("connection_rate",)], "trusted clients need no place"
    client.disconnect()
    assert store.calls[-1] == ("give_back", "max_connections")


def test_a_trusted_client_takes_a_place_of_all_and_none_of_its_own() -> None:
    store = Store(lambda: [3])
    trusting = SlowFilter()
    guard = Guard(counters=store, ip_filters=[trusting], **{**ALL, "max_connections": 2})
    trusting.check = lambda _: TRUST  # type: ignore[method-assign]
    client = guard.connect()
    assert store.calls == [("take", "max_connections")]
    assert client.heard() == REFUSED["max_connections"]


def test_a_client_that_leaves_while_filter_and_store_are_pending_cancels_the_filter_alone() -> None:
    store, slow = Store(), SlowFilter()
    guard = guard_with("max_connections_per_client", store, ip_filters=[slow])
    guard.connect().disconnect()
    assert (slow.cancelled, store.cancelled) == (1, [])
    store.asked[0].callback([1])
    assert store.given_back == 1


@pytest.mark.parametrize("answer", [raises, raises_later, fails, Deferred])
def test_a_store_that_does_not_take_a_place_back_is_away_and_harms_no_client(
    answer: Any, log: Logbook
) -> None:
    store = Store(lambda: [1])
    store.give_back = lambda *_: answer()  # type: ignore[method-assign]
    guard = guard_with("max_connections_per_client", store)
    client = guard.connect()
    assert client.codes("QUIT") == [220, 221]
    guard.clock.advance(1)
    assert len(log.take("counters_away")) == 1
    assert guard.factory.connections == 0
    guard.clock.advance(1)
    assert store.renewed == [{}, {}]
    assert guard.clock.getDelayedCalls() == []


def test_a_stop_waits_for_what_the_store_has_not_yet_taken_back() -> None:
    pending: list[Deferred[None]] = []

    class Slow(Store):
        def give_back(self, *_: object) -> Any:
            pending.append(Deferred())
            return pending[-1]

    guard = guard_with("max_connections_per_client", Slow(lambda: [1]))
    guard.connect().disconnect()
    stopped: list[object] = []
    guard.factory.drain().addCallback(stopped.append)
    assert stopped == []
    pending[0].callback(None)
    assert stopped == [None]


def test_a_stop_asks_a_store_that_is_away_no_more() -> None:
    guard, _ = lost("max_connections")
    guard.factory.drain()
    guard.clock.advance(30)
    assert guard.clock.getDelayedCalls() == []


def test_a_store_that_answers_a_renewal_at_once_or_later_is_back() -> None:
    for answer in (lambda *_: None, lambda *_: succeed(None)):
        guard, store = lost("max_connections")
        store.renew = answer
        store.answer = lambda: [3]
        guard.clock.advance(1)
        assert guard.connect().heard() == REFUSED["max_connections"]


def stop(guard: Guard) -> None:
    """Drain the guard, which takes half a second."""
    guard.factory.drain()
    guard.factory.end_now()
    guard.clock.advance(0.5)


def test_a_store_that_is_away_at_a_stop_is_asked_again_from_the_next_start_on() -> None:
    guard, store = lost("max_connections")
    stop(guard)
    guard.factory.reopen()
    del store.renew
    store.answer = lambda: [3]
    assert guard.connect().heard() == GREETING, "the guard is still alone"
    guard.clock.advance(1)
    assert store.renewed[0] == {("max_connections", ""): 1}
    assert guard.connect().heard() == REFUSED["max_connections"]


def test_a_question_that_is_pending_at_a_stop_leads_to_no_other() -> None:
    guard, store = lost("max_connections")
    store.renew = lambda *_: Deferred()  # type: ignore[method-assign]
    guard.clock.advance(1)
    stop(guard)
    guard.clock.advance(1)
    assert guard.clock.getDelayedCalls() == []


def test_a_store_that_is_back_between_a_stop_and_a_start_is_told_once() -> None:
    guard, store = lost("max_connections")
    pending: Deferred[None] = Deferred()
    store.renew = lambda *_: pending  # type: ignore[method-assign]
    guard.clock.advance(1)
    stop(guard)
    guard.factory.reopen()
    del store.renew
    pending.callback(None)
    guard.clock.pump([1] * 3)
    assert store.renewed == [{}]
    assert guard.clock.getDelayedCalls() == []


# A limit that is set while connections are open.


@a_place
def test_a_place_may_go_back_before_the_store_has_granted_it(limit: str) -> None:
    store = Store()
    guard = Guard(counters=store, connection_rate=NO_RATE)
    client = guard.connect()
    guard.factory.set_limits(attrs.evolve(guard.factory.limits, **{limit: 1}))
    assert store.calls == [("take", limit)]
    client.disconnect()
    store.asked[0].callback([1])
    assert store.calls[1:] == [("give_back", limit)]
    store.answer = raises
    assert [guard.connect().heard() for _ in range(2)] == [GREETING, REFUSED[limit]], "nothing is held"


@a_place
def test_a_store_that_does_not_answer_such_a_take_is_away_and_told_later(limit: str) -> None:
    store = Store()
    guard = Guard(counters=store, connection_rate=NO_RATE)
    guard.connect()
    guard.factory.set_limits(attrs.evolve(guard.factory.limits, **{limit: 2}))
    guard.clock.advance(1)
    assert guard.factory.counting.is_away
    assert [guard.connect().heard() for _ in range(2)] == [GREETING, REFUSED[limit]], "it counts what it has"
    guard.clock.advance(1)
    assert set(store.renewed[0].values()) == {2}
    assert store.cancelled == []


@pytest.mark.parametrize("hook", ["renew", "give_back", "look"])
def test_no_question_is_cancelled_however_long_its_answer_takes(hook: str, log: Logbook) -> None:
    cancelled: list[object] = []
    store = Store(lambda: [1])
    store.lease_seconds = 3
    setattr(store, hook, lambda *_: Deferred(cancelled.append))
    guard = guard_with("max_connections_per_client", store)
    client = guard.connect()
    guard.factory.counting.look([Wanted("max_connections_per_client", "192.0.2.1")])
    client.disconnect()
    guard.connect()
    guard.clock.pump([1] * 4)
    assert len(log.take("counters_away")) == (hook != "look")
    assert cancelled == []


def test_an_answer_is_held_against_the_limits_by_which_it_was_asked() -> None:
    store = Store()
    guard = guard_with("max_connections_per_client", store, dry_run=["connection_rate"])
    client = guard.connect()
    guard.factory.set_limits(attrs.evolve(guard.factory.limits, max_connections_per_client=0))
    store.asked[0].callback([1])
    assert client.heard() == GREETING


def test_a_store_that_answers_too_late_for_a_decision_is_not_back(log: Logbook) -> None:
    guard, store = lost("max_connections")
    looks: list[Deferred[Any]] = []

    def look(*_: object) -> Any:
        looks.append(Deferred())
        return looks[-1]

    store.renew = lambda *_: succeed(None)
    store.look = look
    for _ in range(5):
        guard.clock.advance(1)
        guard.clock.advance(0.051)
        looks[-1].callback([])
    assert len(log.take("counters_away")) == 1
    assert log.take("counters_back") == []
    guard.clock.advance(1)
    guard.clock.advance(0.049)
    looks[-1].callback([])
    assert len(log.take("counters_back")) == 1


def test_an_answer_that_came_while_the_process_was_held_up_counts(log: Logbook) -> None:
    store = Store()
    guard = guard_with("max_connections", store)
    client = guard.connect()
    # The time is over when the reactor goes on, and so is its next look for what has come.
    guard.clock.callLater(0.05, store.asked[0].callback, [3])
    guard.clock.advance(0.06)
    assert client.heard() == REFUSED["max_connections"]
    assert log.take("counters_away") == []


@pytest.mark.parametrize(("of_all", "delay"), [(8, True), (9, False)])
def test_the_greet_delay_ends_when_all_guards_together_have_eighty_percent(of_all: int, delay: bool) -> None:
    store = Store(lambda: [of_all])
    guard = Guard(counters=store, max_connections=10, greet_delay=2)
    assert guard.connect().heard() == ("" if delay else GREETING)


@pytest.mark.parametrize("per_client", [0, 5])
def test_a_connection_that_a_filter_judges_while_the_cap_is_set_counts_against_it(per_client: int) -> None:
    store, slow = Store(lambda: [1]), SlowFilter()
    guard = Guard(counters=store, ip_filters=[slow], max_connections_per_client=per_client)
    client = guard.connect()
    guard.factory.set_limits(attrs.evolve(guard.factory.limits, max_connections=1))
    store.answer = lambda: [1, 1]
    store.calls.clear()
    slow.asked[0].callback(PASS)
    assert client.codes("QUIT") == [220, 221]
    places = ("max_connections", "max_connections_per_client")[: 1 + bool(per_client)]
    assert store.calls == [("take", "max_connections"), ("give_back", *places)]
