"""When replies leave: at once where one connection is served at a time, else those of one turn together."""

from __future__ import annotations

from functools import partial

import pytest
import pytest_twisted
from fakes import codes
from loopback import Client, Loopback
from twisted.internet.task import Clock

from twisted_smtpguard.hooks.turns import ReplyBatcher


class Sender:
    def __init__(self) -> None:
        self.sent = 0

    def send_now(self) -> None:
        self.sent += 1


class Broken:
    def send_now(self) -> None:
        raise ZeroDivisionError


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.together = ReplyBatcher(self.clock)

    def turn(self, connections: int) -> int:
        """So many connections have replies in one turn; how many waited for its end."""
        senders = [Sender() for _ in range(connections)]
        waited = [sender for sender in senders if self.together.delays(sender)]
        assert not any(sender.sent for sender in senders)
        self.clock.advance(0)
        assert [sender.sent for sender in waited] == [1] * len(waited)
        assert sum(sender.sent for sender in senders) == len(waited)
        assert self.clock.getDelayedCalls() == []
        return len(waited)


def test_one_at_a_time_nearly_every_reply_leaves_at_once() -> None:
    bench = Bench()
    assert sum(bench.turn(1) for _ in range(320)) == 10


def test_in_a_crowd_all_wait_for_each_other() -> None:
    bench = Bench()
    for _ in range(20):
        bench.turn(5)
    assert bench.turn(5) == 5


def test_the_crowd_is_over_when_turns_have_one_reply_each() -> None:
    bench = Bench()
    for _ in range(20):
        bench.turn(5)
    assert sum(bench.turn(1) for _ in range(30)) == 8


def test_a_fault_of_one_delays_no_other_reply() -> None:
    bench = Bench()
    for _ in range(20):
        bench.turn(5)
    other = Sender()
    assert bench.together.delays(Broken())
    assert bench.together.delays(other)
    with pytest.raises(ZeroDivisionError):
        bench.clock.advance(0)
    bench.clock.advance(0)
    assert other.sent == 1


def has_heard(client: Client, lines: int) -> bool:
    client.read()
    return client.heard.count(b"\n") == lines


@pytest_twisted.ensureDeferred
async def test_in_a_crowd_every_client_gets_its_own_replies_in_order_and_is_closed() -> None:
    guard = Loopback(max_invalid_commands=0)
    guard.start()
    try:
        clients = [await guard.greeted() for _ in range(20)]
        for round_ in range(1, 11):
            for client in clients:
                client.send(b"NOOP\r\nVRFY x\r\n")
            for client in clients:
                await guard.until(partial(has_heard, client, 2 * round_))
        assert guard.factory.output_rules.batcher._crowded
        gone = clients.pop()
        gone.send(b"NOOP\r\n")
        gone.reset()
        for client in clients:
            client.send(b"QUIT\r\n")
        for client in clients:
            assert await client.hears_the_end() == "FIN"
            assert codes(client.heard.decode()) == [250, 252] * 10 + [221]
        await guard.until(lambda: guard.factory.connections == 0)
    finally:
        await guard.close()
