"""The rows of processor time as a picture: SVG made by hand, for light and dark pages. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .report import number
from .rows import Table

WIDTH = 820
LEFT = 270
RIGHT = 40
TOP = 84
LINE = 38
BOTTOM = 56

# Chosen so that they differ for those who see no red or green, on white and on black.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#b07aa1", "#999999", "#c9a400")
SHAPES = ("circle", "square", "diamond")

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.small { font-size: 11px; fill: #59636e }
.title { font-size: 15px; font-weight: 600 }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.one { stroke: #59636e; stroke-width: 1.5 }
.bound { stroke: #1f2328; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .small { fill: #9198a1 }
  .grid { stroke: #3d444d }
  .one { stroke: #9198a1 }
  .bound { stroke: #f0f6fc }
}
"""


def svg(table: Table, base: str) -> str:
    """A line for each row that has `base`, a mark for each column at its multiple of that, on a scale of logarithms. A
    short stroke is the bound of the guard, where it is one of multiples of `base`."""
    rows = [row for row in table.rows if row.cells.get(base)]
    found = [cell / row.cells[base] for row in rows for cell in row.cells.values() if cell > 0]
    low = math.floor(math.log2(min([0.5, *found])))
    high = math.ceil(math.log2(max([2.0, *found])))

    def across(multiple: float) -> float:
        share = (math.log2(multiple) - low) / (high - low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    height = TOP + LINE * len(rows) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(table.title)}, as multiples of {escape(base)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="16" y="24">{escape(table.title)}, as multiples of {escape(base)}</text>',
        *_legend(table.columns),
    ]
    floor = TOP + LINE * len(rows)
    for power in range(low, high + 1):
        x = across(2.0**power)
        parts.append(
            f'<line class="{"grid" if power else "one"}" x1="{x}" y1="{TOP - 6}" x2="{x}" y2="{floor}"/>'
            f'<text class="small" x="{x}" y="{floor + 18}" text-anchor="middle">{2.0**power:g}</text>'
        )
    parts.append(
        f'<text class="small" x="{LEFT}" y="{floor + 38}">less is better; a stroke is what the guard may take</text>'
    )
    for count, row in enumerate(rows):
        y = TOP + LINE * count + LINE // 2
        parts.append(
            f'<text x="16" y="{y - 1}">{escape(f"{row.key} {row.name}")}</text>'
            f'<text class="small" x="16" y="{y + 14}">{escape(base)}: '
            f"{number(row.cells[base])} {escape(row.unit)}</text>"
        )
        for each in row.verdicts:
            if each.what == base:
                x = across(each.at_most)
                parts.append(f'<line class="bound" x1="{x}" y1="{y - 12}" x2="{x}" y2="{y + 12}"/>')
        # The first column, the guard, lies above the others.
        for which, column in reversed(list(enumerate(table.columns))):
            if row.cells.get(column, 0.0) > 0:
                multiple = row.cells[column] / row.cells[base]
                told = f"{column}: {number(row.cells[column])} {row.unit}, {number(multiple)} times {base}"
                parts.append(_mark(which, across(multiple), y, told))
    return "\n".join([*parts, "</svg>", ""])


def _legend(columns: Sequence[str]) -> list[str]:
    parts = []
    x = 22
    for which, column in enumerate(columns):
        parts.append(_mark(which, x, 48, column))
        parts.append(f'<text x="{x + 12}" y="52">{escape(column)}</text>')
        x += 40 + 8 * len(column)
    return parts


def _mark(which: int, x: float, y: float, told: str) -> str:
    colour, shape = COLOURS[which % len(COLOURS)], SHAPES[which % len(SHAPES)]
    title = f"<title>{escape(told)}</title>"
    if shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="6.5" fill="{colour}">{title}</circle>'
    turn = f' transform="rotate(45 {x} {y})"' if shape == "diamond" else ""
    return f'<rect x="{x - 5}" y="{y - 5}" width="10" height="10" fill="{colour}"{turn}>{title}</rect>'
