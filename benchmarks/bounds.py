"""How much the guard may cost. One table of each sort; nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping

from .rows import Verdict

RATIOS: Mapping[str, Mapping[str, float]] = {
    "smtp-sink": {"W1": 2.0, "W2": 2.1, "W3": 0.8, "W4": 2.2, "W5": 1.9, "W7": 2.4, "W8": 1.0},
    "smtp-server": {"W1": 1.0, "W2": 1.0, "W3": 1.0, "W4": 1.0, "W5": 1.0, "W7": 1.0},
}
"""Processor time as a multiple of that of another server in the same run, by that server and workload."""

LOG_EVENT = 30.0
"""µs of an event at info."""

IDLE_CONNECTION = 2.6
"""KiB of resident memory."""

LARGE_MESSAGES = 4.0
"""MiB above idle, of twenty messages of 5 MB at once."""

HELD_SESSION = 160.0
"""KiB of a session whose client never reads, or never ends a line."""

PROXIED_SESSION = 128.0
"""KiB of a session whose message goes on to a slow server behind, whatever its size."""

LATENCY = 1.0
"""ms, of 99 in 100 replies to RSET and NOOP while others are idle."""

GROWTH = 1.3
"""Cost at the largest size as a multiple of that at the smallest, where it must not grow: what caches make of it, and
what differs from one run to the next."""


def judge_ratios(key: str, ratios: Mapping[str, float]) -> list[Verdict]:
    """`ratios` of the guard to other servers in the workload `key`."""
    bounds = {other: of[key] for other, of in RATIOS.items() if key in of}
    return [Verdict(other, ratios[other], bounds[other]) for other in bounds if other in ratios]


def exactly(what: str, value: float, at_most: float) -> Verdict:
    """Of a figure that has no other beside it that would waver as much."""
    return Verdict(what, value, at_most, 1.0)
