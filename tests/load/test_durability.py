"""What was answered 250 is on the disk, whole, however the guard ends: kill -9 and SIGTERM in the middle of a load.

`pytest -m soak -s tests/load/test_durability.py` is the long form, and prints what was measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest
from processes import ExecutedGuard, eventually
from rawclient import RawClient, stuffed
from sealed import ENVELOPE, Ledger, assert_nothing_lost, is_whole, sealed, send_by_bdat, send_by_data
from stored import stored, unfinished

pytestmark = pytest.mark.xdist_group("load")

SENDERS = 8
MOST_OCTETS = 1_000_000
"""Large enough that some message is always half-way."""

SHUTTING_DOWN = "421 4.3.2 Server shutting down"


def keep_sending(
    guard: ExecutedGuard,
    ledger: Ledger,
    send: Callable[[RawClient, str, bytes], str],
    sizes: random.Random,
    most_octets: int,
) -> None:
    """Message after message, on a new connection now and then, until the guard is gone."""
    with suppress(OSError):
        while True:
            with RawClient(guard.address) as client:
                try:
                    client.ask("EHLO c")
                    for _ in range(sizes.randrange(1, 20)):
                        name = ledger.next_name()
                        ledger.record(name, send(client, name, sealed(name, sizes.randrange(most_octets))))
                except OSError:
                    ledger.last_words.add(client.last_reply)
                    return


@contextmanager
def load(guard: ExecutedGuard, ledger: Ledger, seed: int, most_octets: int = MOST_OCTETS) -> Iterator[None]:
    """While the block runs, senders send. The block must end the guard."""
    threads = [
        Thread(
            target=keep_sending,
            args=(guard, ledger, send, random.Random(seed * SENDERS + number), most_octets),
            daemon=True,
        )
        for number, send in enumerate([send_by_data, send_by_bdat] * (SENDERS // 2))
    ]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a sender hangs"


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.soak)], ids=["short", "long"])
@pytest.mark.timeout(600)
def test_kill_9_in_the_middle_of_a_load_loses_nothing_that_was_answered_250(
    tmp_path: Path, rounds: int
) -> None:
    ledger = Ledger()
    moments = random.Random(9)
    for number in range(rounds):
        enough = len(ledger.accepted) + moments.randrange(10, 60)
        with ExecutedGuard(tmp_path) as guard, load(guard, ledger, seed=number):
            eventually(lambda enough=enough: len(ledger.accepted) >= enough, "the load does not get on")
            guard.kill()
        assert_nothing_lost(guard.maildir, ledger)
    assert ledger.refusals == set()
    there = len(stored(tmp_path / "Maildir"))
    print(
        f"\nkill -9, {rounds} rounds: {ledger.sent} messages begun, {len(ledger.accepted)} answered 250, "
        f"{there} in new/, 0 lost, 0 partial"
    )


def test_after_a_kill_9_the_next_guard_goes_on_with_the_same_maildir(tmp_path: Path) -> None:
    with ExecutedGuard(tmp_path) as guard, RawClient(guard.address) as client:
        client.ask("EHLO c")
        assert send_by_data(client, "1", sealed("1", 1000)).startswith("250 ")
        client.send(ENVELOPE % b"2" + b"DATA\r\n" + sealed("2", 1_000_000))
        eventually(lambda: unfinished(guard.maildir), "the second message never came to the disk")
        guard.kill()
    with ExecutedGuard(tmp_path) as guard, RawClient(guard.address) as client:
        client.ask("EHLO c")
        assert send_by_data(client, "3", sealed("3", 1000)).startswith("250 ")
    assert sorted(mail.recipients for mail in stored(guard.maildir)) == [
        ("1@example.org",),
        ("3@example.org",),
    ]


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.soak)], ids=["short", "long"])
@pytest.mark.timeout(600)
def test_sigterm_in_the_middle_of_a_load_loses_nothing_and_leaves_nothing_half_done(
    tmp_path: Path, rounds: int
) -> None:
    ledger = Ledger()
    for number in range(rounds):
        enough = len(ledger.accepted) + 50
        with ExecutedGuard(tmp_path) as guard, load(guard, ledger, seed=number):
            eventually(lambda enough=enough: len(ledger.accepted) >= enough, "the load does not get on")
            guard.stop()
        assert_nothing_lost(guard.maildir, ledger)
        assert unfinished(guard.maildir) == []
    assert ledger.refusals <= {SHUTTING_DOWN}
    assert ledger.last_words == {SHUTTING_DOWN}
    print(
        f"\nSIGTERM, {rounds} rounds: {ledger.sent} messages begun, {len(ledger.accepted)} answered 250, 0 lost"
    )


@pytest.mark.parametrize("command", [b"DATA\r\n", b"BDAT %d LAST\r\n"], ids=["DATA", "BDAT"])
def test_a_message_on_its_way_at_sigterm_gets_its_verdict(tmp_path: Path, command: bytes) -> None:
    message = sealed("1", 500_000)
    chunk = b"BDAT" in command
    octets = message if chunk else stuffed(message)
    with (
        ExecutedGuard(tmp_path) as guard,
        RawClient(guard.address) as idle,
        RawClient(guard.address) as client,
    ):
        idle.ask("EHLO idle")
        client.ask("EHLO c")
        client.send(ENVELOPE % b"1" + (command % len(message) if chunk else command))
        assert [client.reply()[:3] for _ in range(2 if chunk else 3)] == ["250", "250", "354"][
            : 2 if chunk else 3
        ]
        client.send(octets[:250_000])
        eventually(lambda: unfinished(guard.maildir), "the message never came to the disk")
        guard.terminate()
        assert idle.rest() == f"{SHUTTING_DOWN}\r\n".encode()
        idle.close()
        client.send(octets[250_000:])
        assert client.rest() == f"250 2.0.0 Message accepted\r\n{SHUTTING_DOWN}\r\n".encode()
        client.close()
        guard.ended()
    [mail] = stored(guard.maildir)
    assert is_whole(mail.message)
    assert unfinished(guard.maildir) == []


def test_a_message_that_does_not_end_within_the_grace_is_dropped_whole(tmp_path: Path) -> None:
    with ExecutedGuard(tmp_path, "--shutdown-grace=1") as guard, RawClient(guard.address) as client:
        client.ask("EHLO c")
        client.send(ENVELOPE % b"1" + b"DATA\r\n" + sealed("1", 500_000))
        eventually(lambda: unfinished(guard.maildir), "the message never came to the disk")
        guard.stop()
    assert stored(guard.maildir) == []
    assert unfinished(guard.maildir) == []


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("end", ["SIGTERM", "kill -9"])
def test_two_thousand_messages_into_a_load_nothing_is_lost(tmp_path: Path, end: str) -> None:
    ledger = Ledger()
    with ExecutedGuard(tmp_path) as guard, load(guard, ledger, seed=2000, most_octets=50_000):
        eventually(lambda: len(ledger.accepted) >= 2000, "the load does not get on")
        if end == "SIGTERM":
            guard.stop()
        else:
            guard.kill()
    assert_nothing_lost(guard.maildir, ledger)
    if end == "SIGTERM":
        assert unfinished(guard.maildir) == []
        assert ledger.last_words == {SHUTTING_DOWN}
    there = len(stored(guard.maildir))
    print(
        f"\n{end}: {ledger.sent} messages begun, {len(ledger.accepted)} answered 250, {there} in new/, 0 lost, "
        "0 partial"
    )
