"""Measurements: what a guard counts by kind, and how long things took."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from fakes import FakeDelivery, FakeFilter, Guard, SlowFilter, refusal
from twisted.internet.defer import CancelledError, Deferred

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.interfaces import PASS, TRUST, Refused, refuse
from twisted_smtpguard.log.budget import LineBudget
from twisted_smtpguard.log.measurements import HOOK_BOUNDS, HOOKS, Histogram, Measurements
from twisted_smtpguard.testing import Conversation

ENVELOPE = ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>")
DATA = (*ENVELOPE, "DATA")
MAIL = (*DATA, "Subject: x", "", "Hello.", ".")


def measured(guard: Guard) -> Measurements:
    measurements: Measurements = guard.factory.context.events.measured
    return measurements


def hooks(guard: Guard) -> dict[tuple[str, str], tuple[int, float]]:
    """How many answers there were, and their seconds, but for those of which there were none."""
    found = measured(guard).hook_seconds(guard.factory.statistics.messages_accepted)
    return {name: (each.total, each.seconds) for name, each in found.items() if each.total}


def late(hook: str) -> tuple[FakeDelivery, list[Deferred[Any]]]:
    """A delivery whose hook answers when the test fires the Deferred."""
    asked: list[Deferred[Any]] = []

    def ask(*_: object) -> Deferred[Any]:
        asked.append(Deferred())
        return asked[-1]

    delivery = FakeDelivery()
    delivery.answers[hook] = ask
    return delivery, asked


@pytest.mark.parametrize(
    ("seconds", "number"), [(-3.0, 0), (0.0, 0), (1.0, 0), (1.5, 1), (10.0, 1), (10.001, 2), (1e9, 2)]
)
def test_a_time_counts_in_the_first_bucket_whose_bound_it_does_not_exceed(
    seconds: float, number: int
) -> None:
    histogram = Histogram((1.0, 10.0))
    histogram.observe(seconds)
    assert histogram.counts == [number == each for each in range(3)]
    assert (histogram.total, histogram.seconds) == (1, max(seconds, 0.0))


def test_each_reply_counts_once_by_the_last_command() -> None:
    guard = Guard(max_invalid_commands=3)
    client = guard.greeted()
    client.say(*MAIL, "FROB", "MAIL FROM:<a b>", "NOOP", "RCPT TO:<b@example.org>", "FROB")
    assert measured(guard).replies == {
        ("EHLO", 250): 1,
        ("MAIL", 250): 1,
        ("RCPT", 250): 1,
        ("DATA", 354): 1,
        ("DATA", 250): 1,
        ("none", 500): 2,
        ("MAIL", 501): 1,
        ("NOOP", 250): 1,
        ("RCPT", 503): 1,
        # The last one allowed ends the session.
        ("none", 421): 1,
    }


def test_the_reply_that_closes_after_one_of_the_delivery_counts_too() -> None:
    delivery = FakeDelivery()
    delivery.answers["begin"] = lambda *_: _raise(Refused(refusal(521, "Go away")))
    guard = Guard(delivery)
    guard.greeted().say("MAIL FROM:<a@example.org>")
    guard.greeted().say("QUIT")
    assert measured(guard).replies == {("EHLO", 250): 2, ("MAIL", 521): 1, ("MAIL", 421): 1, ("QUIT", 221): 1}


def test_connections_count_by_their_outcome() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow])
    waiting = guard.connect()
    waiting.disconnect()
    for verdict in (PASS, refuse()):
        guard.connect()
        slow.asked[-1].callback(verdict)
    assert measured(guard).connections == {("", "hung_up"): 1, ("", "accepted"): 1, ("", "refused"): 1}


def test_a_connection_above_a_limit_in_dry_run_counts_once() -> None:
    guard = Guard(max_connections=1, dry_run={"max_connections"})
    guard.connect(), guard.connect()
    assert measured(guard).connections == {("", "accepted"): 2}


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (PASS, "pass"),
        (TRUST, "trust"),
        (refuse(), "refuse"),
        (lambda _: _raise(ValueError("a bug")), "error"),
        ("yes", "error"),
    ],
)
def test_a_filter_that_answers_at_once_has_taken_no_time(answer: Any, verdict: str) -> None:
    guard = Guard(ip_filters=[FilterEntry(FakeFilter(answer), "mine")])
    guard.connect()
    ((name, histogram),) = measured(guard).filters.items()
    assert (name, histogram.total, histogram.seconds) == (("mine", verdict), 1, 0)


@pytest.mark.parametrize(
    ("end", "verdict", "seconds"),
    [
        (lambda asked: asked.callback(PASS), "pass", 2),
        (lambda asked: asked.callback(refuse()), "refuse", 2),
        (lambda asked: asked.errback(ValueError("a bug")), "error", 2),
        (lambda asked: None, "timeout", 10),
    ],
)
def test_the_time_of_a_filter_that_answers_later_is_measured(
    end: Callable[[Deferred[Any]], None], verdict: str, seconds: float
) -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[FilterEntry(slow, "slow")])
    guard.connect()
    guard.clock.advance(2)
    end(slow.asked[0])
    guard.clock.advance(8)
    ((name, histogram),) = measured(guard).filters.items()
    assert (name, histogram.total) == (("slow", verdict), 1)
    assert histogram.seconds == pytest.approx(seconds)


def test_a_hook_that_accepts_in_its_call_has_taken_no_time() -> None:
    guard = Guard()
    client = guard.greeted()
    client.say(*MAIL, *ENVELOPE, "RCPT TO:<c@example.org>", "BDAT 3 LAST")
    client.send(b"x\r\n")
    assert hooks(guard) == {
        ("begin", "ok"): (2, 0),
        ("recipient", "ok"): (3, 0),
        ("data", "ok"): (2, 0),
        ("finish", "ok"): (2, 0),
    }


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    ("error", "outcome"), [(Refused(refusal(550, "No")), "refused"), (ValueError("a bug"), "error")]
)
def test_a_hook_that_raises_in_its_call_is_counted(hook: str, error: Exception, outcome: str) -> None:
    delivery = FakeDelivery()
    delivery.answers[hook] = lambda *_: _raise(error)
    guard = Guard(delivery)
    guard.greeted().say(*MAIL)
    found = hooks(guard)
    assert found[hook, outcome] == (1, 0)
    assert (hook, "ok") not in found


@pytest.mark.parametrize("hook", ["recipient", "finish"])
def test_a_hook_that_answers_with_a_refusal_has_refused(hook: str) -> None:
    delivery = FakeDelivery()
    delivery.answers[hook] = lambda *_: refusal(450, "Later")
    guard = Guard(delivery)
    guard.greeted().say(*MAIL)
    assert hooks(guard)[hook, "refused"] == (1, 0)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    ("end", "outcome", "seconds"),
    [
        ("accept", "ok", 3),
        ("refuse", "refused", 3),
        ("fail", "error", 3),
        ("nothing", "timeout", 300),
        ("gone", "cancelled", 3),
    ],
)
def test_the_time_of_a_hook_that_answers_later_is_measured(
    hook: str, end: str, outcome: str, seconds: float
) -> None:
    delivery, asked = late(hook)
    guard = Guard(delivery, read_timeout=0)
    client = guard.greeted()
    for line in MAIL:
        client.say(line)
    accepted = FakeDelivery()
    begun = accepted.begin(None, None)  # type: ignore[arg-type]
    answers = {"begin": begun, "data": begun.data()}
    guard.clock.advance(3)
    if end == "gone":
        client.disconnect()
        # Nobody cancels finish(), which goes on.
        outcome = "ok" if hook == "finish" else outcome
        if hook == "finish":
            asked[0].callback(None)
    elif end == "nothing":
        guard.clock.advance(298)
    elif end == "accept":
        asked[0].callback(answers.get(hook))
    else:
        asked[0].errback(Refused(refusal(550, "No")) if end == "refuse" else ValueError("a bug"))
    total, spent = hooks(guard)[hook, outcome]
    assert total == 1
    assert spent == pytest.approx(seconds, abs=1.1)
    assert {name for name in hooks(guard) if name[0] == hook} == {(hook, outcome)}


def test_answers_at_once_and_later_add_up_to_all() -> None:
    delivery, asked = late("finish")
    guard = Guard(delivery)
    client = guard.greeted()
    client.say(*MAIL)
    guard.clock.advance(2)
    asked[0].callback(None)
    del delivery.answers["finish"]
    client.say(*MAIL)
    assert hooks(guard)["finish", "ok"] == (2, 2)
    counts = measured(guard).hook_seconds(2)["finish", "ok"].counts
    assert counts[0] == 1 and counts[HOOK_BOUNDS.index(2.5)] == 1


def test_a_message_that_is_accepted_after_its_time_limit_was_a_timeout() -> None:
    goes_on: Deferred[None] = Deferred()

    async def stubborn() -> None:
        with suppress(CancelledError):
            await Deferred()
        await goes_on

    delivery = FakeDelivery()
    delivery.answers["finish"] = stubborn
    guard = Guard(delivery)
    guard.greeted().say(*MAIL)
    guard.clock.advance(301)
    goes_on.callback(None)
    assert guard.factory.statistics.messages_accepted == 1
    assert {name: total for name, (total, _) in hooks(guard).items() if name[0] == "finish"} == {
        ("finish", "timeout"): 1
    }


def test_what_was_counted_once_never_falls() -> None:
    """A stop that a hook has caused replaces the reply to it, so that there is one positive reply less than answers."""
    delivery, asked = late("recipient")
    guard = Guard(delivery)
    client = guard.greeted()
    del delivery.answers["recipient"]
    client.say(*ENVELOPE)
    before = hooks(guard)["recipient", "ok"][0]
    measured(guard).hooks["recipient", "ok"].observe(3)
    counts = measured(guard).hook_seconds(0)["recipient", "ok"].counts
    assert (before, counts[0]) == (1, 1)
    assert asked == []


def refused_by_size(client: Conversation) -> None:
    client.say(*DATA)
    client.send(b"x" * 998 + b"\r\n.\r\n")


def refused_by_delivery(client: Conversation) -> None:
    client.guard.delivery.answers["finish"] = lambda: refusal(451, "Later")
    client.say(*MAIL)


def never_ends(client: Conversation) -> None:
    client.say(*DATA)
    client.send(b"x" * 3000)


def left(client: Conversation) -> None:
    client.say(*DATA, "Subject: x")
    client.disconnect()


def left_after_its_end(client: Conversation) -> None:
    client.guard.delivery.answers["finish"] = Deferred
    client.say(*MAIL)
    client.disconnect()


def left_while_refused(client: Conversation) -> None:
    client.say(*DATA)
    client.send(b"x" * 998 + b"\r\n")
    client.disconnect()


def reset_between_chunks(client: Conversation) -> None:
    client.say(*ENVELOPE)
    client.send(b"BDAT 3\r\nx\r\nRSET\r\n")


@pytest.mark.parametrize(
    ("act", "outcomes"),
    [
        (refused_by_size, {"rejected": 1}),
        (refused_by_delivery, {"deferred": 1}),
        (never_ends, {"rejected": 1}),
        (left, {"aborted": 1}),
        (left_after_its_end, {}),
        (left_while_refused, {}),
        (reset_between_chunks, {"aborted": 1}),
        (lambda client: client.say(*MAIL), {}),
        (lambda client: client.say(*ENVELOPE, "RSET", "QUIT"), {}),
    ],
)
def test_a_message_that_is_not_accepted_counts_once(
    act: Callable[[Conversation], None], outcomes: dict[str, int]
) -> None:
    guard = Guard(max_message_size=500, oversize_drain=1000)
    act(guard.greeted())
    assert measured(guard).messages == outcomes


def test_sessions_and_messages_are_measured() -> None:
    guard = Guard()
    client = guard.greeted()
    client.say(*DATA)
    guard.clock.advance(2)
    client.say(".")
    guard.clock.advance(4)
    client.say("QUIT")
    of = measured(guard)
    assert (of.message_seconds.total, of.message_seconds.seconds) == (1, 2)
    assert (of.session_seconds.total, of.session_seconds.seconds) == (1, 6)


def test_the_lines_that_were_left_out_are_counted_in_all() -> None:
    budget = LineBudget(1, 0)
    for _ in range(3):
        budget.allows("192.0.2.1", "not_smtp", 0.5)
    assert (budget.suppressed_in_all, budget.take_suppressed(), budget.suppressed_in_all) == (2, 2, 2)
    budget.allows("192.0.2.1", "not_smtp", 0.5)
    assert budget.suppressed_in_all == 3
