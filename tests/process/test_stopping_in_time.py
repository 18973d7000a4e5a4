"""How long a real `twist smtpguard` takes to stop at the worst: the grace, five seconds more for verdicts alone, and a
second for the QUIT to a server that is frozen."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import pytest
from certificates import AUTHORITY, certificate
from processes import PATIENCE_SECONDS, GuardProcess
from rawclient import RawClient

ENVELOPE = ("EHLO client.example", "MAIL FROM:<s@example.com>", "RCPT TO:<r@example.org>")
SHUTTING_DOWN = b"421 4.3.2 Server shutting down\r\n"
MESSAGE = b"Subject: x\r\n\r\nHello\r\n"
GRACE, GOODBYE, SLACK = 1.0, 1.0, 3.0
"""Seconds. The last is for a machine that has other things to do."""


class FreezingServer:
    """Answers commands until a line begins with `freezes_at`: from then on it says nothing, reads nothing and closes
    nothing. QUIT has the same effect."""

    def __init__(self, freezes_at: bytes) -> None:
        self._freezes_at = freezes_at
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.sendall(b"220 frozen ESMTP\r\n")
        amid_message = False
        for line in connection.makefile("rb"):
            verb = line.rstrip().upper()
            if verb.startswith(self._freezes_at) or verb == b"QUIT":
                # It reads no more.
                return
            if not amid_message:
                connection.sendall(b"354 go\r\n" if verb == b"DATA" else b"250 Ok\r\n")
            amid_message |= verb == b"DATA"

    def close(self) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.close()


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def come(clients: ExitStack, guard: GuardProcess, *words: str) -> RawClient:
    client = clients.enter_context(RawClient(guard.address))
    for each in words:
        assert client.ask(each)[0] in "23"
    return client


def secured(clients: ExitStack, guard: GuardProcess) -> ssl.SSLSocket:
    """A client under TLS that has been greeted."""
    address = guard.addresses[1]
    assert isinstance(address, tuple)
    context = ssl.create_default_context(cafile=str(AUTHORITY))
    plain = socket.create_connection(address, PATIENCE_SECONDS)
    client = clients.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
    assert client.recv(1000).startswith(b"220 ")
    return client


def hears(client: ssl.SSLSocket) -> bytes:
    """All that arrives before the guard's close_notify. The client sends none itself, and stays connected."""
    heard = b""
    while octets := client.recv(1000):
        heard += octets
    return heard


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
@pytest.mark.parametrize("frozen_at", ["RCPT", "."], ids=["an envelope", "a verdict"])
def test_a_stop_with_a_frozen_server_and_clients_that_linger_is_over_in_time(
    tmp_path: Path, clients: ExitStack, reactor: str, frozen_at: str
) -> None:
    server = FreezingServer(frozen_at.encode())
    clients.callback(server.close)
    owes_verdict = frozen_at == "."
    with GuardProcess(
        tmp_path,
        f"--deliver=smtp:tcp:127.0.0.1:{server.port}",
        f"--shutdown-grace={GRACE:g}",
        f"--tls-certificate={certificate()}",
        listen_tls=("tcp:0:interface=127.0.0.1",),
        reactor=reactor,
    ) as guard:
        idle, under_tls = come(clients, guard), secured(clients, guard)
        # It has an envelope, and goes on to have one.
        amid = secured(clients, guard)
        amid.sendall(b"EHLO client.example\r\n")
        assert b"250 " in amid.recv(10_000)
        amid.sendall(b"MAIL FROM:<s@example.com>\r\n")
        assert amid.recv(1000).startswith(b"250 ")
        waiting = come(
            clients, guard, *ENVELOPE[: 3 if owes_verdict else 2], *(["DATA"] if owes_verdict else [])
        )
        waiting.send(MESSAGE + b".\r\n" if owes_verdict else b"RCPT TO:<r@example.org>\r\n")
        # It never reads, and so much is to be said to it that it stands in the way of the last line.
        deaf = come(clients, guard)
        deaf.send(b"EHLO client.example\r\n" + b"HELP\r\n" * 20_000)
        began = time.monotonic()
        guard.terminate()
        assert idle.rest() == hears(under_tls) == SHUTTING_DOWN
        line = guard.wait_for(r"\] draining ")
        assert re.search(r"sessions=5 verdicts=[01] waiting for 5 sessions, ", line), line
        assert hears(amid) == waiting.rest() == SHUTTING_DOWN
        told = time.monotonic() - began
        # All keep their ends open.
        guard.ended()
        took = time.monotonic() - began
    assert GRACE - 0.2 < told < GRACE + SLACK
    verdicts = 5 if owes_verdict else 0
    assert GRACE + verdicts - 0.2 < took < GRACE + verdicts + GOODBYE + SLACK
