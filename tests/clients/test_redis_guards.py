"""Three real guards on one real Redis: the limits hold for all of them together, and every outage is got over."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from commandline import twist
from guardsofredis import Crowd, Guards, SlowLink, Traffic, held_in
from processes import GuardProcess, eventually
from programs import missing
from rawclient import RawClient
from redisserver import RealRedis
from redisstores import check_sums

pytestmark = [pytest.mark.clients, pytest.mark.timeout(240)]

CAP, PER_CLIENT, PER_NETWORK = 40, 4, 12
LIMITS = (
    f"--max-connections={CAP}",
    f"--max-connections-per-client={PER_CLIENT}",
    "--ipv4-networks=29",
    f"--network-factor={PER_NETWORK // PER_CLIENT}",
)
FULL = "421 4.7.0 Too many connections, try again later"
FULL_OF_CLIENT = "421 4.7.0 Too many connections from your address, try again later"


@pytest.fixture
def server() -> Iterator[RealRedis]:
    with RealRedis() as server:
        yield server


@pytest.mark.parametrize("admissions", [5_000, pytest.param(100_000, marks=pytest.mark.soak)])
@pytest.mark.timeout(1800)
def test_no_limit_is_ever_exceeded_and_no_seat_is_lost(
    server: RealRedis, tmp_path: Path, admissions: int
) -> None:
    with Guards(tmp_path, server.url, *LIMITS) as guards:
        ports = [guard.port for guard in guards.running]
        # Few clients, so that each reaches its own limit and that of its network, and enough that together they reach
        # the cap: 6 networks, two of them with one client each.
        sources = [f"127.1.0.{number}" for number in (*range(8, 20), *range(24, 30), 32, 40)]
        admitted = rounds = 0
        reached = False
        refused: Counter[str] = Counter()
        while admitted < admissions:
            rounds += 1
            eventually(lambda: guards.told("counters_away") == guards.told("counters_back"), "one is away")
            eventually(lambda: held_in(server) == {}, "places are held of clients that have left")
            outages = sum(guards.told("counters_away"))
            crowd = Crowd(ports, sources)
            crowd.come(500, at_once=60)
            if sum(guards.told("counters_away")) > outages:
                # This machine was too busy for 50 ms: each held its own limits for a while.
                assert crowd.most <= 3 * CAP
                assert crowd.most_of_client <= 3 * PER_CLIENT
                assert crowd.most_of_network <= 3 * PER_NETWORK
                continue
            admitted += crowd.admitted
            refused += crowd.refused
            assert crowd.most <= CAP
            assert crowd.most_of_client <= PER_CLIENT
            assert crowd.most_of_network <= PER_NETWORK
            reached |= crowd.most_of_network == PER_NETWORK
            assert rounds < 10 or admitted, "this machine is too busy"
        assert min(refused[FULL], refused[FULL_OF_CLIENT]) > 10, "the limits were not reached"
        assert reached, "no network reached its limit"
        assert {*refused} == {FULL, FULL_OF_CLIENT}
        eventually(lambda: held_in(server) == {}, "places are held of clients that have left")
        check_sums(server)


def is_full(guard: GuardProcess) -> bool:
    with RawClient(guard.address) as client:
        return client.greeting == FULL


def test_the_seats_of_a_guard_that_is_killed_are_free_when_its_lease_ends(
    server: RealRedis, tmp_path: Path
) -> None:
    with Guards(tmp_path, server.url, "--max-connections=5") as guards, ExitStack() as clients:
        killed, other, third = guards.running
        for _ in range(5):
            assert clients.enter_context(RawClient(killed.address)).greeting.startswith("220 ")
        for guard in (other, third):
            # One that Redis has not answered in time, on a machine that is busy, counts alone for a while.
            eventually(partial(is_full, guard), "it admits one more")
        killed.kill()
        began = time.monotonic()

        def is_free() -> bool:
            with RawClient(other.address) as client:
                return client.greeting.startswith("220 ")

        eventually(is_free, "they are held for longer")
        # The lease is 10 s from the last renewal, which was at most a third of that before.
        assert 6 < time.monotonic() - began < 11


def test_check_says_that_they_answer_and_leaves_nothing_in_redis(server: RealRedis, tmp_path: Path) -> None:
    status, output, errors = twist("--check", f"--counters={server.url}", "--deliver=discard:", cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert f"\n{server.url}?db=0: the counters answer\n" in output
    assert held_in(server) == {}
    assert [key for key in server.lives() if ":o:" in key and ":try-" not in key] == []


# Outages.


def stopped(server: RealRedis) -> Iterator[None]:
    server.signal(signal.SIGSTOP)
    yield
    server.signal(signal.SIGCONT)


def restarted_empty(server: RealRedis) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@pytest.mark.parametrize("outage", [stopped, restarted_empty])
def test_mail_goes_on_while_it_is_away_and_each_guard_holds_its_own_limits(
    server: RealRedis, tmp_path: Path, outage: object
) -> None:
    with Guards(tmp_path, server.url, "--max-connections=6") as guards, ExitStack() as clients:
        for guard in guards.running:
            assert clients.enter_context(RawClient(guard.address)).greeting.startswith("220 ")
        over = outage(server)  # type: ignore[operator]
        next(over)
        with Traffic(guards) as traffic:
            eventually(lambda: guards.told("counters_away") == [1] * 3, "it was not noticed")
        assert traffic.faults == []
        # One waits for 50 ms, and the guard decides.
        assert traffic.slowest < 1.0
        # The bound: each guard admits what it would admit if it were alone.
        for guard in guards.running:
            for _ in range(5):
                assert clients.enter_context(RawClient(guard.address)).greeting.startswith("220 ")
            with RawClient(guard.address) as client:
                assert client.greeting == FULL
        next(over, None)
        eventually(lambda: guards.told("counters_back") == [1] * 3, "it was not found again")
        eventually(lambda: held_in(server) == {"max_connections:": 18}, "what is held is not what Redis has")
        check_sums(server)
        for guard in guards.running:
            with RawClient(guard.address) as client:
                assert client.greeting == FULL
        clients.close()
        eventually(lambda: held_in(server) == {}, "places are held of clients that have left")
        with Traffic(guards) as traffic:
            eventually(lambda: traffic.visits > 30, "nobody is served")
        assert traffic.faults == []
        assert guards.told("counters_away") == guards.told("counters_back") == [1] * 3


def test_what_was_flushed_is_there_again_within_a_third_of_the_lease(
    server: RealRedis, tmp_path: Path
) -> None:
    with Guards(tmp_path, server.url, "--max-connections=6") as guards, ExitStack() as clients:
        for guard in guards.running:
            for _ in range(2):
                assert clients.enter_context(RawClient(guard.address)).greeting.startswith("220 ")
        server.ask("FLUSHALL")
        began = time.monotonic()
        eventually(lambda: held_in(server) == {"max_connections:": 6}, "it is not renewed")
        assert time.monotonic() - began < 4
        for guard in guards.running:
            with RawClient(guard.address) as client:
                assert client.greeting == FULL
        assert guards.told("counters_away") == [0] * 3


def test_connections_that_are_killed_are_made_again(server: RealRedis, tmp_path: Path) -> None:
    with Guards(tmp_path, server.url, "--max-connections=12") as guards, ExitStack() as clients:
        for guard in guards.running:
            assert clients.enter_context(RawClient(guard.address)).greeting.startswith("220 ")
        with Traffic(guards) as traffic:
            for _ in range(3):
                server.ask("CLIENT", "KILL", "TYPE", "normal")
                visits = traffic.visits
                eventually(lambda visits=visits: traffic.visits > visits + 30, "nobody is served")  # type: ignore[misc]
                eventually(
                    lambda: guards.told("counters_away") == guards.told("counters_back"), "one is away still"
                )
        assert traffic.faults == []
        assert all(count <= 3 for count in guards.told("counters_away"))
        eventually(lambda: held_in(server) == {"max_connections:": 3}, "what is held is not what Redis has")
        check_sums(server)


def test_a_password_that_is_changed_is_one_outage_until_the_file_has_the_new_one(
    server: RealRedis, tmp_path: Path
) -> None:
    path = tmp_path / "url"
    path.write_text(f"redis+unix://:first-secret@{server.socket}\n")
    path.chmod(0o600)
    server.ask("CONFIG", "SET", "requirepass", "first-secret")
    with Guards(tmp_path, f"redis+file:{path}", "--max-connections=12") as guards, ExitStack() as clients:
        for guard in guards.running:
            assert clients.enter_context(RawClient(guard.address)).greeting.startswith("220 ")
        with Traffic(guards) as traffic:
            server.ask(
                "-a", "first-secret", "--no-auth-warning", "CONFIG", "SET", "requirepass", "second-secret"
            )
            server.ask("-a", "second-secret", "--no-auth-warning", "CLIENT", "KILL", "TYPE", "normal")
            eventually(lambda: guards.told("counters_away") == [1] * 3, "it was not noticed")
            path.write_text(f"redis+unix://:second-secret@{server.socket}\n")
            eventually(lambda: guards.told("counters_back") == [1] * 3, "it was not found again")
        assert traffic.faults == []
        server.ask("-a", "second-secret", "--no-auth-warning", "CONFIG", "SET", "requirepass", "")
        eventually(lambda: held_in(server) == {"max_connections:": 3}, "what is held is not what Redis has")
        for guard in guards.running:
            assert b"secret" not in guard.log
            assert b"secret" not in Path(f"/proc/{guard.pid}/cmdline").read_bytes()


def test_a_link_that_is_too_slow_is_one_outage_and_one_that_is_only_slow_is_none(
    server: RealRedis, tmp_path: Path
) -> None:
    with (
        SlowLink(server) as link,
        Guards(tmp_path, f"redis://127.0.0.1:{link.port}", "--max-connections=12") as guards,
        ExitStack() as clients,
    ):
        for guard in guards.running:
            assert clients.enter_context(RawClient(guard.address)).greeting.startswith("220 ")
        link.seconds = 0.005
        with Traffic(guards) as traffic:
            eventually(lambda: traffic.visits > 60, "nobody is served")
            eventually(lambda: guards.told("counters_back") == guards.told("counters_away"), "one is away")
            few = guards.told("counters_away")
            link.seconds = 0.15
            eventually(lambda: all(guards.told("counters_away")), "it was not noticed")
            visits = traffic.visits
            eventually(lambda: traffic.visits > visits + 100, "nobody is served")
            link.seconds = 0.0
            eventually(
                lambda: guards.told("counters_back") == guards.told("counters_away"), "it was not found again"
            )
        assert traffic.faults == []
        assert traffic.slowest < 1.0
        assert [after - before for before, after in zip(few, guards.told("counters_away"), strict=True)] == [
            1
        ] * 3
        eventually(lambda: held_in(server) == {"max_connections:": 3}, "what is held is not what Redis has")


class Network:
    """A network namespace with a Redis in it, at the other end of a cable that can be cut."""

    HOST, REDIS = "10.213.77.1", "10.213.77.2"

    def __init__(self) -> None:
        if os.geteuid() != 0:
            missing("root")
        self.name = f"guard{os.getpid()}"
        self._near, self._far = f"gn{os.getpid()}"[:15], f"gf{os.getpid()}"[:15]

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    def __enter__(self) -> Network:
        self._ip("netns", "add", self.name)
        self._ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name)
        self._ip("addr", "add", f"{self.HOST}/30", "dev", self._near)
        self._ip("-n", self.name, "addr", "add", f"{self.REDIS}/30", "dev", self._far)
        self._ip("-n", self.name, "link", "set", self._far, "up")
        self.joined(True)
        return self

    def joined(self, joined: bool) -> None:
        self._ip("link", "set", self._near, "up" if joined else "down")

    def __exit__(self, *_: object) -> None:
        self._ip("netns", "del", self.name)


def test_a_cable_that_is_cut_and_joined_again_is_one_outage(tmp_path: Path) -> None:
    with (
        Network() as network,
        RealRedis(
            "--port", "6379", "--bind", network.REDIS, "--protected-mode", "no", within=network.name
        ) as server,
        Guards(tmp_path, f"redis://{network.REDIS}", "--max-connections=12") as guards,
        ExitStack() as clients,
    ):
        for guard in guards.running:
            assert clients.enter_context(RawClient(guard.address)).greeting.startswith("220 ")
        with Traffic(guards) as traffic:
            eventually(lambda: traffic.visits > 10, "nobody is served")
            network.joined(False)
            eventually(lambda: guards.told("counters_away") == [1] * 3, "it was not noticed")
            visits = traffic.visits
            eventually(lambda: traffic.visits > visits + 100, "nobody is served")
            network.joined(True)
            eventually(lambda: guards.told("counters_back") == [1] * 3, "it was not found again")
        assert traffic.faults == []
        assert traffic.slowest < 1.0
        eventually(lambda: held_in(server) == {"max_connections:": 3}, "what is held is not what Redis has")
        check_sums(server)
