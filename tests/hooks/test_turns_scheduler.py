"""A long pipelined burst takes many turns of the reactor, so that others have theirs in between."""

from __future__ import annotations

import pytest
from fakes import Conversation, Guard, codes
from logins import Checker
from twisted.internet.task import Clock

from twisted_smtpguard.engine.connection import SHARE as COMMANDS_A_TURN
from twisted_smtpguard.hooks.turns import FairScheduler


def test_no_client_waits_longer_than_a_share_of_a_burst() -> None:
    guard = Guard()
    greedy, other = guard.greeted(), guard.greeted()
    greedy.heard(), other.heard()
    greedy.protocol.dataReceived(b"MAIL FROM:<a@b.example>\r\n" + b"RCPT TO:<c@d.example>\r\n" * 1000)
    assert guard.delivery.calls.count("recipient") == COMMANDS_A_TURN - 1
    other.protocol.dataReceived(b"NOOP\r\n")
    assert other.heard() == "250 2.0.0 OK\r\n"
    guard.clock.advance(0)
    assert greedy.heard().count("250 2.1.5") == 100


def test_long_lines_use_up_a_share_sooner() -> None:
    client = Guard().greeted()
    client.heard()
    line = b"MAIL FROM:<" + b"a." * 1000 + b"\r\n"
    client.protocol.dataReceived(line * 32)
    assert client.protocol.engine.buffer[client.protocol.engine.offset :] == line * 30
    client.guard.clock.advance(0)
    assert codes(client.heard()) == [501] * 32


IN_DATA = ("EHLO client.example", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")


def received(client: Conversation) -> int:
    """How many octets of message data were taken so far."""
    return 60_000 - len(client.protocol.engine.buffer) + client.protocol.engine.offset


@pytest.mark.parametrize(
    ("slow", "limits"),
    [(b"a:\r\n" * 15_000, {}), (b"x\n\n\n" * 15_000, {"bare_newline": "normalize"})],
    ids=["header", "normalize"],
)
def test_message_data_that_is_slow_to_read_uses_up_a_share_sooner(
    slow: bytes, limits: dict[str, str]
) -> None:
    client = Guard(**limits).connect()
    client.say(*IN_DATA)
    client.protocol.dataReceived(slow)
    assert received(client) == 8 * 1024
    client.guard.clock.advance(0)
    assert received(client) == 60_000


def test_an_arrival_of_plain_message_data_is_one_share() -> None:
    client = Guard().connect()
    client.say(*IN_DATA)
    client.send(b"\r\n" + b"z" * 2000)
    client.protocol.dataReceived(b"x" * 58 + b"\r\n" * 1000 + b"y" * 57_942)
    assert received(client) == 60_000


def test_a_burst_of_one_share_is_answered_at_once() -> None:
    client = Guard().greeted()
    client.heard()
    client.protocol.dataReceived(b"NOOP\r\n" * COMMANDS_A_TURN)
    assert client.heard().count("250 ") == COMMANDS_A_TURN
    assert client.guard.clock.getDelayedCalls()[0].getTime() > 0


def test_input_after_a_burst_keeps_its_place() -> None:
    client = Guard().greeted()
    client.heard()
    client.protocol.dataReceived(b"NOOP\r\n" * 1000 + b"VR")
    client.protocol.dataReceived(b"FY x\r\nQUIT\r\n")
    client.guard.clock.advance(0)
    assert codes(client.heard()) == [250] * 1000 + [252, 221]


def test_a_burst_that_arrives_in_pieces_is_not_kept_beyond_the_input_buffer() -> None:
    client = Guard().greeted()
    client.protocol.dataReceived(b"NOOP\r\n" * 10_000)
    assert client.transport.producerState == "producing"
    client.protocol.dataReceived(b"NOOP\r\n" * 10_000)
    assert client.transport.producerState == "paused"
    client.guard.clock.advance(0)
    assert client.transport.producerState == "producing"


def test_a_client_that_leaves_with_its_burst_half_done_is_let_go() -> None:
    guard = Guard()
    client = guard.greeted()
    client.protocol.dataReceived(b"NOOP\r\n" * 1000)
    client.disconnect()
    guard.clock.advance(0)
    assert guard.factory.connections == 0
    assert not guard.clock.getDelayedCalls()


def test_a_client_that_shuts_down_its_side_after_a_burst_gets_every_reply() -> None:
    client = Guard().greeted()
    client.heard()
    client.protocol.dataReceived(b"NOOP\r\n" * 1000)
    client.half_close()
    client.guard.clock.advance(0)
    assert client.heard().count("250 ") == 1000
    assert client.closed


def test_an_accident_of_one_does_not_stop_the_others() -> None:
    clock, called = Clock(), []
    turns = FairScheduler(clock)
    turns.wait(lambda: 1 / 0)
    turns.wait(lambda: called.append(1))
    with pytest.raises(ZeroDivisionError):
        clock.advance(0)
    clock.advance(0)
    assert called == [1]


@pytest.mark.parametrize(
    "burst",
    [
        pytest.param(b"\n", id="LF alone"),
        pytest.param(b"a\rb\r\n", id="a bare CR"),
        pytest.param(b"AUTH LOGIN\r\n*\r\n", id="AUTH and its cancellation"),
        pytest.param(b"NOOP\r\n", id="NOOP"),
    ],
)
@pytest.mark.parametrize("limits", [{}, {"max_output_buffer": 0}], ids=["base", "no limit on output"])
def test_no_burst_is_answered_beyond_a_share_or_piles_up_replies(
    burst: bytes, limits: dict[str, int]
) -> None:
    guard = Guard(checkers=[Checker()], max_invalid_commands=0, **limits)
    client = guard.greeted()
    client.heard()
    client.protocol.dataReceived(burst * (64 * 1024 // len(burst)))
    engine = client.protocol.engine
    # A turn of the reactor; Clock.advance() would go on until nothing is left.
    assert engine.offset <= 2 * COMMANDS_A_TURN * len(burst)
    most = engine.context.max_unwritten
    while engine.held:
        assert len(engine.unwritten) < most + 64 * 100
        engine.take_turn()
    assert engine.buffer == b""
