"""A crowd of strangers that stop after MAIL, again and again, and known senders beside it."""

from __future__ import annotations

import selectors
import smtplib
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from processes import PATIENCE_SECONDS, GuardProcess, eventually

STRANGERS, SENDERS, ROUNDS = 60, 10, 3
CONNECTIONS = 10
"""To the upstream server."""
MOST_SECONDS_MORE = 1.0
"""So much longer than the longest in quiet a mail of a known sender may take."""

Send = Callable[[GuardProcess, str, str], None]
"""Sends a mail from this address to this recipient, and raises if it is not accepted."""


def options(directory: Path, deliver: str) -> Sequence[str]:
    """Of a guard that knows the senders, and of whose `deliver` a crowd can take every connection but those that are
    reserved."""
    known = directory / "known"
    known.write_text("127.9.0.0/16\n")
    return (
        "--profile=edge",
        "--greet-delay=0",
        "--ban-after=0",
        f"--known={known}",
        f"--deliver={deliver},connections={CONNECTIONS},wait=2",
    )


def with_smtplib(guard: GuardProcess, source: str, to: str) -> None:
    with smtplib.SMTP(*guard.address, source_address=(source, 0), timeout=PATIENCE_SECONDS) as client:
        assert client.sendmail("a@b.example", [to], b"Subject: x\r\n\r\nx\r\n") == {}


def with_swaks(guard: GuardProcess, source: str, to: str) -> None:
    command = ["swaks", f"--server=127.0.0.1:{guard.port}", f"--local-interface={source}"]
    subprocess.run(
        [*command, "--from=a@b.example", f"--to={to}"],
        check=True,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        stdin=subprocess.DEVNULL,
    )


def assert_known_senders_are_served(guard: GuardProcess, send: Send, to: str) -> None:
    """All at once send a mail, and again, in quiet and beside the crowd."""

    def seconds(source: str) -> float:
        began = time.monotonic()
        send(guard, source, to)
        return time.monotonic() - began

    sources = [f"127.9.{number}.1" for number in range(SENDERS)]
    with ThreadPoolExecutor(SENDERS) as threads:
        quiet = max(max(threads.map(seconds, sources)) for _ in range(ROUNDS))
        with StuckCrowd(guard) as crowd:
            crowd.has_taken_all()
            for _ in range(ROUNDS):
                refused = crowd.refused
                longest = max(threads.map(seconds, sources))
                assert longest < quiet + MOST_SECONDS_MORE, (longest, quiet)
                eventually(lambda refused=refused: crowd.refused > refused, "the crowd does not come again")
        # The crowd has left, and what it held is everybody's.
        eventually(lambda: _served(guard, send, to), "no stranger is served when the crowd has left")


def _served(guard: GuardProcess, send: Send, to: str) -> bool:
    try:
        send(guard, "127.99.0.1", to)
    except (smtplib.SMTPException, subprocess.CalledProcessError):
        return False
    return True


class StuckCrowd:
    """Strangers, each from a network of its own. Whoever is refused tries again at once, and whoever is not stays."""

    def __init__(self, guard: GuardProcess) -> None:
        self._guard = guard
        self.refused = 0
        """How often one of them was told to try again later."""
        self._selector = selectors.DefaultSelector()
        self._over = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> StuckCrowd:
        for number in range(STRANGERS):
            self._connect(f"127.50.{number}.1")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def has_taken_all(self) -> None:
        """Wait until some of them were refused, and so nothing is left for them."""
        eventually(lambda: self.refused > STRANGERS / 2, "the crowd does not take all")

    def _connect(self, source: str) -> None:
        stranger = socket.create_connection(self._guard.address, PATIENCE_SECONDS, (source, 0))
        said = iter((b"EHLO x\r\n", b"MAIL FROM:<a@b.example>\r\n"))
        self._selector.register(stranger, selectors.EVENT_READ, (source, said))

    def _run(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.1):
                stranger, (source, said) = key.fileobj, key.data
                heard = stranger.recv(65536)  # type: ignore[union-attr]
                if heard.startswith(b"451 "):
                    self.refused += 1
                    said = iter((b"MAIL FROM:<a@b.example>\r\n",))
                    self._selector.modify(stranger, selectors.EVENT_READ, (source, said))
                elif heard.startswith(b"421 ") or not heard:
                    self._selector.unregister(stranger)
                    stranger.close()  # type: ignore[union-attr]
                    self._connect(source)
                    continue
                stranger.sendall(next(said, b""))  # type: ignore[union-attr]
