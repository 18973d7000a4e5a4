"""Replies on their way out: joined, sent at once, in pieces, by halves, or not at all; and never out of order."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_twisted
from fakes import FakeTransport, codes
from loopback import Client, Loopback
from twisted.internet import reactor as real_reactor
from twisted.internet import tcp
from twisted.internet.task import Clock

from twisted_smtpguard.wire.deadlines import Deadlines
from twisted_smtpguard.wire.output import Output, OutputRules
from twisted_smtpguard.wire.together import Together

reactor: Any = real_reactor
OK = b"250 2.0.0 OK\r\n"


class Bench:
    """An Output on a transport in memory, and what it reported."""

    def __init__(self, timeout: float = 300) -> None:
        self.clock = Clock()
        self.transport = FakeTransport()
        self.transport.protocol = self
        self.reported: list[str] = []
        self.rules = OutputRules(Deadlines(self.clock), Together(self.clock), timeout, max_waiting=0)
        self.output = Output(self.transport, self.rules, self)

    def output_drained(self) -> None:
        self.reported.append("drained")

    def output_stalled(self) -> None:
        self.reported.append("stalled")

    def output_closing(self) -> None:
        self.reported.append("closed")

    def say(self, octets: bytes) -> None:
        self.output.queue(octets)
        self.output.flush()

    def client_reads(self, reads: bool = True) -> None:
        self.transport.reads = reads
        self.transport.drain()

    def connectionLost(self, reason: object) -> None:
        self.reported.append("lost")
        self.output.lost()

    def writeConnectionLost(self) -> None:
        self.reported.append("half-closed")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_is_queued_leaves_in_one_write_when_it_is_flushed(bench: Bench) -> None:
    for reply in (b"one\r\n", b"two\r\n", b"three\r\n"):
        bench.output.queue(reply)
    assert bench.transport.writes == []
    assert bench.output.queued_octets == 17
    bench.output.flush()
    assert bench.transport.writes == [b"one\r\ntwo\r\nthree\r\n"]
    assert bench.output.queued_octets == 0


def with_a_socket(bench: Bench, takes: int = 100) -> list[bytes]:
    """What the bench's own socket is given, of which it takes so many octets."""
    given: list[bytes] = []

    def send(octets: bytes) -> int:
        given.append(octets)
        return min(takes, len(octets))

    bench.output._socket = Mock(send=send)
    return given


@pytest.mark.parametrize("sends_itself", [True, False])
def test_a_reply_alone_leaves_with_those_that_are_queued(bench: Bench, sends_itself: bool) -> None:
    given = with_a_socket(bench) if sends_itself else bench.transport.writes
    bench.output.say(b"one\r\n")
    bench.output.queue(b"two\r\n")
    bench.output.say(b"three\r\n")
    bench.output.say(b"four\r\n")
    assert given == [b"one\r\n", b"two\r\nthree\r\n", b"four\r\n"]
    assert bench.output.queued_octets == 0


def test_a_reply_alone_waits_where_others_do(bench: Bench) -> None:
    given = with_a_socket(bench, takes=2)
    bench.client_reads(False)
    bench.output.say(b"one\r\n")
    assert bench.transport.writes == [b"e\r\n"]
    bench.output.say(b"two\r\n")
    assert given == [b"one\r\n"]
    assert bench.output.waiting_octets == 5
    bench.client_reads()
    assert bench.transport.value() == b"e\r\ntwo\r\n"
    assert bench.reported == ["drained"]


def test_a_reply_alone_waits_for_the_end_of_a_turn_in_which_others_are_served(bench: Bench) -> None:
    given = with_a_socket(bench)
    other = Mock()
    while not bench.rules.together.waits(other):
        pass
    bench.output.say(b"one\r\n")
    assert given == []
    # Who is served again in the same turn does not wait for its end.
    bench.output.say(b"two\r\n")
    assert given == [b"one\r\ntwo\r\n"]
    bench.output.say(b"three\r\n")
    assert len(given) == 1
    bench.clock.advance(0)
    other.send_now.assert_called_once_with()
    assert given == [b"one\r\ntwo\r\n", b"three\r\n"]
    assert bench.output.queued_octets == 0


def test_to_flush_nothing_writes_nothing(bench: Bench) -> None:
    bench.output.flush()
    assert bench.transport.writes == []
    assert bench.clock.getDelayedCalls() == []


