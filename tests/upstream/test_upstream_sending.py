"""Octets for the upstream server leave by the socket itself where they can, in their order, however slowly it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Client
from twisted.internet.testing import StringTransport

from twisted_smtpguard import replies
from twisted_smtpguard.hooks.promise import Promise
from twisted_smtpguard.upstream.smtpclient import SEND_BUFFER_OCTETS, Connection, settles
from twisted_smtpguard.values import Refused

reactor: Any = real_reactor


class Socket:
    """Takes so many octets, and then none."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = b""

    def send(self, octets: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        piece = octets[: self.room]
        self.room -= len(piece)
        self.taken += piece
        return len(piece)


def connected(room: int) -> tuple[Connection, Socket, StringTransport]:
    """A connection that has been greeted, over a socket that has so much room."""
    connection, transport, socket = Connection(Clock(), lambda _: None), StringTransport(), Socket(room)
    connection.makeConnection(transport)
    connection._socket = socket  # type: ignore[assignment]
    connection.dataReceived(b"220 mx\r\n")
    return connection, socket, transport


def drain(transport: StringTransport) -> bytes:
    """What a transport sends that sends everything it has, and asks for more."""
    while transport.producer is not None:
        transport.producer.resumeProducing()
    return transport.value()


@pytest.mark.parametrize("room", range(14))
def test_what_the_socket_does_not_take_is_left_to_the_transport_and_nothing_overtakes_it(room: int) -> None:
    connection, socket, transport = connected(room)
    connection.command(b"NOOP one", 60)
    connection.command(b"NOOP two", 60)
    socket.room = 100
    connection.command(b"NOOP three", 60)
    assert socket.taken + drain(transport) == b"NOOP one\r\nNOOP two\r\nNOOP three\r\n"
    transport.clear()
    socket.taken = b""
    connection.command(b"NOOP four", 60)
    assert socket.taken == b"NOOP four\r\n"
    assert transport.value() == b""


def test_a_message_waits_for_room_and_the_transport_has_a_piece_at_a_time() -> None:
    connection, socket, transport = connected(1_000_000)
    connection.command(b"DATA", 60)
    connection.dataReceived(b"354 go\r\n")
    connection.start_data()
    assert connection.stream(b"a" * 70_000)
    socket.room = 1_000
    told: list[object] = []
    assert not connection.stream(b"b" * 70_000)
    connection.wait_for_room(told.append, 60)
    while transport.producer is not None:
        assert told == []
        assert len(transport.value()) <= SEND_BUFFER_OCTETS
        socket.taken += transport.value()
        transport.clear()
        transport.producer.resumeProducing()
    assert told == [None]
    socket.room = 100
    connection.end_data(b"\r\n.\r\n", [(lambda *_: None, 60)])
    assert socket.taken == b"DATA\r\n" + b"a" * 70_000 + b"b" * 70_000 + b"\r\n.\r\n"


@pytest.mark.parametrize("reads", [True, False])
def test_a_server_that_reads_slowly_but_steadily_is_not_given_up(reads: bool) -> None:
    connection, _, transport = connected(1_000)
    connection.command(b"DATA", 60)
    connection.dataReceived(b"354 go\r\n")
    connection.start_data()
    told: list[object] = []
    assert not connection.stream(b"x" * 60_000)
    connection.wait_for_room(told.append, 60)
    for _ in range(3):
        # Each time the transport has sent a piece of 16 KiB.
        connection._clock.advance(50)  # type: ignore[attr-defined]
        if reads and transport.producer is not None:
            transport.producer.resumeProducing()
    assert told == ([] if reads else [replies.UPSTREAM_TIMED_OUT])
    assert connection.usable == reads


def test_a_time_limit_that_is_shorter_than_the_one_before_is_kept() -> None:
    connection, _, _ = connected(1_000)
    clock: Clock = connection._clock  # type: ignore[assignment]
    answers = [connection.command(b"NOOP", 60)]
    connection.dataReceived(b"250 Ok\r\n")
    answers.append(connection.command(b"RSET", 2))
    clock.advance(1.9)
    assert connection.usable
    clock.advance(0.1)
    assert [type(answer.error) for answer in answers] == [type(None), Refused]
    assert connection.problem is replies.UPSTREAM_TIMED_OUT
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("ends", ["quit", "end"])
def test_octets_that_wait_keep_no_connection_from_ending(ends: str) -> None:
    connection, _, transport = connected(2)
    connection.command(b"NOOP", 60)
    assert transport.producer is connection
    if ends == "quit":
        connection.quit(5)
        assert transport.disconnecting
    else:
        connection.end(replies.UPSTREAM_LOST)
        assert transport.disconnected
    assert transport.producer is None
    connection.resumeProducing()


class Batcher:
    """Has everything wait for the end of a turn, which a test says."""

    def __init__(self) -> None:
        self.senders: list[Connection] = []

    def delays(self, sender: Connection) -> bool:
        self.senders.append(sender)
        return True


def test_what_leaves_at_the_end_of_a_turn_keeps_its_order() -> None:
    connection, socket, _ = connected(1_000)
    batcher = connection._batcher = Batcher()  # type: ignore[assignment]
    connection.command(b"NOOP one", 60)
    assert socket.taken == b""
    # The second write of a turn takes the first with it.
    connection.command(b"NOOP two", 60)
    assert socket.taken == b"NOOP one\r\nNOOP two\r\n"
    connection.command(b"NOOP three", 60)
    for sender in batcher.senders:
        sender.send_now()
    assert socket.taken == b"NOOP one\r\nNOOP two\r\nNOOP three\r\n"


@pytest.mark.parametrize("ends", ["quit", "end"])
def test_a_connection_that_ends_before_the_end_of_a_turn(ends: str) -> None:
    connection, socket, transport = connected(1_000)
    batcher = connection._batcher = Batcher()  # type: ignore[assignment]
    connection.command(b"NOOP", 60)
    if ends == "quit":
        connection.quit(5)
        assert socket.taken + transport.value() == b"NOOP\r\nQUIT\r\n"
    else:
        connection.end(replies.UPSTREAM_LOST)
        assert socket.taken + transport.value() == b""
    for sender in batcher.senders:
        sender.send_now()
    assert socket.taken + transport.value() in (b"NOOP\r\nQUIT\r\n", b"")


def test_nothing_leaves_in_clear_once_tls_has_begun() -> None:
    connection, socket, transport = connected(4)
    transport.startTLS = lambda options: None  # type: ignore[attr-defined]
    connection.command(b"STARTTLS", 60)
    # The answer comes before the command has left.
    connection.dataReceived(b"220 go\r\n")
    connection.start_tls(None, 60)
    connection.handshakeCompleted()
    drain(transport)
    socket.room = 100
    connection.command(b"AUTH PLAIN c2VjcmV0", 60)
    assert socket.taken == b"STAR"
    assert transport.value() == b"TTLS\r\nAUTH PLAIN c2VjcmV0\r\n"


# On real sockets.


class Server(Protocol):
    """Says 220, 354 to DATA, and 250 to the end of a message. It reads slowly: a piece a turn."""

    def __init__(self) -> None:
        self.octets = b""

    def connectionMade(self) -> None:
        self.transport.write(b"220 mx\r\n")

    def dataReceived(self, data: bytes) -> None:
        self.octets += data
        if data.endswith(b"DATA\r\n"):
            self.transport.write(b"354 go\r\n")
        elif data.endswith((b"\r\n.\r\n", b"NOOP\r\n")):
            self.transport.write(b"250 2.0.0 Ok\r\n")
        self.transport.pauseProducing()
        reactor.callLater(0, self.transport.resumeProducing)


@contextmanager
def listening() -> Iterator[tuple[int, list[Server]]]:
    servers: list[Server] = []

    def build() -> Server:
        servers.append(Server())
        return servers[-1]

    factory = Factory.forProtocol(build)
    factory.noisy = False
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    try:
        yield port.getHost().port, servers
    finally:
        port.stopListening()


@pytest.mark.timeout(60)
@pytest_twisted.ensureDeferred
async def test_a_large_message_comes_whole_to_a_server_that_reads_slowly() -> None:
    pieces = [bytes([97 + number % 26]) * 65_000 + b"\r\n" for number in range(100)]
    with listening() as (port, servers):
        factory = Factory.forProtocol(lambda: Connection(reactor, lambda _: None))
        factory.noisy = False
        connection: Connection = await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)  # type: ignore[assignment]
        if type(connection.transport) is Client:
            assert connection._socket is not None
        await connection.greeting(30)
        assert (await connection.command(b"DATA", 30)).code == 354
        connection.start_data()
        waits = 0
        for piece in pieces:
            if not connection.stream(piece):
                room: Deferred[None] = Deferred()
                connection.wait_for_room(room.callback, 30)
                waits += room.called is False
                assert await room is None
        verdict: Promise[Any] = Promise()
        connection.end_data(b".\r\n", [(settles(verdict), 30)])
        assert (await verdict).code == 250
        assert (await connection.command(b"NOOP", 30)).code == 250
        connection.end(replies.UPSTREAM_LOST)
        await connection.closed
    assert waits > 0
    assert servers[0].octets == b"DATA\r\n" + b"".join(pieces) + b".\r\nNOOP\r\n"
