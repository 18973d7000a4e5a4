"""Replies on their way out: joined, sent at once, in pieces, by halves, or not at all; and never out of order."""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_twisted
from fakes import FakeTransport, Guard, codes
from logbook import logbook
from loopback import Client, Loopback
from twisted.internet import reactor as real_reactor
from twisted.internet import tcp

from twisted_smtpguard.engine.port import Close

reactor: Any = real_reactor
OK = b"250 2.0.0 OK\r\n"


class RecordingEngine:
    """In the place of an engine: what its host reported."""

    name = peer_name = ""
    handshaking = gone = lingers = False

    def __init__(self) -> None:
        self.reported: list[str] = []

    def input(self, function: Callable[..., object], *arguments: object) -> None:
        """The connection begins. Nobody is to greet it."""

    def drained(self) -> None:
        self.reported.append("drained")

    def stalled(self) -> None:
        self.reported.append("stalled")

    def all_sent(self, *, lingers: bool) -> None:
        self.reported.append("said all")

    def half_closed(self) -> None:
        self.reported.append("half-closed")

    def lost(self) -> None:
        self.reported.append("lost")


class Bench:
    """The host of one connection, on a transport in memory, and what it reported to its engine."""

    def __init__(self) -> None:
        self.guard = Guard(write_timeout=300, max_output_buffer=0)
        self.clock = self.guard.clock
        self.transport = FakeTransport()
        self.host: Any = self.guard.factory.buildProtocol(self.transport.getPeer())
        self.host.engine = engine = RecordingEngine()
        self.reported = engine.reported
        self.transport.protocol = self.host
        self.host.makeConnection(self.transport)

    def say(self, octets: bytes) -> None:
        self.host.write(octets)

    def client_reads(self, reads: bool = True) -> None:
        self.transport.reads = reads
        self.transport.drain()

    @property
    def waiting(self) -> int:
        """Octets of replies that the host keeps."""
        return held(self.host)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def held(host: Any) -> int:
    """The octets that a connection keeps, whatever keeps them: its protocol, engine, backlog and transport."""
    octets = 0
    seen: set[int] = set()
    parts = deque([host])
    while parts:
        part = parts.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        for value in attributes(part):
            for each in value if isinstance(value, list | deque) else [value]:
                if isinstance(each, bytes | bytearray | memoryview):
                    octets += len(each)
            if isinstance(value, tcp.Server) or type(value).__module__.endswith(
                (".engine.engine", ".transport.output")
            ):
                parts.append(value)
    return octets


def attributes(part: Any) -> Iterator[Any]:
    """The values of an object's own attributes."""
    yield from getattr(part, "__dict__", {}).values()
    for kind in type(part).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name != "__weakref__":
                yield getattr(part, name, None)


# What is said to one arrival.


def test_the_replies_to_one_arrival_leave_in_one_write() -> None:
    client = Guard().greeted()
    client.transport.writes.clear()
    assert codes(client.send(b"NOOP\r\nVRFY x\r\nNOOP\r\n")) == [250, 252, 250]
    assert len(client.transport.writes) == 1
    assert held(client.protocol) == 0


def test_to_an_arrival_that_is_not_answered_nothing_is_written() -> None:
    client = Guard().greeted()
    client.transport.writes.clear()
    client.send(b"NOOP")
    assert client.transport.writes == []


def send_by(host: Any, transport: Any, send: Callable[[bytes], int]) -> None:
    """Let the host take `send` for that of its socket, and nobody else."""
    server = tcp.Server.__new__(tcp.Server)
    server.TLS, server.socket = False, Mock(send=send)
    host.transport = server
    host.own_socket()
    host.transport = transport


def with_a_socket(bench: Bench, takes: int = 100) -> list[bytes]:
    """What the bench's own socket is given, of which it takes so many octets."""
    given: list[bytes] = []

    def send(octets: bytes) -> int:
        given.append(octets)
        return min(takes, len(octets))

    send_by(bench.host, bench.transport, send)
    return given


# What the host does with it.


@pytest.mark.parametrize("sends_itself", [True, False])
def test_each_write_leaves_at_once_where_nothing_waits(bench: Bench, sends_itself: bool) -> None:
    given = with_a_socket(bench) if sends_itself else bench.transport.writes
    said = [b"one\r\n", b"two\r\nthree\r\n", b"four\r\n"]
    for octets in said:
        bench.say(octets)
    assert given == said
    assert bench.waiting == 0