def test_the_transport_is_given_4_kib_at_a_time(bench: Bench) -> None:
    bench.client_reads(False)
    bench.say(b"x" * 10_000)
    assert [len(piece) for piece in bench.transport.writes] == [4096]
    assert bench.output.waiting_octets == 10_000 - 4096
    bench.client_reads()
    assert [len(piece) for piece in bench.transport.writes] == [4096, 4096, 10_000 - 8192]
    assert bench.output.waiting_octets == 0


def test_what_is_said_meanwhile_waits_its_turn(bench: Bench) -> None:
    bench.client_reads(False)
    for n in range(1000):
        bench.say(b"%d\r\n" % n)
    bench.client_reads()
    assert bench.transport.value() == b"".join(b"%d\r\n" % n for n in range(1000))


def test_that_all_has_been_taken_is_reported_once(bench: Bench) -> None:
    bench.client_reads(False)
    bench.say(b"x" * 10_000)
    bench.say(b"y" * 10_000)
    assert bench.reported == []
    bench.client_reads()
    assert bench.reported == ["drained"]
    assert bench.clock.getDelayedCalls() == []


def test_of_what_was_taken_nothing_is_left(bench: Bench) -> None:
    bench.say(b"x" * 100_000)
    assert bench.transport.producer is None
    assert bench.output.waiting_octets == bench.output.queued_octets == 0
    assert bench.clock.getDelayedCalls() == []


def test_a_stall_is_reported_once_at_its_time(bench: Bench) -> None:
    bench.client_reads(False)
    bench.say(b"x" * 10_000)
    bench.clock.advance(299.9)
    assert bench.reported == []
    bench.clock.advance(0.2)
    assert bench.reported == ["stalled"]
    bench.clock.advance(1000)
    assert bench.reported == ["stalled"]


def test_what_is_said_meanwhile_does_not_put_off_the_stall(bench: Bench) -> None:
    bench.client_reads(False)
    for _ in range(301):
        bench.say(b"x")
        bench.clock.advance(1)
    assert bench.reported == ["stalled"]


def test_every_piece_taken_begins_the_time_anew(bench: Bench) -> None:
    bench.client_reads(False)
    bench.say(b"x" * 5 * 4096)
    for _ in range(4):
        bench.clock.advance(299)
        bench.transport.take(4096)
    assert bench.reported == []
    bench.clock.advance(300.1)
    assert bench.reported == ["stalled"]


@pytest.mark.parametrize(
    ("close", "reported"),
    [
        (Output.close, ["closed", "lost"]),
        (Output.half_close, ["closed", "half-closed"]),
    ],
)
@pytest.mark.parametrize("reads", [True, False])
def test_a_close_waits_for_what_was_said_before_it(
    bench: Bench, close: Callable[[Output], None], reported: list[str], reads: bool
) -> None:
    bench.client_reads(reads)
    bench.say(b"x" * 10_000)
    bench.output.queue(b"the end\r\n")
    close(bench.output)
    assert bench.reported[-2:] == (reported if reads else [])
    bench.client_reads()
    assert bench.reported[-2:] == reported
    assert bench.transport.value() == b"x" * 10_000 + b"the end\r\n"


def test_an_abort_waits_for_nothing(bench: Bench) -> None:
    bench.client_reads(False)
    bench.say(b"x" * 10_000)
    bench.output.abort()
    assert bench.reported == ["lost"]
    assert bench.clock.getDelayedCalls() == []
    assert bench.output.waiting_octets == 0


# Over TCP.


@pytest_twisted.async_yield_fixture
async def guard() -> Any:
    loopback = Loopback(max_invalid_commands=0)
    loopback.start()
    yield loopback
    await loopback.close()


def output_of(guard: Loopback) -> Any:
    (protocol,) = guard.protocols
    return protocol._output


@pytest_twisted.ensureDeferred
async def test_a_reply_does_not_wait_for_a_turn_of_the_reactor(guard: Loopback) -> None:
    client = await guard.greeted()
    (protocol,) = guard.protocols
    protocol.dataReceived(b"NOOP\r\n")
    client.read()
    assert client.heard == OK
    assert protocol.transport not in reactor.getWriters()


