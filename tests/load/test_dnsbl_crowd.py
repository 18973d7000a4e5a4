"""Five thousand clients at once about whom lists in the DNS are asked, and a million one after another.

`pytest -m soak -s tests/load/test_dnsbl_crowd.py` prints what they cost.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from heapq import heappop, heappush
from ipaddress import IPv4Address
from itertools import count
from math import inf
from typing import Any

import pytest
import pytest_twisted
from late_names import late_names
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.task import Clock, deferLater

from twisted_smtpguard.filters import dnsblasker
from twisted_smtpguard.filters.dnsbl import DnsblFilter
from twisted_smtpguard.filters.dnsblasker import MAX_IN_FLIGHT, MAX_KEPT
from twisted_smtpguard.filters.dnsbldecision import TIMEOUT, Answer
from twisted_smtpguard.filters.dnsblsettings import parse_dnsbl
from twisted_smtpguard.hooks.promise import Promise
from twisted_smtpguard.values import Peer, Verdict

pytestmark = pytest.mark.xdist_group("load")

CROWD = 5000
PATIENCE = 1.0
"""How much later than it is due a client may be told, on a machine that has a crowd to serve."""


SILENT = Answer(problem="no answer in time", outcome=TIMEOUT)
OWN = IPv4Address("192.0.2.25")


def peer(number: int) -> Peer:
    return Peer(IPv4Address(0x08000000 + number), 40000, OWN, 25)


def fresh_one(number: int) -> int:
    """One that is not of the crowd, and in no list: its last octet is 1."""
    return (1000 + number) * 256 + 1


class Asked:
    """Clients that are asked about now, and when their verdicts came."""

    def __init__(self, ip_filter: DnsblFilter, seconds: Callable[[], float]) -> None:
        self._filter = ip_filter
        self._seconds = seconds
        self.seconds: list[float] = []
        self.kinds: Counter[str] = Counter()

    def ask(self, number: int) -> Deferred[Verdict]:
        began = self._seconds()

        def told(verdict: Verdict) -> Verdict:
            self.seconds.append(self._seconds() - began)
            self.kinds[verdict.kind] += 1
            return verdict

        found: Any = self._filter.check(peer(number))
        if isinstance(found, Promise):
            return found.deferred().addCallback(told)
        answer: Deferred[Verdict] = Deferred()
        answer.callback(told(found))
        return answer


# By the clock: what a client waits for, whatever else the machine does.

TICK = 0.01


class HeapClock:
    """As a Clock, which sorts all calls for each new one: with ten thousand it would take a minute."""

    def __init__(self) -> None:
        self._now = 0.0
        self._calls: list[tuple[float, int, HeapCall]] = []
        self._numbers = count()

    def seconds(self) -> float:
        return self._now

    def callLater(self, seconds: float, call: Callable[[], object]) -> HeapCall:
        made = HeapCall(call)
        heappush(self._calls, (self._now + seconds, next(self._numbers), made))
        return made

    def advance(self, seconds: float) -> None:
        self._now += seconds
        while self._calls and self._calls[0][0] <= self._now:
            heappop(self._calls)[2].call()


class HeapCall:
    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def cancel(self) -> None:
        self.call = lambda: None


class LateNames:
    """A client of name servers whose answers come `late` seconds after the question, or for a zone in `slow` after so
    many; `most` is how many questions were on their way at once."""

    def __init__(self, clock: HeapClock, late: float, slow: Mapping[str, float]) -> None:
        self._clock = clock
        self._late = late
        self._slow = slow
        self.now = self.most = 0

    def find_servers(self) -> Deferred[None]:
        return succeed(None)

    def ask(self, name: str, seconds: float, answered: Callable[[Answer], object]) -> LateNames:
        late = next((each for zone, each in self._slow.items() if name.endswith(zone)), self._late)
        if name.endswith((".0.0.127.bl.test", ".0.0.127.b2.test", ".0.0.127.slow.test")):
            answered(Answer((0x7F000002,) if name.startswith("2.") else (), 300))
            return self
        self.now += 1
        self.most = max(self.most, self.now)

        def answer() -> None:
            self.now -= 1
            in_time = late < seconds
            answered(
                Answer((0x7F000002,) if name.partition(".")[0].endswith("0") else (), 300)
                if in_time
                else SILENT
            )

        self._clock.callLater(min(late, seconds), answer)
        return self

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize(
    "slow", [None, 0.5, 5.0, inf], ids=["all answer", "one slowly", "one too late", "one is dead"]
)
def test_by_the_clock_five_thousand_are_decided_in_time_and_fresh_ones_soon(slow: float | None) -> None:
    clock = HeapClock()
    names = LateNames(clock, 0.05, {} if slow is None else {"slow.test": slow})
    argument = "bl.test,b2.test" + ("" if slow is None else ",slow.test*-1")
    ip_filter = DnsblFilter(parse_dnsbl(argument), clock, names)
    ip_filter.startService()
    crowd, fresh = Asked(ip_filter, clock.seconds), Asked(ip_filter, clock.seconds)
    for number in range(CROWD):
        crowd.ask(number)
    for turn in range(int(4 / TICK)):
        clock.advance(TICK)
        if turn % 10 == 0:
            fresh.ask(fresh_one(turn))
    assert (len(crowd.seconds), len(fresh.seconds)) == (CROWD, int(4 / TICK) // 10)
    assert max(crowd.seconds) <= 2 + TICK
    assert max(fresh.seconds) < 1
    assert 100 < names.most <= MAX_IN_FLIGHT
    # Few of the crowd are let in unknown.
    assert crowd.kinds["refuse"] > CROWD // 12


# Over sockets.


@pytest.fixture(
    params=[
        pytest.param(500, id="quick"),
        pytest.param(5000, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
    ]
)
def number(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "argument", ["bl.test,b2.test", "bl.test,b2.test,dead.test*-1", "bl.test,b2.test,late.test*-1"]
)
async def test_a_crowd_at_once_is_decided_in_time_and_one_more_soon(argument: str, number: int) -> None:
    from twisted.internet import reactor

    with late_names(0.02, "dead.test") as resolver, ExitStack() as stack:
        ip_filter = DnsblFilter(parse_dnsbl(f"{argument};resolver={resolver}"), reactor)
        ip_filter.startService()
        stack.callback(ip_filter.stopService)
        # They begin when the lists have been tested.
        await Asked(ip_filter, time.monotonic).ask(fresh_one(-1))
        crowd, fresh = Asked(ip_filter, time.monotonic), Asked(ip_filter, time.monotonic)
        before = time.process_time()
        waiting = [crowd.ask(each) for each in range(number)]
        most = 0
        for each in range(5):
            most = max(most, sum(one.asker.in_flight for one in ip_filter.lists))
            await deferLater(reactor, 0.05, lambda: None)  # type: ignore[arg-type]
            waiting.append(fresh.ask(fresh_one(each)))
        await gatherResults(waiting)
        spent = time.process_time() - before
        asked = sum(sum(one.asker.answers.values()) for one in ip_filter.lists)
        print(
            f"\n    {argument}: {dict(crowd.kinds)}, each within {max(crowd.seconds):.2f} s, fresh ones within "
            f"{max(fresh.seconds):.2f} s; at most {most} questions on their way, {spent / asked * 1e6:.0f} \u00b5s each"
        )
        assert len(crowd.seconds) == number
        assert 0 < most <= MAX_IN_FLIGHT
        assert max(crowd.seconds) < 2 + PATIENCE
        assert max(fresh.seconds) < PATIENCE
        assert crowd.kinds["refuse"] > 0


# Memory.


class Names:
    """A client of name servers that answers at once."""

    def find_servers(self) -> Deferred[None]:
        return succeed(None)

    def ask(self, name: str, seconds: float, answered: Callable[[Answer], object]) -> Names:
        listed = name.startswith("2.0.0.127.") or name.partition(".")[0].endswith("7")
        answered(Answer((0x7F000002,) if listed else (), 300))
        return self

    def cancel(self) -> None:
        pass


def held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize(
    ("kept", "number"),
    [
        pytest.param(2_000, 20_000, id="quick"),
        pytest.param(MAX_KEPT, 1_000_000, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_ever_new_clients_take_no_more_memory_than_the_answers_that_are_kept(
    kept: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsblasker, "MAX_KEPT", kept)
    clock = Clock()
    ip_filter = DnsblFilter(parse_dnsbl("bl.test"), clock, Names())
    ip_filter.startService()
    tracemalloc.start()
    try:
        before = held()
        # The table has its last size when as many have gone as are kept.
        for each in range(3 * kept):
            ip_filter.check(peer(each))
        full = held()
        for each in range(3 * kept, number):
            ip_filter.check(peer(each))
            if each % 1000 == 0:
                clock.advance(0.1)
        after = held()
    finally:
        tracemalloc.stop()
    octets, grown = (full - before) / kept, (after - full) / kept
    print(f"\n    an answer takes {octets:.0f} octets, and after {number} clients {grown:.0f} more")
    assert octets < 400
    assert grown < 20
    assert ip_filter.lists[0].asker.answers["not_listed"] > number / 2
