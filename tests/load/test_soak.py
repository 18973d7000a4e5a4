"""Honest and hostile traffic side by side for a long time, with reloads: nothing grows, nothing is lost.

    TESTS_SOAK_SECONDS=300 pytest -m soak -s tests/load/test_soak.py

The long form takes 1,800 seconds if nothing else is said, and prints what was measured.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event

import attrs
import pytest
from crowd import (
    Behaviour,
    Client,
    be_idle,
    descriptors_for,
    drip,
    knock,
    repeat,
    repeat_unheard,
    run_crowd,
    stay,
    vanish,
)
from probe import visits
from processes import ExecutedGuard, eventually
from rawclient import RawClient
from sealed import Ledger, name_of, sealed, send_by_bdat, send_by_data
from stored import take, unfinished
from vitals import Vitals

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.xdist_group("load"),
]

MiB = 1024 * 1024
SECONDS = float(os.environ.get("TESTS_SOAK_SECONDS", "1800"))

SENDERS = 4
OTHERS = SENDERS * 2 + 1
"""Descriptors of the guard: of each sender's connection and its message, and of a visit's connection."""
MOST_OCTETS = 100_000
"""Of an honest message."""

OPTIONS = (
    "--profile=edge",
    "--ip-filter=networks:networks",
    # A tenth of what an operator would have, so that a wave sees it.
    "--read-timeout=5",
    # The crowd's twelve networks are twelve clients, and come too often.
    "--ipv4-client-prefix=24",
)
TRUSTED = "127.0.0.1"
TOGGLED = "127.9.0.1"
"""Denied and trusted by turns: tells which list is in force."""
REFUSED = "421 4.7.0 Connection refused"


@attrs.frozen
class Scale:
    """How long it takes, and how long one wave of the crowd: the list of networks is written anew in each."""

    seconds: float
    wave_seconds: float
    hostile_clients: int
    greet_delay: float
    growth: float
    """What memory may have grown to, from a sixth of the time on to its end."""


# What hostile clients do. At the edge, a client that does not wait for its turn meets the first limit and no other.


def in_turn(*lines: bytes, then: Behaviour) -> Behaviour:
    """Wait for the greeting and for the reply to each of `lines`, then go on as `then`. Who is refused goes."""

    async def behave(client: Client) -> None:
        for line in (b"", *lines):
            await client.say(line)
            if not (await client.hear()).startswith((b"2", b"3")):
                return
        await then(client)

    return behave


EHLO = b"EHLO crowd.example\r\n"
ENVELOPE = (EHLO, b"MAIL FROM:<a@crowd.example>\r\n", b"RCPT TO:<b@guard.example>\r\n")
DATA = (*ENVELOPE, b"DATA\r\n")
LINE = b"x" * 70 + b"\r\n"

HOSTILE: tuple[Behaviour, ...] = (
    be_idle,
    knock,
    knock,
    vanish(b"", b""),
    vanish(b"", b""),
    vanish(b"", b"22", octets=2),
    repeat(b"", b"NOOP\r\n" * 10_000),
    repeat_unheard(b"", b"x" * 65536),
    repeat(b"GET / HTTP/1.1\r\n", b"Host: guard.example\r\n"),
    in_turn(then=repeat(b"", b"x" * 65536)),
    in_turn(EHLO, then=repeat(b"", b"junk\r\n" * 100)),
    in_turn(EHLO, then=repeat(b"", b"NOOP\r\n" * 1000)),
    in_turn(EHLO, then=repeat_unheard(b"", b"HELP\r\n" * 1000)),
    in_turn(EHLO, then=stay(b"junk\r\n" * 20)),
    in_turn(*ENVELOPE[:2], then=repeat(b"", b"RCPT TO:<x@guard.example>\r\n" * 100)),
    in_turn(*ENVELOPE, then=repeat(b"BDAT 99999999999999999999\r\n", LINE * 900)),
    in_turn(*ENVELOPE, then=vanish(b"BDAT 100000\r\n" + LINE * 10, b"354")),
    in_turn(*DATA, then=repeat(b"", LINE * 900)),
    in_turn(*DATA, then=repeat(b"", b"\r\n.x" * 16_000)),
    in_turn(*DATA, then=vanish(LINE * 10, b"")),
    in_turn(*DATA, then=repeat(b"smuggled\n.\r\nMAIL FROM:<>\r\n", LINE)),
    in_turn(*DATA, then=drip(b"", b"x" * 1000, 0.2)),
    in_turn(EHLO, then=drip(b"", b"NOOP" * 1000, 0.2)),
)


class Reloads:
    """A file of networks that is written anew again and again, every fourth time with a mistake."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._denied = True
        """Whether TOGGLED is, in the list that is in force."""
        self.good = self.bad = self.connections = 0
        self._write(self._denied)

    def renew(self, guard: ExecutedGuard) -> None:
        """A new list, and SIGHUP. AssertionError where another list is in force than should be."""
        assert self.is_in_force(guard), "a list with a mistake took the place of the one before"
        bad = (self.good + self.bad) % 4 == 3
        self._write(not self._denied, *(["nonsense"] if bad else []))
        os.kill(guard.pid, signal.SIGHUP)
        if bad:
            self.bad += 1
            return
        self.good += 1
        self._denied = not self._denied
        eventually(lambda: self.is_in_force(guard), "the new list does not come into force")

    def _write(self, denied: bool, *more: str) -> None:
        lines = [
            f"trust {TRUSTED}",
            f"{'deny' if denied else 'trust'} {TOGGLED}",
            f"deny 127.0.{self.good % 12 + 1}.0/24",
            *(f"deny 192.0.{self.good % 256}.{host}" for host in range(256)),
        ]
        self._path.write_text("".join(f"{line}\n" for line in (*lines, *more)))

    def is_in_force(self, guard: ExecutedGuard) -> bool:
        """Whether TOGGLED meets what the last list without a mistake says of it."""
        self.connections += 1
        with RawClient(guard.address, TOGGLED) as client:
            return (client.greeting == REFUSED) is self._denied