@pytest.mark.parametrize("octets", [0, 1, 13])
@pytest_twisted.ensureDeferred
async def test_what_the_socket_takes_by_halves_arrives_whole(guard: Loopback, octets: int) -> None:
    client = await guard.greeted()
    output = output_of(guard)
    send = output._socket.send
    output._socket = Mock(send=lambda data: send(data[:octets]))
    await client.says(b"NOOP\r\nNOOP\r\n")
    await client.hears(OK + OK)
    await client.says(b"VRFY x\r\nQUIT\r\n")
    assert await client.hears_the_end() == "FIN"
    assert codes(client.heard.decode()) == [250, 250, 252, 221]


@pytest_twisted.ensureDeferred
async def test_what_the_socket_does_not_take_now_arrives_later(guard: Loopback) -> None:
    client = await guard.greeted()

    def full(data: bytes) -> int:
        raise BlockingIOError(errno.EWOULDBLOCK, "")

    output_of(guard)._socket = Mock(send=full)
    await client.says(b"NOOP\r\nQUIT\r\n")
    assert await client.hears_the_end() == "FIN"
    assert codes(client.heard.decode()) == [250, 221]


@pytest_twisted.ensureDeferred
async def test_a_client_that_has_reset_the_connection_is_gone_when_a_reply_is_due(guard: Loopback) -> None:
    client = await guard.greeted()
    (protocol,) = guard.protocols
    # Not read, so that it is the reply that finds out.
    protocol.transport.stopReading()
    client.reset()
    protocol.dataReceived(b"NOOP\r\n")
    protocol.dataReceived(b"NOOP\r\n")
    await guard.until(lambda: guard.factory.connections == 0)
    assert protocol.end_reason == "lost"


def with_little_room(guard: Loopback, octets: int) -> None:
    """The kernel takes no more than that of what is sent either way."""
    for port in guard.service.ports:
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, octets)
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, octets)


def held(protocol: Any) -> int:
    output = protocol._output
    transport = protocol.transport
    in_transport = len(transport.dataBuffer) + transport._tempDataLen
    return len(protocol._buffer) + output.waiting_octets + output.queued_octets + in_transport


@pytest.mark.parametrize("step", [100, 4096])
@pytest_twisted.ensureDeferred
async def test_a_slow_reader_gets_everything_in_order(guard: Loopback, step: int) -> None:
    with_little_room(guard, 4096)
    client = await guard.greeted(receive_buffer=2048)
    asked = b"NOOP\r\nVRFY x\r\nWHAT\r\n" * 1500
    sent = 0
    (protocol,) = guard.protocols
    for _ in range(20_000):
        sent += client.send(asked[sent : sent + 4096])
        client.read(step)
        assert held(protocol) < 3 * 65536
        await guard.turn()
        if sent == len(asked) and client.heard.count(b"\r\n") == 4500:
            break
    assert codes(client.heard.decode()) == [250, 252, 500] * 1500


async def stuff(guard: Loopback, client: Client, octets: bytes) -> int:
    """Send for ever without reading, until nothing is taken any more; how much was."""
    sent = refused = 0
    while sent < len(octets) and refused < 100:
        taken = client.send(octets[sent : sent + 65536])
        sent += taken
        refused = 0 if taken else refused + 1
        await guard.turn()
    return sent


@pytest_twisted.ensureDeferred
async def test_of_a_client_that_never_reads_the_guard_keeps_a_bounded_amount(guard: Loopback) -> None:
    with_little_room(guard, 65536)
    client = await guard.greeted(receive_buffer=65536)
    (protocol,) = guard.protocols
    noops = b"NOOP\r\n" * (10 * 1024 * 1024 // 6)
    sent = await stuff(guard, client, noops)
    assert sent < len(noops)
    assert protocol._paused
    assert held(protocol) < 3 * 65536
    assert client.heard == b""
    other = await guard.greeted()
    await other.says(b"NOOP\r\n")
    await other.hears(OK)
    # And when it reads after all, it is served.
    await guard.until(lambda: client.read() or len(client.heard) == sent // 6 * len(OK))
    assert client.heard == OK * (sent // 6)


@pytest.mark.parametrize(("tls", "own"), [(False, True), (True, False)])
def test_the_own_socket_is_never_used_under_tls(tls: bool, own: bool) -> None:
    transport = tcp.Server.__new__(tcp.Server)
    transport.socket, transport.TLS = Mock(), tls
    output = Output(transport, OutputRules(Deadlines(Clock()), Together(Clock()), 0, 0), Mock())
    assert (output._socket is transport.socket) is own
