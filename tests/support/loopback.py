"""Real sockets in one process: a guard that listens on the loopback, and clients that never block.

Time is a Clock's, so no test waits for it; the reactor only moves octets.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from fakes import FakeDelivery
from twisted.internet import reactor as real_reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import Clock, deferLater

from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.service.service import SMTPGuardService

reactor: Any = real_reactor
MAX_TURNS = 60_000
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Loopback:
    """A service on `listeners` ports of 127.0.0.1 or `endpoints`, and after those `tls_listeners` with implicit TLS.
    `options` are for the service. `close()` checks that nothing of it is left."""

    def __init__(
        self,
        listeners: int = 1,
        delivery: Any = None,
        *,
        tls_listeners: int = 0,
        endpoints: Sequence[Any] = (),
        options: dict[str, Any] | None = None,
        **limits: Any,
    ) -> None:
        self.before = (set(reactor.getReaders()), set(reactor.getWriters()), set(reactor.getDelayedCalls()))
        self.clock = Clock()
        self.delivery = delivery or FakeDelivery()
        self.service = SMTPGuardService(
            self.clock,
            endpoints or _endpoints(listeners),
            self.delivery,
            limits=Limits(**limits),
            hostname="guard.example",
            tls_endpoints=_endpoints(tls_listeners),
            **(options or {}),
        )
        self.factory = self.service.factory
        self.clients: list[Client] = []
        self.ports: list[Any] = []
        """Ports of 127.0.0.1. Of other endpoints an IPv6 address with its port, or the path of a UNIX socket."""

    def start(self) -> None:
        self.service.startService()
        self.ports = [_place(port.getHost()) for port in self.service.ports]

    async def turn(self) -> None:
        """One turn of the reactor, and all that was to be done in the next one."""
        await deferLater(reactor, 0, lambda: None)
        self.clock.advance(0)

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(MAX_TURNS):
            if condition():
                return
            await self.turn()
        raise AssertionError("it does not come to that")

    def client(self, listener: int = 0, receive_buffer: int = 0) -> Client:
        """A client that is connected as far as the kernel is concerned; the guard has not seen it yet."""
        client = Client(self, self.ports[listener], receive_buffer)
        self.clients.append(client)
        return client

    async def greeted(self, **buffers: int) -> Client:
        """A client that has had its greeting and its EHLO."""
        client = self.client(**buffers)
        await client.says(b"EHLO client.example\r\n")
        await client.hears(b"250 ")
        client.heard = b""
        return client

    @property
    def protocols(self) -> list[Any]:
        return list(self.factory._open)

    async def close(self) -> None:
        for client in self.clients:
            client.close()
        stopped: list[object] = []
        self.service.stopService().addBoth(stopped.append)
        await self.until(lambda: stopped)
        readers, writers, calls = self.before
        await self.until(
            lambda: set(reactor.getReaders()) <= readers and set(reactor.getWriters()) <= writers
        )
        await self.until(lambda: {call for call in reactor.getDelayedCalls() if call.active()} <= calls)
        assert self.clock.getDelayedCalls() == []
        assert self.factory.connections == 0
        assert self.factory.statistics.live_connections == 0
        assert self.factory._open == set()
        assert self.factory.context.handshakes == {}


def _place(host: Any) -> Any:
    if not hasattr(host, "port"):
        return host.name.decode()
    return host.port if host.host == "127.0.0.1" else (host.host, host.port)


def _endpoints(number: int) -> list[TCP4ServerEndpoint]:
    return [TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1") for _ in range(number)]


class Client:
    """A socket. `heard` is what it has read, `ended` how its reading ended: "FIN", "RST" or not yet ""."""

    def __init__(self, guard: Loopback, place: int | str | tuple[str, int], receive_buffer: int = 0) -> None:
        self.guard = guard
        self.heard = b""
        self.ended = ""
        address = ("127.0.0.1", place) if isinstance(place, int) else place
        tcp = socket.AF_INET if isinstance(place, int) else socket.AF_INET6
        self.socket = socket.socket(socket.AF_UNIX if isinstance(place, str) else tcp)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(address)
        self.socket.setblocking(False)

    def send(self, octets: bytes) -> int:
        """As much as goes now."""
        try:
            return self.socket.send(octets)
        except BlockingIOError:
            return 0

    async def says(self, octets: bytes) -> None:
        """All of it, without reading anything meanwhile."""
        view = memoryview(octets)
        for _ in range(MAX_TURNS):
            view = view[self.send(view[:65536]) :]
            if not view:
                return
            await self.guard.turn()
        raise AssertionError("it is not read")

    def read(self, octets: int = 65536) -> None:
        """What there is to read."""
        try:
            data = self.socket.recv(octets)
        except BlockingIOError:
            return
        except ConnectionError:
            self.ended = "RST"
            return
        self.heard += data
        if not data:
            self.ended = "FIN"

    async def hears(self, octets: bytes) -> None:
        """Read until `octets` have been heard."""

        def heard() -> bool:
            self.read()
            return octets in self.heard

        await self.guard.until(heard)

    async def hears_the_end(self) -> str:
        """Read until the guard ends the connection; how it did."""

        def heard() -> bool:
            if not self.ended:
                self.read()
            return bool(self.ended)

        await self.guard.until(heard)
        return self.ended

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()
