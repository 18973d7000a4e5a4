"""Clients of our own, in clear or under TLS: each reply is checked."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice, repeat

from .servers import HOSTNAME, Server, Wrong

BATCH = 500
"""Clients that come at once: below the backlog of any server here."""


class Session:
    """A client of our own that checks each reply. `source`: the address that it comes from, if it is not the usual."""

    def __init__(self, server: Server, source: str = "") -> None:
        self.server = server
        # Not for the usual one: a port that is bound beforehand is free for no other server.
        own = (source, 0) if source else None
        self.socket = socket.create_connection(("127.0.0.1", server.port), source_address=own)
        self._heard = b""

    def expect(self, *codes: bytes) -> None:
        """The next replies must have these codes."""
        for code in codes:
            line = self._line()
            while line.startswith(code + b"-"):
                line = self._line()
            if not line.startswith(code):
                raise Wrong(f"{self.server.name} says {line!r} where {code!r} must come")

    def _line(self) -> bytes:
        while b"\n" not in self._heard:
            try:
                arrived = self.socket.recv(65536)
            except OSError as error:
                raise Wrong(f"{self.server.name} breaks off: {error}") from None
            if not arrived:
                raise Wrong(f"{self.server.name} hangs up where a reply must come")
            self._heard += arrived
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def say(self, octets: bytes) -> None:
        try:
            self.socket.sendall(octets)
        except OSError as error:
            raise Wrong(f"{self.server.name} does not listen any more: {error}") from None

    def begin_tls(self, context: ssl.SSLContext, before: ssl.SSLSession | None = None) -> None:
        """What a client says first of the handshake; `finish_tls` waits for what the server says to it. `before`: the
        session that is offered again."""
        if self._heard:
            raise Wrong(f"{self.server.name} says {self._heard!r} before TLS")
        self.socket = context.wrap_socket(
            self.socket, server_hostname=HOSTNAME, do_handshake_on_connect=False, session=before
        )
        self.socket.setblocking(False)
        with suppress(ssl.SSLWantReadError):
            self._shake_hands()

    def finish_tls(self) -> None:
        self.socket.setblocking(True)
        self._shake_hands()

    def _shake_hands(self) -> None:
        assert isinstance(self.socket, ssl.SSLSocket)
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            raise
        except OSError as error:
            raise Wrong(f"{self.server.name} fails the handshake: {error}") from None

    def close(self) -> None:
        self.socket.close()


def _encrypt(opened: Iterable[Session], context: ssl.SSLContext) -> None:
    """All at once, so that the server finds work whenever it looks."""
    for session in opened:
        session.begin_tls(context)
    for session in opened:
        session.finish_tls()


@contextmanager
def connected(server: Server, sources: Iterable[str]) -> Iterator[list[Session]]:
    """Clients that come from these addresses and have been greeted. Many at a time, for some servers make them wait."""
    tls = server.kind.tls
    with ExitStack() as stack:
        opened: list[Session] = []
        addresses = iter(sources)
        while batch := list(islice(addresses, BATCH)):
            arrived = [Session(server, source) for source in batch]
            for session in arrived:
                stack.callback(session.close)
            if tls is not None and tls.implicit:
                _encrypt(arrived, tls.context)
            for session in arrived:
                session.expect(b"220")
            opened += arrived
        yield opened


@contextmanager
def sessions(server: Server, number: int) -> Iterator[list[Session]]:
    """So many that have had their EHLO, and speak TLS if that is how the server is spoken to."""
    tls = server.kind.tls
    with connected(server, repeat("", number)) as opened:
        in_turn(opened, b"EHLO client.example\r\n", b"250")
        if tls is not None and not tls.implicit:
            in_turn(opened, b"STARTTLS\r\n", b"220")
            _encrypt(opened, tls.context)
            in_turn(opened, b"EHLO client.example\r\n", b"250")
        yield opened


def in_turn(opened: Iterable[Session], octets: bytes, code: bytes) -> None:
    """All say it, then all wait for their reply."""
    for session in opened:
        session.say(octets)
    for session in opened:
        session.expect(code)


@contextmanager
def idle(server: Server, number: int, *, strangers: bool = False) -> Iterator[None]:
    """While the block runs so many clients have been greeted and say nothing. `strangers`: each has its own address."""
    own = (f"127.{1 + each // 62500}.{each // 250 % 250}.{each % 250 + 1}" for each in range(number))
    with connected(server, own if strangers else repeat("", number)):
        yield
