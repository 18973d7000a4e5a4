"""The control socket under those who may use it and do so without sense: a fresh client of the guard waits for none
of them, and an operator has an answer all the same."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from probe import visits
from processes import ExecutedGuard, eventually
from rawclient import RawClient
from vitals import Vitals

from twisted_smtpguard.control.requests import request_line

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.xdist_group("load"),
]

MAX_WAIT_SECONDS = 1
"""For the whole session of a fresh client."""
MAX_GROWTH_OCTETS = 12 * 1024 * 1024
"""32 seats, with requests of 128 KiB and answers of 128 KiB each, and half as much again."""
STATUS = request_line("status", {})
SESSIONS = request_line("sessions", {})


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


@pytest.fixture
def guard(tmp_path: Path, path: str) -> Iterator[ExecutedGuard]:
    with ExecutedGuard(tmp_path, f"--control={path}") as process:
        yield process


def connected(path: str) -> socket.socket:
    """A connection to the control socket."""
    made = socket.socket(socket.AF_UNIX)
    # With a time limit, a connect() to a full backlog would fail at once.
    made.connect(path)
    made.settimeout(20)
    return made


def answer(path: str) -> bytes:
    with connected(path) as connection:
        connection.sendall(STATUS)
        return connection.makefile("rb").readline()


@contextmanager
def meanwhile(*works: Callable[[threading.Event], object]) -> Iterator[None]:
    """While the block runs, each of `works` is done again and again in its own thread."""
    over = threading.Event()

    def again(work: Callable[[threading.Event], object]) -> None:
        while not over.is_set():
            # The guard may end a connection as it likes.
            with suppress(OSError):
                work(over)

    threads = [threading.Thread(target=again, args=[work]) for work in works]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in threads:
            each.join()


def test_a_thousand_questions_a_second_cost_clients_nothing_that_they_notice(
    guard: ExecutedGuard, path: str
) -> None:
    answers = 0

    def ask(over: threading.Event) -> None:
        nonlocal answers
        with connected(path) as connection:
            lines = connection.makefile("rb")
            began = time.monotonic()
            sent = 0
            while not over.wait(0.01):
                # A thousand a second, whatever else the machine does.
                due = min(100, int((time.monotonic() - began) * 1000) - sent)
                connection.sendall(STATUS * due)
                for _ in range(due):
                    lines.readline()
                sent += due
                answers += due

    with meanwhile(ask), visits(guard.port) as waits:
        began, cpu = time.monotonic(), Vitals(guard.pid).seconds
        threading.Event().wait(4)
        took, cost = time.monotonic() - began, Vitals(guard.pid).seconds - cpu
    print(f"{answers / took:.0f} answers a second, {cost / answers * 1e6:.0f} us each; ", end="")
    print(f"a fresh client waits {waits.median * 1000:.1f} ms, at worst {waits.worst * 1000:.1f} ms")
    assert answers > 1000
    assert waits.worst < MAX_WAIT_SECONDS


def test_garbage_and_clients_that_do_not_read_hold_nobody_up(guard: ExecutedGuard, path: str) -> None:
    answer(path)
    vitals = Vitals(guard.pid)
    clients = [RawClient(guard.address) for _ in range(200)]
    before = vitals.resident

    def garbage(over: threading.Event) -> None:
        with connected(path) as connection:
            while not over.is_set():
                connection.sendall(b"\xff" * 65536)

    def lines(over: threading.Event) -> None:
        with connected(path) as connection:
            while not over.is_set():
                connection.sendall(b"{}\n" * 1000)

    def unread(over: threading.Event) -> None:
        with connected(path) as connection:
            connection.sendall(SESSIONS * 500)
            connection.settimeout(1)
            with suppress(TimeoutError):
                connection.sendall(SESSIONS * 5000)
            over.wait()

    with meanwhile(garbage, lines, *[unread] * 40), visits(guard.port) as waits:
        threading.Event().wait(4)
        # For a moment all seats may be those of clients that are being answered.
        eventually(lambda: b'"done"' in answer(path), "an operator has no answer")
        grown = vitals.resident - before
    print(f"a fresh client waits at worst {waits.worst * 1000:.1f} ms; {grown / 1024:.0f} KiB more memory")
    assert waits.worst < MAX_WAIT_SECONDS
    assert grown < MAX_GROWTH_OCTETS
    for each in clients:
        each.close()


def test_ten_thousand_connections_leave_the_guard_and_an_operator_well(
    guard: ExecutedGuard, path: str
) -> None:
    vitals = Vitals(guard.pid)
    answer(path)
    before, most = vitals.descriptors, 0
    with visits(guard.port) as waits:
        held: list[socket.socket] = []
        for number in range(10_000):
            held.append(connected(path))
            if len(held) > 500:
                held.pop(0).close()
            if number % 1000 == 0:
                assert b'"done"' in answer(path)
                most = max(most, vitals.descriptors)
        assert b'"done"' in answer(path)
    print(
        f"a fresh client waits at worst {waits.worst * 1000:.1f} ms; at most {most - before} more descriptors"
    )
    assert waits.worst < MAX_WAIT_SECONDS
    # Its seats, and those of connections that have been accepted and are about to be closed.
    assert most - before < 32 + 128
    for each in held:
        each.close()
