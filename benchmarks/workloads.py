"""What is sent to a server, and how many units of work that was. By Postfix's smtp-source where it can."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import attrs
from servers import Server, pin, tool

_MAIL = b"MAIL FROM:<sender@client.example>\r\nRCPT TO:<recipient@guard.example>\r\nDATA\r\n"
_BODY = (
    b"Subject: benchmark\r\n\r\n"
    + b"A line of some seventy octets, as lines of messages mostly are.\r\n" * 15
)


@attrs.frozen
class Workload:
    """One way to keep a server busy."""

    name: str
    unit: str
    factor: float
    """From seconds of processor time to the unit."""
    send: Callable[[Server], float]
    """Sends one round; how many units that was."""
    refusing: bool = False


def _smtp_source(*options: str, messages: int, units: float) -> Callable[[Server], float]:
    def send(server: Server) -> float:
        source = tool("smtp-source")
        assert source is not None, "smtp-source of Postfix is needed"
        subprocess.run(
            [
                *(source, "-m", str(messages), *options),
                *("-f", "sender@client.example", "-t", "recipient@guard.example", f"127.0.0.1:{server.port}"),
            ],
            check=True,
            capture_output=True,
            preexec_fn=lambda: pin(1),
        )
        return units

    return send


@contextmanager
def _session(server: Server) -> Iterator[tuple[socket.socket, Callable[[bytes], None]]]:
    """A greeted session: its socket, and how to wait for a line that begins with some code and a blank."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        replies = connection.makefile("rb")

        def expect(code: bytes) -> None:
            while not (line := replies.readline()).startswith(code + b" "):
                assert line.startswith(code), line

        expect(b"220")
        connection.sendall(b"EHLO client.example\r\n")
        expect(b"250")
        yield connection, expect


def _pipelined(server: Server) -> float:
    """RFC 2920: the end of a message and the next envelope leave in one write."""
    messages = 5000
    with _session(server) as (connection, expect):
        connection.sendall(_MAIL)
        for number in range(messages):
            for code in (b"250", b"250", b"354"):
                expect(code)
            connection.sendall(_BODY + b".\r\n" + (_MAIL if number < messages - 1 else b""))
            expect(b"250")
    return messages


def _refused(server: Server) -> float:
    for _ in range(3000):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            assert connection.recv(512).startswith(b"421")
            connection.recv(512)
    return 3000


def kibibytes_of_idle_connections(server: Server, connections: int) -> float:
    """Memory of each of so many connections that were greeted and say nothing."""
    before = server.vitals.resident
    with ExitStack() as stack:
        for _ in range(connections):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            assert connection.recv(512).startswith(b"220")
        return (server.vitals.resident - before) / 1024 / connections


WORKLOADS = [
    Workload(
        "W1 small mail, one a connection",
        "µs a mail",
        1e6,
        _smtp_source("-s", "20", "-l", "1024", messages=2000, units=2000),
    ),
    Workload(
        "W2 small mails, many a connection",
        "µs a mail",
        1e6,
        _smtp_source("-d", "-s", "20", "-l", "1024", messages=4000, units=4000),
    ),
    Workload(
        "W3 5 MB mails, 20 at once",
        "ms a MB",
        1e3,
        _smtp_source("-s", "20", "-l", "5000000", messages=40, units=200),
    ),
    Workload(
        "W4 100 recipients a mail",
        "µs a recipient",
        1e6,
        _smtp_source("-d", "-s", "10", "-r", "100", "-l", "1024", messages=200, units=20_000),
    ),
    Workload("W5 refused at accept", "µs a connection", 1e6, _refused, refusing=True),
    Workload("W7 pipelined small mails", "µs a mail", 1e6, _pipelined),
]
