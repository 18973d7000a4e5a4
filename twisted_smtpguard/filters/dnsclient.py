"""A client of name servers: one question, to one server after another, over UDP and where that is too short over TCP.

The client of twisted.names logs two lines for each question, takes the first answer with the right id whatever it was
asked, and cannot be cancelled. Here each question has its own socket, from a port that the kernel chooses at random. It
is connected, so that the kernel drops what comes from elsewhere, and tells of a server that does not run. Whatever
does not answer the question is ignored.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from secrets import randbits
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ClientFactory
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.filters.dnsbldecision import ERROR, TIMEOUT, Answer
from twisted_smtpguard.filters.dnsmessages import (
    MAX_OCTETS,
    Truncated,
    find_servers,
    question_for,
    read_answer,
)
from twisted_smtpguard.hooks.threads import OneThread

_DATAGRAMS_AT_ONCE = 8
"""How many datagrams of one socket are looked at in a turn of the reactor. All but one are forged."""

_TRIES = (0.25, 0.25)
"""After which parts of the time the next server is asked, or the same once more: datagrams are lost. The last has the
rest."""


class DNSClient:
    """Asks name servers for the A records of names. `reactor` has sockets, threads and the time. `resolver` is the host
    and the port of one; None: those of the system."""

    def __init__(self, reactor: Any, resolver: tuple[str, int] | None = None) -> None:
        self._reactor = reactor
        self._resolver = resolver
        self._thread = OneThread(reactor)
        self._problem = "no resolver is known"
        self.servers: Sequence[tuple[str, int]] = ()
        """Their addresses and ports, in the order in which they are asked."""

    async def _find(self) -> None:
        try:
            self.servers = await self._thread.run(find_servers, self._resolver)
        except ValueError as error:
            self._problem = str(error)
            raise

    def find_servers(self) -> Deferred[None]:
        """Find the servers, for questions from then on. ValueError says why they are not found; then those that were
        known stay."""
        return Deferred.fromCoroutine(self._find())

    def ask(self, name: str, seconds: float, answered: Callable[[Answer], object]) -> Exchange:
        """Ask for the addresses of a name, and call `answered` once, within `seconds`. It may be called before this
        returns, and is not called once the exchange has been cancelled."""
        exchange = Exchange(self._reactor, self.servers, name, seconds, answered)
        exchange.begin(self._problem)
        return exchange


@implementer(IReadDescriptor)
class Exchange:
    """A question, until it is answered."""

    def __init__(
        self,
        reactor: Any,
        servers: Sequence[tuple[str, int]],
        name: str,
        seconds: float,
        answered: Callable[[Answer], object],
    ) -> None:
        self._reactor = reactor
        self._servers = list(servers)
        """Those that have not failed; the first is being asked."""
        self._name = name
        self._number = randbits(16)
        self._octets = question_for(name, self._number)
        self._ends_at = reactor.seconds() + seconds
        self._waits = [seconds * part for part in _TRIES]
        self._answered: Callable[[Answer], object] | None = answered
        self._socket: socket.socket | None = None
        self._connected_to: tuple[str, int] | None = None
        self._connector: Any = None
        self._timer: Any = None

    def begin(self, problem: str) -> None:
        """Ask the first server. Called once. `problem` is that of having none."""
        if self._servers:
            self._send()
        else:
            self._end(Answer(problem=problem, outcome=ERROR))

    def cancel(self) -> None:
        """Give up. May be called when the answer is there."""
        self._answered = None
        self._close()

    def _send(self) -> None:
        """Send the question to the first server."""
        server = self._servers[0]
        try:
            if self._socket is None or self._connected_to != server:
                self._close()
                self._open(server)
            assert self._socket is not None
            self._socket.send(self._octets)
        except BlockingIOError:
            # As lost as any datagram may be.
            pass
        except OSError as error:
            self._failed(f"the resolver cannot be asked: {error.strerror}")
            return
        if self._waits:
            self._call_later(self._waits.pop(0), self._try_next)
        else:
            self._call_later(self._left(), self._out_of_time)

    def _left(self) -> float:
        return float(max(0, self._ends_at - self._reactor.seconds()))

    def _call_later(self, seconds: float, call: Callable[[], object]) -> None:
        self._stop_timer()
        self._timer = self._reactor.callLater(min(seconds, self._left()), call)

    def _open(self, server: tuple[str, int]) -> None:
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._connected_to = server
        self._socket.setblocking(False)
        self._socket.connect(server)
        self._reactor.addReader(self)

    def _try_next(self) -> None:
        self._timer = None
        self._servers.append(self._servers.pop(0))
        self._send()

    def _out_of_time(self) -> None:
        self._timer = None
        self._end(Answer(problem="no answer in time", outcome=TIMEOUT))

    def _failed(self, problem: str) -> None:
        """The server that is asked has no answer."""
        self._close()
        del self._servers[0]
        if self._servers:
            self._send()
        else:
            self._end(Answer(problem=problem, outcome=ERROR))

    def _end(self, answer: Answer) -> None:
        answered, self._answered = self._answered, None
        self._close()
        if answered is not None:
            answered(answer)

    def _close(self) -> None:
        self._stop_timer()
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None
        connector, self._connector = self._connector, None
        if connector is not None:
            connector.disconnect()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    # As a reader of the reactor's.

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        return "DNS question"

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor instead of `doRead` if the kernel has only an error: the server does not run."""
        if self._socket is not None:
            self._failed("the resolver does not run")

    def doRead(self) -> None:
        for _ in range(_DATAGRAMS_AT_ONCE):
            if self._socket is None:
                return
            try:
                octets = self._socket.recv(MAX_OCTETS)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(f"the resolver cannot be asked: {error.strerror}")
                return
            try:
                answer = read_answer(octets, self._name, self._number)
            except Truncated:
                self._ask_by_tcp()
                return
            if answer is not None:
                self._take(answer)
                return

    def _take(self, answer: Answer) -> None:
        if answer.problem:
            # Another server may know more.
            self._failed(answer.problem)
        else:
            self._end(answer)

    # Over TCP.

    def _ask_by_tcp(self) -> None:
        host, port = self._servers[0]
        self._close()
        self._waits = []
        self._call_later(self._left(), self._out_of_time)
        self._connector = self._reactor.connectTCP(host, port, _OneAnswer(self), timeout=self._left() + 1)

    def whole(self, octets: bytes, connector: Any) -> None:
        """An answer has come by TCP."""
        if connector is self._connector:
            try:
                answer = read_answer(octets, self._name, self._number)
            except Truncated:
                answer = None
            if answer is None:
                self._failed("the resolver's answer by TCP is none")
            else:
                self._take(answer)

    def lost(self, connector: Any) -> None:
        """The TCP connection could not be made, or has ended."""
        if connector is self._connector:
            self._failed("the resolver's answer is truncated, and TCP to it fails")

    @property
    def question(self) -> bytes:
        return self._octets


class _OneAnswer(ClientFactory):
    """The factory of a connection for one question."""

    noisy = False

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.connector: Any = None

    def startedConnecting(self, connector: Any) -> None:
        self.connector = connector

    def buildProtocol(self, addr: object) -> Int16StringReceiver:
        return _Stream(self)

    def clientConnectionFailed(self, connector: Any, reason: object) -> None:
        self.exchange.lost(connector)

    def clientConnectionLost(self, connector: Any, reason: object) -> None:
        self.exchange.lost(connector)


class _Stream(Int16StringReceiver):
    """The TCP connection. A longer answer than MAX_OCTETS ends it."""

    MAX_LENGTH = MAX_OCTETS

    def __init__(self, factory: _OneAnswer) -> None:
        self._factory = factory

    def connectionMade(self) -> None:
        self.sendString(self._factory.exchange.question)

    def stringReceived(self, octets: bytes) -> None:
        self._factory.exchange.whole(octets, self._factory.connector)