def test_what_is_said_waits_where_something_waits_already(bench: Bench) -> None:
    given = with_a_socket(bench, takes=2)
    bench.client_reads(False)
    bench.say(b"one\r\n")
    assert bench.transport.writes == [b"e\r\n"]
    bench.say(b"two\r\n")
    assert given == [b"one\r\n"]
    assert bench.waiting == 5
    bench.client_reads()
    assert bench.transport.value() == b"e\r\ntwo\r\n"
    assert bench.reported == ["drained"]
    # And then the socket is used again.
    bench.say(b"3\n")
    assert given == [b"one\r\n", b"3\n"]


def test_what_is_said_waits_for_the_end_of_a_turn_in_which_others_are_served(bench: Bench) -> None:
    given = with_a_socket(bench)
    other = Mock()
    while not bench.guard.factory.output_rules.batcher.delays(other):
        pass
    bench.say(b"one\r\n")
    assert given == []
    # Who is served again in the same turn does not wait for its end.
    bench.say(b"two\r\n")
    assert given == [b"one\r\ntwo\r\n"]
    bench.say(b"three\r\n")
    assert len(given) == 1
    bench.clock.advance(0)
    other.send_now.assert_called_once_with()
    assert given == [b"one\r\ntwo\r\n", b"three\r\n"]
    assert bench.waiting == 0


def test_the_transport_is_given_4_kib_at_a_time(bench: Bench) -> None:
    bench.client_reads(False)
    bench.say(b"x" * 10_000)
    assert [len(piece) for piece in bench.transport.writes] == [4096]
    assert bench.waiting == 10_000 - 4096
    bench.client_reads()
    assert [len(piece) for piece in bench.transport.writes] == [4096, 4096, 10_000 - 8192]
    assert bench.waiting == 0


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
    assert not bench.host.idle
    bench.client_reads()
    assert bench.reported == ["drained"]
    assert bench.host.idle
    assert bench.clock.getDelayedCalls() == []


def test_of_what_was_taken_nothing_is_left(bench: Bench) -> None:
    bench.say(b"x" * 100_000)
    assert bench.transport.producer is None
    assert bench.waiting == 0
    assert bench.host.idle
    assert bench.clock.getDelayedCalls() == []


@pytest.mark.parametrize(("octets", "too_many"), [(4095, False), (4096, True)])
def test_a_write_tells_whether_too_much_waits_for_the_client(octets: int, too_many: bool) -> None:
    guard = Guard(max_output_buffer=4096)
    client = guard.connect()
    client.transport.reads = False
    # What the transport has does not count.
    assert not client.protocol.write(b"x")
    assert client.protocol.write(b"x" * octets) is too_many


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
        (Close.PLAIN, ["said all", "lost"]),
        (Close.LINGER, ["said all", "half-closed"]),
    ],
)
@pytest.mark.parametrize("reads", [True, False])
def test_a_close_waits_for_what_was_said_before_it(
    bench: Bench, close: Close, reported: list[str], reads: bool
) -> None:
    bench.client_reads(reads)
    bench.say(b"x" * 10_000)
    bench.say(b"the end\r\n")
    bench.host.close(close)
    assert bench.reported[-2:] == (reported if reads else [])
    bench.client_reads()
    assert bench.reported[-2:] == reported
    assert bench.transport.value() == b"x" * 10_000 + b"the end\r\n"


def test_an_abort_waits_for_nothing(bench: Bench) -> None:
    bench.client_reads(False)
    bench.say(b"x" * 10_000)
    bench.host.close(Close.ABORT)
    assert bench.transport.aborted
    assert bench.reported == ["lost"]
    assert bench.clock.getDelayedCalls() == []
    assert bench.waiting == 0


# Over TCP.


@pytest_twisted.async_yield_fixture
async def guard() -> Any:
    loopback = Loopback(max_invalid_commands=0)
    loopback.start()
    yield loopback
    await loopback.close()


def only(guard: Loopback) -> Any:
    """The one connection's protocol."""
    (protocol,) = guard.protocols
    return protocol


