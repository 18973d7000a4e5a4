"""Thirty clients that guess passwords as fast as they are answered, at a password file of many users: a fresh client is
served all the same, also while the file is written again and again.

The quick form is in every run. `pytest -m soak -s tests/load/test_guessers.py` takes longer, and both print what they
measured.
"""

from __future__ import annotations

import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from crowd import Client, run_crowd
from probe import visits
from processes import GuardProcess
from rawclient import RawClient

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.xdist_group("load"),
]

GUESSERS = 30
MAX_WAIT_SECONDS = 0.1
"""For the whole session of a fresh client."""
SECONDS_BETWEEN_WRITINGS = 0.5


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
    with GuardProcess(directory, *options) as guard:
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
