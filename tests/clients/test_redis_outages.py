"""A real Redis that goes away, forgets, hangs, refuses, or moves: the store comes back by itself, and counts right."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from certificates import AUTHORITY, certificate, stranger
from redisserver import RealRedis
from redisstores import Stores, check_sums, held, until
from shell import free_port
from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher, textFileLogObserver

from twisted_smtpguard.counters.redisstore import RedisCounterStore
from twisted_smtpguard.values import CounterStoreUnavailable, Wanted

pytestmark = pytest.mark.clients

TOTAL = Wanted("max_connections", "", 50)
CLIENT = Wanted("max_connections_per_client", "192.0.2.1", 20)


@pytest.fixture
def server() -> Iterator[RealRedis]:
    with RealRedis() as server:
        yield server


class Guard:
    """What a guard does with its store: it says what it holds whenever the store has connected."""

    def __init__(self, store: RedisCounterStore) -> None:
        self.store = store
        self.places: dict[tuple[str, str], int] = {}
        self.connections = 0
        store.on_connected(self.connected)

    def connected(self) -> None:
        self.connections += 1
        self.store.renew("guard", self.places).addErrback(lambda _: None)

    async def hold(self, places: int) -> None:
        await self.store.take("guard", [TOTAL._replace(events=places), CLIENT])
        self.places = {TOTAL[:2]: places, CLIENT[:2]: 1}

    async def back(self, times: int = 1) -> None:
        await until(lambda: self.connections >= times, lambda: self.store.problem)


def kill_connections(server: RealRedis) -> None:
    server.ask("CLIENT", "KILL", "TYPE", "normal")


def restart(server: RealRedis) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("outage", [kill_connections, restart], ids=["connections killed", "restarted empty"])
@pytest_twisted.ensureDeferred
async def test_when_it_is_back_it_is_told_what_is_held(
    server: RealRedis, outage: Callable[[RealRedis], None]
) -> None:
    async with Stores() as stores:
        guard = Guard(await stores.open(server.url, lease_seconds=10))
        await guard.hold(7)
        for times in (1, 2):
            outage(server)
            # What is given up meanwhile cannot be given back.
            guard.places[TOTAL[:2]] -= 1
            await guard.back(times)
            assert await held(guard.store, TOTAL, CLIENT) == [7 - times, 1]
            check_sums(server)


@pytest_twisted.ensureDeferred
async def test_the_next_renewal_restores_what_was_flushed(server: RealRedis) -> None:
    async with Stores() as stores:
        guard = Guard(await stores.open(server.url, lease_seconds=10))
        await guard.hold(7)
        server.ask("FLUSHALL")
        assert await held(guard.store, TOTAL) == [0]
        await guard.store.renew("guard", guard.places)
        assert await held(guard.store, TOTAL, CLIENT) == [7, 1]
        assert guard.store.connected
        check_sums(server)


@pytest_twisted.ensureDeferred
async def test_what_was_flushed_is_restored_also_if_something_is_always_being_taken(
    server: RealRedis,
) -> None:
    async with Stores() as stores:
        guard = Guard(await stores.open(server.url, lease_seconds=10))
        await guard.hold(7)
        server.ask("FLUSHALL")
        for includes in (0, 1):
            answer = guard.store.take("guard", [TOTAL])
            # What is renewed may have what was asked for, or not.
            guard.places[TOTAL[:2]] += includes
            await guard.store.renew("guard", guard.places)
            await answer
            guard.places[TOTAL[:2]] += 1 - includes
            holds = guard.places[TOTAL[:2]]
            assert holds - 2 <= (await held(guard.store, TOTAL))[0] <= holds
        await guard.store.renew("guard", guard.places)
        assert await held(guard.store, TOTAL, CLIENT) == [9, 1]
        check_sums(server)


@pytest_twisted.ensureDeferred
async def test_a_key_that_was_evicted_is_at_least_what_this_guard_holds(server: RealRedis) -> None:
    async with Stores() as stores:
        guard = Guard(await stores.open(server.url, lease_seconds=10))
        await guard.hold(7)
        server.ask("DEL", "smtpguard:p:max_connections:")
        await guard.store.renew("guard", guard.places)
        assert await held(guard.store, TOTAL) == [7]


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs_is_left_and_used_again_when_it_goes_on(server: RealRedis) -> None:
    async with Stores() as stores:
        guard = Guard(await stores.open(server.url, lease_seconds=10))
        await guard.hold(7)
        server.signal(signal.SIGSTOP)
        with pytest.raises(CounterStoreUnavailable, match="did not answer within 1 s"):
            await guard.store.take("guard", [TOTAL])
        with pytest.raises(CounterStoreUnavailable):
            await guard.store.take("guard", [TOTAL])
        # The kernel accepts for it, but nobody greets.
        await until(
            lambda: guard.store.problem.count("did not answer") and not guard.store.connected,
            guard.store.problem,
        )
        server.signal(signal.SIGCONT)
        await guard.back()
        await guard.store.renew("guard", guard.places)
        assert await held(guard.store, TOTAL, CLIENT) == [7, 1]
        check_sums(server)


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_started_after_the_guard_is_found(server: RealRedis) -> None:
    server.kill()
    async with Stores() as stores:
        store = stores.start(server.url)
        await until(lambda: "no connection" in store.problem, lambda: store.problem)
        server.start()
        await until(lambda: store.connected, lambda: store.problem)


class Cut(Protocol):
    """Passes on what a client says, `left` octets of it, and what the server answers; then it hangs up."""

    left = 10**9

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._waiting = b""
        self._server: Any = None

    def connectionMade(self) -> None:
        from twisted.internet import reactor

        connectProtocol(UNIXClientEndpoint(reactor, self._path), Back(self))

    def server_is_there(self, server: Any) -> None:
        self._server = server
        server.write(self._waiting)

    def dataReceived(self, data: bytes) -> None:
        data, self.left = data[: self.left], self.left - len(data)
        if self._server is None:
            self._waiting += data
        else:
            self._server.write(data)
            if self.left <= 0:
                self._server.loseConnection()

    def connectionLost(self, reason: Any = None) -> None:
        if self._server is not None:
            self._server.loseConnection()


class Back(Protocol):
    """The server's side of it."""

    def __init__(self, front: Cut) -> None:
        self._front: Any = front

    def connectionMade(self) -> None:
        self._front.server_is_there(self.transport)

    def dataReceived(self, data: bytes) -> None:
        self._front.transport.write(data)

    def connectionLost(self, reason: Any = None) -> None:
        self._front.transport.loseConnection()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest_twisted.ensureDeferred
