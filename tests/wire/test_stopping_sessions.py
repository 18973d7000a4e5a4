"""What a session still answers while the service stops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes import FakeDelivery, Guard, codes
from test_commands import reach
from test_transaction import LINES, pending, ready_for
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from twisted_smtpguard import replies
from twisted_smtpguard.interfaces import Refused

SHUTTING_DOWN = "421 4.3.2 Server shutting down\r\n"
ACCEPTED = "250 2.0.0 Message accepted\r\n"


@pytest.mark.parametrize("phase", ["connected", "ready"])
def test_a_session_outside_a_transaction_ends_now(phase: str) -> None:
    client = reach(phase)
    client.guard.factory.drain()
    assert client.heard() == SHUTTING_DOWN
    assert client.closed


@pytest.mark.parametrize("phase", ["sender", "refused", "recipients"])
@pytest.mark.parametrize(
    "command", ["RCPT TO:<c@d.example>", "DATA", "BDAT 2 LAST", "RSET", "NOOP", "BREW", "NO\rOP"]
)
def test_a_session_with_an_envelope_ends_at_its_next_command(phase: str, command: str) -> None:
    client = reach(phase)
    client.guard.factory.drain()
    assert client.heard() == ""
    assert not client.closed
    assert client.say(command) == SHUTTING_DOWN
    assert client.closed
    assert client.guard.delivery.calls[-1] == "transaction.abort"


@pytest.mark.parametrize("phase", ["sender", "chunks"])
def test_quit_is_answered_as_ever(phase: str) -> None:
    client = reach(phase)
    client.guard.factory.drain()
    assert client.say("QUIT") == "221 2.0.0 Closing connection\r\n"


def test_message_data_goes_on_to_its_verdict() -> None:
    client = reach("recipients")
    client.say("DATA")
    client.heard()
    client.guard.factory.drain()
    assert client.say("Subject: x", "", "y") == ""
    assert client.say(".", "NOOP") == ACCEPTED + SHUTTING_DOWN
    assert len(client.guard.delivery.messages) == 1


def test_a_message_in_chunks_goes_on_to_its_verdict() -> None:
    client = reach("chunks")
    client.guard.factory.drain()
    assert codes(client.send(b"BDAT 3\r\nabc")) == [250]
    assert client.send(b"BDAT 3 LAST\r\nabcNOOP\r\n") == ACCEPTED + SHUTTING_DOWN
    assert len(client.guard.delivery.messages) == 1


@pytest.mark.parametrize("command", ["NOOP", "RSET", "MAIL FROM:<>", "BREW"])
def test_between_chunks_any_other_command_ends_the_session(command: str) -> None:
    client = reach("chunks")
    client.guard.factory.drain()
    assert client.say(command) == SHUTTING_DOWN
    assert client.guard.delivery.calls[-1] == "sink.abort"


@pytest.mark.parametrize("hook", ["begin", "recipient", "finish"])
def test_a_command_that_is_being_answered_gets_its_reply(hook: str) -> None:
    client = ready_for(hook, "late")
    client.send(LINES[hook])
    drained = client.guard.factory.drain()
    assert client.heard() == ""
    pending(client).succeed()
    assert codes(client.heard()) == ([250, 421] if hook == "finish" else [250])
    assert codes(client.say("NOOP")) == ([] if hook == "finish" else [421])
    client.disconnect()
    assert drained.called


def test_nothing_of_a_message_that_the_grace_cut_off_is_delivered() -> None:
    client = Guard(FakeDelivery(), shutdown_grace=30).greeted()
    client.say("MAIL FROM:<>", "RCPT TO:<c@d.example>", "DATA", "Subject: x")
    client.heard()
    client.guard.factory.drain()
    client.guard.clock.advance(31)
    assert client.heard() == SHUTTING_DOWN
    assert client.transport.lost
    assert client.guard.delivery.messages == []
    assert client.guard.delivery.calls[-1] == "sink.abort"


@pytest.mark.parametrize("then", [None, Refused(replies.LOCAL_ERROR), ZeroDivisionError()])
def test_a_hook_that_stops_the_guard_ends_its_own_session_and_nothing_is_sent_after_that(
    then: Exception | None,
) -> None:
    client = reach("ready")
    factory = client.guard.factory

    def begin(*_: object) -> None:
        factory.drain()
        if then is not None:
            raise then

    client.guard.delivery.answers["begin"] = begin
    assert client.say("MAIL FROM:<a@b>") == SHUTTING_DOWN
    assert client.closed
    assert client.heard() == ""
    assert factory.statistics.refusals == {"shutdown": 1}
    assert factory._lingering == 1
    client.disconnect()
    assert factory._lingering == 0


# What it waits for, and for how long.


def lines_of(do: Callable[[], object]) -> list[str]:
    with capturedLogs() as events:
        do()
    return [event["text"] for event in events if event.get("event") == "draining"]


def test_while_a_stop_waits_the_log_says_for_what() -> None:
    guard = Guard(shutdown_grace=22)
    verdicts: list[Deferred[None]] = []

    def later() -> Deferred[None]:
        verdicts.append(Deferred())
        return verdicts[-1]

    guard.delivery.answers["finish"] = later
    message = ("MAIL FROM:<>", "RCPT TO:<c@d.example>", "DATA", "x: y", ".")
    clients = [guard.greeted() for _ in range(4)]
    for client in clients[:3]:
        client.say(*message)
    clients[3].say(*message[:2])
    clients[0].disconnect()

    def stop() -> None:
        guard.factory.drain()
        guard.clock.pump([9.9, 0.2])
        verdicts[0].callback(None)
        verdicts[1].callback(None)
        clients[1].disconnect()
        clients[3].disconnect()
        guard.clock.pump([10, 2, 3.1])
        clients[2].disconnect()
        guard.clock.pump([5, 10, 10])

    assert lines_of(stop) == [
        "draining sessions=3 verdicts=3 waiting for 3 sessions, 3 verdicts",
        "draining sessions=3 verdicts=3 waiting for 3 sessions, 3 verdicts",
        "draining sessions=1 verdicts=1 waiting for 1 session, 1 verdict",
    ]


def test_a_stop_that_has_nothing_to_wait_for_does_not_say_so() -> None:
    guard = Guard()
    guard.greeted().say("QUIT")
    assert lines_of(guard.factory.drain) == []


@pytest.mark.parametrize("hurry", [False, True], ids=["the grace is over", "a second signal"])
def test_clients_that_linger_are_waited_for_until_the_grace_is_over_and_a_verdict_five_seconds_more(
    hurry: bool,
) -> None:
    for owed in (False, True):
        guard = Guard(shutdown_grace=30, delivery_timeout=0)
        guard.delivery.answers["finish"] = Deferred
        lingering, frozen, silent = (guard.greeted() for _ in range(3))
        frozen.transport.reads = False
        silent.say("MAIL FROM:<>")
        if owed:
            sending = guard.greeted()
            sending.say("MAIL FROM:<>", "RCPT TO:<c@d.example>", "DATA", "x: y", ".")
        stopped: list[None] = []
        guard.factory.drain().addCallback(stopped.append)
        assert lingering.closed
        if hurry:
            guard.factory.end_now()
        else:
            # Who lingers is cut off by its own limit before.
            guard.clock.pump([4] * 7)
            assert stopped == []
            guard.clock.advance(2)
        guard.clock.advance(0.6)
        assert lingering.transport.lost
        assert frozen.transport.lost
        assert silent.transport.lost
        assert stopped == ([] if owed else [None])
        guard.clock.advance(4.3)
        assert stopped == ([] if owed else [None])
        guard.clock.advance(0.2)
        assert stopped == [None]
        assert guard.clock.getDelayedCalls() == []
