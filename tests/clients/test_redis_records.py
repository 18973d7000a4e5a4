"""A real Redis keeps records: bounded, for no longer than they live, and whatever the clocks of the hosts say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from redisserver import Monitor, RealRedis
from redisstores import Stores, until
from twisted.internet.task import deferLater

from twisted_smtpguard.counters.redisstore import RedisCounterStore
from twisted_smtpguard.records.recordsharing import RecordSharing
from twisted_smtpguard.records.recordtables import BAN, KINDS, RecordTables
from twisted_smtpguard.values import Record

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def running() -> Iterator[RealRedis]:
    with RealRedis() as server:
        yield server


@pytest.fixture
def server(running: RealRedis) -> RealRedis:
    running.ask("FLUSHALL")
    return running


class ShiftedClock:
    """The reactor with a clock that differs by so many seconds."""

    def __init__(self, seconds: float) -> None:
        from twisted.internet import reactor

        self._reactor: Any = reactor
        self._shift = seconds

    def seconds(self) -> float:
        return float(self._reactor.seconds()) + self._shift

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


class Guard:
    """Tables that are shared in a store, by a clock of their own."""

    def __init__(self, store: RedisCounterStore, clock: ShiftedClock) -> None:
        self.store = store
        self.clock = clock
        self.tables = RecordTables(clock.seconds)
        self.sharing = RecordSharing(store, self.tables, clock.callLater, self)
        self.sharing.start()

    def failure(self, *_: object) -> None:
        raise AssertionError(_)

    def put(self, key: str, value: str = "", seconds: float = 100) -> None:
        self.tables[BAN].put(key, value, self.clock.seconds() + seconds)

    def held(self) -> dict[str, str]:
        return {key: record.value for key, record in self.tables[BAN].items()}


class Guards(Stores):
    """Those that are opened in the block are stopped at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._guards: list[Guard] = []

    async def guard(self, url: str, clock: float = 0) -> Guard:
        reactor = ShiftedClock(clock)
        guard = Guard(await self.open(url, reactor=reactor), reactor)
        self._guards.append(guard)
        return guard

    async def __aexit__(self, *error: Any) -> None:
        for guard in self._guards:
            guard.sharing.stop()
        await super().__aexit__(*error)


def keys(server: RealRedis) -> dict[str, int]:
    """The keys of the records, with the milliseconds that they live; without those of trials."""
    return {
        key: lives
        for key, lives in server.lives().items()
        if key.split(":")[1] in ("r", "c", "e") and not key.endswith(":try")
    }


@pytest_twisted.ensureDeferred
async def test_guards_whose_clocks_differ_by_a_day_have_the_same_records_and_ends(server: RealRedis) -> None:
    async with Guards() as guards:
        first, second = await guards.guard(server.url), await guards.guard(server.url, 86_400.5)
        first.put("192.0.2.1", "early_talker=10", 100)
        await until(second.held, "the other does not know")
        record = second.tables[BAN].get("192.0.2.1")
        assert record is not None
        assert record.value == "early_talker=10"
        assert abs(record.end - second.clock.seconds() - 100) < 5
        second.tables[BAN].remove("192.0.2.1")
        await until(lambda: not first.held(), "the first does not know")
        # Nothing lives without an end, and nothing longer than the record would have.
        lives = keys(server)
        assert set(lives) == {f"smtpguard:{each}:ban" for each in "rce"}
        assert all(0 < each <= 161_000 for each in lives.values())
        assert all(each > 0 for each in server.lives().values())


@pytest_twisted.ensureDeferred
async def test_what_has_ended_is_gone_from_redis_too(server: RealRedis) -> None:
    async with Guards() as guards:
        store = await guards.open(server.url, lease_seconds=0.05)
        now = store._reactor.seconds()
        await store.put_records(BAN, {"a": Record("", now + 0.05), "b": Record("", now + 0.05)}, False)
        await deferLater(store._reactor, 0.1)
        await store.put_records(BAN, {"c": Record("", now + 1000)}, False)
        assert server.ask("ZRANGE", "smtpguard:e:ban", 0, -1) == "c"
        assert server.ask("ZRANGE", "smtpguard:c:ban", 0, -1) == "c"
        assert sorted(server.ask("HKEYS", "smtpguard:r:ban").split()) == ["=", "c"]
        await store.put_records(BAN, {"c": Record("", now + 0.3)}, False)
        await until(lambda: not keys(server), "the keys do not end")


