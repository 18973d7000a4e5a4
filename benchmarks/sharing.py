"""How far guards scale that count in one Redis: a model, not a measurement. `python -m benchmarks.sharing` prints it.

Its inputs were measured on one core of the machine of these benchmarks. What it leaves out makes things worse, never
better: the work of the kernel for the network, and a Redis that has to share its core.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

TAKE_MICROSECONDS = 26.0
"""Of Redis, for a decision with the cap, the limit of a client and its rate. Measured: 24 to 26."""
GIVE_BACK_MICROSECONDS = 21.0
"""Of Redis, for the places of a connection that has ended. Measured: 18 to 21."""
RENEW_MICROSECONDS = 4.0
"""Of Redis, for each place that is renewed. Measured: 1 ms for 250."""
OCTETS = 274 + 29
"""On the wire for a decision and its answer, without the headers of TCP. A give-back has no more."""
LEASE_SECONDS, RENEWALS = 10.0, 3
BUSY = 0.7
"""The part of one core up to which Redis answers without a queue that is worth a word."""


class Load(NamedTuple):
    """What comes to all guards together."""

    guards: int
    connections: float
    """A second."""
    seconds: float
    """How long a connection is open."""


class Needs(NamedTuple):
    """What that makes of one Redis."""

    commands: float
    """A second."""
    cores: float
    """Of which it has one."""
    megabits: float
    """A second."""
    renewals: float
    """The part of `cores` that is for renewals."""


def needs(load: Load) -> Needs:
    """What a load needs, if each connection is of another client, which is the worst that there is."""
    places = load.connections * load.seconds + load.guards
    renewed = places * RENEWALS / LEASE_SECONDS
    decisions = load.connections * (TAKE_MICROSECONDS + GIVE_BACK_MICROSECONDS) / 1e6
    renewals = renewed * RENEW_MICROSECONDS / 1e6
    commands = 2 * load.connections + max(renewed / 250, load.guards * RENEWALS / LEASE_SECONDS)
    return Needs(commands, decisions + renewals, 2 * load.connections * OCTETS * 8 / 1e6, renewals)


def most_connections(guards: int, seconds: float) -> float:
    """How many connections a second one Redis can decide about."""
    # The need grows with the connections in a straight line.
    idle, one = needs(Load(guards, 0, seconds)).cores, needs(Load(guards, 1, seconds)).cores
    return (BUSY - idle) / (one - idle)


LOADS = [
    Load(2, 100, 5),
    Load(10, 1_000, 5),
    Load(50, 5_000, 5),
    Load(100, 10_000, 5),
    Load(1_000, 20_000, 5),
    Load(1_000, 100_000, 5),
]


def rows() -> Iterator[str]:
    """The table of docs/explanation/scaling.md."""
    for load in LOADS:
        need = needs(load)
        groups = -(-need.cores // BUSY)
        yield (
            f"| {load.guards:,} | {load.connections:,.0f} | {need.commands:,.0f} | {need.cores:.2f} | "
            f"{need.renewals:.2f} | {need.megabits:,.1f} | {groups:.0f} |"
        )


if __name__ == "__main__":
    for row in rows():
        print(row)
    print(f"{most_connections(10, 5):,.0f} connections a second")
