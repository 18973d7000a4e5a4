"""The load: what is sent to a server, and a check of every reply. By smtp-source where it can, which is in C."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import attrs

from .peers import tool
from .servers import Server, Wrong
from .vitals import pin

SENDER = "sender@client.example"
RECIPIENT = "recipient@guard.example"
ENVELOPE = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{RECIPIENT}>\r\nDATA\r\n".encode()
BODY = (
    b"Subject: benchmark\r\n\r\n"
    + b"A line of some seventy octets, as lines of messages mostly are.\r\n" * 15
)


@attrs.frozen
class Sent:
    """One round of load."""

    units: float
    load_seconds: float
    """Processor time of the load itself."""
    messages: int = 0
    recipients: int = 0
    refused: int = 0


def smtp_source(server: Server, *options: str, messages: int, recipients: int = 1) -> float:
    """Sends messages with smtp-source, which ends with a fault at a reply that is not as it must be. Its processor
    time."""
    source = tool("smtp-source")
    if source is None:
        raise Wrong("smtp-source of Postfix is needed")
    many = ["-r", str(recipients)] if recipients > 1 else []
    process = subprocess.Popen(
        [
            *(source, "-m", str(messages), *many, *options),
            *("-f", SENDER, "-t", RECIPIENT, f"127.0.0.1:{server.port}"),
        ],
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
    return usage.ru_utime + usage.ru_stime


class Session:
    """A client of our own that checks each reply."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = b""

    def expect(self, *codes: bytes) -> None:
        """The next replies must have these codes."""
        for code in codes:
            while True:
                line, end, rest = self._heard.partition(b"\n")
                if not end:
                    arrived = self.socket.recv(65536)
                    if not arrived:
                        raise Wrong(f"{self.server.name} hangs up where {code!r} must come")
                    self._heard += arrived
                    continue
                self._heard = rest
                if not line.startswith(code):
                    raise Wrong(f"{self.server.name} says {line!r} where {code!r} must come")
                if line[3:4] != b"-":
                    break

    def say(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def greet(self) -> None:
        self.expect(b"220")
        self.say(b"EHLO client.example\r\n")
        self.expect(b"250")

    def quit(self) -> None:
        self.say(b"QUIT\r\n")
        self.expect(b"221")

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def sessions(server: Server, number: int) -> Iterator[list[Session]]:
    """So many greeted sessions."""
    with ExitStack() as stack:
        opened = [stack.enter_context(Session(server)) for _ in range(number)]
        for session in opened:
            session.greet()
        yield opened


def pipelined(server: Server, messages: int, connections: int) -> float:
    """RFC 2920: the end of a message and the next envelope leave in one write. Each session waits for the replies
    to one before the next; there are some, so that the server finds work whenever it looks. Our processor time."""
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
    return time.process_time() - began


def refused(server: Server, connections: int, at_once: int) -> float:
    """Connections that must hear a 421, and then nothing. Our processor time."""
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
    return time.process_time() - began


Send = Callable[[Server], Sent]
