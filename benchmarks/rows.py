"""What was measured, as values: tables of rows of cells, and how a figure was judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

TOLERANCE = 1.1
"""A ratio of one run differs from that of the next."""


@attrs.frozen
class Verdict:
    """A figure against its bound."""

    what: str
    value: float
    at_most: float
    tolerance: float = TOLERANCE

    @property
    def met(self) -> bool:
        return self.value <= self.at_most * self.tolerance


@attrs.frozen
class Row:
    """One line. `cells` by column; `details`: more of each column, which only JSON has whole."""

    key: str
    name: str
    unit: str
    cells: Mapping[str, float]
    details: Mapping[str, Mapping[str, object]] = attrs.field(factory=dict)
    verdicts: Sequence[Verdict] = ()
    ratios: Mapping[str, float] = attrs.field(factory=dict)
    """Of the guard to others."""
    note: str = ""


@attrs.frozen
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