class Sender:
    """An honest client from its own network: session after session, as fast as it is served."""

    def __init__(self, guard: ExecutedGuard, ledger: Ledger, number: int) -> None:
        self._guard = guard
        self._ledger = ledger
        self._source = f"127.2.{number}.1"
        self._chance = random.Random(number)
        self.connections = 0

    def send_until(self, over: Event) -> None:
        while not over.is_set():
            self.connections += 1
            with RawClient(self._guard.address, self._source) as client:
                assert client.greeting.startswith("220 "), client.greeting
                client.ask("EHLO sender.example")
                for _ in range(self._chance.randrange(1, 20)):
                    name = self._ledger.next_name()
                    message = sealed(name, self._chance.randrange(MOST_OCTETS))
                    send = self._chance.choice([send_by_data, send_by_bdat])
                    self._ledger.record(name, send(client, name, message))
                assert client.ask("QUIT").startswith("221 ")


@contextmanager
def honest_traffic(senders: Sequence[Sender]) -> Iterator[None]:
    """While the block runs, they send. They end their sessions after it; what went wrong is raised then."""
    over = Event()
    with ThreadPoolExecutor(len(senders)) as threads:
        sending = [threads.submit(sender.send_until, over) for sender in senders]
        try:
            yield
        finally:
            over.set()
    for each in sending:
        each.result()


@attrs.define
class Taken:
    """What was found in the Maildir."""

    names: set[str] = attrs.field(factory=set)
    visits: int = 0
    octets: int = 0
    """As they were sent, with CRLF."""

    def take(self, maildir: Path) -> None:
        for mail in take(maildir):
            self.octets += len(mail.message) + mail.message.count(b"\n")
            if mail.sender.startswith("probe@"):
                self.visits += 1
                continue
            name = name_of(mail)
            assert name not in self.names, "a message is there twice"
            self.names.add(name)


def last_statistics(guard: ExecutedGuard) -> dict[str, str]:
    """The fields of the line `stopped`."""
    line = guard.wait_for(r"\] stopped ")
    return dict(word.split("=", 1) for word in line.partition("] stopped ")[2].split())