async def test_a_renewal_that_is_cut_off_anywhere_is_right_when_it_is_made_again(
    server: RealRedis, share: float
) -> None:
    from twisted.internet import reactor

    places = {
        ("max_connections_per_client", f"10.0.{number >> 8}.{number & 255}"): 1 for number in range(600)
    }
    octets = sum(len(f"p:{counter}:{client} 1 ") for counter, client in places)
    wanted = [Wanted(*place) for place in places]
    fronts: list[Cut] = []

    def front(address: object) -> Cut:
        fronts.append(Cut(server.socket))
        return fronts[-1]

    factory = Factory()
    factory.buildProtocol = front  # type: ignore[method-assign, assignment]
    path = server.root / "front"
    port = await UNIXServerEndpoint(reactor, str(path)).listen(factory)
    async with Stores() as stores:
        other = await stores.open(server.url, lease_seconds=10)
        store = await stores.open(f"redis+unix://{path}", lease_seconds=10)
        await store.renew("guard", places)
        fronts[-1].left = round(octets * share)
        with pytest.raises(CounterStoreUnavailable):
            await store.renew("guard", places)
        # At no time is less counted than is held.
        assert sum(await held(other, *wanted)) == 600
        await until(lambda: store.connected, lambda: store.problem)
        await store.renew("guard", places)
        assert sum(await held(other, *wanted)) == 600
        await store.renew("guard", {})
        while sum(await held(other, *wanted)):
            pass
        check_sums(server)
    await port.stopListening()


