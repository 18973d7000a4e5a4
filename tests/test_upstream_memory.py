"""What a message on its way to a slow server behind costs in memory, whatever its size.

`pytest -m soak -s tests/test_upstream_memory.py` is the long form, with a message of 1 GB, and prints what was
measured.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from processes import GuardProcess, eventually
from rawclient import RawClient
from vitals import Vitals

SESSIONS = 8
MEGABYTE = 1_000_000
LINE = b"x" * 998 + b"\r\n"
MOST_OCTETS_A_SESSION = 128 * 1024


class SlowServer:
    """Takes messages and counts their octets. It reads none while `reads` is not set."""

    def __init__(self, *keywords: str) -> None:
        self.keywords = keywords
        self.reads = Event()
        self.reads.set()
        self.octets = 0
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
        with connection, connection.makefile("rb", buffering=65536) as lines:
            connection.sendall(b"220 slow ESMTP\r\n")
            for line in lines:
                verb = line[:4].upper()
                if verb == b"EHLO":
                    connection.sendall(
                        "\r\n".join(["250-slow", *(f"250-{k}" for k in self.keywords), ""]).encode()
                    )
                    connection.sendall(b"250 8BITMIME\r\n")
                elif verb == b"DATA":
                    connection.sendall(b"354 go\r\n")
                    for text in lines:
                        self.reads.wait()
                        self.octets += len(text)
                        if text == b".\r\n":
                            break
                    connection.sendall(b"250 Ok\r\n")
                elif verb == b"BDAT":
                    self.reads.wait()
                    size = int(line.split()[1])
                    lines.read(size)
                    self.octets += size
                    connection.sendall(b"250 Ok\r\n")
                else:
                    connection.sendall(b"250 Ok\r\n")

    def close(self) -> None:
        self.reads.set()
        self._listener.close()


@contextmanager
def behind(directory: Path, *keywords: str) -> Iterator[tuple[GuardProcess, SlowServer]]:
    server = SlowServer(*keywords)
    try:
        options = ("--max-message-size=2G", f"--deliver=smtp:tcp:127.0.0.1:{server.port}")
        with GuardProcess(directory, *options) as guard:
            yield guard, server
    finally:
        server.close()


def begin(guard: GuardProcess) -> RawClient:
    client = RawClient(guard.address)
    for command in ("EHLO c", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>"):
        assert client.ask(command).startswith("250")
    return client


def send_body(client: RawClient, octets: int, verdicts: list[str], *, chunked: bool) -> None:
    block = LINE * 64
    if chunked:
        client.send(b"BDAT %d LAST\r\n" % (octets // len(block) * len(block)))
    else:
        assert client.ask("DATA").startswith("354 ")
    for _ in range(octets // len(block)):
        client.send(block)
    if not chunked:
        client.send(b".\r\n")
    verdicts.append(client.reply())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("keywords", [(), ("CHUNKING",)], ids=["DATA", "BDAT"])
@pytest.mark.parametrize("megabytes", [16, pytest.param(1024, marks=pytest.mark.soak)])
def test_a_message_of_any_size_holds_less_than_128_kib_while_the_server_is_slow(
    tmp_path: Path, megabytes: int, keywords: tuple[str, ...]
) -> None:
    with behind(tmp_path, *keywords) as (guard, server):
        warm: list[str] = []
        for client in [begin(guard) for _ in range(SESSIONS)]:
            with client:
                send_body(client, MEGABYTE, warm, chunked=bool(keywords))
        assert warm == ["250 2.0.0 Ok"] * SESSIONS
        vitals = Vitals(guard.pid)
        before = vitals.resident
        vitals.forget_peak()
        # One is as large as can be, the others as long as it takes: all are held back by the server at once.
        sizes = [megabytes * MEGABYTE] + [4 * MEGABYTE] * (SESSIONS - 1)
        verdicts: list[str] = []
        server.reads.clear()
        server.octets = 0
        clients = [begin(guard) for _ in range(SESSIONS)]
        threads = [
            Thread(
                target=send_body,
                args=(client, size, verdicts),
                kwargs={"chunked": bool(keywords)},
                daemon=True,
            )
            for client, size in zip(clients, sizes, strict=True)
        ]
        for thread in threads:
            thread.start()
        seconds: list[float] = []

        def settled() -> bool:
            """The clients are held back: nothing moves any more."""
            seconds.append(vitals.seconds)
            return len(seconds) > 100 and len(set(seconds[-50:])) == 1

        eventually(settled, "it goes on for ever")
        assert server.octets < MEGABYTE
        server.reads.set()
        for thread in threads:
            thread.join()
        each = (vitals.peak - before) / SESSIONS
        for client in clients:
            client.close()
        assert verdicts == ["250 2.0.0 Ok"] * SESSIONS
    how = "BDAT" if keywords else "DATA"
    print(
        f"\n{how}: {SESSIONS} sessions, the largest of {megabytes} MB: {each / 1024:.0f} KiB a session at most"
    )
    assert re.search(r"accept .*octets=\d{8}", guard.log.decode())
    assert each < MOST_OCTETS_A_SESSION
