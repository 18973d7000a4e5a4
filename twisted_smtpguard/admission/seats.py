"""The seats of a guard: how many connections there may be, how many of them of strangers, and when it is stress.

A connection has a seat from accept on. The last part of the seats is for clients that are known or trusted. Pure: it is
told what is taken.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Protocol

from twisted_smtpguard.limits.limits import Limits

STRESS_BEGINS, STRESS_ENDS = 0.8, 0.6
"""The parts of the cap that are taken when stress begins, and below which it ends."""

TOTAL, RESERVED = "max_connections", "reserved_connections"
"""The limits on seats."""


class SeatKeeper(Protocol):
    """Who counts the seats of one guard, as its admission sees it."""

    taken: int
    """How many connections have a seat, the one that is being decided about included."""
    imagined: int
    """How many seats `make_room` would free but does not: 1 in a rehearsal, else 0."""

    def found(self, of_all: int) -> None:
        """Called with the number of connections of all guards that count together."""

    def make_room(self, network: str) -> bool:
        """End the idle session of a stranger for a newcomer from this network, or for "", one that is known or trusted.
        Returns whether its seat is free now."""


class Seats:
    """What the limits say of seats. Without a cap all are infinite, and also if the cap is in dry run."""

    def __init__(self, limits: Limits) -> None:
        self.set_limits(limits)

    def set_limits(self, limits: Limits) -> None:
        """Swap the limits."""
        cap = limits.enforced(TOTAL)
        # One seat is left for strangers in any case.
        without_reserve = max(1, cap - limits.reserved_connections.of(cap))
        tried = RESERVED in limits.dry_run
        self.all: float = cap or math.inf
        self.of_strangers: float = self.all if tried or not cap else without_reserve
        """How many there may be where a stranger is admitted, that one included."""
        self.tried: float = without_reserve if tried and cap else math.inf
        """The same while the reserve is in dry run."""
        self.tried_cap: float = (
            limits.max_connections if TOTAL in limits.dry_run and limits.max_connections else math.inf
        )
        """The cap while it is in dry run."""
        self.looked_at_from = min(self.of_strangers, self.tried_cap)
        """How many connections there are when it has to be decided at accept whether one more may come."""
        self.matter = self.of_strangers < self.all or self.tried < self.all
        """Whether known and trusted clients may have seats that strangers may not."""


def reserved_share(limits: Limits) -> Fraction:
    """The share of the seats that is reserved, for whatever else a crowd could take: 0 in dry run. A number of seats is
    a share of the cap, and without a cap none."""
    reserve, cap = limits.reserved_connections, limits.max_connections
    whole = 100 if reserve.percent else cap
    return (
        Fraction(0)
        if RESERVED in limits.dry_run or not whole
        else Fraction(min(reserve.number, whole), whole)
    )


class Stress:
    """Whether the guard is in stress: from 80 % of its cap on, until less than 60 % are taken. So it does not begin and
    end with each connection."""

    def __init__(self) -> None:
        self.on = False

    def changes(self, taken: float, cap: float) -> bool:
        """Take the number of connections. Returns whether stress begins or ends with it. A `cap` of infinity: there is
        none."""
        crowded = taken >= cap * (STRESS_ENDS if self.on else STRESS_BEGINS)
        changes = crowded != self.on
        self.on = crowded
        return changes