@pytest_twisted.ensureDeferred
async def test_redis_keeps_no_more_than_there_may_be_and_the_longest_stay(
    server: RealRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twisted_smtpguard.counters.redisstore.MOST_RECORDS", 100)
    async with Guards() as guards:
        store = await guards.open(server.url)
        now = store._reactor.seconds()
        for part in range(10):
            numbers = range(50 * part, 50 * part + 50)
            await store.put_records(
                BAN, {f"{each}": Record("", now + 1000 - each) for each in numbers}, False
            )
        held: set[str] = set()
        found = await store.records_since(BAN, "")
        held |= set(found.records)
        # The latest fifty are to be learnt by others.
        assert held == {*map(str, (*range(50), *range(450, 500)))}
        assert int(server.ask("HLEN", "smtpguard:r:ban")) == 101
        assert int(server.ask("ZCARD", "smtpguard:c:ban")) == 100


@pytest_twisted.ensureDeferred
async def test_others_learn_a_record_that_is_shorter_than_all_of_a_full_table(
    server: RealRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twisted_smtpguard.counters.redisstore.MOST_RECORDS", 100)
    async with Guards() as guards:
        store = await guards.open(server.url)
        now = store._reactor.seconds()
        await store.put_records(BAN, {f"{each}": Record("", now + 1000 + each) for each in range(100)}, False)
        mark = (await store.records_since(BAN, "")).mark
        for key in "abc":
            await store.put_records(BAN, {key: Record("", now + 10)}, False)
            found = await store.records_since(BAN, mark)
            assert list(found.records) == [key]
            mark = found.mark
            # As in the guards themselves, it goes first at the next one.
            assert int(server.ask("HLEN", "smtpguard:r:ban")) == 101


@pytest_twisted.ensureDeferred
async def test_many_records_are_read_in_parts_and_only_changes_after_that(server: RealRedis) -> None:
    async with Guards() as guards:
        first = await guards.guard(server.url)
        for number in range(2500):
            first.put(f"2001:db8:{number:x}::/64", f"{number}")
        await until(lambda: server.ask("HLEN", "smtpguard:r:ban") == "2501", "they are not put")
        second = await guards.guard(server.url)
        await until(lambda: len(second.held()) == 2500, lambda: f"{len(second.held())}")
        assert second.held() == first.held()
        # All that it has learnt it has, so it offers nothing; and asks for each kind once a second.
        await deferLater(first.clock, 1.5)
        first.sharing.stop()
        with Monitor(server) as monitor:
            await deferLater(first.clock, 2.2)
            server.ask("ECHO", "looked")
            assert len(KINDS) <= len(monitor.until("looked")) <= 3 * len(KINDS)


@pytest_twisted.ensureDeferred
async def test_records_that_redis_has_lost_are_put_again_and_those_it_was_not_told_too(
    server: RealRedis,
) -> None:
    async with Guards() as guards:
        first, second = await guards.guard(server.url), await guards.guard(server.url)
        first.put("a")
        second.put("b")
        await until(lambda: first.held() == second.held() == {"a": "", "b": ""}, "they do not share")
        server.ask("FLUSHALL")
        await until(lambda: server.ask("HLEN", "smtpguard:r:ban") == "3", "they are not put again")
        server.kill()
        first.put("c")
        first.tables[BAN].remove("a")
        assert first.held() == {"b": "", "c": ""}
        server.start()
        await until(lambda: set(second.held()) == {"b", "c"}, lambda: f"{second.held()}")


@pytest_twisted.ensureDeferred
async def test_what_others_have_written_into_redis_is_no_record_and_harms_nothing(server: RealRedis) -> None:
    async with Guards() as guards:
        first, second = await guards.guard(server.url), await guards.guard(server.url)
        first.put("a", "1")
        await until(second.held, "the other does not know")
        server.ask("HSET", "smtpguard:r:ban", "x", "not a record", "y", "9" * 400 + " +")
        server.ask("ZADD", "smtpguard:c:ban", 9e12, "x", 9e12, "y", 9e12, "z")
        first.put("b")
        await until(lambda: second.held() == {"a": "1", "b": ""}, lambda: f"{second.held()}")


@pytest_twisted.ensureDeferred
async def test_records_cost_redis_what_the_page_says(server: RealRedis) -> None:
    """With the longest keys of clients, and values as those of bans."""
    number = 10_000
    async with Guards() as guards:
        store = await guards.open(server.url)
        now = store._reactor.seconds()
        for part in range(0, number, 100):
            await store.put_records(
                BAN,
                {
                    f"2001:db8:ffff:{each:x}::/64": Record("1 early_talker=10,auth_failed=10", now + 1000)
                    for each in range(part, part + 100)
                },
                False,
            )
        octets = sum(int(server.ask("MEMORY", "USAGE", key, "SAMPLES", 0)) for key in keys(server))
        assert octets / number <= 500