@pytest_twisted.ensureDeferred
async def test_a_reply_does_not_wait_for_a_turn_of_the_reactor(guard: Loopback) -> None:
    client = await guard.greeted()
    protocol = only(guard)
    protocol.dataReceived(b"NOOP\r\n")
    client.read()
    assert client.heard == OK
    assert protocol.transport not in reactor.getWriters()


@pytest.mark.parametrize("octets", [0, 1, 13])
@pytest_twisted.ensureDeferred
async def test_what_the_socket_takes_by_halves_arrives_whole(guard: Loopback, octets: int) -> None:
    client = await guard.greeted()
    protocol = only(guard)
    send = protocol.transport.socket.send
    send_by(protocol, protocol.transport, lambda data: send(data[:octets]))
    await client.says(b"NOOP\r\nNOOP\r\n")
    await client.hears(OK + OK)
    await client.says(b"VRFY x\r\nQUIT\r\n")
    assert await client.hears_the_end() == "FIN"
    assert codes(client.heard.decode()) == [250, 250, 252, 221]


@pytest_twisted.ensureDeferred
async def test_what_the_socket_does_not_take_now_arrives_later(guard: Loopback) -> None:
    client = await guard.greeted()
    protocol = only(guard)

    def full(data: bytes) -> int:
        raise BlockingIOError(errno.EWOULDBLOCK, "")

    send_by(protocol, protocol.transport, full)
    await client.says(b"NOOP\r\nQUIT\r\n")
    assert await client.hears_the_end() == "FIN"
    assert codes(client.heard.decode()) == [250, 221]


@pytest_twisted.ensureDeferred
async def test_a_client_that_has_reset_the_connection_is_gone_when_a_reply_is_due(guard: Loopback) -> None:
    client = await guard.greeted()
    protocol = only(guard)
    with logbook() as log:
        # Not read, so that it is the reply that finds out.
        protocol.transport.stopReading()
        client.reset()
        protocol.dataReceived(b"NOOP\r\n")
        protocol.dataReceived(b"NOOP\r\n")
        await guard.until(lambda: guard.factory.connections == 0)
        (line,) = log.take("disconnect")
    assert " reason=lost " in line


def with_little_room(guard: Loopback, octets: int) -> None:
    """The kernel takes no more than that of what is sent either way."""
    for port in guard.service.ports:
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, octets)
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, octets)


@pytest.mark.parametrize("step", [100, 4096])
@pytest_twisted.ensureDeferred
async def test_a_slow_reader_gets_everything_in_order(guard: Loopback, step: int) -> None:
    with_little_room(guard, 4096)
    client = await guard.greeted(receive_buffer=2048)
    asked = b"NOOP\r\nVRFY x\r\nWHAT\r\n" * 1500
    sent = 0
    protocol = only(guard)
    for _ in range(20_000):
        sent += client.send(asked[sent : sent + 4096])
        client.read(step)
        assert held(protocol) < 3 * 65536
        await guard.turn()
        if sent == len(asked) and client.heard.count(b"\r\n") == 4500:
            break
    assert codes(client.heard.decode()) == [250, 252, 500] * 1500


async def stuff(guard: Loopback, client: Client, octets: bytes) -> int:
    """Send without reading, until no more is taken; how much was."""
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
    protocol = only(guard)
    noops = b"NOOP\r\n" * (10 * 1024 * 1024 // 6)
    sent = await stuff(guard, client, noops)
    assert sent < len(noops)
    assert protocol.transport not in reactor.getReaders()
    assert 65536 <= held(protocol) < 3 * 65536
    assert client.heard == b""
    other = await guard.greeted()
    await other.says(b"NOOP\r\n")
    await other.hears(OK)
    # And when it reads after all, it is served.
    await guard.until(lambda: client.read() or len(client.heard) == sent // 6 * len(OK))
    assert client.heard == OK * (sent // 6)


@pytest.mark.parametrize(("tls", "own"), [(False, True), (True, False)])
def test_the_own_socket_is_never_used_under_tls(bench: Bench, tls: bool, own: bool) -> None:
    server = tcp.Server.__new__(tcp.Server)
    server.TLS = tls
    server.socket = Mock(send=Mock(side_effect=len))
    server.write = Mock()
    server.registerProducer = lambda producer, _: producer.resumeProducing()
    bench.host.transport = server
    bench.host.own_socket()
    bench.say(OK)
    assert server.socket.send.called is own
    assert server.write.called is not own
