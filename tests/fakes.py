"""A network and a delivery in memory: what the dialogue tests talk to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from twisted.internet import address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.interfaces import (
    PASS,
    Client,
    IDelivery,
    IIPFilter,
    IMailTransaction,
    IMessageSink,
    Path,
    Peer,
)
from twisted_smtpguard.limits import Limits
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.wire.factory import SMTPGuardFactory


class FakeTransport(StringTransport):
    """A TCP connection as Twisted's own behaves, with a client that reads all at once unless `reads` is False."""

    def __init__(self, host: str = "192.0.2.1", port: int = 4711) -> None:
        kind = address.IPv6Address if ":" in host else address.IPv4Address
        super().__init__(
            address.IPv4Address("TCP", "198.51.100.1", 25), kind("TCP", host, port), lenient=True
        )
        self.protocol: Any = None
        self.reads = True
        self.writes: list[bytes] = []
        """One entry for every call of write()."""
        self.half_closed = False
        self.aborted = False
        self.lost = False
        self._untaken = b""

    def write(self, data: bytes) -> None:
        if self.half_closed or self.lost:
            return
        self.writes.append(data)
        if self.reads:
            super().write(data)
        else:
            self._untaken += data

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        producer.resumeProducing()
        self.drain()

    def unregisterProducer(self) -> None:
        super().unregisterProducer()

    def drain(self) -> None:
        """The kernel takes what was written, and asks for more until there is none."""
        while self.reads and self.producer is not None and not self.lost:
            self.io.write(self._untaken)
            self._untaken = b""
            self.producer.resumeProducing()
        if self.reads:
            self.io.write(self._untaken)
            self._untaken = b""
            if self.disconnecting and not self.lost:
                self.lose(ConnectionDone())

    def take(self, octets: int) -> None:
        """A slow client takes this much of what was written."""
        self.io.write(self._untaken[:octets])
        self._untaken = self._untaken[octets:]
        if not self._untaken and self.producer is not None:
            self.producer.resumeProducing()

    def loseWriteConnection(self) -> None:
        self.half_closed = True
        self.protocol.writeConnectionLost()

    def loseConnection(self) -> None:
        self.disconnecting = True
        if self.producer is None and not self._untaken:
            self.lose(ConnectionDone())

    def abortConnection(self) -> None:
        self.aborted = True
        self.lose(ConnectionAborted())

    def lose(self, reason: BaseException | None = None) -> None:
        """The connection is gone."""
        if not self.lost:
            self.lost = True
            self.connected = False
            self.protocol.connectionLost(Failure(reason or ConnectionLost()))


@attrs.define
class Delivered:
    """A message that finish() was called for."""

    client: Client
    sender: Path
    recipients: list[Path]
    octets: bytes


@implementer(IDelivery)
class FakeDelivery:
    """Keeps what it is given. `answers[hook]` is called with the hook's arguments where it is set, and its
    result returned; so it may return a Deferred or a coroutine, or raise."""

    extensions = frozenset({"8BITMIME", "SMTPUTF8", "BINARYMIME"})
    max_message_octets = 0

    def __init__(self) -> None:
        self.messages: list[Delivered] = []
        self.calls: list[str] = []
        self.answers: dict[str, Any] = {}

    def _answer(self, hook: str, default: Any, *args: object) -> Any:
        self.calls.append(hook)
        answer = self.answers.get(hook)
        return answer(*args) if answer is not None else default

    def begin(self, client: Client, sender: Path) -> Any:
        return self._answer("begin", FakeTransaction(self, client, sender), client, sender)


@implementer(IMailTransaction)
class FakeTransaction:
    def __init__(self, delivery: FakeDelivery, client: Client, sender: Path) -> None:
        self.delivery, self.client, self.sender = delivery, client, sender
        self.recipients: list[Path] = []

    def recipient(self, recipient: Path) -> Any:
        self.recipients.append(recipient)
        return self.delivery._answer("recipient", None, recipient)

    def data(self) -> Any:
        return self.delivery._answer("data", FakeSink(self))

    def abort(self) -> None:
        self.delivery._answer("transaction.abort", None)


