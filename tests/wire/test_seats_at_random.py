"""Connections, commands, filters, stores that answer later, and limits that change, all at random: each seat and each
place is given back exactly once."""

from __future__ import annotations

from random import Random
from typing import Any

import attrs
import pytest
from fakes import Guard, SlowFilter
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from twisted_smtpguard import NetworksFilter, Rate
from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.interfaces import PASS, TRUST, ICounterStore, refuse
from twisted_smtpguard.limits.units import Part

STEPS = 400
LIMITS: dict[str, Any] = {
    "max_connections": 10,
    "reserved_connections": Part(20, percent=True),
    "max_connections_per_client": 4,
    "ipv4_networks": (24,),
    "connection_rate": Rate(50, 60),
    "ban_after": 20,
}
CHANGES: tuple[dict[str, Any], ...] = (
    *({"max_connections": number} for number in (0, 5, 10, 14)),
    *({"reserved_connections": Part(number, percent=True)} for number in (0, 20, 50)),
    *({"ipv4_networks": bits} for bits in ((), (24,), (24, 16), (16,))),
    *({"max_connections_per_client": number} for number in (0, 1, 4)),
    *({"ipv4_client_prefix": bits} for bits in (32, 28)),
    *({"dry_run": frozenset(names)} for names in ((), ("max_connections",), ("reserved_connections",))),
)
COMMANDS = ("NOOP", "EHLO x", "MAIL FROM:<a@b>", "RSET", "BREW")


@implementer(ICounterStore)
class LateStore:
    """Answers in the order of the questions, each after a while."""

    lease_seconds = 0

    def __init__(self, clock: Clock, random: Random) -> None:
        self.inner = LocalCounterStore(0, clock.seconds)
        self._clock = clock
        self._random = random
        self._asked: list[tuple[Deferred[Any], Any]] = []

    def _later(self, answer: Any) -> Deferred[Any]:
        later: Deferred[Any] = Deferred(lambda _: None)
        self._asked.append((later, answer))
        self._clock.callLater(self._random.choice([0, 0.005, 0.01]), self._answer)
        return later

    def _answer(self) -> None:
        later, answer = self._asked.pop(0)
        outcome = answer()
        if not later.called:
            later.callback(outcome)

    def take(self, owner: str, wanted: Any) -> Any:
        return self._later(lambda: self.inner.take(owner, wanted))

    def give_back(self, owner: str, taken: Any) -> Any:
        return self._later(lambda: self.inner.give_back(owner, taken))

    def look(self, wanted: Any) -> Any:
        return self._later(lambda: self.inner.look(wanted))

    def renew(self, owner: str, places: Any) -> Any:
        return self._later(lambda: None)


def places(store: LocalCounterStore) -> dict[str, dict[str, int]]:
    """The places that are held. What is no whole number is a window."""
    held = {
        counter: {client: value for client, value in table.items() if isinstance(value, int)}
        for counter, table in store._tables.items()
    }
    return {counter: clients for counter, clients in held.items() if clients}


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("kind", ["alone", "at once", "later"])
@pytest.mark.parametrize("seed", range(3))
def test_each_seat_and_place_is_given_back_once(seed: int, kind: str, filtered: bool) -> None:
    random, clock, slow = Random(seed), Clock(), SlowFilter()
    clock.rightNow = 1e9
    late = LateStore(clock, random)
    guard = Guard(
        clock=clock,
        counters={"alone": None, "at once": late.inner, "later": late}[kind],
        ip_filters=[NetworksFilter(trust=["10.0.9.1"]), slow] if filtered else [],
        **LIMITS,
    )
    factory = guard.factory
    factory.known.accepted("10.0.8.1")
    clients: list[Any] = []
    for _ in range(STEPS):
        step = random.random()
        living = [each for each in clients if not each.closed]
        if step < 0.35:
            clients.append(guard.connect(f"10.0.{random.randrange(10)}.{random.randrange(1, 4)}"))
        elif step < 0.5 and living:
            random.choice(living).disconnect()
        elif step < 0.65 and living:
            random.choice(living).say(random.choice(COMMANDS))
        elif step < 0.7:
            factory.set_limits(attrs.evolve(factory.limits, **random.choice(CHANGES)))
        elif step < 0.8 and slow.asked:
            asked = slow.asked.pop(random.randrange(len(slow.asked)))
            if not asked.called:
                asked.callback(random.choice([PASS, PASS, TRUST, refuse()]))
        else:
            clock.advance(random.choice([0.005, 0.1, 1, 6]))
        holding = [each for each in factory._open if each.engine.holds_slot]
        assert len(holding) == factory.seating.taken
    assert factory.statistics.refusals.get("made_room") or filtered
    for each in clients:
        each.disconnect()
    clock.pump([0.2] * 300)
    factory.drain()
    clock.pump([0.2] * 400)
    assert factory.seating.taken == 0
    assert places(late.inner) == places(factory.own_counters) == {}
    assert clock.getDelayedCalls() == []
