"""One command at a time, replies in order, and neither direction of a connection ever holds more than its limit."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Conversation, Guard, codes
from twisted.internet.defer import Deferred

from twisted_smtpguard.engine.connection import HELD_BY_OUTPUT

ENVELOPE = ("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>")
OK = "250 2.0.0 OK\r\n"


def reads_again(client: Conversation) -> str:
    """The client takes all that it left lying; what it hears."""
    client.transport.reads = True
    client.transport.drain()
    client.guard.clock.advance(0)
    return client.heard()


def paused(client: Conversation) -> bool:
    return client.transport.producerState == "paused"


def held(client: Conversation) -> int:
    """Octets of this connection that lie in the guard, in either direction."""
    return len(client.protocol.engine.buffer) + waiting_octets(client)


def waiting_octets(client: Conversation) -> int:
    """Of replies that the client has not made room for."""
    backlog = client.protocol._backlog
    return 0 if backlog is None else len(backlog._waiting)


# Order.

STEPS: dict[str, tuple[str, ...]] = {
    "begin": (),
    "recipient": ENVELOPE[:1],
    "data": ENVELOPE,
    "finish": (*ENVELOPE, "DATA"),
}
ASKS = {"begin": ENVELOPE[0], "recipient": ENVELOPE[1], "data": "DATA", "finish": "text\r\n."}


def waiting(hook: str, **limits: Any) -> tuple[Conversation, Deferred[Any], list[str]]:
    """A session whose delivery has been asked and has not answered; what was called until then."""
    guard = Guard(**limits)
    pending: Deferred[Any] = Deferred()
    client = guard.greeted()
    client.say(*STEPS[hook])
    transaction: Any = None
    default = guard.delivery._answer

    def answer(name: str, value: Any, *args: object) -> Any:
        nonlocal transaction
        result = default(name, value, *args)
        if name != hook:
            return result
        transaction = value
        return pending

    guard.delivery._answer = answer
    client.heard()
    assert client.say(ASKS[hook]) == ""
    answered: Deferred[Any] = Deferred()
    answered.addCallback(lambda _: pending.callback(transaction))
    return client, answered, list(guard.delivery.calls)


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("hook", STEPS)
def test_while_a_hook_is_pending_no_later_command_is_executed(hook: str, bytewise: bool) -> None:
    client, answer, calls = waiting(hook)
    assert client.say("RSET", "NOOP", "WHAT", "QUIT", bytewise=bytewise) == ""
    assert client.guard.delivery.calls == calls
    assert not client.closed
    answer.callback(None)
    if hook == "data":
        assert codes(client.heard()) == [354]
        assert client.guard.delivery.calls == [*calls, "write"]
        return
    assert codes(client.heard()) == [250, 250, 250, 500, 221]
    assert client.transport.lost


def test_what_a_client_asked_in_one_piece_is_answered_in_one_write() -> None:
    client = Guard().greeted()
    client.transport.writes.clear()
    client.say(*ENVELOPE, "NOOP", "DATA")
    assert len(client.transport.writes) == 1
    client.transport.writes.clear()
    client.say("text", ".", "NOOP", "QUIT")
    assert len(client.transport.writes) == 1


def test_the_421_stands_in_the_same_write_as_the_reply_before_it() -> None:
    client = Guard(max_invalid_commands=1).greeted()
    client.transport.writes.clear()
    client.say("WHAT")
    assert codes(client.transport.writes[0].decode()) == [500, 421]


def test_replies_to_what_follows_a_pending_command_leave_in_one_write_with_its_own() -> None:
    client, answer, _ = waiting("recipient")
    client.transport.writes.clear()
    client.say("NOOP", "NOOP")
    answer.callback(None)
    assert [codes(write.decode()) for write in client.transport.writes] == [[250, 250, 250]]


def test_deferreds_of_pipelined_commands_are_answered_one_after_another_in_order() -> None:
    guard = Guard()
    asked: list[tuple[str, Deferred[Any]]] = []

    def recipient(path: Any) -> Deferred[Any]:
        asked.append((path.address, Deferred()))
        return asked[-1][1]

    guard.delivery.answers["recipient"] = recipient
    client = guard.greeted()
    client.say(ENVELOPE[0], *(f"RCPT TO:<{n}@guard.example>" for n in range(3)), "VRFY x")
    client.heard()
    for n in range(3):
        assert [address for address, _ in asked] == [f"{i}@guard.example" for i in range(n + 1)]
        asked[n][1].callback(None)
        assert codes(client.heard()) == ([250] if n < 2 else [250, 252])


# Input.


@pytest.mark.parametrize("hook", STEPS)
def test_while_a_hook_is_pending_input_is_read_until_64_kib_wait(hook: str) -> None:
    client, _, _ = waiting(hook)
    while len(client.protocol.engine.buffer) < 65536:
        assert not paused(client)
        client.send(b"x" * 4096)
    assert len(client.protocol.engine.buffer) == 65536
    assert paused(client)


def test_when_the_hook_has_answered_the_client_is_read_again_and_nothing_is_lost() -> None:
    client, answer, _ = waiting("recipient")
    line = b"NOOP " + b"x" * 1000 + b"\r\n"
    sent = 0
    while not paused(client):
        client.send(line)
        sent += 1
    answer.callback(None)
    client.guard.clock.advance(0)
    assert not paused(client)
    assert len(codes(client.heard())) == sent + 1


def test_while_a_write_is_pending_the_client_is_not_read() -> None:
    guard = Guard()
    written: Deferred[None] = Deferred()
    guard.delivery.answers["write"] = lambda _: written
    client = guard.greeted()
    client.say(*ENVELOPE, "DATA")
    assert not paused(client)
    client.send(b"text\r\n")
    assert paused(client)
    guard.delivery.answers.clear()
    written.callback(None)
    assert not paused(client)
    client.heard()
    assert codes(client.send(b".\r\n")) == [250]
    assert guard.delivery.messages[0].octets == b"text\r\n"


def test_what_arrived_with_a_held_write_is_bounded_by_one_arrival() -> None:
    guard = Guard()
    guard.delivery.answers["write"] = lambda _: Deferred()
    client = guard.greeted()
    client.say(*ENVELOPE, "DATA")
    client.send(b"x" * 65536)
    assert paused(client)
    assert len(client.protocol.engine.buffer) < 65536


def test_max_input_buffer_0_reads_on() -> None:
    client, _, _ = waiting("recipient", max_input_buffer=0)
    client.send(b"x" * 1_000_000)
    assert not paused(client)


# Output.


def test_past_16_kib_of_unread_replies_no_further_command_is_executed() -> None:
    guard = Guard()
    client = guard.greeted()
    client.say(ENVELOPE[0])
    client.transport.reads = False
    client.say(*["RCPT TO:<b@guard.example>"] * 2000)
    executed = guard.delivery.calls.count("recipient")
    assert 16384 <= waiting_octets(client) < 2 * 16384
    client.say(*["RCPT TO:<b@guard.example>"] * 2000)
    assert guard.delivery.calls.count("recipient") == executed
    assert paused(client)


def test_a_client_that_never_reads_costs_no_more_than_the_two_buffers() -> None:
    client = Guard().greeted()
    client.transport.reads = False
    most = 0
    while not paused(client):
        client.send(b"NOOP\r\n" * 1000)
        most = max(most, held(client))
    assert most < 2 * 65536


@pytest.mark.parametrize("step", [1, 100, 4096])
def test_when_the_client_reads_everything_is_answered_in_order_and_nothing_is_lost(step: int) -> None:
    client = Guard(max_invalid_commands=0).greeted()
    client.heard()
    client.transport.reads = False
    client.say(*(word for _ in range(1000) for word in ("NOOP", "VRFY x", "WHAT")))
    while client.transport._unread:
        client.transport.take(step)
        client.guard.clock.advance(0)
    assert codes(client.heard()) == [250, 252, 500] * 1000


def test_reading_goes_on_when_the_client_has_read_its_replies() -> None:
    client = Guard().greeted()
    client.heard()
    client.transport.reads = False
    sent = 0
    while not paused(client):
        client.send(b"NOOP\r\n" * 1000)
        sent += 1000
    assert reads_again(client) == OK * sent
    assert not paused(client)


def test_max_output_buffer_0_executes_on() -> None:
    client = Guard(max_output_buffer=0).greeted()
    client.heard()
    client.transport.reads = False
    client.send(b"NOOP\r\n" * 10_000)
    assert not paused(client)
    assert client.protocol.engine.buffer == b""
    assert reads_again(client) == OK * 10_000


def test_message_data_is_not_taken_while_replies_wait_for_the_client() -> None:
    guard = Guard(max_output_buffer=100)
    client = guard.greeted()
    client.transport.reads = False
    client.say(*["HELP"] * 100, *ENVELOPE, "DATA", "text")
    assert guard.delivery.calls == []
    reads_again(client)
    assert guard.delivery.calls[-1] == "write"


# Linear time.


@pytest.mark.parametrize("octets", [64 * 1024, 256 * 1024, 1024 * 1024])
def test_a_pipelined_burst_is_copied_a_bounded_number_of_times(octets: int) -> None:
    class Counted(bytes):
        """Counts what is copied out of it."""

        copied = 0

        def __getitem__(self, key: Any) -> Any:
            part = bytes.__getitem__(self, key)
            if isinstance(key, slice):
                Counted.copied += len(part)
                return Counted(part)
            return part

    client = Guard().greeted()
    client.heard()
    # Not a plain line, which is read where it lies.
    line = b"NOOP a b\r\n"
    assert client.send(Counted(line * (octets // len(line)))) == OK * (octets // len(line))
    assert octets // 2 < Counted.copied < 2 * octets


# A command that comes whole and alone takes fewer steps, and is held to the same.

RCPT = b"RCPT TO:<b@guard.example>\r\n"


def not_reading(**limits: Any) -> Conversation:
    """A client with an envelope that goes on without reading a reply, until there is room for no more."""
    client = Guard(max_recipients=0, **limits).greeted()
    client.say(ENVELOPE[0])
    client.heard()
    client.transport.reads = False
    for _ in range(10_000):
        if client.protocol.congested:
            return client
        client.send(RCPT)
        client.guard.clock.advance(0)
    raise AssertionError("there is room for everything")


def test_lone_commands_of_a_client_that_never_reads_are_not_carried_out() -> None:
    client = not_reading()
    accepted = len(client.protocol.engine.recipients)
    waiting = waiting_octets(client)
    for _ in range(1000):
        client.send(RCPT)
    assert len(client.protocol.engine.recipients) == accepted
    assert waiting_octets(client) == waiting


def test_a_client_that_takes_its_replies_slowly_is_not_waited_for_meanwhile() -> None:
    client = not_reading(read_timeout=60, write_timeout=300)
    for _ in range(20):
        client.guard.clock.advance(5)
        client.transport.take(1000)
        assert client.protocol.engine.end_reason == "lost", "it was cut off"


def test_a_lone_command_waits_where_there_is_no_room_since_the_end_of_a_turn() -> None:
    client = Guard().greeted()
    client.say(ENVELOPE[0])
    client.heard()
    client.protocol.engine.held = HELD_BY_OUTPUT
    client.send(RCPT)
    assert client.protocol.engine.recipients == []
    client.protocol.engine.drained()
    assert client.protocol.engine.recipients == ["b@guard.example"]


def test_a_chunk_that_is_complete_as_it_stands_ends_a_session_that_is_to_end() -> None:
    client = Guard().greeted()
    client.say(*ENVELOPE)
    client.send(b"BDAT 5\r\nabcde")
    client.heard()
    client.guard.factory.drain()
    assert codes(client.say("BDAT 0 LAST")) == [250, 421]


@pytest.mark.parametrize("octets", [b"BDAT 1\r\nx" * 7000, b"\n" * 65_000], ids=["chunks", "line feeds"])
def test_replies_to_a_burst_that_is_not_only_of_commands_are_bounded_too(octets: bytes) -> None:
    client = Guard(max_invalid_commands=0, max_endless_line=0).greeted()
    client.say(*ENVELOPE)
    client.transport.reads = False
    client.send(octets)
    assert 16384 <= waiting_octets(client) < 2 * 16384


def test_inputs_that_hooks_cause_are_carried_out_in_their_order() -> None:
    guard = Guard()
    client = guard.greeted()
    client.say("MAIL FROM:<a@client.example>")
    client.heard()
    caused = [[b"RCPT TO:<second@guard.example>\r\n", b"NOOP\r\n"], [b"VRFY x\r\n"]]

    def cause(_: object) -> None:
        for octets in caused.pop(0):
            client.protocol.dataReceived(octets)

    guard.delivery.answers["recipient"] = cause
    assert client.codes("RCPT TO:<first@guard.example>", "HELP") == [250, 214, 250, 250, 252]
