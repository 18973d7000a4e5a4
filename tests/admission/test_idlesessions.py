"""Which session has to make room: the longest idle of the network that holds most, and nobody too soon."""

from __future__ import annotations

import random
from collections import Counter

import attrs
import pytest
from twisted.internet.task import Clock

from twisted_smtpguard.admission.idlesessions import IdleSessions


@attrs.define(eq=False)
class Session:
    widest_network: str
    at: float | None
    looks: int = 0

    @property
    def idle_since(self) -> float | None:
        self.looks += 1
        return self.at


class Crowd(IdleSessions):
    """Sessions by their networks and the times since which they are idle."""

    def __init__(self, *sessions: tuple[str, float | None], now: float = 100) -> None:
        self.clock = Clock()
        self.clock.advance(now)
        self.there = [Session(*each) for each in sessions]
        self.made = 0
        super().__init__(self.listed, self.clock.seconds)

    def listed(self) -> list[Session]:
        self.made += 1
        return list(self.there)

    def ends(self, newcomer: str = "new") -> tuple[str, float | None] | None:
        """Who ends for a newcomer, and is then gone."""
        session = self.to_end(newcomer)
        if session is None:
            return None
        assert isinstance(session, Session)
        self.there.remove(session)
        found = session.widest_network, session.at
        session.at = None
        return found


@pytest.mark.parametrize(
    ("sessions", "newcomer", "ends"),
    [
        ([], "new", None),
        ([("a", 10)], "new", ("a", 10)),
        ([("a", 95)], "new", ("a", 95)),
        ([("a", 95.1)], "new", None),
        ([("a", None)], "new", None),
        # Of one network the longest idle.
        ([("a", 30), ("a", 10), ("a", 20)], "new", ("a", 10)),
        # Of several the one that holds most, however long others have been idle.
        ([("a", 1), ("b", 50), ("b", 40)], "new", ("b", 40)),
        # What is busy counts too, and is not ended.
        ([("a", 1), ("b", None), ("b", None), ("b", 60)], "new", ("b", 60)),
        # One that has no idle session is passed over.
        ([("a", 1), ("b", None), ("b", 99), ("b", 98)], "new", ("a", 1)),
        # A newcomer takes no seat of a network that holds no more than its own.
        ([("a", 1), ("b", None)], "b", None),
        ([("a", 1), ("a", 2), ("b", None)], "b", ("a", 1)),
        ([("a", 1), ("b", None), ("b", None)], "b", None),
        ([("a", 1), ("b", None), ("b", 50)], "b", ("b", 50)),
        ([("a", 1), ("b", 50)], "b", ("b", 50)),
        # Against one that is known no network counts.
        ([("a", 1)], "", ("a", 1)),
    ],
)
def test_who_ends_for_a_newcomer(
    sessions: list[tuple[str, float | None]], newcomer: str, ends: tuple[str, float] | None
) -> None:
    crowd = Crowd(*sessions)
    there = crowd.to_end(newcomer, take=False)
    assert crowd.ends(newcomer) == ends
    assert (there is None) == (ends is None)


def test_of_equal_networks_each_gives_one_before_one_gives_a_second() -> None:
    crowd = Crowd(*[(network, at) for network in "abc" for at in (1, 2, 3)])
    assert [crowd.ends(f"new{n}") for n in range(9)] == [
        (network, at) for at in (1, 2, 3) for network in "abc"
    ]
    assert crowd.ends("other") is None


def test_seats_that_a_network_is_given_count_at_once() -> None:
    crowd = Crowd(*[("a", 1)] * 4)
    assert [crowd.ends("b") for _ in range(4)] == [("a", 1), ("a", 1), None, None]


def test_a_command_since_the_index_was_made_keeps_a_session_and_none_ends_before_its_five_seconds() -> None:
    crowd = Crowd(("a", 10), ("a", 20))
    assert crowd.to_end("new", take=False) is crowd.there[0]
    crowd.there[0].at = 100
    assert crowd.ends() == ("a", 20)
    assert crowd.ends() is None
    crowd.clock.advance(4.9)
    assert crowd.ends() is None
    crowd.clock.advance(0.1)
    assert crowd.ends() == ("a", 100)


def test_a_session_that_has_begun_a_mail_or_is_gone_is_not_ended() -> None:
    crowd = Crowd(("a", 10), ("a", 20))
    assert crowd.to_end("new", take=False) is crowd.there[0]
    for session in crowd.there:
        session.at = None
    assert crowd.ends() is None


def test_a_flood_of_newcomers_looks_at_the_sessions_once_a_second() -> None:
    crowd = Crowd(*[(f"n{n}", 99.0) for n in range(1000)])
    for _ in range(1000):
        assert crowd.ends(f"new{_}") is None
    assert crowd.made == 1
    assert sum(each.looks for each in crowd.there) <= 3 * 1000
    crowd.clock.advance(0.5)
    assert not crowd.may_have_any
    crowd.clock.advance(0.5)
    assert crowd.may_have_any
    assert crowd.ends() is None
    assert crowd.made == 2


def test_newcomers_of_one_network_make_the_index_no_larger() -> None:
    crowd = Crowd(("a", 97.0), ("a", 98.0), *[(f"n{n}", None) for n in range(10)])
    for _ in range(10_000):
        assert crowd.ends("a") is None
    assert len(crowd._later) + len(crowd._largest) <= 12


@pytest.mark.parametrize("seed", range(20))
def test_a_question_costs_little_and_finds_what_a_look_at_all_sessions_would(seed: int) -> None:
    chance = random.Random(seed)
    crowd = Crowd(
        *[(chance.choice("abcdefgh"), chance.choice([None, *range(100)])) for _ in range(400)],
    )
    for turn in range(200):
        held = Counter(each.widest_network for each in crowd.there)
        newcomer = f"new{turn}"
        ready = [each for each in crowd.there if each.at is not None and each.at <= 95]
        most = max((held[each.widest_network] for each in ready), default=0)
        longest: dict[str, float] = {}
        for each in ready:
            longest[each.widest_network] = min(each.at or 0, longest.get(each.widest_network, 100))
        ended = crowd.ends(newcomer)
        assert (ended is None) == (not ready)
        if ended is not None:
            assert (held[ended[0]], ended[1]) == (most, longest[ended[0]])


def test_what_is_cleared_keeps_no_session() -> None:
    crowd = Crowd(("a", 10), ("b", 99))
    assert crowd.to_end("new", take=False) is not None
    crowd.clear()
    assert not (crowd._idle or crowd._largest or crowd._later or crowd._held)
    assert crowd.ends() == ("a", 10)
