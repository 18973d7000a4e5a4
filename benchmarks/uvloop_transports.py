"""What a connection costs on uvloop, by whose transport it is: `python -m benchmarks.uvloop_transports`.

The server does nothing but answer, and its connections are one of four kinds:

- `server`: transports of uvloop, of a server of uvloop, which accepts;
- `accepted`: transports of uvloop, for connections that Python code accepts;
- `descriptors`: plain sockets, each of them added to the loop with add_reader();
- `epoll`: plain sockets in one epoll, which is added to the loop. The guard's reactor does this.

It prints the processor time of W1 and W2, in µs a mail, and the resident memory of an idle connection, in octets.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .peers import tool
from .vitals import CORES, Vitals, raise_descriptor_limit

ROUNDS = 9
IDLE = 4000
W1 = ("-l", "1024", "-s", "20", "-m", "3000")
W2 = ("-d", "-l", "1024", "-s", "20", "-m", "6000")
END = b"\r\n.\r\n"


class Session:
    """Answers every line, and looks at no more of it than where it ends."""

    in_data = False

    def replies(self, data: bytes) -> tuple[bytes, bool]:
        """The replies, and whether the client has said goodbye."""
        replies = b""
        if self.in_data:
            end = data.find(END)
            if end < 0:
                return b"", False
            self.in_data = False
            replies = b"250 OK\r\n"
            data = data[end + len(END) :]
        for line in data.splitlines():
            if line.startswith(b"QUIT"):
                return replies + b"221 Bye\r\n", True
            self.in_data = line.startswith(b"DATA")
            replies += b"354 Go on\r\n" if self.in_data else b"250 OK\r\n"
        return replies, False


class OfUVLoop(Session, asyncio.Protocol):
    transport: Any

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(b"220 floor\r\n")

    def data_received(self, data: bytes) -> None:
        replies, over = self.replies(data)
        self.transport.write(replies)
        if over:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None


class Plain(Session):
    """A socket that tells `watch` what to call when it is readable, and `forget` when it is closed."""

    def __init__(self, own: socket.socket, watch: Callable[..., Any], forget: Callable[[int], Any]) -> None:
        own.setblocking(False)
        self._own, self._forget = own, forget
        own.send(b"220 floor\r\n")
        watch(own.fileno(), self.readable)

    def readable(self) -> None:
        replies, over = self.replies(data := self._own.recv(65536))
        if replies:
            self._own.send(replies)
        if over or not data:
            self._forget(self._own.fileno())
            self._own.close()


def serve(kind: str, listening: socket.socket) -> None:
    import uvloop  # noqa: PLC0415 - an extra

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    begin: Callable[[socket.socket], Any]
    begun: list[Any] = []
    if kind == "server":
        loop.run_until_complete(loop.create_server(OfUVLoop, sock=listening))
    elif kind == "accepted":

        def begin(own: socket.socket) -> None:
            begun.append(loop.connect_accepted_socket(OfUVLoop, own))
            begun[-1].send(None)
    elif kind == "descriptors":

        def begin(own: socket.socket) -> None:
            Plain(own, loop.add_reader, loop.remove_reader)
    else:
        poller, readable = select.epoll(), dict[int, Callable[[], None]]()

        def watch(descriptor: int, call: Callable[[], None]) -> None:
            readable[descriptor] = call
            poller.register(descriptor, select.EPOLLIN)

        def deliver() -> None:
            for descriptor, _ in poller.poll(0, 256):
                readable[descriptor]()

        def begin(own: socket.socket) -> None:
            Plain(own, watch, readable.pop)

        loop.add_reader(poller.fileno(), deliver)

    def accept() -> None:
        with suppress(BlockingIOError):
            while True:
                begin(listening.accept()[0])
        if begun:
            loop.call_soon(finish)

    def finish() -> None:
        # They waited for one turn of the loop and nothing else, for which no task is needed.
        for coroutine in begun:
            with suppress(StopIteration):
                coroutine.send(None)
        begun.clear()

    if kind != "server":
        loop.add_reader(listening.fileno(), accept)
    loop.run_forever()


KINDS = ("server", "accepted", "descriptors", "epoll")


class Running:
    """A server of that kind, in its own process on the first core."""

    def __init__(self, kind: str) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
            listening.setblocking(False)
            self.port = listening.getsockname()[1]
            words = (sys.executable, "-m", "benchmarks.uvloop_transports", kind, str(listening.fileno()))
            self.process = subprocess.Popen(words, pass_fds=[listening.fileno()])
        os.sched_setaffinity(self.process.pid, {CORES[0]})
        self.vitals = Vitals(self.process.pid)
        self.greeted()

    def greeted(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port))
        assert client.recv(100).startswith(b"220")
        return client

    def cost(self, source: str, options: tuple[str, ...]) -> float:
        """µs of processor time a mail."""
        before = self.vitals.seconds
        subprocess.run([source, *options, f"127.0.0.1:{self.port}"], check=True)
        return (self.vitals.seconds - before) / int(options[-1]) * 1e6

    def memory(self, connections: int) -> float:
        """Octets of each of so many connections more."""
        some = [self.greeted() for _ in range(connections // 4)]
        before = self.vitals.resident
        some += [self.greeted() for _ in range(connections)]
        grown = self.vitals.resident - before
        for client in some:
            client.close()
        return grown / connections


def main(rounds: int = ROUNDS, idle: int = IDLE) -> None:
    source = tool("smtp-source")
    if source is None:
        raise SystemExit("smtp-source of Postfix is needed")
    raise_descriptor_limit()
    servers = {kind: Running(kind) for kind in KINDS}
    try:
        os.sched_setaffinity(0, {CORES[1 % len(CORES)]})
        costs: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds + 1):
            for kind, server in servers.items():
                for name, options in (("W1", W1), ("W2", W2)):
                    cost = server.cost(source, options)
                    if number:
                        costs.setdefault((kind, name), []).append(cost)
        print("| the connections are | W1 | W2 | an idle connection |\n|---|---|---|---|")
        for kind, server in servers.items():
            w1, w2 = (statistics.median(costs[kind, name]) for name in ("W1", "W2"))
            print(f"| {kind} | {w1:.0f} | {w2:.1f} | {server.memory(idle):.0f} |")
    finally:
        for server in servers.values():
            server.process.kill()
            server.process.wait()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
    else:
        main()