# Who may connect, and how.


@pytest_twisted.ensureDeferred
async def test_a_password_that_is_changed_is_read_from_the_file_and_is_never_shown(
    server: RealRedis, tmp_path: Path
) -> None:
    shown = (tmp_path / "log").open("w+")
    observer = textFileLogObserver(shown)
    globalLogPublisher.addObserver(observer)
    try:
        path = tmp_path / "url"
        path.write_text(f"redis+unix://:wrong-secret@{server.socket}")
        path.chmod(0o600)
        server.ask("CONFIG", "SET", "requirepass", "first-secret")
        async with Stores() as stores:
            store = stores.start(f"redis+file:{path}")
            await until(lambda: "refuses" in store.problem, lambda: store.problem)
            assert store.problem == f"{server.url}?db=0: it refuses the user or the password"
            path.write_text(f"redis+unix://:first-secret@{server.socket}")
            await until(lambda: store.connected, lambda: store.problem)
            server.ask("-a", "first-secret", "CONFIG", "SET", "requirepass", "second-secret")
            server.ask("-a", "second-secret", "CLIENT", "KILL", "TYPE", "normal")
            await until(lambda: "refuses" in store.problem, lambda: store.problem)
            path.write_text(f"redis+unix://:second-secret@{server.socket}")
            await until(lambda: store.connected, lambda: store.problem)
            assert "secret" not in repr(vars(store))
    finally:
        globalLogPublisher.removeObserver(observer)
    shown.seek(0)
    assert "secret" not in shown.read()
    shown.close()


@pytest_twisted.ensureDeferred
async def test_a_server_that_wants_a_password_and_one_that_wants_none_are_told_apart(
    server: RealRedis,
) -> None:
    async with Stores() as stores:
        store = stores.start(f"redis+unix://:secret@{server.socket}")
        await until(lambda: "asks for no password" in store.problem, lambda: store.problem)
        server.ask("CONFIG", "SET", "requirepass", "secret")
        store = stores.start(server.url)
        await until(lambda: "NOAUTH Authentication required" in store.problem, lambda: store.problem)


ACL = (
    "+auth +select +script|load +evalsha +time +get +set +del +mget +incrby +decrby +exists +rename +pexpire +pttl "
    "+hget +hset +hsetnx +hmget +hdel +hexists +hincrby +hscan "
    "+zadd +zrem +zcard +zcount +zscore +zrange +zrevrange +zrangebyscore"
)


@pytest_twisted.ensureDeferred
async def test_a_user_needs_these_commands_and_the_keys_of_the_prefix_and_no_more(server: RealRedis) -> None:
    page = (Path(__file__).parents[2] / "docs/reference/counters-in-redis.md").read_text()
    assert ACL in " ".join(page.split())
    server.ask("ACL", "SETUSER", "guard", "on", ">secret", "~smtpguard:*", *ACL.split())
    async with Stores() as stores:
        store = await stores.open(f"redis+unix://guard:secret@{server.socket}")
        assert await store.take("me", [TOTAL]) == [1]
        await store.renew("me", {TOTAL[:2]: 2})
        assert await held(store, TOTAL) == [2]
        elsewhere = stores.start(f"redis+unix://guard:secret@{server.socket}?prefix=other")
        await until(lambda: "NOPERM" in elsewhere.problem, lambda: elsewhere.problem)
        for command in ACL.split():
            if command != "+auth":
                server.ask("ACL", "SETUSER", "poor", "reset", "on", ">secret", "~smtpguard:*", *ACL.split())
                server.ask("ACL", "SETUSER", "poor", f"-{command[1:]}")
                poor = stores.start(f"redis+unix://poor:secret@{server.socket}?db=1")
                await until(
                    lambda poor=poor: (
                        "permission" in poor.problem or "can't run" in poor.problem or poor.connected
                    ),
                    lambda poor=poor: poor.problem,
                )
                assert not poor.connected, command
                await poor.stopService()


