"""A real Redis keeps the counts: exactly, in one command a decision, and nothing for longer than it must."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from redisserver import Monitor, RealRedis
from redisstores import LEASE_SECONDS, Stores, check_sums, held, until
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from twisted_smtpguard.counters.redisstore import RedisCounterStore
from twisted_smtpguard.testing import check_counter_store
from twisted_smtpguard.values import Wanted

pytestmark = pytest.mark.clients

TOTAL = Wanted("max_connections", "", 5)
CLIENT = Wanted("max_connections_per_client", "192.0.2.1", 3)
RATE = Wanted("connection_rate", "192.0.2.1", 0, 60)


@pytest.fixture(scope="module")
def running() -> Iterator[RealRedis]:
    with RealRedis() as server:
        yield server


@pytest.fixture
def server(running: RealRedis) -> RealRedis:
    running.ask("FLUSHALL")
    return running


async def pause(seconds: float) -> None:
    from twisted.internet import reactor

    await deferLater(reactor, seconds)


@pytest_twisted.ensureDeferred
async def test_the_contract_is_kept_by_two_stores(server: RealRedis) -> None:
    async with Stores() as stores:
        first = await stores.open(server.url, lease_seconds=2)
        second = await stores.open(server.url, lease_seconds=2)
        assert await check_counter_store(first, pause, second=second) == 114


@pytest_twisted.ensureDeferred
async def test_a_decision_is_one_command_of_one_round_trip(server: RealRedis) -> None:
    async with Stores() as stores:
        with Monitor(server) as monitor:
            store = await stores.open(server.url)
            server.ask("ECHO", "connected")
            assert monitor.until("connected") == ["SCRIPT", *["EVALSHA"] * 9]
            wanted = [TOTAL, CLIENT, CLIENT._replace(client="192.0.2.0/24"), RATE]
            assert await store.take("me", wanted) == [1, 1, 1, 1]
            server.ask("ECHO", "taken")
            assert monitor.until("taken") == ["EVALSHA"]
            await store.give_back("me", wanted[:3])
            await store.look(wanted)
            await store.renew("me", {CLIENT[:2]: 1})
            server.ask("ECHO", "more")
            assert monitor.until("more") == ["EVALSHA"] * 3


@pytest_twisted.ensureDeferred
async def test_three_guards_that_want_all_at_once_never_hold_more_than_the_cap(server: RealRedis) -> None:
    async with Stores() as stores:
        guards = [await stores.open(server.url, lease_seconds=10) for _ in range(3)]
        most = 0
        taken = [0] * 3
        clients = [CLIENT._replace(client=f"127.{number}.0.1", limit=2) for number in range(4)]

        async def session(number: int, store: RedisCounterStore, client: Wanted) -> None:
            nonlocal most
            counts = await store.take(f"guard{number}", [TOTAL, client])
            if counts[0] > TOTAL.limit or counts[1] > client.limit:
                return
            taken[number] += 1
            assert sum(taken) <= TOTAL.limit
            most = max(most, sum(taken))
            await store.look([TOTAL])
            taken[number] -= 1
            await store.give_back(f"guard{number}", [TOTAL, client])

        for _ in range(10):
            await gatherResults(
                [
                    Deferred.fromCoroutine(session(number, store, random.choice(clients)))
                    for _ in range(40)
                    for number, store in enumerate(guards)
                ]
            )
        assert most == TOTAL.limit
        assert await held(guards[0], TOTAL, *clients) == [0] * 5
        check_sums(server)


@pytest_twisted.ensureDeferred
async def test_whatever_is_done_every_key_ends_and_every_sum_is_right(server: RealRedis) -> None:
    dice = random.Random(7)
    async with Stores() as stores:
        guards = [(f"guard{number}", await stores.open(server.url)) for number in range(3)]
        networks = [f"192.0.2.{number}" for number in range(6)] + ["2001:db8::/64", ""]

        def some() -> list[Wanted]:
            names = dice.sample(networks, 3)
            places = [Wanted("max_connections_per_client", name, 4, 0, dice.randint(1, 3)) for name in names]
            return [*places, Wanted("connection_rate", names[0], 50, dice.choice([0.0001, 1, 60]))]

        for _ in range(60):
            answers: list[Any] = []
            for _ in range(10):
                owner, store = dice.choice(guards)
                verb = dice.choice(["take", "take", "give_back", "renew", "look"])
                if verb == "renew":
                    names = dice.sample(networks, 3)
                    held_now = {("max_connections_per_client", name): dice.randint(0, 2) for name in names}
                    answers.append(store.renew(owner, held_now))
                elif verb == "look":
                    answers.append(store.look(some()))
                else:
                    answers.append(getattr(store, verb)(owner, some()))
            await gatherResults(answers)
            await gatherResults([guards[0][1].look([]), guards[1][1].look([])])
            check_sums(server)
        # Keys have clients in them, and the names of owners. Those of the trial at the beginning have its owner.
        for key in filter(lambda key: "try" not in key, server.lives()):
            kind, _, rest = key.removeprefix("smtpguard:").partition(":")
            client = rest.partition(":")[2].partition(":")[2] if kind == "w" else rest.partition(":")[2]
            assert client in networks if kind in "pw" else kind in ("o", "leases"), key


@pytest_twisted.ensureDeferred
async def test_what_a_guard_held_that_was_killed_is_free_after_its_lease(server: RealRedis) -> None:
    async with Stores() as stores:
        killed, other = await stores.open(server.url), await stores.open(server.url)
        many = {
            ("max_connections_per_client", f"10.0.{number >> 8}.{number & 255}"): 1 for number in range(1000)
        }
        await killed.renew("killed", {**many, TOTAL[:2]: 4})
        began = time.monotonic()
        await other.take("other", [TOTAL])
        assert await other.take("other", [TOTAL]) == [6]
        await killed.stopService()
        while (await held(other, TOTAL))[0] == 5:
            await other.renew("other", {TOTAL[:2]: 1})
        assert LEASE_SECONDS * 0.9 < time.monotonic() - began < LEASE_SECONDS * 3
        await other.renew("other", {TOTAL[:2]: 1})
        # All thousand, and not only what one call gives back.
        left = {"smtpguard:p:max_connections:"}
        await until(
            lambda: {key for key in server.lives() if ":p:" in key} == left, lambda: str(server.lives())
        )
        assert await held(other, TOTAL) == [1]
        check_sums(server)


@pytest_twisted.ensureDeferred
async def test_who_lives_longer_than_its_keys_keeps_what_it_renews(server: RealRedis) -> None:
    async with Stores() as stores:
        store = await stores.open(server.url, lease_seconds=0.4)
        await store.take("me", [TOTAL, CLIENT])
        ended = time.monotonic() + 3
        while time.monotonic() < ended:
            await store.renew("me", {TOTAL[:2]: 1, CLIENT[:2]: 1})
            await pause(0.05)
            assert await held(store, TOTAL, CLIENT) == [1, 1]
        await until(lambda: not server.lives(), lambda: str(server.lives()))


@pytest_twisted.ensureDeferred
async def test_a_renewal_says_exactly_what_is_held(server: RealRedis) -> None:
    places = {("c", str(number)): 1 + number % 3 for number in range(600)}
    async with Stores() as stores:
        store = await stores.open(server.url)
        await store.take("other", [Wanted("c", "1"), Wanted("c", "300")])
        await store.renew("me", places)
        wanted = [Wanted(*place) for place in places]
        others = [1 if number in (1, 300) else 0 for number in range(600)]
        counts = [count + other for count, other in zip(places.values(), others, strict=True)]
        assert await held(store, *wanted) == counts
        await store.renew("me", dict(list(places.items())[:300]))
        assert await held(store, *wanted) == counts[:300] + others[300:]
        await store.renew("me", {})
        # What is given up is given back a part at a time.
        while await held(store, *wanted) != others:
            pass
        check_sums(server)


@pytest_twisted.ensureDeferred
async def test_an_owner_gives_back_its_own_places_only(server: RealRedis) -> None:
    async with Stores() as stores:
        store = await stores.open(server.url)
        await store.take("me", [TOTAL._replace(events=2)])
        await store.give_back("other", [TOTAL])
        assert await held(store, TOTAL) == [2]
        await store.give_back("me", [TOTAL._replace(events=100)])
        assert await held(store, TOTAL) == [0]


@pytest_twisted.ensureDeferred
async def test_what_is_asked_before_an_earlier_answer_is_done_in_order_also_if_the_script_is_lost(
    server: RealRedis,
) -> None:
    async with Stores() as stores:
        store = await stores.open(server.url)
        for lose in (False, True, False, True):
            if lose:
                server.ask("SCRIPT", "FLUSH")
            answers: list[Any] = []
            for _ in range(50):
                answers.append(store.take("me", [TOTAL._replace(limit=1)]))
                store.give_back("me", [TOTAL])
            assert await gatherResults(answers) == [[1]] * 50
            assert await held(store, TOTAL) == [0]
        assert store.connected


@pytest_twisted.ensureDeferred
async def test_a_renewal_does_not_touch_a_place_that_is_being_taken(server: RealRedis) -> None:
    async with Stores() as stores:
        store = await stores.open(server.url)
        for holds in (1, 2):
            answer = store.take("me", [TOTAL, CLIENT])
            # The guard knows of nothing but what was answered.
            await store.renew("me", {TOTAL[:2]: holds - 1} if holds > 1 else {})
            assert await answer == [holds, 1]
            assert await held(store, TOTAL, CLIENT) == [holds, 1]
            await store.renew("me", {TOTAL[:2]: holds})


@pytest_twisted.ensureDeferred
async def test_no_place_is_lost_or_kept_while_many_are_renewed_and_changed(server: RealRedis) -> None:
    dice = random.Random(7)
    places = [("c", str(number)) for number in range(1000)]
    async with Stores() as stores:
        store = await stores.open(server.url, lease_seconds=10)
        holds = dict.fromkeys(places, 1)
        await store.renew("me", holds)
        for _ in range(5):
            renewed = store.renew("me", holds)
            while not renewed.called:
                taken, given = (dice.sample(places, 5) for _ in range(2))
                store.take("me", [Wanted(*place) for place in taken])
                for place in taken:
                    holds[place] += 1
                given = [place for place in given if holds[place]]
                answer = store.give_back("me", [Wanted(*place) for place in given])
                for place in given:
                    holds[place] -= 1
                await answer
            assert await held(store, *(Wanted(*place) for place in places)) == list(holds.values())
            check_sums(server)


@pytest_twisted.ensureDeferred
async def test_one_call_gives_back_a_part_of_what_a_guard_held_that_was_killed(server: RealRedis) -> None:
    async with Stores() as stores:
        store = await stores.open(server.url, lease_seconds=10)
        await store.renew("killed", {("c", str(number)): 1 for number in range(1000)})
        server.ask("ZADD", "smtpguard:leases", 0, "killed")
        for left in (750, 500, 250, 0):
            await store.look([])
            # Of a hash Redis gives as many as were asked for, or a few more.
            assert left - 100 <= int(server.ask("HLEN", "smtpguard:o:killed")) <= left
            check_sums(server)


@pytest_twisted.ensureDeferred
async def test_a_guard_that_connects_shortens_the_life_of_nothing(server: RealRedis) -> None:
    async with Stores() as stores:
        first = await stores.open(server.url, lease_seconds=10)
        await first.take("killed", [TOTAL])
        await stores.open(server.url, lease_seconds=10)
        lives = server.lives()
        assert 25_000 < lives["smtpguard:p:max_connections:"] <= 30_000
        # They live longer, or what the killed one held could never be given back.
        assert 55_000 < lives["smtpguard:o:killed"] <= 60_000
        assert 55_000 < lives["smtpguard:leases"] <= 60_000


class AnotherClock:
    """The reactor, with a clock that is wrong."""

    def __init__(self, reactor: Any, offset: float) -> None:
        self._reactor = reactor
        self._offset = offset

    def seconds(self) -> float:
        return float(self._reactor.seconds() + self._offset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@pytest_twisted.ensureDeferred
async def test_the_clocks_of_hosts_do_not_matter(server: RealRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    from twisted.internet import reactor

    async with Stores() as stores:
        early = await stores.open(server.url, reactor=AnotherClock(reactor, -86400))
        late = await stores.open(server.url, reactor=AnotherClock(reactor, 86400))
        for store, wrong in ((early, 10.0), (late, 4e9)):
            monkeypatch.setattr("time.time", lambda wrong=wrong: wrong)
            counts = await store.take("early" if store is early else "late", [TOTAL, RATE])
            assert counts == ([1, 1] if store is early else [2, 2])
        for store in (early, late):
            assert await held(store, TOTAL, RATE) == [2, 2]
            ((_, left),) = await store.look([RATE])
            assert 55 < left <= 60
        await late.renew("late", {TOTAL[:2]: 1})
        assert await held(early, TOTAL) == [2]


@pytest_twisted.ensureDeferred
async def test_databases_and_prefixes_do_not_see_each_other(server: RealRedis) -> None:
    async with Stores() as stores:
        urls = [server.url, f"{server.url}?db=3", f"{server.url}?prefix=mx1", f"{server.url}?prefix=mx2&db=3"]
        opened = [await stores.open(url) for url in urls]
        for number, store in enumerate(opened, 1):
            await store.take("me", [TOTAL._replace(events=number)])
        assert [await held(store, TOTAL) for store in opened] == [[1], [2], [3], [4]]
        assert {key.partition(":")[0] for key in server.lives()} == {"smtpguard", "mx1"}


@pytest_twisted.ensureDeferred
async def test_what_a_decision_costs(server: RealRedis, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures are shown with -s. How long it takes says what else the machine does."""
    async with Stores() as stores:
        store = await stores.open(server.url, lease_seconds=10)
        wanted = [
            TOTAL._replace(limit=0),
            CLIENT._replace(limit=0),
            CLIENT._replace(client="192.0.2.0/24"),
            RATE,
        ]
        wanted = [each._replace(limit=0) for each in wanted]
        before = statistics(server)
        took = []
        for _ in range(1000):
            began = time.perf_counter()
            await store.take("me", wanted)
            took.append(time.perf_counter() - began)
        after = statistics(server)
        sent, received = (
            after[key] - before[key] for key in ("total_net_input_bytes", "total_net_output_bytes")
        )
        took.sort()
        with capsys.disabled():
            print(
                f"\na decision: median {took[500] * 1e3:.3f} ms, p99 {took[990] * 1e3:.3f} ms,"
                f" {sent / 1000:.0f} octets there, {received / 1000:.0f} back"
            )
        # Less than a packet each way.
        assert sent / 1000 < 400
        assert received / 1000 < 60


def statistics(server: RealRedis) -> dict[str, int]:
    lines = [line.partition(":") for line in server.ask("INFO", "stats").split("\n")]
    return {key: int(value) for key, _, value in lines if value.strip().isdigit()}
