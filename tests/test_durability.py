"""What was answered 250 is on the disk, whole, however the guard ends: kill -9 and SIGTERM in the middle of a load.

`pytest -m soak -s tests/test_durability.py` is the long form, and prints what was measured.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread

import attrs
import pytest
from processes import GuardProcess, eventually
from rawclient import RawClient, stuffed
from stored import stored, unfinished

SENDERS = 8
MOST_OCTETS = 1_000_000
"""Large enough that some message is always half-way."""

ENVELOPE = b"MAIL FROM:<sender@example.com>\r\nRCPT TO:<%b@example.org>\r\n"
SHUTTING_DOWN = "421 4.3.2 Server shutting down"


def sealed(name: str, octets: int) -> bytes:
    """A message of about `octets` that tells in its last line how long it is and what its checksum is."""
    line = b".%b says that dots at line starts are no obstacle\r\n" % name.encode()
    body = b"Subject: %b\r\n\r\n" % name.encode() + line * (octets // len(line))
    return body + _seal(body.replace(b"\r\n", b"\n"))


def is_whole(message: bytes) -> bool:
    """Whether a message that was stored ends with its seal."""
    body, newline, seal = message[:-1].rpartition(b"\n")
    body += newline
    return message.endswith(b"\n") and seal + b"\r\n" == _seal(body)


def _seal(body: bytes) -> bytes:
    return b"%d %b\r\n" % (len(body), hashlib.sha256(body).hexdigest().encode())


@attrs.define
class Ledger:
    """What a load was told."""

    accepted: set[str] = attrs.field(factory=set)
    """The names of messages that got their 250."""
    refusals: set[str] = attrs.field(factory=set)
    """What others got."""
    last_words: set[str] = attrs.field(factory=set)
    """What was said last in sessions that ended in the middle."""
    sent: int = 0
    _lock: Lock = attrs.field(factory=Lock)

    def next_name(self) -> str:
        with self._lock:
            self.sent += 1
            return str(self.sent)

    def record(self, name: str, reply: str) -> None:
        with self._lock:
            if reply.startswith("250 "):
                self.accepted.add(name)
            else:
                self.refusals.add(reply)


def send_by_data(client: RawClient, name: str, message: bytes) -> str:
    client.send(ENVELOPE % name.encode() + b"DATA\r\n")
    for expected in ("250", "250", "354"):
        reply = client.reply()
        if not reply.startswith(expected):
            return reply
    client.send(stuffed(message))
    verdict = client.reply()
    return verdict if verdict.startswith("250 ") else f"as a verdict: {verdict}"


def send_by_bdat(client: RawClient, name: str, message: bytes) -> str:
    client.send(ENVELOPE % name.encode() + b"BDAT %d LAST\r\n%b" % (len(message), message))
    for _ in range(2):
        reply = client.reply()
        if not reply.startswith("250"):
            return reply
    return client.reply()


def keep_sending(
    guard: GuardProcess,
    ledger: Ledger,
    send: Callable[[RawClient, str, bytes], str],
    sizes: random.Random,
) -> None:
    """Message after message, on a new connection now and then, until the guard is gone."""
    with suppress(OSError):
        while True:
            with RawClient(guard.address) as client:
                try:
                    client.ask("EHLO c")
                    for _ in range(sizes.randrange(1, 20)):
                        name = ledger.next_name()
                        ledger.record(name, send(client, name, sealed(name, sizes.randrange(MOST_OCTETS))))
                except OSError:
                    ledger.last_words.add(client.last_reply)
                    return


@contextmanager
def load(guard: GuardProcess, ledger: Ledger, seed: int) -> Iterator[None]:
    """While the block runs, senders send. The block must end the guard."""
    threads = [
        Thread(
            target=keep_sending,
            args=(guard, ledger, send, random.Random(seed * SENDERS + number)),
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


def assert_nothing_lost(maildir: Path, ledger: Ledger) -> None:
    """Every message that got its 250 is in new/; nothing there is partial, twice, or not what was sent."""
    names = []
    for mail in stored(maildir):
        assert is_whole(mail.message), f"{mail.recipients} is partial: {mail.message[-200:]!r}"
        name = mail.message.partition(b"\n")[0].decode().removeprefix("Subject: ")
        assert mail.recipients == (f"{name}@example.org",)
        names.append(name)
    assert len(names) == len(set(names)), "a message is there twice"
    assert ledger.accepted <= set(names), f"lost: {ledger.accepted - set(names)}"


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.soak)], ids=["short", "long"])
@pytest.mark.timeout(600)
def test_kill_9_in_the_middle_of_a_load_loses_nothing_that_was_answered_250(
    tmp_path: Path, rounds: int
) -> None:
    ledger = Ledger()
    moments = random.Random(9)
    for number in range(rounds):
        enough = len(ledger.accepted) + moments.randrange(10, 60)
        with GuardProcess(tmp_path) as guard, load(guard, ledger, seed=number):
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
    with GuardProcess(tmp_path) as guard, RawClient(guard.address) as client:
        client.ask("EHLO c")
        assert send_by_data(client, "1", sealed("1", 1000)).startswith("250 ")
        client.send(ENVELOPE % b"2" + b"DATA\r\n" + sealed("2", 1_000_000))
        eventually(lambda: unfinished(guard.maildir), "the second message never came to the disk")
        guard.kill()
    with GuardProcess(tmp_path) as guard, RawClient(guard.address) as client:
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
        with GuardProcess(tmp_path) as guard, load(guard, ledger, seed=number):
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
        GuardProcess(tmp_path) as guard,
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
    with GuardProcess(tmp_path, "--shutdown-grace=1") as guard, RawClient(guard.address) as client:
        client.ask("EHLO c")
        client.send(ENVELOPE % b"1" + b"DATA\r\n" + sealed("1", 500_000))
        eventually(lambda: unfinished(guard.maildir), "the message never came to the disk")
        guard.stop()
    assert stored(guard.maildir) == []
    assert unfinished(guard.maildir) == []
