"""How much the guard may cost, and whether it does. One table; nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping

from .rows import Verdict

RATIOS: Mapping[str, Mapping[str, float]] = {
    "smtp-sink": {"W1": 1.9, "W2": 1.8, "W3": 1.0, "W4": 2.6, "W5": 2.2, "W7": 1.5, "W8": 1.0},
    "aiosmtpd": {"W1": 0.23, "W2": 0.19, "W3": 0.12, "W4": 0.14, "W7": 0.09},
}
"""Processor time as a multiple of that of another server in the same run, by that server and workload."""


def judge_ratios(key: str, ratios: Mapping[str, float]) -> list[Verdict]:
    """`ratios` of the guard to other servers in the workload `key`."""
    bounds = {other: of[key] for other, of in RATIOS.items() if key in of}
    return [Verdict(other, ratios[other], bounds[other]) for other in bounds if other in ratios]
