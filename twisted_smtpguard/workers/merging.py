"""What the answers of several workers are together. Plain functions of plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Counts = dict[str, Any]

_NOW = ("live_connections",)
"""The counts of what there is, which end with their worker. All others only rise."""


def summed(counts: Iterable[Mapping[str, Any]]) -> Counts:
    """The sums of numbers, name by name; also of those in a mapping below a name."""
    total: Counts = {}
    for each in counts:
        for name, value in each.items():
            if isinstance(value, Mapping):
                total[name] = summed([total.get(name, {}), value])
            else:
                total[name] = total.get(name, 0) + value
    return total


def of_ended(statistics: Mapping[str, Any]) -> Counts:
    """The statistics of a worker that has ended, as a part of those of all."""
    return {**statistics, **{name: 0 for name in _NOW if name in statistics}}


_SUMS = ("connections", "sessions", "lingering", "tls_handshakes")


def status_of(statuses: Sequence[Mapping[str, Any]], ended: Mapping[str, Any]) -> dict[str, Any]:
    """The status of a guard whose workers have `statuses`, one or more. `ended` are the statistics of those before
    them."""
    first = statuses[0]
    return {
        **first,
        **{name: sum(each[name] for each in statuses) for name in _SUMS},
        "statistics": summed([ended, *(each["statistics"] for each in statuses)]),
    }
