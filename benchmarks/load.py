"""The load: what is sent to a server, and a check of every reply. By smtp-source where it can, which is in C."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Thread
from typing import TypeAlias

import attrs

from .peers import tool
from .servers import Server, Wrong
from .sessions import idle, in_turn, sessions
from .vitals import pin

SENDER = "sender@client.example"
RECIPIENT = "recipient@guard.example"
ENVELOPE = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{RECIPIENT}>\r\nDATA\r\n".encode()
BODY = (
    b"Subject: benchmark\r\n\r\n"
    + b"A line of some seventy octets, as lines of messages mostly are.\r\n" * 15
)
STEPS = [
    *zip(ENVELOPE.splitlines(keepends=True), (b"250", b"250", b"354"), strict=True),
    (BODY + b".\r\n", b"250"),
]
"""A message, one command at a time, and the reply to each."""
DRIP = b"MAIL FROM:<" + b"a" * 40 + b"@" + b"b123456789." * 18 + b"example>\r\n"
"""A command that is long enough for all rounds of one octet a second, and is in order when it has come."""


@attrs.frozen
class Sent:
    """One round of load."""

    units: float
    load_seconds: float
    """Processor time of the load itself."""
    messages: int = 0
    recipients: int = 0
    refused: int = 0


Load: TypeAlias = "Callable[[Server], AbstractContextManager[Callable[[], Sent]]]"
"""Makes ready to load a server; what it gives sends one round. At its end whatever it opened is closed."""


def plain(send: Callable[[Server], Sent]) -> Load:
    """A load that needs nothing beforehand."""

    @contextmanager
    def load(server: Server) -> Iterator[Callable[[], Sent]]:
        yield lambda: send(server)

    return load


def smtp_source(
    *options: str, messages: int, at_once: int, recipients: int = 1, units: float | None = None
) -> Load:
    """Mail by smtp-source, which ends with a fault at a reply that is not as it must be. `units`: of a round, a message
    each unless told otherwise."""

    def send(server: Server) -> Sent:
        source = tool("smtp-source")
        if source is None:
            raise Wrong("smtp-source of Postfix is needed")
        many = ["-r", str(recipients)] if recipients > 1 else []
        own = [
            source,
            "-s",
            str(at_once),
            "-m",
            str(messages),
            *many,
            *options,
            "-f",
            SENDER,
            "-t",
            RECIPIENT,
        ]
        process = subprocess.Popen(
            [*own, f"127.0.0.1:{server.port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: pin(1),  # noqa: PLW1509 - there are no threads here
        )
        assert process.stderr is not None
        with process.stderr as errors:
            said = errors.read().decode(errors="replace")
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or said:
            raise Wrong(f"smtp-source with {server.name} ended with {process.returncode}: {said}")
        spent = usage.ru_utime + usage.ru_stime
        return Sent(messages if units is None else units, spent, messages, messages * recipients)

    return plain(send)


def stepwise(messages: int, connections: int, at_once: int) -> Load:
    """Mail as smtp-source sends it, which has no TLS: one command at a time, a reply to each, over so many connections.
    Those that are open at once go step by step together."""

    def send(server: Server) -> Sent:
        began = time.process_time()
        for _ in range(connections // at_once):
            with sessions(server, at_once) as opened:
                for _ in range(messages // connections):
                    for octets, code in STEPS:
                        in_turn(opened, octets, code)
                in_turn(opened, b"QUIT\r\n", b"221")
        return Sent(messages, time.process_time() - began, messages, messages)

    return plain(send)


def pipelined(messages: int, connections: int) -> Load:
    """RFC 2920: the end of a message and the next envelope leave in one write. Each session waits for the replies to
    one before the next; there are some, so that the server finds work whenever it looks."""

    def send(server: Server) -> Sent:
        began = time.process_time()
        with sessions(server, connections) as opened:
            for session in opened:
                session.say(ENVELOPE)
            for session in opened:
                session.expect(b"250", b"250", b"354")
            for _ in range(messages // connections - 1):
                for session in opened:
                    session.say(BODY + b".\r\n" + ENVELOPE)
                for session in opened:
                    session.expect(b"250", b"250", b"250", b"354")
            for session in opened:
                session.say(BODY + b".\r\nQUIT\r\n")
            for session in opened:
                session.expect(b"250", b"221")
        return Sent(messages, time.process_time() - began, messages, messages)

    return plain(send)


def refused(connections: int, at_once: int) -> Load:
    """Connections that must hear a 421, and then nothing."""

    def send(server: Server) -> Sent:
        began = time.process_time()
        for _ in range(connections // at_once):
            opened = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(at_once)]
            for each in opened:
                heard = b""
                while arrived := each.recv(512):
                    heard += arrived
                each.close()
                if not heard.startswith(b"421 ") or heard.count(b"\n") != 1:
                    raise Wrong(f"{server.name} refuses with {heard!r}")
        return Sent(connections, time.process_time() - began, refused=connections)

    return plain(send)


def burst(octets: bytes, times: int) -> Load:
    """Commands sent at once, each of which must get its 250, in so many sessions one after another. A unit is an
    octet."""

    def send(server: Server) -> Sent:
        began = time.process_time()
        commands = octets.count(b"\n")
        for _ in range(times):
            with sessions(server, 1) as (session,):
                talking = Thread(target=session.say, args=(octets,))
                talking.start()
                session.expect(*[b"250"] * commands)
                talking.join()
        return Sent(len(octets) * times, time.process_time() - began)

    return plain(send)


def dripping(clients: int, sweeps: int) -> Load:
    """An octet a second of each client, evenly spread over the second, so that each comes alone. At the end each
    client completes its command, and must hear that it was taken as one."""

    @contextmanager
    def load(server: Server) -> Iterator[Callable[[], Sent]]:
        with sessions(server, clients) as opened:
            said = 0

            def send() -> Sent:
                nonlocal said
                if said + sweeps >= len(DRIP):
                    raise Wrong(f"more rounds than the {len(DRIP)} octets of a drip")
                spent, due = time.process_time(), time.monotonic()
                for number in range(said, said + sweeps):
                    octet = DRIP[number : number + 1]
                    for session in opened:
                        due += 1 / clients
                        time.sleep(max(0.0, due - time.monotonic()))
                        session.say(octet)
                said += sweeps
                return Sent(clients * sweeps, time.process_time() - spent)

            yield send
            for session in opened:
                session.say(DRIP[said:])
            for session in opened:
                session.expect(b"250")

    return load


def among(crowd: int, load: Load, *, strangers: bool = False) -> Load:
    """`load` while so many others are idle."""

    @contextmanager
    def crowded(server: Server) -> Iterator[Callable[[], Sent]]:
        with idle(server, crowd, strangers=strangers), load(server) as send:
            yield send

    return crowded


def noted(load: Load, sent: list[Sent]) -> Load:
    """`load`, each round of which is put on the list: for what is counted by another than the server it is sent to."""

    @contextmanager
    def watched(server: Server) -> Iterator[Callable[[], Sent]]:
        with load(server) as send:

            def send_and_note() -> Sent:
                sent.append(send())
                return sent[-1]

            yield send_and_note

    return watched


def slowed(load: Load) -> Load:
    """`load` with half of its processor taken away, by a process that does nothing else."""

    @contextmanager
    def hampered(server: Server) -> Iterator[Callable[[], Sent]]:
        with load(server) as send:

            def slowly() -> Sent:
                busy = subprocess.Popen(
                    [sys.executable, "-c", "while True: pass"],
                    preexec_fn=lambda: pin(1),  # noqa: PLW1509 - there are no threads here
                )
                try:
                    return send()
                finally:
                    busy.kill()
                    busy.wait()

            yield slowly

    return hampered
