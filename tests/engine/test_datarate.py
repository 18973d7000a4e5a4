"""The minimum data rate: a grace, then every window needs its octets, and only the client's own time counts."""

from __future__ import annotations

import pytest
from fakes import Guard
from purehost import PureDelivery, PureGuard
from twisted.internet.task import Clock

from twisted_smtpguard.engine.datarate import DataRate
from twisted_smtpguard.transport.deadlines import Deadlines

WINDOW = 60


class Bench:
    """A demand of 500 octets a second."""

    def __init__(self, octets_a_second: int = 500, window: float = WINDOW) -> None:
        self.clock = Clock()
        self.cut_off: list[float] = []
        self.rate = DataRate(
            Deadlines(self.clock),
            octets_a_second,
            window,
            lambda: self.cut_off.append(self.clock.seconds()),
        )

    def passes(self, seconds: float) -> None:
        """In steps: a window that begins in the middle of one step of a Clock begins at its end."""
        while seconds >= 1:
            self.clock.advance(1)
            seconds -= 1
        self.clock.advance(seconds)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_in_the_first_window_nothing_is_demanded(bench: Bench) -> None:
    bench.rate.run()
    bench.passes(2 * WINDOW - 0.2)
    assert bench.cut_off == []
    bench.passes(0.2)
    assert bench.cut_off == [pytest.approx(2 * WINDOW)]
    assert bench.clock.getDelayedCalls() == []


@pytest.mark.parametrize(("octets", "cut_off"), [(500 * WINDOW, False), (500 * WINDOW - 1, True)])
def test_a_window_needs_its_octets_to_the_octet(bench: Bench, octets: int, cut_off: bool) -> None:
    bench.rate.run()
    bench.passes(WINDOW)
    bench.rate.octets += octets
    bench.passes(WINDOW)
    assert bool(bench.cut_off) is cut_off


def test_octets_of_one_window_do_not_count_in_the_next(bench: Bench) -> None:
    bench.rate.run()
    bench.rate.octets += 10_000_000
    bench.passes(WINDOW)
    bench.passes(WINDOW)
    assert bench.cut_off


def test_time_in_which_the_client_is_held_back_does_not_count(bench: Bench) -> None:
    bench.rate.run()
    bench.passes(WINDOW + 30)
    bench.rate.hold()
    bench.passes(10 * WINDOW)
    assert bench.clock.getDelayedCalls() == []
    bench.rate.run()
    bench.passes(29.9)
    assert bench.cut_off == []
    bench.passes(0.2)
    assert bench.cut_off


def test_being_held_back_again_and_again_buys_a_slow_client_nothing(bench: Bench) -> None:
    bench.rate.run()
    for _ in range(3 * WINDOW):
        bench.rate.octets += 1
        bench.rate.hold()
        bench.rate.run()
        bench.passes(1)
    assert bench.cut_off


def test_the_octets_of_an_interrupted_window_are_kept(bench: Bench) -> None:
    bench.rate.run()
    bench.passes(WINDOW)
    bench.rate.octets += 500 * WINDOW
    bench.rate.hold()
    bench.rate.run()
    bench.passes(WINDOW)
    assert bench.cut_off == []


def test_the_next_message_gets_its_own_grace_and_a_whole_window(bench: Bench) -> None:
    bench.rate.run()
    bench.passes(WINDOW + 50)
    bench.rate.end()
    bench.rate.run()
    bench.passes(2 * WINDOW - 0.1)
    assert bench.cut_off == []
    bench.passes(0.2)
    assert bench.cut_off


def test_messages_that_are_soon_over_set_one_deadline_a_window(bench: Bench) -> None:
    scheduled = []
    for _ in range(WINDOW - 1):
        bench.rate.run()
        scheduled.extend(bench.clock.getDelayedCalls())
        bench.passes(1)
        bench.rate.end()
    assert len(set(scheduled)) == 1
    bench.passes(2)
    assert bench.clock.getDelayedCalls() == []
    assert bench.cut_off == []


def test_nothing_is_left_when_it_is_stopped(bench: Bench) -> None:
    bench.rate.run()
    bench.rate.stop()
    assert bench.clock.getDelayedCalls() == []


@pytest.mark.parametrize("end", ["RSET", "EHLO client.example", "HELO client.example"])
def test_a_message_that_ends_between_its_chunks_demands_no_more_octets(end: str) -> None:
    client = Guard(min_data_rate=500).greeted()
    client.say("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>")
    client.send(b"BDAT 1\r\nx")
    client.say(end)
    client.heard()
    for _ in range(3):
        client.guard.clock.advance(WINDOW + 1)
    assert client.heard() == ""


@pytest.mark.parametrize("pieces", [[b"BDAT 0\r\n"], [b"BDAT 3\r\n", b"x\r\n"], [b"BDAT 3\r\nx\r\n"]])
def test_after_a_chunk_out_of_sequence_no_octets_are_demanded(pieces: list[bytes]) -> None:
    client = Guard(min_data_rate=500).greeted()
    for piece in pieces:
        client.send(piece)
    client.heard()
    for _ in range(3):
        client.guard.clock.advance(WINDOW + 1)
    assert client.heard() == ""


@pytest.mark.parametrize("message", [b"DATA\r\nx\r\n.\r\n", b"BDAT 3 LAST\r\nx\r\n"])
def test_no_octets_are_due_while_the_verdict_on_a_message_is_waited_for(message: bytes) -> None:
    guard = PureGuard(
        PureDelivery(lambda hook: "later" if hook == "finish" else "now"), min_data_rate=500, read_timeout=0
    )
    client = guard.connect()
    client.send(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n" + message)
    client.codes()
    for _ in range(4):
        guard.advance(WINDOW + 1)
    guard.answer_all()
    assert client.codes() == [250]
