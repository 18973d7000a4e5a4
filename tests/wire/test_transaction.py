"""What becomes of a delivery's answer, whichever way it comes, to the client and to the transaction."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Conversation, FakeDelivery, Guard, codes, refusal
from strictdelivery import LATER, NOW, Pending, StrictDelivery
from twisted.internet.defer import Deferred

from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.testing.fakes import FakeSink, FakeTransaction

LINES = {
    "begin": b"MAIL FROM:<a@b.example>\r\n",
    "recipient": b"RCPT TO:<c@d.example>\r\n",
    "data": b"DATA\r\n",
    "write": b"Subject: x\r\n\r\ny\r\n.\r\n",
    "finish": b"Subject: x\r\n\r\ny\r\n.\r\n",
}
HOOKS = list(LINES)
USUAL = {"begin": 250, "recipient": 250, "data": 354, "write": 250, "finish": 250}
ENDS = {"begin": [], "recipient": ["abort"], "data": ["abort"], "write": ["sink.abort"], "finish": ["finish"]}
"""How the transaction ends if the hook fails for good, or the client leaves meanwhile."""
INTERNAL_ERROR = "451 4.3.0 Internal error, try again later\r\n"
TIMED_OUT = "451 4.3.0 Delivery timed out, try again later\r\n"


def ready_for(hook: str, outcome: str = "now", **limits: Any) -> Conversation:
    """A client whose next line, LINES[hook], makes the guard call this hook, which has this outcome."""
    client = Guard(StrictDelivery(lambda name: outcome if name == hook else "now"), **limits).greeted()
    for line in list(LINES.values())[: min(HOOKS.index(hook), 3)]:
        client.send(line)
    client.heard()
    return client


def pending(client: Conversation) -> Pending:
    """The hook that has not answered."""
    (one,) = client.guard.delivery.pending
    return one


def check_ends(client: Conversation, ends: list[str]) -> None:
    """The one transaction has ended like this, and does not end again when the client leaves."""
    delivery = client.guard.delivery
    transaction = delivery.transactions[-1]
    assert transaction.ends == ends
    client.disconnect()
    assert transaction.ends == (ends or (["abort"] if transaction.handed_over else []))
    assert delivery.broken == []


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("outcome", ["now", "fired", "coroutine"])
def test_an_answer_that_is_there_leaves_in_the_write_of_its_arrival(hook: str, outcome: str) -> None:
    client = ready_for(hook, outcome)
    writes = len(client.transport.writes)
    assert codes(client.send(LINES[hook] + b"NOOP\r\n"))[0] == USUAL[hook]
    assert len(client.transport.writes) == writes + 1
    assert client.guard.delivery.broken == []


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("outcome", LATER)
def test_a_late_answer_is_waited_for(hook: str, outcome: str) -> None:
    client = ready_for(hook, outcome)
    assert client.send(LINES[hook]) == ""
    pending(client).succeed()
    assert codes(client.heard()) == [USUAL[hook]]
    assert client.guard.delivery.broken == []


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("outcome", [*(x for x in NOW if x not in {"now", "fired", "coroutine"}), "late"])
def test_a_failure_is_a_reply_and_says_no_word_of_the_exception(hook: str, outcome: str) -> None:
    client = ready_for(hook, outcome)
    said = client.send(LINES[hook])
    if outcome == "late":
        pending(client).fail(ValueError("secret"))
        said = client.heard()
    expected = {"refused": "550 5.1.1 No\r\n", "refused coroutine": "450 4.1.1 No\r\n"}
    assert said == expected.get(outcome, INTERNAL_ERROR)
    assert client.codes("NOOP") == [250]
    # A recipient that fails is not the end of its transaction.
    check_ends(client, [] if hook == "recipient" else ENDS[hook])


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_delivery_raises_is_logged_and_a_refusal_is_not(hook: str) -> None:
    for outcome, failures in (("raised", 1), ("refused", 0)):
        client = ready_for(hook, outcome)
        client.send(LINES[hook])
        assert client.guard.factory.statistics.failures == failures


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(450, "4.2.1", ("Later",)), "450 4.2.1 Later"),
        (Reply(559, "5.9.9", ("x",)), "559 5.9.9 x"),
        (Reply(599, "5.9.9", ("x",)), "550 5.9.9 x"),
        (Reply(460, "4.1.1", ("x",)), "450 4.1.1 x"),
        (Reply(479, "", ("x",)), "450 4.0.0 x"),
        (Reply(550, "", ("No code",)), "550 5.0.0 No code"),
        (Reply(550, "4.1.1", ("Another class",)), "550 5.0.0 Another class"),
        (Reply(450, "4.", ("x",)), "450 4.0.0 x"),
        (Reply(550, "5.1", ("x",)), "550 5.0.0 x"),
        (Reply(550, "5.1.1 forged", ("x",)), "550 5.0.0 x"),
        (Reply(550, "5.1.1\r\n250 forged", ("x",)), "550 5.0.0 x"),
        (Reply(550, "5.1.1", ()), "550 5.1.1 "),
        (Reply(250, "2.0.0", ("OK",)), None),
        (Reply(354, "", ("Go on",)), None),
        (Reply(221, "2.0.0", ("Bye",)), None),
        (Reply(600, "", ("x",)), None),
        (Reply(0, "", ("x",)), None),
        (Reply(-550, "", ("x",)), None),
        (None, None),
        ("550 No", None),
    ],
)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_refusal_goes_out_with_a_possible_code_and_an_enhanced_code_of_its_class(
    hook: str, reply: Any, said: str | None
) -> None:
    client = ready_for(hook, "late")
    client.send(LINES[hook])
    pending(client).fail(Refused(reply))
    assert client.heard() == (INTERNAL_ERROR if said is None else f"{said}\r\n")
    assert not client.closed


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("code", [421, 521])
def test_a_refusal_that_closes_ends_the_session_and_the_transaction(hook: str, code: int) -> None:
    client = ready_for(hook, "late")
    client.send(LINES[hook] + b"NOOP\r\n")
    pending(client).fail(Refused(refusal(code, "Go away")))
    # The last line before the guard hangs up is a 421.
    goodbye = "" if code == 421 else "421 4.7.0 Session refused, closing connection\r\n"
    assert client.heard() == f"{code} {code // 100}.1.1 Go away\r\n{goodbye}"
    assert client.closed
    check_ends(client, ENDS[hook])


@pytest.mark.parametrize("hook", ["recipient", "finish"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Reply(250, "2.1.5", ("Known",)), "250 2.1.5 Known"),
        (Reply(251, "", ("Forwarded",)), "251 2.0.0 Forwarded"),
        (Reply(290, "2.1.5", ("Known",)), "250 2.1.5 Known"),
        (Reply(599, "5.1.1", ("Returned, not raised",)), "550 5.1.1 Returned, not raised"),
        (Reply(550, "5.1.1", ("Returned, not raised",)), "550 5.1.1 Returned, not raised"),
        (Reply(221, "2.0.0", ("Bye",)), INTERNAL_ERROR.rstrip()),
        (Reply(354, "", ("Go on",)), INTERNAL_ERROR.rstrip()),
        ("250 OK", INTERNAL_ERROR.rstrip()),
        (True, INTERNAL_ERROR.rstrip()),
        (object(), INTERNAL_ERROR.rstrip()),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_an_answer_replaces_the_text_or_is_rubbish(hook: str, answer: Any, said: str, later: bool) -> None:
    delivery, deferred = FakeDelivery(), Deferred[Any]()
    delivery.answers[hook] = lambda *args: deferred if later else answer
    client = Guard(delivery).greeted()
    for line in list(LINES.values())[: min(HOOKS.index(hook), 3)]:
        client.send(line)
    client.heard()
    heard = client.send(LINES[hook])
    if later:
        deferred.callback(answer)
        heard = client.heard()
    assert heard == f"{said}\r\n"
    assert client.guard.factory.statistics.failures == ("Internal" in said)


@pytest.mark.parametrize("hook", ["begin", "data"])
@pytest.mark.parametrize("rubbish", [None, 5, "sink", object()])
@pytest.mark.parametrize("later", [False, True])
def test_rubbish_in_place_of_a_transaction_or_a_sink_is_a_451_at_once(
    hook: str, rubbish: Any, later: bool
) -> None:
    delivery, deferred = FakeDelivery(), Deferred[Any]()
    delivery.answers[hook] = lambda *args: deferred if later else rubbish
    client = Guard(delivery).greeted()
    for line in list(LINES.values())[: HOOKS.index(hook)]:
        client.send(line)
    client.heard()
    heard = client.send(LINES[hook])
    if later:
        deferred.callback(rubbish)
        heard = client.heard()
    assert heard == INTERNAL_ERROR
    client.disconnect()
    assert delivery.calls.count("transaction.abort") == (hook == "data")


@pytest.mark.parametrize("outcome", ["now", "fired", "late"])
def test_a_large_arrival_is_written_in_pieces_one_after_another(outcome: str) -> None:
    client = ready_for("write", outcome)
    delivery = client.guard.delivery
    said = client.send(b"x" * 300_000 + b"\r\n.\r\n")
    writes = 0
    while delivery.pending:
        pending(client).succeed()
        writes += 1
    assert codes(said + client.heard()) == [250]
    assert len(delivery.transactions[0].sink.octets) == 300_002
    assert (writes >= 5) is (outcome == "late")
    check_ends(client, ["finish"])


@pytest.mark.parametrize("outcome", ["raised", "failed", "late"])
def test_nothing_is_written_after_a_write_that_failed(outcome: str) -> None:
    client = ready_for("write", outcome)
    client.send(b"x" * 300_000 + b"\r\n.\r\n")
    if outcome == "late":
        pending(client).fail(ValueError())
    assert len(client.guard.delivery.transactions[0].sink.octets) <= 65536
    check_ends(client, ["sink.abort"])


def test_the_size_wins_over_the_refusal_of_a_sink() -> None:
    client = ready_for("write", "refused", max_message_size=100)
    assert client.send(b"x" * 50 + b"\r\n") == ""
    client.guard.delivery.outcome = lambda name: "now"
    assert codes(client.send(b"x" * 50 + b"\r\n.\r\n")) == [552]


# The time limit.


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("outcome", LATER)
def test_a_hook_that_does_not_answer_is_a_451_after_the_abort(hook: str, outcome: str) -> None:
    client = ready_for(hook, outcome, delivery_timeout=30)
    client.send(LINES[hook])
    one = pending(client)
    client.guard.clock.pump([1] * 29)
    assert client.heard() == ""
    assert one.transaction.ends == (["finish"] if hook == "finish" else [])
    ends_at_the_451: list[list[str]] = []
    write = client.transport.write

    def written(octets: bytes) -> None:
        ends_at_the_451.append(list(one.transaction.ends))
        write(octets)

    client.transport.write = written  # type: ignore[method-assign]
    client.guard.clock.pump([0.2] * 10)
    assert client.heard() == TIMED_OUT
    # data() that goes on may still hand over the sink, which gets the abort then.
    ends = [] if hook == "data" and outcome == "stubborn" else ENDS[hook]
    assert ends_at_the_451 == [ends]
    assert client.codes("RCPT TO:<c@d.example>", "NOOP") == [503, 250]
    assert client.guard.factory.statistics.failures == 0


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("how", ["succeed", "fail", "never"])
@pytest.mark.parametrize("meanwhile", ["", "RSET", "QUIT", "MAIL FROM:<>", "EHLO again"])
def test_what_answers_after_its_time_ends_its_transaction_once(hook: str, how: str, meanwhile: str) -> None:
    client = ready_for(hook, "stubborn", delivery_timeout=30)
    client.send(LINES[hook])
    one = pending(client)
    client.guard.clock.advance(31)
    client.guard.delivery.outcome = lambda name: "now"
    if meanwhile:
        client.say(meanwhile)
    if how == "succeed":
        one.succeed()
    elif how == "fail":
        one.fail(ValueError())
    handed_over_late = {"begin": ["abort"], "data": ["sink.abort"]} if how == "succeed" else {}
    ends = [] if how == "never" and hook == "data" else handed_over_late.get(hook, ENDS[hook])
    assert one.transaction.ends == ends
    assert client.guard.delivery.broken == []


def test_a_body_that_is_refused_for_time_is_swallowed_to_its_end() -> None:
    client = ready_for("write", "late", delivery_timeout=30)
    assert client.send(b"Subject: x\r\n\r\n") == ""
    client.guard.clock.advance(31)
    assert client.heard() == ""
    assert client.send(b"QUIT\r\n.\r\nNOOP\r\n") == TIMED_OUT + "250 2.0.0 OK\r\n"


def test_without_a_time_limit_a_hook_may_take_any_time() -> None:
    client = ready_for("finish", "late", delivery_timeout=0)
    client.send(LINES["finish"])
    client.guard.clock.pump([300] * 100)
    assert client.heard() == ""
    pending(client).succeed()
    assert codes(client.heard()) == [250]


def test_a_finish_that_succeeds_in_answer_to_its_cancellation_is_accepted() -> None:
    delivery = FakeDelivery()
    delivery.answers["finish"] = lambda: Deferred(lambda deferred: deferred.callback(None))
    client = Guard(delivery, delivery_timeout=30).greeted()
    for hook in ("begin", "recipient", "data", "finish"):
        client.send(LINES[hook])
    client.heard()
    client.guard.clock.advance(31)
    assert codes(client.heard()) == [250]
    assert client.guard.factory.statistics.messages_accepted == 1


def test_a_message_that_becomes_safe_after_its_451_is_logged_as_late() -> None:
    client = ready_for("finish", "stubborn", delivery_timeout=30)
    events: list[dict[str, Any]] = []
    client.guard.factory.context.events.accept = lambda *names, **fields: events.append(fields)  # type: ignore[method-assign]
    client.send(LINES["finish"])
    client.guard.clock.advance(31)
    assert client.heard() == TIMED_OUT
    assert events == []
    client.guard.delivery.outcome = lambda name: "now"
    client.guard.clock.advance(9)
    client.say("EHLO other.example", "MAIL FROM:<>")
    pending(client).succeed()
    (event,) = events
    assert (event["late"], event["client_gone"], event["sender"]) == (True, False, "a@b.example")
    assert event["helo"] == "client.example"
    assert event["seconds"] == 40


@pytest.mark.parametrize("outcome", [*NOW, "late"])
def test_a_message_is_accepted_exactly_when_finish_succeeds(outcome: str) -> None:
    client = ready_for("finish", outcome)
    said = client.send(LINES["finish"])
    if outcome == "late":
        assert client.guard.factory.statistics.messages_accepted == 0
        pending(client).succeed()
        said = client.heard()
    (transaction,) = client.guard.delivery.transactions
    assert transaction.ends == ["finish"]
    accepted = outcome in {"now", "fired", "coroutine", "late"}
    assert (codes(said) == [250]) is accepted
    assert client.guard.factory.statistics.messages_accepted == accepted


class EmptySink(FakeSink):
    """A sink that is empty, and so false, like a list."""

    def __len__(self) -> int:
        return len(self.octets)


def test_a_sink_that_is_false_is_aborted_like_any_other() -> None:
    guard = Guard()
    guard.delivery.answers["data"] = lambda: EmptySink(FakeTransaction(guard.delivery, None, None))  # type: ignore[arg-type]
    client = guard.greeted()
    client.say("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>", "DATA")
    client.disconnect()
    assert guard.delivery.calls[-1] == "sink.abort"


class OddFuture:
    """Looks like a future of asyncio, and is none."""

    _asyncio_future_blocking = False

    def __await__(self) -> Any:
        yield


def test_an_awaitable_that_cannot_be_waited_for_is_a_fault_of_its_hook() -> None:
    guard = Guard()
    client = guard.greeted()
    guard.delivery.answers["recipient"] = lambda _: OddFuture()
    assert client.codes("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>", "RSET")[-2:] == [
        451,
        250,
    ]
    client.disconnect()
    assert guard.factory.connections == 0


def test_what_is_answered_amid_the_end_of_a_session_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard()
    client = guard.greeted()
    begun: Deferred[Any] = Deferred()
    guard.delivery.answers["begin"] = lambda *_: begun
    client.say("MAIL FROM:<a@client.example>")
    transaction = FakeTransaction(guard.delivery, None, None)  # type: ignore[arg-type]
    # An observer of the log may be what the hook has waited for.
    monkeypatch.setattr(
        guard.factory.context.events, "reject", lambda *_, **__: begun.called or begun.callback(transaction)
    )
    guard.factory.drain()
    guard.factory.end_now()
    assert client.heard().endswith("421 4.3.2 Server shutting down\r\n")
    assert guard.delivery.calls == ["begin", "transaction.abort"]
