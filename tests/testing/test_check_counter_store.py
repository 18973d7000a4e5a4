"""check_counter_store finds what is wrong with a counter store, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.interfaces import ICounterStore, Wanted
from twisted_smtpguard.testing import check_counter_store


@implementer(ICounterStore)
class Leasing:
    """A store with leases, as plain as it can be. The tests below spoil one thing each."""

    lease_seconds = 10

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.places: dict[tuple[str, str, str], tuple[int, float]] = {}
        self.windows: dict[tuple[str, str], tuple[int, float]] = {}

    def now(self) -> float:
        return self.clock.seconds()

    def held(self, counter: str, client: str) -> int:
        return sum(
            count
            for (_, *key), (count, ends) in self.places.items()
            if (*key,) == (counter, client) and ends > self.now()
        )

    def window(self, counter: str, client: str) -> tuple[int, float]:
        count, ends = self.windows.get((counter, client), (0, 0))
        return (count, ends) if count and ends > self.now() else (0, 0)

    def count(self, wanted: Wanted) -> int:
        counter, client, _, seconds, _ = wanted
        return self.window(counter, client)[0] if seconds else self.held(counter, client)

    def fits(self, wanted: Sequence[Wanted], counts: Sequence[int]) -> bool:
        return not any(0 < each.limit < count for each, count in zip(wanted, counts, strict=True))

    def take(self, owner: str, wanted: Sequence[Wanted]) -> Any:
        counts = [self.count(each) + each.events for each in wanted]
        if self.fits(wanted, counts):
            for each in wanted:
                self.change(owner, each, each.events)
        return counts

    def change(self, owner: str, wanted: Wanted, events: int) -> None:
        counter, client, _, seconds, _ = wanted
        if seconds:
            count, ends = self.window(counter, client)
            if count or events > 0:
                self.windows[counter, client] = (count + events, ends or self.now() + seconds)
            return
        count, ends = self.places.get((owner, counter, client), (0, 0))
        count = count if ends > self.now() else 0
        self.places[owner, counter, client] = (max(0, count + events), self.now() + self.lease_seconds)

    def give_back(self, owner: str, taken: Sequence[Wanted]) -> Any:
        for each in taken:
            self.change(owner, each, -each.events)

    def look(self, wanted: Sequence[Wanted]) -> Any:
        looks = []
        for each in wanted:
            ends = self.window(each.counter, each.client)[1] if each.seconds else 0
            looks.append((self.count(each), ends and ends - self.now()))
        return looks

    def renew(self, owner: str, places: Mapping[tuple[str, str], int]) -> Any:
        for key in [key for key in self.places if key[0] == owner]:
            del self.places[key]
        for (counter, client), count in places.items():
            self.places[owner, counter, client] = (count, self.now() + self.lease_seconds)


def check(store: Any, second: Any = None) -> int:
    """The number of decisions; AssertionError: what is wrong."""
    outcomes: list[Any] = []

    def wait(seconds: float) -> Deferred[None]:
        store.clock.advance(seconds)
        return succeed(None)

    checking = check_counter_store(store, wait, second=second)
    checking.addBoth(outcomes.append)
    for _ in range(1000):
        store.clock.advance(0)
    (outcome,) = outcomes
    if isinstance(outcome, Failure):
        outcome.raiseException()
    decisions: int = outcome
    return decisions


def test_a_store_that_keeps_its_contract_passes() -> None:
    assert check(Leasing(Clock())) == 114


def test_a_store_that_answers_later_passes() -> None:
    class Later(Leasing):
        async def take(self, owner: str, wanted: Sequence[Wanted]) -> Any:
            await deferLater(self.clock, 0, lambda: None)
            return super().take(owner, wanted)

    assert check(Later(Clock())) == 114


class TakesAboveTheLimit(Leasing):
    def fits(self, wanted: Sequence[Wanted], counts: Sequence[int]) -> bool:
        return True


class TakesInParts(Leasing):
    def take(self, owner: str, wanted: Sequence[Wanted]) -> Any:
        return [super(TakesInParts, self).take(owner, [each])[0] for each in wanted]


class LooksAtOneLimitOfEachCounter(Leasing):
    """The last one, which is that of the widest network."""

    def fits(self, wanted: Sequence[Wanted], counts: Sequence[int]) -> bool:
        last = {each.counter: (each, count) for each, count in zip(wanted, counts, strict=True)}
        return not any(0 < each.limit < count for each, count in last.values())


class GivesBackTooMuch(Leasing):
    def change(self, owner: str, wanted: Wanted, events: int) -> None:
        super().change(owner, wanted, events)
        if not wanted.seconds and events < 0:
            key = (owner, wanted.counter, wanted.client)
            self.places[key] = (self.places[key][0] - 1, self.places[key][1])


class NeverEndsWindows(Leasing):
    def window(self, counter: str, client: str) -> tuple[int, float]:
        return self.windows.get((counter, client), (0, 0))


class NeverEndsLeases(Leasing):
    def held(self, counter: str, client: str) -> int:
        return sum(count for (_, *key), (count, _) in self.places.items() if (*key,) == (counter, client))


class RenewsEverything(Leasing):
    def renew(self, owner: str, places: Mapping[tuple[str, str], int]) -> None:
        for key, (count, _) in list(self.places.items()):
            self.places[key] = (count, self.now() + self.lease_seconds)


class KeepsEventsThatAreTakenBack(Leasing):
    def give_back(self, owner: str, taken: Sequence[Wanted]) -> None:
        super().give_back(owner, [each for each in taken if not each.seconds])


class ReadsBeforeItWrites(Leasing):
    """Many decisions are made on the same counts."""

    async def take(self, owner: str, wanted: Sequence[Wanted]) -> Any:
        counts = [self.count(each) + each.events for each in wanted]
        await deferLater(self.clock, 0, lambda: None)
        if self.fits(wanted, counts):
            for each in wanted:
                self.change(owner, each, each.events)
        return counts


class Raises(Leasing):
    def look(self, wanted: Sequence[Wanted]) -> Any:
        raise LookupError("no store")


@pytest.mark.parametrize(
    ("spoilt", "problem"),
    [
        (TakesAboveTheLimit, "a place above the limit was wanted again: it had been taken"),
        (TakesInParts, "a decision was refused, but part of it was taken"),
        (LooksAtOneLimitOfEachCounter, "refused for a network, but part of it was taken"),
        (GivesBackTooMuch, "a place was given back"),
        (NeverEndsWindows, "a window was over"),
        (NeverEndsLeases, "one of two places was renewed|a lease was not renewed"),
        (RenewsEverything, "one of two places was renewed"),
        (KeepsEventsThatAreTakenBack, "an event was taken back"),
        (ReadsBeforeItWrites, "of 40 clients at once 40 got one of 7 places"),
        (Raises, r"look\(\) raised LookupError\('no store'\)"),
    ],
)
def test_what_is_wrong_is_said(spoilt: type[Leasing], problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        check(spoilt(Clock()))


def test_stores_that_do_not_share_their_counts_are_found() -> None:
    clock = Clock()
    with pytest.raises(AssertionError, match=r"look\(\) answered the counts \[0\], not \[7\]"):
        check(Leasing(clock), Leasing(clock))


def test_what_is_no_counter_store_is_refused() -> None:
    class Nothing:
        clock = Clock()

    with pytest.raises(AssertionError, match="the store"):
        check(Nothing())
