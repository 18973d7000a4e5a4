"""Crowds of hostile clients, each one a short coroutine, all in one event loop of asyncio.

Only sockets are used, no streams: nothing is read that a client did not ask for, and nothing is sent by halves.
"""

from __future__ import annotations

import asyncio
import itertools
import resource
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
_SOURCES = itertools.cycle([f"127.0.{a}.{b}" for b in range(1, 101) for a in range(1, 13)])

ENVELOPE = b"EHLO crowd.example\r\nMAIL FROM:<a@crowd.example>\r\nRCPT TO:<b@guard.example>\r\n"
GONE = (ConnectionError, TimeoutError)


class Client:
    """One connection to `port` of the loopback interface. `receive_buffer` 0: what the system gives."""

    def __init__(self, port: int, *, receive_buffer: int = 0, anywhere: bool = False) -> None:
        self._port = port
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.said = 0
        self.heard = b""
        """The end of what was heard."""
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if anywhere:
            # One of 1,200 loopback addresses in 12 networks, so that limits for each client do not help.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind((next(_SOURCES), 0))

    async def connect(self) -> None:
        await asyncio.get_running_loop().sock_connect(self.socket, ("127.0.0.1", self._port))

    async def say(self, octets: bytes) -> None:
        """All of it, as fast as it is taken."""
        await asyncio.get_running_loop().sock_sendall(self.socket, octets)
        self.said += len(octets)

    async def hear(self, *, octets: int = 65536) -> bytes:
        """What has come; b"" when the other side has ended."""
        heard = await asyncio.get_running_loop().sock_recv(self.socket, octets)
        self.heard = (self.heard + heard)[-2048:]
        return heard

    async def hear_the_end(self) -> None:
        """Up to the end of the connection, however it comes."""
        try:
            while await self.hear():
                pass
        except GONE:
            pass

    async def say_for_ever(self, octets: bytes) -> None:
        """The same again and again, without listening, until the connection is gone."""
        try:
            while True:
                await self.say(octets)
                # What is taken at once is said without a turn for anybody else.
                await asyncio.sleep(0)
        except GONE:
            pass

    async def say_until_told_off(self, octets: bytes) -> None:
        """As `say_for_ever`, but the last words of the other side are heard, and then nothing more is said."""
        talking = asyncio.ensure_future(self.say_for_ever(octets))
        try:
            await self.hear_the_end()
        finally:
            await _end(talking)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Go without a word, as a crashed or malicious client does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self.socket.close()


async def _end(talking: asyncio.Future[None]) -> None:
    """Before its socket is closed: the next client may get the same descriptor."""
    talking.cancel()
    await asyncio.gather(talking, return_exceptions=True)


Behaviour = Callable[[Client], Awaitable[object]]


def run_crowd(
    behaviours: Iterable[Behaviour],
    make_client: Callable[[], Client],
    *,
    at_once: int,
    within: float,
    seconds: float,
    settled: Callable[[], object] = lambda: None,
) -> list[Client]:
    """Let one client show each of the behaviours, `at_once` of them at a time, for at most `seconds`. They come evenly
    spread over the first `within` seconds.

    `settled()` is called when the time is over or all are through, before those that remain hang up.
    """
    return asyncio.run(_run(list(behaviours), make_client, at_once, within, seconds, settled))


async def _run(
    behaviours: list[Behaviour],
    make_client: Callable[[], Client],
    at_once: int,
    within: float,
    seconds: float,
    settled: Callable[[], object],
) -> list[Client]:
    turns = asyncio.Semaphore(at_once)
    clients: list[Client] = []

    async def live(behaviour: Behaviour, wait: float) -> None:
        await asyncio.sleep(wait)
        async with turns:
            client = make_client()
            clients.append(client)
            try:
                await client.connect()
                await behaviour(client)
            except GONE:
                pass
            finally:
                client.close()

    waits = (within * number / len(behaviours) for number in range(len(behaviours)))
    lives = [asyncio.ensure_future(live(*each)) for each in zip(behaviours, waits, strict=True)]
    _, others = await asyncio.wait(lives, timeout=seconds)
    settled()
    for life in others:
        life.cancel()
    for outcome in await asyncio.gather(*lives, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    return clients


def descriptors_for(clients: int) -> int:
    """How many of so many connections this process may open, after its limit was raised as far as possible."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return clients if hard == resource.RLIM_INFINITY else min(clients, hard - 100)


# What they do. Each is given a connected client, and its connection is closed afterwards.


async def be_idle(client: Client) -> None:
    """Listen to the greeting, and say nothing ever."""
    await client.hear_the_end()


def repeat(beginning: bytes, octets: bytes) -> Behaviour:
    """Say `beginning`, then `octets` again and again, and listen to what it is told."""

    async def behave(client: Client) -> None:
        await client.say(beginning)
        await client.say_until_told_off(octets)

    return behave


def repeat_unheard(beginning: bytes, octets: bytes) -> Behaviour:
    """Say `beginning`, then `octets` again and again, and never read a reply."""

    async def behave(client: Client) -> None:
        await client.say(beginning)
        await client.say_for_ever(octets)

    return behave


def drip(beginning: bytes, octets: bytes, interval: float) -> Behaviour:
    """Say `beginning`, then one octet after the other, `interval` seconds apart."""

    async def behave(client: Client) -> None:
        async def dripping() -> None:
            try:
                await client.say(beginning)
                for octet in itertools.cycle(octets):
                    await asyncio.sleep(interval)
                    await client.say(bytes([octet]))
            except GONE:
                pass

        talking = asyncio.ensure_future(dripping())
        try:
            await client.hear_the_end()
        finally:
            await _end(talking)

    return behave


def vanish(beginning: bytes, after: bytes, *, octets: int = 65536) -> Behaviour:
    """Say `beginning`, hear `after` (nothing, if it is empty), and reset the connection."""

    async def behave(client: Client) -> None:
        if beginning:
            await client.say(beginning)
        while after not in client.heard:
            if not await client.hear(octets=octets):
                break
        client.reset()

    return behave


def stay(octets: bytes) -> Behaviour:
    """Say `octets`, hear everything up to the end, and keep the connection open even then."""

    async def behave(client: Client) -> None:
        await client.say(octets)
        await client.hear_the_end()
        await asyncio.get_running_loop().create_future()

    return behave


async def knock(client: Client) -> None:
    """Hear what is said at the door, and go."""
    await client.hear_the_end()
