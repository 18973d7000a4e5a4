"""Time limits on the wire: each trips at its time and not before, and leaves nothing on the clock."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Conversation, Guard, codes
from twisted.internet.defer import Deferred

TIMED_OUT = "421 4.4.2 Timeout waiting for client, closing connection\r\n"
TOO_SLOW = "421 4.4.2 Data transfer too slow, closing connection\r\n"
TOO_LONG = "421 4.4.2 Session time limit reached, closing connection\r\n"
EXPIRED = "451 4.3.0 Delivery timed out, try again later\r\n"

ENVELOPE = ("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>")
A_MOMENT = 0.2
"""A deadline comes at most a tick late."""


def assert_nothing_is_left(guard: Guard) -> None:
    assert guard.clock.getDelayedCalls() == []
    assert guard.factory.connections == 0
    assert guard.factory.statistics.live_connections == 0


def ended(client: Conversation) -> None:
    """The client goes, or has been gone for long."""
    client.disconnect()
    assert_nothing_is_left(client.guard)


def in_data(guard: Guard) -> Conversation:
    client = guard.greeted()
    assert codes(client.say(*ENVELOPE, "DATA"))[-1] == 354
    return client


def in_chunk(guard: Guard, octets: int = 100_000) -> Conversation:
    client = guard.greeted()
    client.say(*ENVELOPE, f"BDAT {octets} LAST")
    return client


def passes(client: Conversation, seconds: float) -> str:
    client.guard.clock.advance(seconds)
    return client.heard()


def reason(client: Conversation) -> str:
    return str(client.protocol.engine.end_reason)


# Read timeout: commands.


def test_a_client_that_says_nothing_has_300_seconds() -> None:
    client = Guard().connect()
    client.heard()
    assert passes(client, 299.9) == ""
    assert passes(client, 0.1) == TIMED_OUT
    assert reason(client) == "read_timeout"
    ended(client)


def test_every_command_has_its_own_read_timeout() -> None:
    client = Guard().connect()
    for _ in range(3):
        assert passes(client, 299.9).count("421") == 0
        client.say("NOOP")
    assert passes(client, 299.9) == ""
    assert passes(client, A_MOMENT) == TIMED_OUT
    ended(client)


def test_commands_of_an_envelope_that_come_alone_have_theirs() -> None:
    client = Guard().greeted()
    for command in ENVELOPE:
        assert passes(client, 200) == ""
        assert codes(client.say(command)) == [250]
    assert passes(client, 299.9) == ""
    assert passes(client, A_MOMENT) == TIMED_OUT
    ended(client)


def test_a_drip_inside_one_command_does_not_extend_it() -> None:
    client = Guard().greeted()
    client.heard()
    for _ in range(299):
        client.guard.clock.advance(1)
        assert client.send(b"x") == ""
    assert passes(client, 1) == TIMED_OUT
    ended(client)


def test_a_drip_into_a_line_that_is_being_skipped_does_not_extend_it() -> None:
    client = Guard().greeted()
    client.send(b"NOOP\n")
    for _ in range(299):
        client.guard.clock.advance(1)
        assert client.send(b"x") == ""
    assert passes(client, 1) == TIMED_OUT
    ended(client)


def test_the_read_timeout_begins_when_we_are_ready_for_the_command() -> None:
    guard = Guard()
    answer: Deferred[Any] = Deferred()
    guard.delivery.answers["recipient"] = lambda _: answer
    client = guard.greeted()
    client.say(*ENVELOPE)
    guard.clock.advance(200)
    answer.callback(None)
    client.heard()
    assert passes(client, 299.9) == ""
    assert passes(client, A_MOMENT) == TIMED_OUT
    ended(client)


def test_while_the_delivery_is_waited_for_the_client_is_not() -> None:
    guard = Guard(delivery_timeout=1000)
    answer: Deferred[Any] = Deferred()
    guard.delivery.answers["recipient"] = lambda _: answer
    client = guard.greeted()
    client.say(*ENVELOPE)
    client.heard()
    assert passes(client, 999) == ""
    answer.callback(None)
    assert codes(client.heard()) == [250]
    ended(client)


def test_while_the_client_is_not_reading_no_command_is_waited_for() -> None:
    client = Guard(write_timeout=1000, max_output_buffer=1).greeted()
    client.heard()
    client.transport.reads = False
    client.say(*["NOOP"] * 1000)
    client.guard.clock.advance(999)
    assert not client.transport.lost
    client.transport.reads = True
    client.transport.drain()
    client.guard.clock.advance(0)
    assert client.heard().count("250 ") == 1000
    assert passes(client, 299.9) == ""
    assert passes(client, A_MOMENT) == TIMED_OUT
    ended(client)


def test_a_chunk_without_a_line_end_is_a_whole_command_all_the_same() -> None:
    client = Guard().greeted()
    client.say(*ENVELOPE, "BDAT 3")
    client.guard.clock.advance(200)
    assert codes(client.send(b"abc"))[-1] == 250
    assert passes(client, 299.9) == ""
    assert passes(client, A_MOMENT) == TIMED_OUT
    ended(client)


def test_read_timeout_0_waits_indefinitely() -> None:
    client = Guard(read_timeout=0).greeted()
    client.heard()
    assert passes(client, 1e6) == ""
    client.say(*ENVELOPE, "DATA")
    assert "421" not in passes(client, 1e6)
    ended(client)


# Read timeout: message data.


@pytest.mark.parametrize("begin", [in_data, in_chunk])
def test_in_message_data_a_whole_line_is_progress(begin: Any) -> None:
    client = begin(Guard())
    for _ in range(5):
        client.heard()
        assert passes(client, 299.9) == ""
        client.send(b"a line\r\n")
    assert passes(client, 299.9) == ""
    assert passes(client, A_MOMENT) == TIMED_OUT
    ended(client)


@pytest.mark.parametrize("begin", [in_data, in_chunk])
def test_in_message_data_1024_octets_are_progress_and_1023_are_not(begin: Any) -> None:
    client = begin(Guard())
    client.heard()
    for _ in range(3):
        assert passes(client, 200) == ""
        client.send(b"x" * 512)
        assert passes(client, 99.9) == ""
        client.send(b"x" * 512)
    assert passes(client, 200) == ""
    client.send(b"x" * 1023)
    assert passes(client, 99.9) == ""
    assert passes(client, A_MOMENT) == TIMED_OUT
    assert reason(client) == "read_timeout"
    ended(client)


def test_a_drip_of_one_octet_a_second_in_data_is_cut_off() -> None:
    client = in_data(Guard())
    client.heard()
    for _ in range(299):
        client.guard.clock.advance(1)
        assert client.send(b"x") == ""
    assert passes(client, 1) == TIMED_OUT
    assert client.guard.delivery.calls[-1] == "sink.abort"
    ended(client)


def test_octets_of_one_wait_do_not_count_in_the_next() -> None:
    client = in_chunk(Guard())
    client.heard()
    client.send(b"x" * 1000 + b"\r\n")
    client.send(b"x" * 1000)
    assert passes(client, 299.9) == ""
    client.send(b"x" * 23)
    assert passes(client, A_MOMENT) == TIMED_OUT
    ended(client)


def test_octets_of_one_message_do_not_count_in_the_next() -> None:
    client = in_chunk(Guard(), 1000)
    client.send(b"x" * 1000)
    client.say(*ENVELOPE, "DATA")
    client.heard()
    client.guard.clock.advance(299.9)
    client.send(b"x" * 100)
    assert passes(client, A_MOMENT) == TIMED_OUT
    ended(client)


def test_a_client_held_back_by_the_delivery_has_its_whole_time_afterwards() -> None:
    guard = Guard()
    written: Deferred[None] = Deferred()
    guard.delivery.answers["write"] = lambda _: written
    client = in_data(guard)
    client.heard()
    client.send(b"x" * 100)
    guard.delivery.answers.clear()
    guard.clock.advance(250)
    written.callback(None)
    assert passes(client, 299.9) == ""
    assert passes(client, A_MOMENT) == TIMED_OUT
    ended(client)


# Write timeout.


def stuffed(guard: Guard) -> Conversation:
    """A client that does not read what it asked for."""
    client = guard.greeted()
    client.heard()
    client.transport.reads = False
    client.say(*["NOOP"] * 3000)
    return client


def test_a_client_that_never_reads_is_aborted_after_300_seconds() -> None:
    client = stuffed(Guard())
    client.guard.clock.advance(299.9)
    assert not client.transport.lost
    client.guard.clock.advance(A_MOMENT)
    assert client.transport.aborted
    assert reason(client) == "write_timeout"
    assert client.guard.factory.statistics.refusals == {"write_timeout": 1}
    assert_nothing_is_left(client.guard)


def test_a_client_that_does_not_read_its_last_line_is_aborted_too() -> None:
    guard = Guard(max_invalid_commands=1)
    client = guard.greeted()
    client.transport.reads = False
    client.say("WHAT")
    assert client.protocol.engine.end_reason == "max_invalid_commands"
    guard.clock.advance(299.9)
    assert not client.transport.lost
    assert guard.factory.connections == 1
    guard.clock.advance(A_MOMENT)
    assert client.transport.aborted
    assert_nothing_is_left(guard)


def test_a_client_that_reads_slowly_but_steadily_is_not_cut_off() -> None:
    client = stuffed(Guard())
    for _ in range(5):
        client.guard.clock.advance(299)
        client.transport.take(4096)
    assert not client.transport.lost


def test_a_client_that_reads_an_octet_at_a_time_is_not_cut_off() -> None:
    guard = Guard()
    client = stuffed(guard)
    for _ in range(3 * 4096):
        guard.clock.advance(0.07)
        client.transport.take(1)
    assert guard.clock.seconds() > 2 * 300
    assert not client.transport.lost
    client.transport.reads = True
    client.transport.drain()
    guard.clock.advance(0)
    assert client.heard().count("250 ") == 3000


def test_when_all_is_taken_the_write_timeout_is_over() -> None:
    client = stuffed(Guard(read_timeout=0))
    client.transport.reads = True
    client.transport.drain()
    client.guard.clock.advance(1000)
    assert not client.transport.lost
    ended(client)


def test_write_timeout_0_waits_indefinitely() -> None:
    client = stuffed(Guard(write_timeout=0))
    client.guard.clock.advance(1e6)
    assert not client.transport.lost
    ended(client)


# Minimum data rate.


@pytest.mark.parametrize("begin", [in_data, in_chunk])
def test_the_data_rate_is_measured_after_60_seconds_of_grace(begin: Any) -> None:
    client = begin(Guard(min_data_rate=500))
    client.heard()
    assert passes(client, 60) == ""
    assert passes(client, 59.9) == ""
    assert passes(client, A_MOMENT) == TOO_SLOW
    assert reason(client) == "min_data_rate"
    assert client.guard.delivery.calls[-1] == "sink.abort"
    ended(client)


def test_a_sender_at_the_minimum_rate_is_not_cut_off_and_one_below_it_is() -> None:
    client = in_chunk(Guard(min_data_rate=500), 1_000_000)
    client.heard()
    for _ in range(600):
        client.guard.clock.advance(1)
        assert client.send(b"x" * 500) == ""
    said = "".join(passes(client, 1) + client.send(b"x" * 499) for _ in range(120) if not client.closed)
    assert said == TOO_SLOW
    ended(client)


def test_a_delivery_that_holds_the_client_back_does_not_make_it_slow() -> None:
    guard = Guard(min_data_rate=500, delivery_timeout=1000)
    client = in_data(guard)
    client.heard()
    written: Deferred[None] = Deferred()
    guard.delivery.answers["write"] = lambda _: written
    guard.clock.advance(60)
    client.send(b"x" * 5000)
    guard.delivery.answers.clear()
    guard.clock.advance(900)
    written.callback(None)
    assert passes(client, 59.9) == ""
    assert passes(client, A_MOMENT) == TOO_SLOW
    ended(client)


def test_a_verdict_that_takes_long_does_not_make_the_client_slow() -> None:
    guard = Guard(min_data_rate=500)
    verdict: Deferred[None] = Deferred()
    guard.delivery.answers["finish"] = lambda: verdict
    client = in_data(guard)
    client.say("x", ".")
    guard.clock.advance(250)
    verdict.callback(None)
    assert codes(client.heard())[-1] == 250
    ended(client)


def test_between_commands_no_rate_is_demanded() -> None:
    client = Guard(min_data_rate=500).greeted()
    client.say(*ENVELOPE)
    client.heard()
    assert passes(client, 299.9) == ""
    client.say("DATA", "x", ".")
    client.heard()
    assert passes(client, 299.9) == ""
    ended(client)


def test_many_small_chunks_do_not_get_round_the_data_rate() -> None:
    client = Guard(min_data_rate=500).greeted()
    client.say(*ENVELOPE)
    client.heard()
    said = ""
    for _ in range(130):
        client.guard.clock.advance(1)
        said += client.send(b"BDAT 1\r\nx") if not client.closed else client.heard()
    assert said.endswith(TOO_SLOW)
    ended(client)


# Session time.


def test_an_idle_session_ends_when_its_time_is_up() -> None:
    client = Guard(max_session_time=1800).greeted()
    client.heard()
    for _ in range(9):
        assert codes(passes(client, 199.9) + client.say("NOOP")) == [250]
    assert passes(client, 0.8) == ""
    assert passes(client, A_MOMENT) == TOO_LONG
    assert reason(client) == "max_session_time"
    ended(client)


def test_a_transaction_is_not_cut_off_when_the_session_time_is_up() -> None:
    client = in_data(Guard(max_session_time=100))
    client.heard()
    assert passes(client, 200) == ""
    assert client.say("x", ".") == "250 2.0.0 Message accepted\r\n" + TOO_LONG
    assert len(client.guard.delivery.messages) == 1
    ended(client)


def test_a_transaction_that_is_reset_ends_a_session_whose_time_is_up() -> None:
    client = Guard(max_session_time=100).greeted()
    client.say(*ENVELOPE)
    client.heard()
    assert passes(client, 200) == ""
    assert client.say("RSET", "NOOP") == "250 2.0.0 OK\r\n" + TOO_LONG
    ended(client)


def test_a_client_that_does_not_read_hears_of_the_session_time_after_the_replies_that_are_due() -> None:
    client = stuffed(Guard(max_session_time=100))
    client.guard.clock.advance(100)
    client.transport.reads = True
    client.transport.drain()
    assert passes(client, 0).endswith(TOO_LONG)
    ended(client)


def test_the_session_time_ends_a_session_that_waits_for_nothing_but_its_client_to_read() -> None:
    client = Guard(max_session_time=100, max_output_buffer=700, write_timeout=0).greeted()
    client.heard()
    client.transport.reads = False
    client.say(*["NOOP"] * 100)
    assert client.protocol.congested
    client.guard.clock.advance(100)
    client.transport.reads = True
    client.transport.drain()
    assert passes(client, 0) == "250 2.0.0 OK\r\n" * 100 + TOO_LONG
    ended(client)


def test_session_time_0_is_no_limit() -> None:
    client = Guard(read_timeout=0).greeted()
    assert client.guard.clock.getDelayedCalls() == []
    ended(client)


# Delivery.

HOOKS = ["begin", "recipient", "data", "write", "finish"]


def waits_for(guard: Guard, hook: str) -> tuple[Conversation, Deferred[Any]]:
    """A session whose delivery does not answer `hook`."""
    pending: Deferred[Any] = Deferred(lambda _: None)
    guard.delivery.answers[hook] = lambda *_: pending
    client = guard.greeted()
    client.heard()
    for line in (*ENVELOPE, "DATA", "text", "."):
        if hook in guard.delivery.calls:
            break
        client.say(line)
    if hook == "write":
        client.say("more", ".")
    client.heard()
    return client, pending


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_300_seconds_to_answer(hook: str) -> None:
    client, _ = waits_for(Guard(), hook)
    assert passes(client, 299.9) == ""
    assert passes(client, A_MOMENT) == EXPIRED
    assert client.codes("RSET") == [250]
    assert client.guard.delivery.messages == [] or hook == "finish"
    ended(client)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_delivery_timeout_of_0_waits_indefinitely(hook: str) -> None:
    client, _ = waits_for(Guard(delivery_timeout=0), hook)
    assert passes(client, 1e6) == ""
    if hook == "finish":
        return
    ended(client)


def test_input_during_the_wait_does_not_extend_the_deliverys_time() -> None:
    client, _ = waits_for(Guard(), "recipient")
    for _ in range(299):
        client.guard.clock.advance(1)
        assert client.say("NOOP") == ""
    assert passes(client, 1).startswith(EXPIRED)
    ended(client)


def test_reading_replies_during_the_wait_does_not_extend_the_deliverys_time() -> None:
    guard = Guard()
    pending: Deferred[Any] = Deferred()
    guard.delivery.answers["recipient"] = lambda *_: pending
    client = guard.greeted()
    client.heard()
    client.transport.reads = False
    client.say("NOOP", *ENVELOPE)
    guard.clock.advance(200)
    client.transport.reads = True
    client.transport.drain()
    client.heard()
    assert passes(client, 99.9) == ""
    assert passes(client, A_MOMENT) == EXPIRED
    ended(client)


def test_a_finish_whose_client_is_gone_still_has_its_time_and_no_more() -> None:
    client, _ = waits_for(Guard(), "finish")
    client.disconnect()
    assert client.guard.factory.connections == 0
    client.guard.clock.advance(299.9)
    assert client.guard.factory.context.pending_deliveries == 1
    client.guard.clock.advance(A_MOMENT)
    assert client.guard.factory.context.pending_deliveries == 0
    assert client.guard.factory.statistics.refusals == {"delivery_timeout": 1}
    assert_nothing_is_left(client.guard)


def test_a_finish_whose_client_is_gone_leaves_nothing_when_it_has_answered() -> None:
    client, pending = waits_for(Guard(), "finish")
    client.disconnect()
    pending.callback(None)
    assert client.guard.factory.statistics.messages_accepted == 1
    assert_nothing_is_left(client.guard)


# Lingering.


def refused(guard: Guard) -> Conversation:
    """A client that had its last line, and does not go."""
    client = guard.greeted()
    client.say("WHAT")
    return client


def test_a_lingering_connection_is_aborted_after_5_seconds() -> None:
    client = refused(Guard(max_invalid_commands=1))
    assert client.transport.half_closed
    client.guard.clock.advance(4.9)
    assert not client.transport.lost
    client.guard.clock.advance(A_MOMENT)
    assert client.transport.aborted
    assert_nothing_is_left(client.guard)


def test_what_a_client_sends_does_not_extend_its_lingering() -> None:
    client = refused(Guard(max_invalid_commands=1))
    for _ in range(5):
        client.guard.clock.advance(1)
        client.say("NOOP")
    assert client.transport.aborted
    assert_nothing_is_left(client.guard)


def test_the_lingering_begins_when_the_line_has_left() -> None:
    guard = Guard(max_invalid_commands=1)
    client = guard.greeted()
    client.transport.reads = False
    client.say("WHAT")
    guard.clock.advance(100)
    assert not client.transport.half_closed
    client.transport.reads = True
    client.transport.drain()
    assert client.transport.half_closed
    guard.clock.advance(4.9)
    assert not client.transport.lost
    guard.clock.advance(A_MOMENT)
    assert client.transport.aborted
    assert_nothing_is_left(guard)


def test_a_linger_timeout_of_0_waits_for_the_client() -> None:
    client = refused(Guard(max_invalid_commands=1, linger_timeout=0))
    client.guard.clock.advance(1e6)
    assert not client.transport.lost
    ended(client)
