"""Four workers on one Redis for a long time, while workers are killed and replaced and Redis goes away in every way:
each 250 is accounted for, and no seat is lost.

    TESTS_SOAK_SECONDS=300 pytest -m soak -s tests/clients/test_redis_soak.py

The long form takes 1,800 seconds if nothing else is said, and prints what it has seen.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from guardsofredis import held_in
from processes import Address, eventually
from rawclient import RawClient
from redisserver import RealRedis
from redisstores import check_sums
from sealed import name_of, sealed, send_by_bdat, send_by_data
from stored import take
from workers import Workers, told

SECONDS = float(os.environ.get("TESTS_SOAK_SECONDS", "1800"))
WORKERS, CAP, PER_CLIENT, SENDERS = 4, 10, 2, 12
MOST_OCTETS = 50_000

pytestmark = pytest.mark.clients


class Senders:
    """Clients that send one mail after the other while the block runs, each on a connection of its own. A mail is sent
    again until it gets its 250, as mail servers do."""

    def __init__(self, address: Address) -> None:
        self.accepted: set[str] = set()
        self.uncertain: Counter[str] = Counter()
        """How often a mail was sent whose session ended before its verdict came."""
        self.refusals: Counter[str] = Counter()
        self.faults: list[str] = []
        self._address = address
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._send_all, args=(number,)) for number in range(1, SENDERS + 1)
        ]

    def _send_all(self, number: int) -> None:
        dice, mail = random.Random(number), 0
        try:
            while not self._over.is_set():
                mail += 1
                name = f"{number}-{mail}"
                octets = sealed(name, dice.randint(100, MOST_OCTETS))
                # At the end it may be left unsent.
                while not self._send(number, name, octets, dice) and not self._over.wait(0.05):
                    pass
                self._over.wait(dice.uniform(0, 0.1))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not happen
            self.faults.append(repr(error))

    def _send(self, number: int, name: str, octets: bytes, dice: random.Random) -> bool:
        reply = ""
        try:
            with RawClient(self._address, f"127.0.9.{(number + 1) // 2}") as client:
                reply = client.greeting
                if reply.startswith("220"):
                    client.ask("EHLO client.example")
                    self.uncertain[name] += 1
                    reply = (send_by_data if dice.random() < 0.5 else send_by_bdat)(client, name, octets)
                    # It has its verdict.
                    self.uncertain[name] -= 1
        except ConnectionRefusedError as error:
            # The listeners are there throughout.
            self.faults.append(repr(error))
        except OSError:
            return False
        if reply.startswith("250"):
            self.accepted.add(name)
        else:
            self.refusals[reply] += 1
        return reply.startswith("250")

    def __enter__(self) -> Senders:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join()


class Trouble:
    """What happens to the workers and to Redis, one thing at a time."""

    def __init__(self, guard: Workers, server: RealRedis, directory: Path, dice: random.Random) -> None:
        self.happened: Counter[str] = Counter()
        self._guard = guard
        self._server = server
        self._directory = directory
        self._dice = dice
        self._kinds: list[Callable[[], object]] = [
            self.worker_killed,
            self.workers_restarted,
            self.redis_stopped,
            self.redis_restarted_empty,
            self.redis_flushed,
            self.connections_killed,
        ]

    def happen(self) -> None:
        kind = self._dice.choice(self._kinds)
        self.happened[kind.__name__] += 1
        kind()

    def worker_killed(self) -> None:
        (status,) = told(self._directory, "status")
        with suppress(ProcessLookupError):
            os.kill(self._dice.choice(status["workers"])["pid"], signal.SIGKILL)

    def workers_restarted(self) -> None:
        # It is refused while the last one is under way.
        os.kill(self._guard.pid, signal.SIGUSR2)

    def redis_stopped(self) -> None:
        self._server.signal(signal.SIGSTOP)
        time.sleep(self._dice.uniform(0.01, 3))
        self._server.signal(signal.SIGCONT)

    def redis_restarted_empty(self) -> None:
        self._server.kill()
        time.sleep(self._dice.uniform(0, 3))
        self._server.start()

    def redis_flushed(self) -> None:
        self._server.ask("FLUSHALL")

    def connections_killed(self) -> None:
        self._server.ask("CLIENT", "KILL", "TYPE", "normal")


def all_are_greeted(address: Address, number: int) -> bool:
    """Whether so many clients are greeted at once, two of each address."""
    with ExitStack() as clients:
        come = [RawClient(address, f"127.0.8.{each // PER_CLIENT + 1}") for each in range(number)]
        for client in come:
            clients.enter_context(client)
        return all(client.greeting.startswith("220") for client in come)


@pytest.mark.parametrize(
    "seconds",
    [20.0, pytest.param(SECONDS, marks=[pytest.mark.soak, pytest.mark.timeout(SECONDS + 300)])],
    ids=["short", "long"],
)
def test_each_250_is_accounted_for_and_all_seats_are_free_at_the_end(tmp_path: Path, seconds: float) -> None:
    stored: Counter[str] = Counter()
    options = (
        f"--max-connections={CAP}",
        f"--max-connections-per-client={PER_CLIENT}",
        f"--control={tmp_path / 'control.sock'}",
        "--shutdown-grace=10",
        "--max-log-lines=0",
    )
    with RealRedis() as server, Workers(tmp_path, WORKERS, f"--counters={server.url}", *options) as guard:
        address = guard.address
        trouble = Trouble(guard, server, tmp_path, random.Random(SECONDS))
        began = time.monotonic()
        with Senders(address) as senders:
            while time.monotonic() < began + seconds:
                time.sleep(trouble._dice.uniform(0, 4))
                trouble.happen()
                stored.update(map(name_of, take(guard.maildir)))
        assert senders.faults == []
        assert all(reply.startswith("421 4") for reply in senders.refusals), senders.refusals

        # Nothing is held: not by what Redis counts, by what the guard tells, or by what it counts while Redis is away.
        def status() -> dict[str, object]:
            return told(tmp_path, "status")[0]

        eventually(lambda: status()["connections"] == 0, "the guard has connections")
        eventually(lambda: held_in(server) == {}, "places are held of clients that have left")
        check_sums(server)
        eventually(
            lambda: [each["state"] for each in told(tmp_path, "status")[0]["workers"]] == ["ready"] * WORKERS,
            "some workers are not ready",
        )
        eventually(lambda: all_are_greeted(address, CAP), "seats are lost in Redis")
        server.signal(signal.SIGSTOP)
        try:
            eventually(lambda: all_are_greeted(address, CAP), "seats are lost in the table of the workers")
        finally:
            server.signal(signal.SIGCONT)
        eventually(lambda: held_in(server) == {}, "places are held of clients that have left")

        stored.update(map(name_of, take(guard.maildir)))
        assert senders.accepted - stored.keys() == set(), "mail was lost that got its 250"
        for name, times in stored.items():
            assert times <= (name in senders.accepted) + senders.uncertain[name], f"{name} is there too often"
        counts = {event: guard.count(event) for event in ("counters_away", "counters_back", "worker_died")}
        assert len(senders.accepted) > seconds
        twice = sum(times - 1 for times in stored.values())
        print(
            f"\n{seconds:.0f} s: {len(senders.accepted)} mails got their 250, {twice} came twice, "
            f"{senders.uncertain.total()} sessions ended before a verdict; {dict(senders.refusals)}; "
            f"{dict(trouble.happened)}; {counts}"
        )
