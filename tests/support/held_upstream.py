"""Messages that a slow upstream server holds back: what they cost in memory. For tests and benchmarks."""

from __future__ import annotations

import socket
from ssl import SSLContext
from threading import Event, Lock, Thread

from processes import Address, eventually
from rawclient import RawClient
from vitals import Vitals

SESSIONS = 8
MEGABYTE = 1_000_000
BLOCK = (b"x" * 998 + b"\r\n") * 64


class SlowServer:
    """Takes messages and counts their octets. It reads none while `reads` is not set.

    `tls`: under TLS, which begins with STARTTLS where that is one of the keywords, and else at once.
    """

    def __init__(self, *keywords: str, tls: SSLContext | None = None) -> None:
        self.keywords = keywords
        self._tls = tls
        self.reads = Event()
        self.reads.set()
        self.octets = 0
        self._counting = Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # So that what waits, waits in the guard.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        if self._tls is not None and "STARTTLS" not in self.keywords:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection:
            connection.sendall(b"220 slow ESMTP\r\n")
            self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        with connection.makefile("rb", buffering=65536) as lines:
            for line in lines:
                verb = line[:4].upper()
                if verb == b"EHLO":
                    connection.sendall(
                        "\r\n".join(["250-slow", *(f"250-{k}" for k in self.keywords), ""]).encode()
                    )
                    connection.sendall(b"250 8BITMIME\r\n")
                elif verb == b"STAR" and self._tls is not None:
                    connection.sendall(b"220 go\r\n")
                    with self._tls.wrap_socket(connection, server_side=True) as secured:
                        self._talk(secured)
                    return
                elif verb == b"DATA":
                    connection.sendall(b"354 go\r\n")
                    for text in lines:
                        self.reads.wait()
                        self._count(len(text))
                        if text == b".\r\n":
                            break
                    connection.sendall(b"250 Ok\r\n")
                elif verb == b"BDAT":
                    self.reads.wait()
                    size = int(line.split()[1])
                    self._count(len(lines.read(size)))
                    connection.sendall(b"250 Ok\r\n")
                else:
                    connection.sendall(b"250 Ok\r\n")

    def _count(self, octets: int) -> None:
        with self._counting:
            self.octets += octets

    def close(self) -> None:
        self.reads.set()
        self._listener.close()


def octets_a_session(
    address: Address, vitals: Vitals, server: SlowServer, megabytes: int, *, chunked: bool
) -> float:
    """The most memory at any moment that a session takes in the guard at `address`, whose process `vitals` are of.
    `server`, its upstream server, holds all back at once before it takes them. `chunked`: by BDAT, not by DATA."""
    verdicts: list[str] = []
    for client in [_begin(address) for _ in range(SESSIONS)]:
        with client:
            _send_body(client, MEGABYTE, verdicts, chunked=chunked)
    before = vitals.resident
    vitals.forget_peak()
    # One is as large as can be, the others as long as it takes: all are held back by the server at once.
    sizes = [megabytes * MEGABYTE] + [4 * MEGABYTE] * (SESSIONS - 1)
    server.reads.clear()
    server.octets = 0
    clients = [_begin(address) for _ in range(SESSIONS)]
    threads = [
        Thread(target=_send_body, args=(client, size, verdicts), kwargs={"chunked": chunked}, daemon=True)
        for client, size in zip(clients, sizes, strict=True)
    ]
    for thread in threads:
        thread.start()
    seconds: list[float] = []

    def settled() -> bool:
        """The clients are held back: nothing moves."""
        seconds.append(vitals.seconds)
        return len(seconds) > 100 and len(set(seconds[-50:])) == 1

    eventually(settled, "it does not end")
    assert server.octets < MEGABYTE, "the server does not hold the clients back"
    server.reads.set()
    for thread in threads:
        thread.join()
    each = (vitals.peak - before) / SESSIONS
    for client in clients:
        client.close()
    assert verdicts == ["250 2.0.0 Ok"] * 2 * SESSIONS, verdicts
    # Beside them the server has had the guard's Received fields.
    assert server.octets >= sum(map(_whole_blocks, sizes)), (
        f"of {sizes} only {server.octets} octets have come"
    )
    return each


def _begin(address: Address) -> RawClient:
    client = RawClient(address)
    for command in ("EHLO c", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>"):
        assert client.ask(command).startswith("250"), client.last_reply
    return client


def _send_body(client: RawClient, octets: int, verdicts: list[str], *, chunked: bool) -> None:
    octets = _whole_blocks(octets)
    if chunked:
        client.send(b"BDAT %d LAST\r\n" % octets)
    else:
        assert client.ask("DATA").startswith("354 "), client.last_reply
    for _ in range(octets // len(BLOCK)):
        client.send(BLOCK)
    if not chunked:
        client.send(b".\r\n")
    verdicts.append(client.reply())


def _whole_blocks(octets: int) -> int:
    return octets // len(BLOCK) * len(BLOCK)
