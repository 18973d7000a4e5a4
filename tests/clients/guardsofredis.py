"""Real guards that count in one real Redis, each with a clock of its own, and crowds of clients from 127.0.0.0/8."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from processes import GuardProcess
from rawclient import RawClient
from redisserver import RealRedis

CLOCKS = (0.0, 86_400.5, -3_600.25)
"""By how many seconds the clocks of the guards differ from this host's."""

_SHIFTED = """#!{python}
import sys
import time

real = time.time
time.time = lambda: real() + {seconds}
from twisted.application.twist._twist import Twist

sys.exit(Twist.main())
"""


def shifted_twist(directory: Path, seconds: float) -> Path:
    """A `twist` whose clock differs by so many seconds."""
    path = directory / "twist"
    path.write_text(_SHIFTED.format(python=sys.executable, seconds=seconds))
    path.chmod(0o755)
    return path


class Guards:
    """Three guards on one Redis while the block runs, with `options`. At its end they are stopped."""

    def __init__(self, directory: Path, url: str, *options: str) -> None:
        self._stack = ExitStack()
        self.running: list[GuardProcess] = []
        for number, seconds in enumerate(CLOCKS):
            folder = directory / str(number)
            folder.mkdir()
            self.running.append(
                GuardProcess(
                    folder,
                    f"--counters={url}",
                    "--deliver=discard:",
                    "--max-log-lines=0",
                    *options,
                    twist=shifted_twist(folder, seconds),
                )
            )

    def told(self, event: str) -> list[int]:
        """How often each guard has logged an event."""
        # Not line by line: it is asked again and again while the log grows to hundreds of thousands of them.
        return [each.log.count(f" {event} ".encode()) for each in self.running]

    def __enter__(self) -> Guards:
        for each in self.running:
            self._stack.enter_context(each)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)


class Crowd:
    """Clients that come, hold their connections for a moment, and go. What they hold is counted by themselves, so that
    nothing of the guard's bookkeeping is believed: from the greeting on, until just before QUIT."""

    def __init__(self, ports: Sequence[int], sources: Sequence[str]) -> None:
        self._ports = ports
        self._sources = sources
        self.held: Counter[str] = Counter()
        self.most = 0
        self.most_of_client = 0
        self.most_of_network = 0
        """Of those in an IPv4 /29."""
        self.admitted = 0
        self.refused: Counter[str] = Counter()

    async def _visit(self, dice: random.Random) -> None:
        source = dice.choice(self._sources)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", dice.choice(self._ports), local_addr=(source, 0)
        )
        greeting = (await reader.readline()).decode()
        if greeting.startswith("220 "):
            self.held[source] += 1
            self.admitted += 1
            self.most = max(self.most, self.held.total())
            self.most_of_client = max(self.most_of_client, self.held[source])
            near = [count for other, count in self.held.items() if _network(other) == _network(source)]
            self.most_of_network = max(self.most_of_network, sum(near))
            await asyncio.sleep(dice.uniform(0, 0.01))
            self.held[source] -= 1
            if dice.random() < 0.5:
                writer.write(b"QUIT\r\n")
                await reader.read()
        else:
            self.refused[greeting.strip()] += 1
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _visitor(self, admissions: int, dice: random.Random) -> None:
        while self.admitted < admissions:
            await self._visit(dice)

    def come(self, admissions: int, *, at_once: int) -> None:
        """Come until so many were admitted, so many at once."""

        async def all_of_them() -> None:
            await asyncio.gather(*(self._visitor(admissions, random.Random(each)) for each in range(at_once)))

        asyncio.run(all_of_them())


def _network(source: str) -> int:
    return int(IPv4Address(source)) >> 3


class Traffic:
    """One client after another at each guard, while the block runs: each must be greeted soon."""

    def __init__(self, guards: Guards) -> None:
        self.slowest = 0.0
        self.faults: list[str] = []
        self.visits = 0
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._visits, args=(guard, f"127.0.7.{number}"))
            for number, guard in enumerate(guards.running, 1)
        ]

    def _visits(self, guard: GuardProcess, source: str) -> None:
        # With a pause, or this process would be too busy to be a link too.
        while not self._over.wait(0.005):
            began = time.monotonic()
            try:
                with RawClient(guard.address, source) as client:
                    if not client.greeting.startswith("220 ") or not client.ask("QUIT").startswith("221 "):
                        self.faults.append(client.last_reply)
            except OSError as error:
                self.faults.append(repr(error))
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.visits += 1

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


class SlowLink:
    """A TCP port on the way to a Redis. What goes through it, in either direction, arrives `seconds` later."""

    def __init__(self, server: RealRedis) -> None:
        self.seconds = 0.0
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._server.socket))
                self._sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        waiting: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
        threading.Thread(target=self._deliver, args=(waiting, target), daemon=True).start()
        octets = b" "
        while octets:
            try:
                octets = source.recv(65536)
            except OSError:
                octets = b""
            waiting.put((time.monotonic() + self.seconds, octets))

    def _deliver(self, waiting: SimpleQueue[tuple[float, bytes]], target: socket.socket) -> None:
        with suppress(OSError):
            while True:
                due, octets = waiting.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not octets:
                    target.shutdown(socket.SHUT_RDWR)
                    return
                target.sendall(octets)

    def __enter__(self) -> SlowLink:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            each.close()


def held_in(server: RealRedis) -> dict[str, int]:
    """How many places Redis counts, by what stands after `p:` in the key; those of trials are left out."""
    return {
        key.split(":p:", 1)[1]: value[""]
        for key, (_, value) in server.content().items()
        if ":p:" in key and ":p:try:" not in key
    }