@pytest.mark.parametrize(
    "scale",
    [
        pytest.param(Scale(6, 1.5, 60, 0.2, 1.5), id="quick"),
        pytest.param(
            Scale(SECONDS, 10, 600, 2, 1.05),
            id="long",
            marks=[pytest.mark.soak, pytest.mark.timeout(SECONDS + 300)],
        ),
    ],
)
def test_under_honest_and_hostile_traffic_nothing_grows_and_nothing_is_lost(
    tmp_path: Path, scale: Scale
) -> None:
    reloads, ledger, taken = Reloads(tmp_path / "networks"), Ledger(), Taken()
    chance = random.Random(6)
    connections = 0
    memory: list[int] = []
    with ExecutedGuard(tmp_path, *OPTIONS, f"--greet-delay={scale.greet_delay}") as guard:
        vitals = Vitals(guard.pid)
        descriptors = vitals.descriptors
        senders = [Sender(guard, ledger, number) for number in range(SENDERS)]
        with visits(guard.port) as waits, honest_traffic(senders):
            over = time.monotonic() + scale.seconds
            while time.monotonic() < over or not reloads.bad:
                clients = run_crowd(
                    chance.choices(HOSTILE, k=descriptors_for(scale.hostile_clients)),
                    partial(Client, guard.port, anywhere=True),
                    at_once=400,
                    within=scale.wave_seconds * 0.8,
                    seconds=scale.wave_seconds,
                    # In the middle of the crowd.
                    settled=partial(reloads.renew, guard),
                )
                connections += len(clients)
                # Much of what they said may still be on its way to the disk. It counts when they are gone.
                eventually(lambda: vitals.descriptors <= descriptors + OTHERS, "the crowd is not let go")
                memory.append(vitals.resident)
                taken.take(guard.maildir)
            assert reloads.is_in_force(guard)
        eventually(lambda: vitals.descriptors <= descriptors, "it keeps connections open")
    taken.take(guard.maildir)
    counts = last_statistics(guard)
    connections += reloads.connections + len(waits.seconds) + sum(sender.connections for sender in senders)
    counted = sum(int(counts[f"connections_{how}"]) for how in ("accepted", "refused")) + int(
        counts["hangups"]
    )

    # After five minutes of thirty, and at the end.
    part = max(1, len(memory) // 12)
    early, late = median(memory[len(memory) // 6 :][:part]), median(memory[-part:])
    print(
        f"\n{scale.seconds:.0f} s, {connections} connections made, {counted} counted, {reloads.good} reloads and "
        f"{reloads.bad} that failed\n"
        f"memory after a sixth of the time {early / MiB:.1f} MiB, at the end {late / MiB:.1f} MiB "
        f"({late / early - 1:+.1%}), between waves: "
        f"{' '.join(f'{each / MiB:.1f}' for each in memory[:: max(1, len(memory) // 10)])}\n"
        f"{len(ledger.accepted)} messages of strangers answered 250, {len(taken.names)} in the Maildir, all whole\n"
        f"{len(waits.seconds)} visits, median {waits.median * 1000:.1f} ms, worst {waits.worst * 1000:.1f} ms\n"
        + " ".join(f"{name}={count}" for name, count in counts.items())
    )
    assert ledger.refusals == set()
    assert ledger.accepted == taken.names
    assert taken.visits == len(waits.seconds)
    assert unfinished(guard.maildir) == []

    assert int(counts["messages_accepted"]) == int(counts["recipients_accepted"])
    assert int(counts["messages_accepted"]) == len(taken.names) + taken.visits
    assert int(counts["octets_accepted"]) == taken.octets
    assert counts["live_connections"] == counts["failures"] == "0"
    assert counts["connections_accepted"] == counts["sessions_ended"]
    # A client whose time was over may not have come as far as the guard.
    assert 0.99 * connections < counted <= connections
    assert guard.log.count(b"] reloaded ") == reloads.good
    assert guard.log.count(b"] reload_failed ") == reloads.bad
    assert late < early * scale.growth
