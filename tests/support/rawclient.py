"""A client that sends exactly the octets it is told to, over a real socket, and reads one reply at a time."""

from __future__ import annotations

import re
import socket
from types import TracebackType

from processes import PATIENCE_SECONDS, Address


class RawClient:
    """A connection to `address`. `greeting` is what the guard said first. `source` is the client's own address,
    of 127.0.0.0/8 as a rule."""

    def __init__(self, address: Address, source: str = "") -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE_SECONDS)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, PATIENCE_SECONDS, (source, 0) if source else None)
        self._input = self.socket.makefile("rb")
        self.last_reply = ""
        self.greeting = self.reply()

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def reply(self) -> str:
        """The next reply, its lines joined by LF. ConnectionError where the connection ends first."""
        lines: list[str] = []
        while True:
            line = self._input.readline()
            if not line.endswith(b"\r\n"):
                raise ConnectionError(f"the connection ended after {lines} {line!r}")
            lines.append(line[:-2].decode("ascii"))
            if line[3:4] != b"-":
                self.last_reply = "\n".join(lines)
                return self.last_reply

    def ask(self, command: str) -> str:
        """The reply to one command."""
        self.send(command.encode() + b"\r\n")
        return self.reply()

    def rest(self) -> bytes:
        """All that comes until the guard ends the connection."""
        return self._input.read()

    def close(self) -> None:
        self._input.close()
        self.socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def stuffed(message: bytes) -> bytes:
    """`message` as it is sent after DATA (RFC 5321 4.5.2), its end included."""
    return re.sub(rb"(?m)^\.", b"..", message) + (b".\r\n" if message.endswith(b"\r\n") else b"\r\n.\r\n")


MESSAGE = b"Subject: x\r\n\r\nHello\r\n"


def deliver(address: Address, message: bytes = MESSAGE) -> str:
    """The reply to a message sent to `address`."""
    with RawClient(address) as client:
        for words in ("EHLO client.example", "MAIL FROM:<s@example.com>", "RCPT TO:<r@example.org>"):
            assert client.ask(words).startswith("250")
        assert client.ask("DATA").startswith("354")
        client.send(stuffed(message))
        return client.reply()