@pytest.mark.parametrize(
    "own", ["", f"&cert={certificate()}"], ids=["without", "with a certificate of its own"]
)
@pytest_twisted.ensureDeferred
async def test_tls(own: str) -> None:
    port = free_port()
    pair = str(certificate())
    words = ("--port", "0", "--tls-port", port, "--tls-cert-file", pair, "--tls-key-file", pair)
    words += ("--tls-ca-cert-file", str(AUTHORITY), "--tls-auth-clients", "yes" if own else "no")
    with RealRedis(*words):
        async with Stores() as stores:
            store = await stores.open(f"rediss://127.0.0.1:{port}?ca={AUTHORITY}{own}")
            assert await store.take("me", [TOTAL]) == [1]
            assert (await stores.open(f"rediss://localhost:{port}?ca={AUTHORITY}{own}")).connected
            for url, problem in (
                (f"rediss://127.0.0.1:{port}", "certificate verify failed"),
                (f"rediss://127.0.0.1:{port}?ca={stranger()}", "certificate verify failed"),
                (f"rediss://127.0.0.1:{port}?ca=/does/not/exist", "/does/not/exist: No such file"),
                (f"redis://127.0.0.1:{port}", "the connection was lost"),
            ):
                refused = stores.start(url)
                await until(
                    lambda store=refused: store.problem.count("rediss://") or store.problem.count("redis://"),
                    url,
                )
                assert problem in refused.problem, refused.problem
                assert not refused.connected
            await store.renew("me", {TOTAL[:2]: 1})


# Where it is.


@pytest_twisted.ensureDeferred
async def test_of_several_urls_the_first_that_answers_and_may_be_written_to_is_used(
    server: RealRedis,
) -> None:
    port = free_port()
    with RealRedis("--port", port) as master:
        server.ask("REPLICAOF", "127.0.0.1", port)
        async with Stores() as stores:
            url = f"redis://127.0.0.1:1,{server.url},redis://127.0.0.1:{port}"
            guard = Guard(await stores.open(url, lease_seconds=10))
            assert guard.store.server == f"redis://127.0.0.1:{port}/0"
            await guard.hold(7)
            server.ask("REPLICAOF", "NO", "ONE")
            master.kill()
            await guard.back()
            assert guard.store.server == f"{server.url}?db=0"
            assert await held(guard.store, TOTAL, CLIENT) == [7, 1]


@pytest.mark.parametrize("kind", ["the master is killed", "the master is changed"])
@pytest_twisted.ensureDeferred
async def test_sentinel_says_where_the_master_is(kind: str) -> None:
    ports = [free_port(), free_port()]
    front = free_port()
    sentinel = (
        f"port {front}\nsentinel monitor mx 127.0.0.1 {ports[0]} 1\nsentinel down-after-milliseconds mx 300\n"
        "sentinel failover-timeout mx 2000\n"
    )
    words = ("--repl-diskless-sync-delay", "0")
    with (
        RealRedis("--port", ports[0], *words) as master,
        RealRedis("--port", ports[1], "--replicaof", "127.0.0.1", ports[0], *words) as replica,
        RealRedis(sentinel=sentinel) as watcher,
    ):
        async with Stores() as stores:
            url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{front}/mx"
            guard = Guard(await stores.open(url, lease_seconds=10))
            await guard.hold(7)
            assert master.ask("HLEN", "smtpguard:o:guard") == "2"
            # Sentinel learns of replicas from the master, every ten seconds.
            await until(
                lambda: ports[1] in watcher.ask("SENTINEL", "replicas", "mx"), "Sentinel knows no replica"
            )
            await until(lambda: replica.ask("HLEN", "smtpguard:o:guard") == "2", "the replica is not one")
            if kind == "the master is killed":
                master.kill()
            else:
                await until(
                    lambda: watcher.ask("SENTINEL", "failover", "mx") == "OK", "Sentinel does not change it"
                )
            await guard.back()
            assert replica.ask("ROLE").startswith("master")
            assert await held(guard.store, TOTAL, CLIENT) == [7, 1]
            assert replica.ask("HLEN", "smtpguard:o:guard") == "2"
            check_sums(replica)
