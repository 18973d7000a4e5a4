"""--workers on the command line: what goes with it, and what is told in one sentence before anything listens."""

from __future__ import annotations

from typing import Any

import pytest
from commandline import parsed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError

from twisted_smtpguard.cli.options import make_service
from twisted_smtpguard.cli.severalprocesses import join, supervised
from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.counters.redisstore import RedisCounterStore
from twisted_smtpguard.values import Wanted


def supervisor_of(*words: str) -> Any:
    options = parsed("--workers=3", *words)
    reactor = MemoryReactorClock()
    return supervised(options, make_service(options, reactor), reactor)


@pytest.mark.parametrize("text", ["0", "-1", "1025", "two", "1.5", ""])
def test_a_wrong_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="a number of processes from 1 to 1024 is expected"):
        parsed(f"--workers={text}")


def test_the_supervisor_has_the_number_and_nothing_of_the_guard_that_was_made_for_the_check() -> None:
    supervisor = supervisor_of("--deliver=discard:", "--listen=tcp:0", "--listen=unix:/tmp/guard.sock")
    assert supervisor.count == 3
    assert [each.name for each in supervisor._listeners._listened] == ["tcp:0", "unix:/tmp/guard.sock"]


def test_an_endpoint_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(
        UsageError, match="--listen: with --workers a tcp:, tcp6:, unix: or systemd: endpoint"
    ):
        supervisor_of("--deliver=discard:", "--listen=haproxy:tcp:0")


def test_fewer_connections_to_an_upstream_server_than_workers_are_refused() -> None:
    with pytest.raises(
        UsageError, match="--deliver: each of 3 workers needs a connection, and there may be 2"
    ):
        supervisor_of("--deliver=smtp:tcp:127.0.0.1:2599,connections=2")
    supervisor_of("--deliver=smtp:tcp:127.0.0.1:2599,connections=3")


class FakeWorker:
    def __init__(self, part: int) -> None:
        self.share = part, 3
        self.joined: list[Any] = []
        self.counters = LocalCounterStore(0)

    def endpoints(self, plain: int) -> tuple[list[Any], list[Any]]:
        return [TCP4ServerEndpoint(MemoryReactorClock(), 25)] * plain, []

    def join(self, guard: Any) -> None:
        self.joined.append(guard)


@pytest.mark.parametrize("domains", [(), ("--accept-domain=example.org",)])
def test_the_shares_of_the_workers_are_all_connections_together(domains: tuple[str, ...]) -> None:
    shares = []
    for part in range(3):
        options = parsed("--deliver=smtp:tcp:127.0.0.1:2599,connections=8", *domains)
        guard = make_service(options, MemoryReactorClock())
        worker: Any = FakeWorker(part)
        join(worker, guard, metrics=False)
        assert worker.joined == [guard]
        delivery: Any = guard.factory.context.delivery
        shares.append((delivery.delivery if domains else delivery).max_connections)
    assert shares == [3, 3, 2]


def test_a_worker_counts_in_redis_and_while_that_is_away_with_the_other_workers() -> None:
    options = parsed("--deliver=discard:", "--counters=redis+unix:///run/redis.sock", "--max-connections=1")
    worker: Any = FakeWorker(0)
    guard = make_service(options, MemoryReactorClock(), worker=worker)
    assert isinstance(guard.factory.counting.store, RedisCounterStore)
    guard.factory.counting.take([Wanted("max_connections", "", 1)])
    assert guard.factory.counting.is_away
    assert worker.counters.look([Wanted("max_connections", "")]) == [(1, 0)]
