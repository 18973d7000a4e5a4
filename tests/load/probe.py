"""A well-behaved client that connects again and again, in its own process: how long it waits for its service.

    python probe.py PORT INTERVAL GREETING_CODE [tls]

It prints one line a visit, the seconds it took, until its standard input ends. A visit is a whole session with a
message, or the reading of the one line where GREETING_CODE is not 220. With `tls` it begins with a handshake.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_GIVE_UP_SECONDS = 20
_DIALOGUE = (
    (b"EHLO probe.example\r\n", b"250"),
    (b"MAIL FROM:<probe@probe.example>\r\n", b"250"),
    (b"RCPT TO:<somebody@guard.example>\r\n", b"250"),
    (b"DATA\r\n", b"354"),
    (b"Subject: probe\r\n\r\nAre you there?\r\n.\r\n", b"250"),
    (b"QUIT\r\n", b"221"),
)


def visit(port: int, greeting: bytes, tls: ssl.SSLContext | None) -> None:
    """One session. An exception when it was not served."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), _GIVE_UP_SECONDS))
        if tls is not None:
            connection = stack.enter_context(tls.wrap_socket(connection))
        replies = connection.makefile("rb")
        _expect(replies.readline, greeting)
        if greeting != b"220":
            return
        for line, code in _DIALOGUE:
            connection.sendall(line)
            _expect(replies.readline, code)


def _expect(readline, code: bytes) -> None:
    while True:
        line = readline()
        if not line.startswith(code):
            raise ConnectionError(f"{code!r} was expected, not {line!r}")
        if line[3:4] != b"-":
            return


def main(port: int, interval: float, greeting: bytes, *, tls: bool) -> None:
    context = ssl._create_unverified_context() if tls else None
    while True:
        began = time.monotonic()
        visit(port, greeting, context)
        took = time.monotonic() - began
        print(f"{took:.6f}", flush=True)
        if select.select([sys.stdin], [], [], max(0.0, interval - took))[0]:
            return


class Waits:
    """Seconds that each visit took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def worst(self) -> float:
        return max(self.seconds)


@contextlib.contextmanager
def visits(port: int, *, interval: float = 0.2, greeting: int = 220, tls: bool = False) -> Iterator[Waits]:
    """While the block runs, a fresh client comes every `interval` seconds, and begins with TLS if `tls`. AssertionError
    when one is not served."""
    waits = Waits()
    words = [str(port), str(interval), str(greeting), *(["tls"] if tls else [])]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield waits
    finally:
        out, errors = process.communicate(timeout=2 * _GIVE_UP_SECONDS)
        waits.seconds += map(float, out.split())
    assert process.returncode == 0, f"a fresh client was not served: {errors.splitlines()[-1]}"


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3].encode(), tls=sys.argv[4:] == ["tls"])
