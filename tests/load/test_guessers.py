"""Thirty clients that guess passwords as fast as they are answered, at a password file of many users: a fresh client is
served all the same, also while the file is written again and again, and an honest user logs in, also if the file has
hashes that take long.

The quick form is in every run. `pytest -m soak -s tests/load/test_guessers.py` takes longer, and both print what they
measured.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path

import pytest
from crowd import Client, run_crowd
from probe import visits
from processes import ExecutedGuard, eventually
from rawclient import RawClient

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.xdist_group("load"),
]

GUESSERS = 30
MAX_WAIT_SECONDS = 0.1
"""For the whole session of a fresh client."""
SECONDS_BETWEEN_WRITINGS = 0.5
MAX_LOGIN_SECONDS = 1.0
"""For the login of an honest user."""


def auth(user: str, password: str) -> bytes:
    return b"AUTH PLAIN " + b64encode(f"\0{user}\0{password}".encode()) + b"\r\n"


def write_users(path: Path, count: int, password: str) -> None:
    """In the place of what there was, at once, as an operator's program does it."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"user{number}:{password}{number}\n" for number in range(count)))
    new.replace(path)


@contextmanager
def written_again_and_again(path: Path, count: int) -> Iterator[None]:
    over = threading.Event()

    def write() -> None:
        while not over.wait(SECONDS_BETWEEN_WRITINGS):
            write_users(path, count, "password")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def measure(directory: Path, users: int, seconds: float, *, changing: bool) -> None:
    path = directory / "users"
    write_users(path, users, "password")
    guesses = 0

    async def guess(client: Client) -> None:
        nonlocal guesses
        for line in (b"", b"EHLO guesser.example\r\n"):
            await client.say(line)
            await client.hear()
        while True:
            await client.say(auth(f"user{guesses % users}", "wrong"))
            reply = await client.hear()
            assert reply.startswith(b"535 "), reply
            guesses += 1

    options = (
        f"--auth=file:{path}",
        "--auth-without-tls",
        "--max-auth-failures=0",
        "--auth-failure-rate=0",
        "--deliver=discard",
    )
    with ExecutedGuard(directory, *options) as guard:
        writing = written_again_and_again(path, users) if changing else nullcontext()
        with visits(guard.port, interval=0.05) as waits, writing:
            run_crowd(
                [guess] * GUESSERS,
                lambda: Client(guard.port),
                at_once=GUESSERS,
                within=0.1,
                seconds=seconds,
            )
        with RawClient(guard.address) as client:
            client.ask("EHLO user.example")
            client.send(auth("user7", "password7"))
            assert client.reply() == "235 2.7.0 Authentication successful"
    print(
        f"\n{users} users{', written anew twice a second' if changing else ''}: {guesses / seconds:.0f} guesses a "
        f"second; a fresh client's session took {waits.median * 1000:.1f} ms, the longest of {len(waits.seconds)} "
        f"{waits.worst * 1000:.1f} ms"
    )
    assert guesses > GUESSERS
    assert waits.median < MAX_WAIT_SECONDS


@pytest.mark.parametrize("users", [20_000, 50_000])
@pytest.mark.parametrize("changing", [False, True], ids=["at rest", "changing"])
def test_a_fresh_client_does_not_wait_for_guessers(tmp_path: Path, users: int, changing: bool) -> None:
    measure(tmp_path, users, 2, changing=changing)


@pytest.mark.soak
@pytest.mark.parametrize("users", [20_000, 50_000])
@pytest.mark.parametrize("changing", [False, True], ids=["at rest", "changing"])
def test_a_fresh_client_does_not_wait_for_guessers_for_long(
    tmp_path: Path, users: int, changing: bool
) -> None:
    measure(tmp_path, users, 20, changing=changing)


def write_hashes(path: Path, count: int) -> None:
    """Of bcrypt at its usual cost. Making as many takes minutes, so that users share some."""
    bcrypt = import_module("passlib.hash").bcrypt.using(rounds=10, ident="2y")
    hashes = [bcrypt.hash("password") for _ in range(20)]
    path.write_text("".join(f"user{number}:{hashes[number % 20]}\n" for number in range(count)))


@contextmanager
def logins(guard: ExecutedGuard, source: str) -> Iterator[list[float]]:
    """While the block runs, a user logs in again and again. The seconds that each login took."""
    seconds: list[float] = []
    faults: list[str] = []
    over = threading.Event()

    def log_in() -> None:
        while not over.wait(0.1):
            with RawClient(guard.address, source) as client:
                client.ask("EHLO user.example")
                began = time.monotonic()
                client.send(auth("user7", "password"))
                reply = client.reply()
                seconds.append(time.monotonic() - began)
                if reply != "235 2.7.0 Authentication successful":
                    faults.append(reply)

    user = threading.Thread(target=log_in)
    user.start()
    try:
        yield seconds
    finally:
        over.set()
        user.join()
    assert faults == []


def measure_hashes(directory: Path, seconds: float) -> None:
    path = directory / "hashes"
    write_hashes(path, 20_000)
    guesses = 0

    async def guess(client: Client) -> None:
        nonlocal guesses
        for line in (b"", b"EHLO guesser.example\r\n"):
            await client.say(line)
            await client.hear()
        while True:
            await client.say(auth(f"user{guesses % 20_000}", "wrong"))
            reply = await client.hear()
            assert reply.startswith(b"535 "), reply
            guesses += 1

    options = ("--auth-without-tls", "--max-auth-failures=0", "--auth-failure-rate=0", "--deliver=discard")
    with ExecutedGuard(directory, f"--auth=passwd:{path}", *options) as guard:
        with logins(guard, "127.99.0.1") as alone:
            eventually(lambda: len(alone) >= 5, "the user cannot log in")
        with visits(guard.port, interval=0.05) as waits, logins(guard, "127.99.0.1") as crowded:
            run_crowd(
                [guess] * GUESSERS,
                lambda: Client(guard.port, anywhere=True),
                at_once=GUESSERS,
                within=0.1,
                seconds=seconds,
            )
    print(
        f"\n20000 users with bcrypt: {guesses / seconds:.0f} guesses a second; a login took "
        f"{statistics.median(crowded) * 1000:.0f} ms, the longest of {len(crowded)} {max(crowded) * 1000:.0f} ms, "
        f"alone {statistics.median(alone) * 1000:.0f} ms; a fresh client's session {waits.median * 1000:.1f} ms"
    )
    assert guesses > 0
    assert statistics.median(crowded) < MAX_LOGIN_SECONDS
    assert waits.median < MAX_WAIT_SECONDS


def test_honest_users_log_in_beside_endless_guessers_of_hashes(tmp_path: Path) -> None:
    measure_hashes(tmp_path, 6)


@pytest.mark.soak
def test_honest_users_log_in_beside_endless_guessers_of_hashes_for_long(tmp_path: Path) -> None:
    measure_hashes(tmp_path, 60)
