"""Thousands of hostile connections from a thousand addresses, in a process of their own that does little for each.

    python hostileprocess.py PORT CONNECTIONS ADDRESSES NETWORKS

They come as soon as a line is read from the standard input, and go when it ends. From then on each second one line of
JSON is printed, the `Count` so far. A fourth of the connections is of each kind:

- idle: hears the greeting, and says nothing.
- mail: goes on up to MAIL, and stops.
- drip: says a proper dialogue, an octet each second.
- again: goes as soon as it has heard a line, and connects again at once.

The others, when their connection has ended or was refused, connect again after `AGAIN_SECONDS`.
"""

from __future__ import annotations

import heapq
import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

AGAIN_SECONDS = 5.0
IDLE, MAIL, DRIP, AGAIN = KINDS = ("idle", "mail", "drip", "again")
_LINES = (b"EHLO crowd.example\r\n", b"MAIL FROM:<somebody@crowd.example>\r\n")
_DRIPPED = b"".join(_LINES) + b"RCPT TO:<user@example.org>\r\nDATA\r\n"
_NICE = 10


def address_of(number: int, networks: int) -> str:
    """The address with this number, in one of the networks 127.1.x.0/24."""
    return f"127.1.{number % networks}.{1 + number // networks}"


class _Connection:
    """One of the crowd, which has one connection after the other."""

    __slots__ = ("address", "greeted", "kind", "lines", "socket", "turn")

    def __init__(self, kind: str, address: str) -> None:
        self.kind = kind
        self.address = address
        self.socket: socket.socket | None = None
        self.greeted = False
        self.lines = 0
        """How many of the lines, or in a drip of the octets, it has said."""
        self.turn = 0
        """Changes with each connection, so that what was planned for the last is void."""


class _Crowd:
    def __init__(self, port: int, connections: int, addresses: int, networks: int) -> None:
        self._server = ("127.0.0.1", port)
        self._members = [
            _Connection(KINDS[number % len(KINDS)], address_of(number // len(KINDS) % addresses, networks))
            for number in range(connections)
        ]
        self._epoll = select.epoll()
        self._of: dict[int, _Connection] = {}
        self._planned: list[tuple[float, int, int, _Connection, Callable[[_Connection], None]]] = []
        self._numbers = count()
        self._connected = self._greeted = self._refused = self._ended = 0

    def run(self) -> None:
        """Until the standard input ends."""
        self._epoll.register(0, select.EPOLLIN)
        sys.stdin.readline()
        for number, member in enumerate(self._members):
            # They come within two seconds.
            self._plan(2 * number / len(self._members), member, self._connect)
        next_told = time.monotonic() + 1
        while True:
            for descriptor, _ in self._epoll.poll(0.05, 1000):
                if descriptor == 0:
                    return
                hearing = self._of.get(descriptor)
                if hearing is not None:
                    self._hear(hearing)
            now = time.monotonic()
            while self._planned and self._planned[0][0] <= now:
                _, _, turn, member, act = heapq.heappop(self._planned)
                if turn == member.turn:
                    act(member)
            if now >= next_told:
                next_told = now + 1
                print(json.dumps(self._count()), flush=True)

    def _count(self) -> dict[str, Any]:
        held = dict.fromkeys(KINDS, 0)
        for member in self._of.values():
            held[member.kind] += member.greeted
        return {
            "connected": self._connected,
            "greeted": self._greeted,
            "refused": self._refused,
            "ended": self._ended,
            "held": held,
            "seconds": time.process_time(),
        }

    def _plan(self, seconds: float, member: _Connection, act: Callable[[_Connection], None]) -> None:
        planned = (time.monotonic() + seconds, next(self._numbers), member.turn, member, act)
        heapq.heappush(self._planned, planned)

    def _connect(self, member: _Connection) -> None:
        one = socket.socket()
        one.setblocking(False)
        try:
            one.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            one.bind((member.address, 0))
            one.connect(self._server)
        except BlockingIOError:
            pass
        except OSError:
            one.close()
            self._plan(AGAIN_SECONDS, member, self._connect)
            return
        member.socket, member.greeted, member.lines = one, False, 0
        self._of[one.fileno()] = member
        self._epoll.register(one.fileno(), select.EPOLLIN)
        self._connected += 1

    def _hear(self, member: _Connection) -> None:
        assert member.socket is not None
        try:
            heard = member.socket.recv(1024)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if not member.greeted and not heard.startswith(b"220"):
            # postscreen begins its greeting long before it ends it, and 421 is the end of either.
            self._refused += 1
            self._go(member)
        elif not heard or heard.startswith(b"421"):
            self._ended += 1
            self._go(member)
        elif not member.greeted:
            member.greeted = True
            self._greeted += 1
            if member.kind == AGAIN:
                self._go(member)
            elif member.kind == DRIP:
                self._plan(1, member, self._drip)
            elif member.kind == MAIL and not heard.startswith(b"220-"):
                self._say_next(member)
        elif member.kind == MAIL:
            self._say_next(member)

    def _say_next(self, member: _Connection) -> None:
        if member.lines < len(_LINES):
            self._say(member, _LINES[member.lines])

    def _drip(self, member: _Connection) -> None:
        at = member.lines % len(_DRIPPED)
        self._plan(1, member, self._drip)
        self._say(member, _DRIPPED[at : at + 1])

    def _say(self, member: _Connection, octets: bytes) -> None:
        assert member.socket is not None
        try:
            member.socket.send(octets)
            member.lines += 1
        except OSError:
            pass  # It is heard of too.

    def _go(self, member: _Connection) -> None:
        assert member.socket is not None
        del self._of[member.socket.fileno()]
        member.socket.close()
        member.socket = None
        member.turn += 1
        if member.kind == AGAIN:
            self._connect(member)
        else:
            self._plan(AGAIN_SECONDS, member, self._connect)


_IP_BIND_ADDRESS_NO_PORT = 24


class HostileProcess:
    """The crowd in its process, which comes with `come`, and goes at the end of the block."""

    def __init__(self, port: int, connections: int, addresses: int, networks: int) -> None:
        words = map(str, (port, connections, addresses, networks))
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.extend(iter(self._process.stdout.readline, ""))

    def come(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    @property
    def counts(self) -> list[dict[str, Any]]:
        """What it has counted, once a second. `held` are the connections that were greeted and are open, by kind."""
        return [json.loads(line) for line in list(self._lines)]

    def __enter__(self) -> HostileProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            self._process.stdout.close()


def main(*words: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A crowd elsewhere would take nothing of this machine's processors.
    os.nice(_NICE)
    _Crowd(*map(int, words)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
