"""Every way a connection can end: what the client hears, what the delivery hears, and that nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from fakes import Conversation, FakeTransport, Guard, codes
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ISSLTransport
from twisted.logger import LogEvent, globalLogPublisher
from zope.interface import directlyProvides

from twisted_smtpguard.engine import counts, lines, transaction
from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.replies import SHUTTING_DOWN, Reply
from twisted_smtpguard.transport.protocol import SMTPGuardProtocol

ENVELOPE = ("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>")
MESSAGE = (*ENVELOPE, "DATA", "text", ".")


@pytest.fixture(autouse=True)
def failures() -> Iterator[list[type[BaseException]]]:
    """What was logged with a traceback. A test that expects failures takes them out."""
    kinds: list[type[BaseException]] = []

    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            kinds.append(event["log_failure"].type)

    globalLogPublisher.addObserver(observe)
    yield kinds
    globalLogPublisher.removeObserver(observe)
    assert kinds == []


def quits(client: Conversation) -> None:
    assert codes(client.say("QUIT")) == [221]


def half_closes(client: Conversation) -> None:
    client.half_close()


def half_closes_in_a_command(client: Conversation) -> None:
    client.send(b"NOO")
    client.half_close()


def half_closes_in_data(client: Conversation) -> None:
    client.say(*ENVELOPE, "DATA", "text")
    client.half_close()


def half_closes_in_a_chunk(client: Conversation) -> None:
    client.say(*ENVELOPE)
    client.send(b"BDAT 10 LAST\r\n12345")
    client.half_close()


def half_closes_between_chunks(client: Conversation) -> None:
    client.say(*ENVELOPE)
    client.send(b"BDAT 5\r\n12345")
    client.half_close()


def half_closes_while_the_delivery_thinks(client: Conversation) -> None:
    answer: Deferred[Any] = Deferred()
    client.guard.delivery.answers["recipient"] = lambda _: answer
    client.say(*ENVELOPE)
    client.half_close()
    assert not client.closed
    answer.callback(None)


def half_closes_before_reading(client: Conversation) -> None:
    client.transport.reads = False
    client.say(*["NOOP"] * 3000)
    client.half_close()
    assert client.guard.factory.connections == 1
    client.transport.reads = True
    client.transport.drain()
    client.guard.clock.advance(0)


def is_reset(client: Conversation) -> None:
    client.disconnect()


def is_reset_in_data(client: Conversation) -> None:
    client.say(*ENVELOPE, "DATA", "text")
    client.disconnect()


def is_reset_while_the_delivery_thinks(client: Conversation) -> None:
    client.guard.delivery.answers["recipient"] = lambda _: Deferred()
    client.say(*ENVELOPE)
    client.disconnect()


def is_reset_during_the_verdict(client: Conversation) -> None:
    verdict: Deferred[None] = Deferred()
    client.guard.delivery.answers["finish"] = lambda: verdict
    client.say(*MESSAGE)
    client.disconnect()
    assert client.guard.factory.connections == 0
    verdict.callback(None)


def is_reset_with_replies_waiting(client: Conversation) -> None:
    client.transport.reads = False
    client.say(*["NOOP"] * 3000)
    client.disconnect()


def times_out(client: Conversation) -> None:
    client.guard.clock.advance(300)


def times_out_in_data(client: Conversation) -> None:
    client.say(*ENVELOPE, "DATA", "text")
    client.guard.clock.advance(300)


def does_not_read(client: Conversation) -> None:
    client.transport.reads = False
    client.say(*["NOOP"] * 3000)
    client.guard.clock.advance(300)


def makes_ten_errors(client: Conversation) -> None:
    client.say(*["WHAT"] * 10)


def sends_without_end(client: Conversation) -> None:
    client.send(b"x" * 70_000)


def is_no_mailer(client: Conversation) -> None:
    fresh = client.guard.connect()
    fresh.send(b"GET / HTTP/1.1\r\n\r\n")
    client.disconnect()


def is_shut_down(client: Conversation) -> None:
    client.guard.factory.drain()


def is_shut_down_in_data(client: Conversation) -> None:
    client.say(*ENVELOPE, "DATA", "text")
    client.guard.factory.drain()
    client.guard.clock.advance(30)


def is_shut_down_during_the_verdict(client: Conversation) -> None:
    client.guard.delivery.answers["finish"] = Deferred
    client.say(*MESSAGE)
    client.guard.factory.drain()
    client.guard.clock.advance(30)
    client.guard.clock.advance(300)


def is_shut_down_without_reading(client: Conversation) -> None:
    client.transport.reads = False
    client.say(*["NOOP"] * 3000)
    client.guard.factory.drain()
    client.guard.clock.advance(30)
    client.guard.clock.advance(5)


ENDS: list[Callable[[Conversation], None]] = [
    quits,
    half_closes,
    half_closes_in_a_command,
    half_closes_in_data,
    half_closes_in_a_chunk,
    half_closes_between_chunks,
    half_closes_while_the_delivery_thinks,
    half_closes_before_reading,
    is_reset,
    is_reset_in_data,
    is_reset_while_the_delivery_thinks,
    is_reset_during_the_verdict,
    is_reset_with_replies_waiting,
    times_out,
    times_out_in_data,
    does_not_read,
    makes_ten_errors,
    sends_without_end,
    is_no_mailer,
    is_shut_down,
    is_shut_down_in_data,
    is_shut_down_during_the_verdict,
    is_shut_down_without_reading,
]


@pytest.mark.parametrize("end", ENDS)
def test_however_a_connection_ends_its_slot_is_freed_once_and_nothing_is_left(
    end: Callable[[Conversation], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[SMTPGuardProtocol] = []
    connection_lost = SMTPGuardProtocol.connectionLost

    def lost(self: SMTPGuardProtocol, reason: Any = None) -> None:
        ends.append(self)
        connection_lost(self, reason)

    monkeypatch.setattr(SMTPGuardProtocol, "connectionLost", lost)
    guard = Guard(max_connections=2)
    statistics = guard.factory.statistics
    client = guard.greeted()
    end(client)
    assert guard.factory.connections == 0
    assert statistics.live_connections == 0
    guard.clock.advance(5)
    assert ends.count(client.protocol) == 1
    assert statistics.sessions_ended == statistics.connections_accepted == len(ends)
    assert guard.clock.getDelayedCalls() == []
    assert guard.factory._open == set()
    assert guard.factory._lingering == 0
    assert client.protocol.engine.buffer == b""
    assert [len(guard.delivery.messages), statistics.messages_accepted] in ([0, 0], [1, 1], [1, 0])
    guard.factory.reopen()
    for _ in range(2):
        assert codes(guard.connect().heard()) == [220]


def test_under_a_cap_of_one_a_fresh_client_gets_in_as_soon_as_the_last_line_is_said() -> None:
    guard = Guard(max_connections=1)
    for _ in range(5):
        client = guard.connect()
        assert codes(client.heard()) == [220]
        assert codes(client.say("EHLO x", *["WHAT"] * 10))[-1] == 421
        assert not client.transport.lost
    assert guard.factory.connections == 0


def test_a_lingering_connection_that_ends_frees_no_second_slot() -> None:
    guard = Guard(max_connections=1, max_invalid_commands=1)
    lingering = guard.connect()
    lingering.say("WHAT")
    guard.connect()
    lingering.disconnect()
    assert guard.factory.connections == 1
    assert guard.factory.statistics.live_connections == 1


# The client's FIN.


def test_a_client_that_half_closes_after_pipelined_commands_gets_every_reply() -> None:
    guard = Guard()
    answers: list[Deferred[Any]] = []

    def recipient(_: Any) -> Deferred[Any]:
        answers.append(Deferred())
        return answers[-1]

    guard.delivery.answers["recipient"] = recipient
    client = guard.greeted()
    assert codes(client.say(ENVELOPE[0], *[ENVELOPE[1]] * 3, "NOOP", "VRFY x")) == [250]
    assert client.half_close() == ""
    for n in range(3):
        assert not client.transport.lost
        answers[n].callback(None)
    assert codes(client.heard()) == [250, 250, 250, 250, 252]
    assert client.transport.lost
    assert client.protocol.engine.end_reason == "half_closed"


def test_a_client_that_half_closes_while_it_takes_the_replies_of_a_burst_gets_every_reply() -> None:
    guard = Guard()
    client = guard.greeted()
    client.heard()
    client.transport.reads = False
    client.say(*["NOOP"] * 4000)
    guard.clock.advance(0)
    assert client.protocol.congested
    while client.protocol.congested:
        client.transport.take(4096)
    assert client.protocol.engine.buffer
    heard = client.half_close()
    client.transport.reads = True
    while not client.transport.lost:
        client.transport.drain()
        guard.clock.advance(0)
    assert codes(heard + client.heard()) == [250] * 4000


def test_a_client_that_half_closes_while_its_message_is_decided_on_gets_the_verdict() -> None:
    guard = Guard()
    verdict: Deferred[None] = Deferred()
    guard.delivery.answers["finish"] = lambda: verdict
    client = guard.greeted()
    client.say(*MESSAGE)
    client.heard()
    assert client.half_close() == ""
    verdict.callback(None)
    assert client.heard() == "250 2.0.0 Message accepted\r\n"
    assert client.transport.lost


@pytest.mark.parametrize("end", [half_closes_in_data, half_closes_in_a_chunk, half_closes_between_chunks])
def test_of_a_message_cut_off_by_a_half_close_nothing_is_delivered(end: Any) -> None:
    client = Guard().greeted()
    end(client)
    assert client.guard.delivery.messages == []
    assert client.guard.delivery.calls[-1] == "sink.abort"
    assert client.transport.lost


def test_in_message_data_a_half_close_is_a_lost_connection() -> None:
    client = Guard().greeted()
    half_closes_in_data(client)
    assert client.protocol.engine.end_reason == "lost"
    assert "421" not in client.heard()


def test_a_half_closed_client_that_is_hung_up_on_is_not_lingered_for() -> None:
    guard = Guard(max_invalid_commands=1)
    answer: Deferred[Any] = Deferred()
    guard.delivery.answers["recipient"] = lambda _: answer
    client = guard.greeted()
    client.say(*ENVELOPE, "WHAT")
    client.heard()
    client.half_close()
    answer.callback(None)
    assert codes(client.heard()) == [250, 500, 421]
    assert client.transport.lost
    assert not client.transport.aborted


# Lingering.


def hung_up(guard: Guard) -> Conversation:
    client = guard.greeted()
    client.heard()
    client.say("WHAT")
    return client


def test_after_the_last_line_input_is_discarded_and_nothing_executed() -> None:
    guard = Guard(max_invalid_commands=1)
    client = guard.greeted()
    client.heard()
    assert codes(client.say("WHAT", *MESSAGE)) == [500, 421]
    assert client.say(*MESSAGE) == ""
    assert client.protocol.engine.buffer == b""
    assert guard.delivery.calls == []
    assert client.transport.half_closed
    assert not client.transport.lost


def test_nothing_after_quit_is_executed() -> None:
    client = Guard().greeted()
    client.heard()
    assert codes(client.say("QUIT", *MESSAGE)) == [221]
    assert client.guard.delivery.calls == []


def test_after_221_the_connection_is_closed_plainly() -> None:
    client = Guard().greeted()
    client.say("QUIT")
    assert client.transport.lost
    assert not client.transport.half_closed
    assert not client.transport.aborted


def test_a_lingering_connection_whose_client_goes_is_closed_at_once() -> None:
    client = hung_up(Guard(max_invalid_commands=1))
    client.half_close()
    assert client.transport.lost
    assert not client.transport.aborted
    assert client.guard.clock.getDelayedCalls() == []


def test_a_client_that_was_not_being_read_is_read_again_while_it_lingers() -> None:
    guard = Guard(delivery_timeout=0)
    guard.delivery.answers["recipient"] = lambda _: Deferred(lambda _: None)
    client = guard.greeted()
    client.say(*ENVELOPE)
    client.send(b"x" * 70_000)
    assert client.transport.producerState == "paused"
    client.protocol.engine.hang_up(SHUTTING_DOWN)
    assert client.transport.half_closed
    assert client.transport.producerState == "producing"
    client.send(b"x" * 200_000)
    assert client.transport.producerState == "producing"
    assert client.protocol.engine.buffer == b""


def test_after_a_last_line_that_the_client_does_not_read_input_is_discarded_too() -> None:
    client = Guard(max_output_buffer=700).greeted()
    client.transport.reads = False
    client.say(*["NOOP"] * 100)
    assert client.protocol.congested
    client.protocol.engine.shut_down(now=False)
    client.send(b"x" * 200_000)
    assert client.transport.producerState == "producing"
    assert client.protocol.engine.buffer == b""


def test_at_most_max_lingering_connections_linger_and_the_others_are_closed_plainly() -> None:
    guard = Guard(max_invalid_commands=1, max_lingering=2)
    lingering = [hung_up(guard), hung_up(guard)]
    assert not any(client.transport.lost for client in lingering)
    plain = hung_up(guard)
    assert plain.transport.lost
    assert not plain.transport.aborted
    lingering[0].disconnect()
    assert not hung_up(guard).transport.lost
    assert hung_up(guard).transport.lost


def test_a_last_line_that_has_not_left_is_not_cut_off_when_the_client_shuts_down_its_side() -> None:
    guard = Guard(max_invalid_commands=1)
    client = guard.greeted()
    client.heard()
    client.transport.reads = False
    client.say(*["NOOP"] * 500, "WHAT")
    guard.clock.advance(10)
    client.half_close()
    guard.clock.advance(10)
    assert not client.transport.lost
    assert client.protocol.engine.end_reason == "max_invalid_commands"
    client.transport.reads = True
    client.transport.drain()
    assert codes(client.heard())[-2:] == [500, 421]
    assert client.transport.lost
    assert not client.transport.aborted


# Our own faults.


class Fault(Exception):
    """Not to be told to a client."""


def fault(*_: object, **__: object) -> Any:
    raise Fault("/secret/path")


def test_a_fault_of_ours_outside_a_transaction_is_a_421(
    monkeypatch: pytest.MonkeyPatch, failures: list[type[BaseException]]
) -> None:
    guard = Guard()
    client, other = guard.greeted(), guard.greeted()
    client.heard()
    with monkeypatch.context() as patch:
        patch.setattr(lines, "carry_out", fault)
        said = client.say("NOOP", "NOOP")
    assert said == "421 4.3.0 Internal error, try again later\r\n"
    assert client.transport.half_closed
    other.heard()
    assert other.codes("NOOP", *MESSAGE) == [250, 250, 250, 354, 250]
    assert failures == [Fault]
    failures.clear()


def test_a_fault_of_ours_in_a_transaction_is_a_451_and_the_session_goes_on(
    monkeypatch: pytest.MonkeyPatch, failures: list[type[BaseException]]
) -> None:
    client = Guard().greeted()
    client.say(ENVELOPE[0])
    client.heard()
    with monkeypatch.context() as patch:
        patch.setattr(transaction, "_ask", fault)
        assert client.say(ENVELOPE[1]) == "451 4.3.0 Internal error, try again later\r\n"
    assert client.guard.delivery.calls == ["begin", "transaction.abort"]
    assert client.codes(*MESSAGE) == [250, 250, 354, 250]
    assert failures == [Fault]
    failures.clear()


@pytest.mark.parametrize("begin", ["DATA", "BDAT 100 LAST"])
def test_a_fault_of_ours_in_message_data_is_a_421_for_where_it_ends_cannot_be_known(
    begin: str, monkeypatch: pytest.MonkeyPatch, failures: list[type[BaseException]]
) -> None:
    client = Guard().greeted()
    client.say(*ENVELOPE, begin)
    client.heard()
    monkeypatch.setattr(type(client.protocol.engine.message), "feed", fault)
    assert client.say("text") == "421 4.3.0 Internal error, try again later\r\n"
    assert client.guard.delivery.calls[-1] == "sink.abort"
    assert client.guard.delivery.messages == []
    assert failures == [Fault]
    failures.clear()


def test_a_fault_that_would_come_again_and_again_ends_the_session(
    monkeypatch: pytest.MonkeyPatch, failures: list[type[BaseException]]
) -> None:
    client = Guard().greeted()
    client.say(*ENVELOPE)
    client.heard()
    monkeypatch.setattr(lines, "carry_out", fault)
    assert codes(client.say("NOOP", "NOOP")) == [451, 421]
    assert failures == [Fault, Fault]
    failures.clear()


def test_a_fault_of_the_guard_after_a_deferred_does_not_leave_the_session_hanging(
    monkeypatch: pytest.MonkeyPatch, failures: list[type[BaseException]]
) -> None:
    guard = Guard()
    answer: Deferred[Any] = Deferred()
    guard.delivery.answers["recipient"] = lambda _: answer
    client = guard.greeted()
    client.say(*ENVELOPE)
    client.heard()
    monkeypatch.setattr(counts, "account", fault)
    answer.callback(Reply(550, "5.1.1", ("No such user",)))
    assert client.transport.aborted
    assert guard.factory.connections == 0
    assert guard.clock.getDelayedCalls() == []
    assert failures == [Fault]
    failures.clear()


def test_a_fault_of_the_guard_after_a_deferred_is_a_451(
    monkeypatch: pytest.MonkeyPatch, failures: list[type[BaseException]]
) -> None:
    guard = Guard()
    answer: Deferred[Any] = Deferred()
    guard.delivery.answers["recipient"] = lambda _: answer
    client = guard.greeted()
    client.say(ENVELOPE[0])
    monkeypatch.setattr(transaction, "_answered", fault)
    client.say(ENVELOPE[1])
    client.heard()
    answer.callback(None)
    assert client.heard() == "451 4.3.0 Internal error, try again later\r\n"
    assert client.codes("NOOP") == [250]
    assert failures == [Fault]
    failures.clear()


@pytest.mark.parametrize("hook", ["begin", "recipient", "data", "write", "finish"])
@pytest.mark.parametrize("later", [False, True])
def test_a_fault_of_the_delivery_is_a_451_and_the_other_sessions_go_on(
    hook: str, later: bool, failures: list[type[BaseException]]
) -> None:
    guard = Guard()
    client, other = guard.greeted(), guard.greeted()
    pending: Deferred[Any] = Deferred()
    guard.delivery.answers[hook] = (lambda *_: pending) if later else fault
    said = ""
    for line in MESSAGE:
        said += client.say(line)
        if hook in guard.delivery.calls:
            break
    if later:
        pending.errback(Fault("/secret/path"))
    said += client.say(".") if hook == "write" else client.heard()
    assert said.endswith("451 4.3.0 Internal error, try again later\r\n")
    del guard.delivery.answers[hook]
    assert client.codes("RSET") == [250]
    assert other.codes(*MESSAGE)[-1] == 250
    assert guard.factory.statistics.refusals == {"internal_error": 1}
    assert failures == [Fault]
    failures.clear()


# The service stops.


def test_an_idle_session_is_told_at_once() -> None:
    client = Guard().greeted()
    client.heard()
    client.guard.factory.drain()
    assert client.heard() == "421 4.3.2 Server shutting down\r\n"
    assert client.transport.half_closed


def test_a_session_in_data_finishes_and_then_is_told() -> None:
    client = Guard().greeted()
    client.say(*ENVELOPE, "DATA")
    client.heard()
    client.guard.factory.drain()
    assert client.heard() == ""
    assert (
        client.say("text", ".", "NOOP") == "250 2.0.0 Message accepted\r\n421 4.3.2 Server shutting down\r\n"
    )


def test_a_session_between_two_chunks_finishes_and_then_is_told() -> None:
    client = Guard().greeted()
    client.say(*ENVELOPE, "BDAT 0")
    client.heard()
    client.guard.factory.drain()
    assert client.heard() == ""
    assert codes(client.send(b"BDAT 2 LAST\r\n\r\n")) == [250, 421]
    assert len(client.guard.delivery.messages) == 1


def test_a_session_between_mail_and_data_is_told_at_its_next_command() -> None:
    client = Guard().greeted()
    client.say(*ENVELOPE)
    client.heard()
    client.guard.factory.drain()
    assert client.heard() == ""
    assert client.say("DATA") == "421 4.3.2 Server shutting down\r\n"
    assert client.guard.delivery.calls[-1] == "transaction.abort"


def test_a_session_that_does_not_read_is_told_after_the_replies_that_are_due() -> None:
    client = Guard(max_output_buffer=700).greeted()
    client.heard()
    client.transport.reads = False
    client.say(*["NOOP"] * 100)
    assert client.protocol.congested
    client.guard.factory.drain()
    client.transport.reads = True
    client.transport.drain()
    assert codes(client.heard()) == [250] * 100 + [421]


def test_after_the_grace_a_session_in_data_is_told_and_aborted() -> None:
    client = Guard().greeted()
    client.say(*ENVELOPE, "DATA")
    client.heard()
    stopped: list[None] = []
    client.guard.factory.drain().addCallback(stopped.append)
    client.guard.clock.advance(29.9)
    assert client.heard() == ""
    client.guard.clock.advance(0.2)
    assert client.heard() == "421 4.3.2 Server shutting down\r\n"
    assert client.transport.aborted
    assert stopped == [None]
    assert client.guard.clock.getDelayedCalls() == []


def test_after_the_grace_the_last_line_is_not_cut_off_while_it_is_leaving() -> None:
    client = Guard().greeted()
    client.say(*ENVELOPE, "DATA")
    client.heard()
    client.transport.reads = False
    client.guard.factory.drain()
    client.guard.clock.advance(30)
    assert not client.transport.aborted
    client.transport.reads = True
    client.transport.drain()
    assert client.heard() == "421 4.3.2 Server shutting down\r\n"
    assert client.transport.aborted


def test_half_a_second_after_the_grace_clients_that_do_not_read_are_aborted_and_the_stop_is_over() -> None:
    client = Guard().greeted()
    client.say(*ENVELOPE, "DATA")
    client.transport.reads = False
    stopped: list[None] = []
    client.guard.factory.drain().addCallback(stopped.append)
    client.guard.clock.advance(30)
    client.guard.clock.advance(0.4)
    assert (client.transport.lost, stopped) == (False, [])
    client.guard.clock.advance(0.2)
    assert (client.transport.lost, stopped) == (True, [None])
    assert client.guard.clock.getDelayedCalls() == []


@pytest.mark.parametrize("gone", [False, True])
def test_a_stop_waits_for_a_verdict_also_when_its_client_is_gone(gone: bool) -> None:
    guard = Guard()
    verdict: Deferred[None] = Deferred()
    guard.delivery.answers["finish"] = lambda: verdict
    client = guard.greeted()
    client.say(*MESSAGE)
    client.heard()
    if gone:
        client.disconnect()
    stopped: list[None] = []
    guard.factory.drain().addCallback(stopped.append)
    guard.clock.advance(29)
    assert stopped == []
    verdict.callback(None)
    if not gone:
        assert codes(client.heard()) == [250, 421]
        assert stopped == []
        client.half_close()
    assert stopped == [None]
    assert guard.factory.statistics.messages_accepted == 1
    assert guard.clock.getDelayedCalls() == []


def test_a_stop_waits_for_a_verdict_no_longer_than_the_grace_and_5_seconds() -> None:
    guard = Guard()
    guard.delivery.answers["finish"] = Deferred
    client = guard.greeted()
    client.say(*MESSAGE)
    stopped: list[None] = []
    guard.factory.drain().addCallback(stopped.append)
    guard.clock.advance(30)
    guard.clock.advance(4.9)
    assert stopped == []
    guard.clock.advance(0.2)
    assert stopped == [None]


def test_to_hurry_a_stop_again_does_not_put_off_its_end() -> None:
    guard = Guard()
    guard.delivery.answers["finish"] = Deferred
    client = guard.greeted()
    client.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
    client.send(b"x\r\n.\r\n")
    stopped = guard.factory.drain()
    guard.factory.end_now()
    for _ in range(3):
        guard.clock.advance(1.5)
        guard.factory.end_now()
    assert not stopped.called
    guard.clock.advance(0.6)
    assert stopped.called


def test_a_stop_waits_for_lingering_connections_but_not_beyond_the_grace() -> None:
    guard = Guard(max_invalid_commands=1, linger_timeout=100)
    client = hung_up(guard)
    stopped: list[None] = []
    guard.factory.drain().addCallback(stopped.append)
    guard.clock.advance(29.9)
    assert stopped == []
    guard.clock.advance(0.2)
    assert stopped == [None]
    assert client.transport.aborted


def test_a_stop_asked_for_twice_is_over_for_both() -> None:
    guard = Guard()
    client = guard.greeted()
    client.say(*ENVELOPE, "DATA")
    stopped: list[None] = []
    guard.factory.drain().addCallback(stopped.append)
    guard.factory.drain().addCallback(stopped.append)
    client.say("text", ".")
    client.transport.lose(ConnectionDone())
    assert stopped == [None, None]
    assert guard.clock.getDelayedCalls() == []


def test_a_grace_of_0_is_no_limit() -> None:
    guard = Guard(shutdown_grace=0, read_timeout=0)
    client = guard.greeted()
    client.say(*ENVELOPE, "DATA")
    client.heard()
    guard.factory.drain()
    guard.clock.advance(1e6)
    assert codes(client.say("text", ".")) == [250, 421]


class TLSTransport(FakeTransport):
    """As Twisted's: to close it waits for the client's close_notify, without end."""

    def __init__(self) -> None:
        super().__init__()
        directlyProvides(self, ISSLTransport)

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def getPeerCertificate(self) -> None:
        return None

    def getHandle(self) -> Any:
        return Mock()

    def loseConnection(self) -> None:
        self.disconnecting = True


@pytest.mark.parametrize("last", ["QUIT", "x\r\n" * 10], ids=["221", "421"])
@pytest.mark.parametrize("max_lingering", [1024, 1])
def test_under_tls_a_client_that_does_not_end_its_side_holds_no_slot_and_is_aborted(
    last: str, max_lingering: int
) -> None:
    guard = Guard(max_connections_per_client=1, max_lingering=max_lingering)
    guard.factory._lingering = 1
    transport = TLSTransport()
    transport.protocol = protocol = guard.factory.buildProtocol(transport.getPeer())
    protocol.makeConnection(transport)
    protocol.handshakeCompleted()
    protocol.dataReceived(f"{last}\r\n".encode())
    assert transport.disconnecting
    assert guard.factory.connections == 0
    assert guard.connect().heard().startswith("220 ")
    guard.clock.advance(5.1)
    assert transport.aborted


@pytest.mark.parametrize("end", ["QUIT", "close_notify"])
def test_under_tls_lingering_goes_on_while_the_kernel_takes_more_of_the_replies(end: str) -> None:
    guard = Guard()
    transport = TLSTransport()
    transport.protocol = protocol = guard.factory.buildProtocol(transport.getPeer())
    protocol.makeConnection(transport)
    protocol.handshakeCompleted()
    # What Twisted has below its TLS layer: replies that the kernel has not taken.
    transport.transport = below = Mock(dataBuffer=b"x" * 3000, offset=0, _tempDataLen=100)
    if end == "QUIT":
        protocol.dataReceived(b"QUIT\r\n")
    else:
        protocol.readConnectionLost()
    for offset in (1000, 2999, 3000):
        below.offset = offset
        guard.clock.advance(5.1)
        assert not transport.aborted
    guard.clock.advance(5.1)
    assert transport.aborted


def test_a_client_that_is_gone_before_its_last_line_is_made_does_not_linger() -> None:
    guard = Guard(max_lingering=1, max_invalid_commands=1)
    client = guard.greeted()

    def leave(_: object) -> None:
        client.disconnect()
        raise Refused(Reply(421, "4.3.2", ("Closing",)))

    guard.delivery.answers["recipient"] = leave
    client.say("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>")
    # The one place of a connection that lingers is free.
    other = guard.greeted()
    other.say("nonsense")
    assert other.transport.half_closed
