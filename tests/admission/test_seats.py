"""How many seats there are, for whom, and when it is stress."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from twisted_smtpguard import Limits
from twisted_smtpguard.admission.seats import Seats, Stress, reserved_share
from twisted_smtpguard.limits.units import Part

HALF = Part(50, percent=True)


@pytest.mark.parametrize(
    ("cap", "reserve", "of_strangers"),
    [
        (0, 0, math.inf),
        (0, HALF, math.inf),
        (10, 0, 10),
        (10, 3, 7),
        (10, Part(20, percent=True), 8),
        (2000, Part(20, percent=True), 1600),
        (7, HALF, 4),
        (1, HALF, 1),
        (10, 10, 1),
        (10, 99, 1),
        (10, Part(100, percent=True), 1),
    ],
)
def test_the_last_part_of_the_cap_is_reserved_and_one_seat_is_left_to_strangers(
    cap: int, reserve: Any, of_strangers: float
) -> None:
    seats = Seats(Limits(max_connections=cap, reserved_connections=reserve))
    assert (seats.all, seats.of_strangers) == (cap or math.inf, of_strangers)
    assert seats.matter == (of_strangers < seats.all)
    assert seats.looked_at_from == of_strangers


@pytest.mark.parametrize(
    ("dry_run", "expected"),
    [
        ([], (10, 7, math.inf, math.inf, True)),
        (["reserved_connections"], (10, 10, 7, math.inf, True)),
        (["max_connections"], (math.inf, math.inf, math.inf, 10, False)),
        (["max_connections", "reserved_connections"], (math.inf, math.inf, math.inf, 10, False)),
    ],
)
def test_a_part_in_dry_run_is_only_looked_at(dry_run: list[str], expected: tuple[float, ...]) -> None:
    seats = Seats(Limits(max_connections=10, reserved_connections=3, dry_run=dry_run))
    assert (seats.all, seats.of_strangers, seats.tried, seats.tried_cap, seats.matter) == expected


@pytest.mark.parametrize(
    ("limits", "share"),
    [
        ({}, 0),
        ({"max_connections": 10}, 0),
        ({"reserved_connections": Part(20, percent=True)}, Fraction(1, 5)),
        ({"reserved_connections": 400}, 0),
        ({"reserved_connections": 400, "max_connections": 2000}, Fraction(1, 5)),
        ({"reserved_connections": 400, "max_connections": 300}, 1),
        ({"reserved_connections": HALF, "dry_run": ["reserved_connections"]}, 0),
        (
            {"reserved_connections": HALF, "max_connections": 9, "dry_run": ["max_connections"]},
            Fraction(1, 2),
        ),
    ],
)
def test_the_reserve_is_a_share_of_whatever_else_is_scarce(limits: Any, share: Fraction) -> None:
    assert reserved_share(Limits(**limits)) == share


def test_stress_begins_at_80_percent_and_ends_below_60() -> None:
    stress = Stress()
    told = [(taken, stress.on) for taken in [*range(11), *range(10, -1, -1)] if stress.changes(taken, 10)]
    assert told == [(8, True), (5, False)]


@pytest.mark.parametrize("cap", [1, 2, 3, 5, 7, 10, 500, 2000])
def test_stress_does_not_begin_and_end_with_each_connection(cap: int) -> None:
    stress = Stress()
    first = next(taken for taken in range(cap + 1) if stress.changes(taken, cap))
    assert first == math.ceil(cap * 8 / 10)
    for taken in (first - 1, first) * 5:
        if taken >= cap * 6 / 10:
            assert not stress.changes(taken, cap)
    last = next(taken for taken in range(cap, -1, -1) if stress.changes(taken, cap))
    assert last == math.ceil(cap * 6 / 10) - 1


def test_without_a_cap_it_is_never_stress_and_stress_ends_with_the_cap() -> None:
    stress = Stress()
    assert not stress.changes(10**9, math.inf)
    assert stress.changes(10, 10)
    assert stress.changes(10, math.inf)
    assert not stress.on


STRICTER = {
    "read_timeout": (30, [(300, 30), (10, 10), (0, 30)]),
    "max_errors": (1, [(0, 1), (20, 1), (1, 1)]),
    "max_junk_commands": (1, [(0, 1), (20, 1)]),
    "max_session_time": (60, [(0, 60), (1800, 60), (30, 30)]),
}


@pytest.mark.parametrize("name", STRICTER)
def test_in_stress_a_limit_is_only_ever_stricter(name: str) -> None:
    _, cases = STRICTER[name]
    for before, after in cases:
        assert getattr(Limits(**{name: before}).in_stress(), name) == after


def test_stress_changes_no_other_limit_and_nothing_that_is_in_dry_run() -> None:
    limits = Limits.for_profile("edge", max_connections=500, dry_run=["max_errors"])
    stressed = limits.in_stress()
    changed = {
        spec.name for spec in Limits.specs() if getattr(limits, spec.name) != getattr(stressed, spec.name)
    }
    assert changed == {*STRICTER}
    assert stressed.dry_run == {"max_errors"}
    assert Limits(stress_read_timeout=0).in_stress().read_timeout == 300
    assert Limits(stress_read_timeout=5).in_stress().read_timeout == 5