@implementer(IMessageSink)
class FakeSink:
    def __init__(self, transaction: FakeTransaction) -> None:
        self.transaction = transaction
        self.octets = b""

    def write(self, data: bytes) -> Any:
        self.octets += data
        return self.transaction.delivery._answer("write", None, data)

    def finish(self) -> Any:
        txn = self.transaction
        txn.delivery.messages.append(Delivered(txn.client, txn.sender, txn.recipients, self.octets))
        return txn.delivery._answer("finish", None)

    def abort(self) -> None:
        self.transaction.delivery._answer("sink.abort", None)


@implementer(IIPFilter)
class FakeFilter:
    """Answers every peer with `answer`; a callable one is called with the peer, and may raise."""

    def __init__(self, answer: Any = PASS) -> None:
        self.answer = answer
        self.peers: list[Peer] = []

    def check(self, peer: Peer) -> Any:
        self.peers.append(peer)
        return self.answer(peer) if callable(self.answer) else self.answer


class SlowFilter(FakeFilter):
    """Answers with a Deferred, kept in `asked`. It is cancelled as any other, and `cancelled` counts that."""

    def __init__(self) -> None:
        super().__init__(self._ask)
        self.asked: list[Deferred[Any]] = []
        self.cancelled = 0

    def _ask(self, _: Peer) -> Deferred[Any]:
        self.asked.append(Deferred(self._cancel))
        return self.asked[-1]

    def _cancel(self, _: object) -> None:
        self.cancelled += 1


class Guard:
    """A factory on a Clock with a FakeDelivery, and clients that talk to it."""

    def __init__(
        self,
        delivery: Any = None,
        clock: Clock | None = None,
        *,
        ip_filters: Sequence[Any] = (),
        counters: Any = None,
        **limits: Any,
    ) -> None:
        self.clock = clock or Clock()
        self.delivery = delivery or FakeDelivery()
        self.factory = SMTPGuardFactory(
            self.clock,
            self.delivery,
            limits=Limits(**limits),
            hostname="guard.example",
            ip_filters=ip_filters,
            counters=counters,
        )

    def connect(self, host: str = "192.0.2.1") -> Conversation:
        """A client connects; what it is greeted with is the first thing it hears."""
        transport = FakeTransport(host)
        protocol: Any = self.factory.buildProtocol(transport.getPeer())
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return Conversation(self, protocol, transport)

    def greeted(self, host: str = "192.0.2.1") -> Conversation:
        """A client that has had its greeting and its EHLO."""
        client = self.connect(host)
        client.say("EHLO client.example")
        return client


class Conversation:
    """One client's side."""

    def __init__(self, guard: Guard, protocol: Any, transport: FakeTransport) -> None:
        self.guard = guard
        self.protocol = protocol
        self.transport = transport

    def send(self, octets: bytes, *, bytewise: bool = False) -> str:
        """Send octets, all at once or a byte at a time; what the guard says to them."""
        for piece in (octets[i : i + 1] for i in range(len(octets))) if bytewise else (octets,):
            if self.transport.lost:
                break
            self.protocol.dataReceived(piece)
            # A long burst takes several turns of the reactor.
            self.guard.clock.advance(0)
        return self.heard()

    def say(self, *lines: str, bytewise: bool = False) -> str:
        """Send command lines in one piece; what the guard says to them."""
        return self.send("".join(f"{line}\r\n" for line in lines).encode(), bytewise=bytewise)

    def heard(self) -> str:
        """What the guard said since this was last asked."""
        said = self.transport.value().decode("ascii")
        self.transport.clear()
        return said

    def codes(self, *lines: str) -> list[int]:
        """The codes of the replies to these lines."""
        return codes(self.say(*lines))

    def half_close(self) -> str:
        """The client shuts down its side."""
        self.protocol.readConnectionLost()
        return self.heard()

    def disconnect(self) -> None:
        """The client is gone."""
        self.transport.lose()

    @property
    def closed(self) -> bool:
        """Our side says no more."""
        return self.transport.half_closed or self.transport.lost


def codes(said: str) -> list[int]:
    """The code of each reply in what the guard said."""
    return [int(line[:3]) for line in said.split("\r\n") if line[3:4] == " "]


def refusal(code: int, text: str, enhanced: str = "") -> Reply:
    """A delivery's own reply."""
    return Reply(code, enhanced or f"{code // 100}.1.1", (text,))


def splits(octets: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every way to cut octets in two."""
    for i in range(1, len(octets)):
        yield octets[:i], octets[i:]
