"""The rows of processor time as a picture: SVG made by hand, for light and dark pages. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from .bounds import compared_to
from .report import number
from .rows import Row, Table

# So narrow that it can be read at the width of a telephone, and shown larger where there is room.
WIDTH, SHOWN_WIDTH = 440, 600
LEFT, RIGHT = 118, 34
TOP, BOTTOM = 76, 14
HEADER, BAR, GAP = 24, 15, 10

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.small { font-size: 10.5px; fill: #59636e }
.title { font-size: 15px; font-weight: 600 }
.row { font-weight: 600 }
.own { font-weight: 600 }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.one { stroke: #59636e; stroke-width: 1.5 }
.bound { stroke: #1f2328; stroke-width: 2 }
.guard { fill: #d55e00 }
.other { fill: #8c96a0 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .small { fill: #9198a1 }
  .grid { stroke: #3d444d }
  .one { stroke: #9198a1 }
  .bound { stroke: #f0f6fc }
  .guard { fill: #f08c3c }
  .other { fill: #6e7681 }
}
"""


def svg(table: Table, base: str, guards: Sequence[str], others: Sequence[str]) -> str:
    """A group for each row that has `base`, and in it a bar for each of the guards and of the others: from 1, which is
    `base`, to its multiple of that, on a scale of logarithms. A short stroke is the bound of a guard, where it is one
    of multiples of `base`."""
    rows = [row for row in table.rows if row.cells.get(base)]
    groups = [(row, [name for name in (*guards, *others) if row.cells.get(name, 0.0) > 0]) for row in rows]
    multiples = [_multiple(row, name, base) for row, names in groups for name in names]
    low = math.floor(math.log2(min([1.0, *multiples])))
    high = math.ceil(math.log2(max([2.0, *multiples])))

    def across(multiple: float) -> float:
        share = (math.log2(multiple) - low) / (high - low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    floor = TOP + sum(HEADER + BAR * len(names) + GAP for _, names in groups)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SHOWN_WIDTH}" viewBox="0 0 {WIDTH} {floor + BOTTOM + 12}"'
        ' role="img">',
        f"<title>{escape(table.title)}, as multiples of {escape(base)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="8" y="22">{escape(table.title)}, as multiples of {escape(base)}</text>',
        '<text class="small" x="8" y="40">less is better; a stroke is what the guard may take</text>',
    ]
    scale = {2.0**power: across(2.0**power) for power in range(low, high + 1)}
    parts += [
        f'<text class="small" x="{x}" y="{y}" text-anchor="middle">{multiple:g}</text>'
        for multiple, x in scale.items()
        for y in (TOP - 8, floor + BOTTOM)
    ]
    y = TOP
    for row, names in groups:
        ends = f'y1="{y + HEADER}" y2="{y + HEADER + BAR * len(names)}"'
        parts += [
            f'<line class="{"one" if multiple == 1 else "grid"}" x1="{x}" x2="{x}" {ends}/>'
            for multiple, x in scale.items()
        ]
        parts += _group(row, base, names, guards, y, across)
        y += HEADER + BAR * len(names) + GAP
    return "\n".join([*parts, "</svg>", ""])


def _multiple(row: Row, name: str, base: str) -> float:
    """That by which a guard is judged, where it is one; of others there are the medians alone."""
    return row.ratios.get(compared_to(name, base), row.cells[name] / row.cells[base])


def _group(
    row: Row,
    base: str,
    names: Sequence[str],
    guards: Sequence[str],
    top: float,
    across: Callable[[float], float],
) -> Iterator[str]:
    """Its bars, below a line with what is measured and what `base` takes."""
    unit = f"{base}: {number(row.cells[base])} {row.unit}"
    yield (
        f'<text x="8" y="{top + 17}"><tspan class="row">{escape(f"{row.key} {row.name}")}</tspan> '
        f'<tspan class="small">({escape(unit)})</tspan></text>'
    )
    bounds = {each.what: each.at_most for each in row.verdicts}
    for which, name in enumerate(names):
        y = top + HEADER + BAR * which
        multiple = _multiple(row, name, base)
        told = f"{name}: {number(row.cells[name])} {row.unit}, {number(multiple)} times {base}"
        ends = sorted((across(1.0), across(multiple)))
        own = name in guards
        yield f'<text class="{"own" if own else "peer"}" x="8" y="{y + 11}">{escape(name)}</text>'
        yield (
            f'<rect class="{"guard" if own else "other"}" x="{ends[0]}" y="{y + 2}" '
            f'width="{max(1.0, round(ends[1] - ends[0], 1))}" height="{BAR - 4}"><title>{escape(told)}</title></rect>'
        )
        most = bounds.get(compared_to(name, base)) if own else None
        if most is not None:
            x = across(most)
            ends[1] = max(ends[1], x)
            yield f'<line class="bound" x1="{x}" y1="{y}" x2="{x}" y2="{y + BAR - 1}"/>'
        yield f'<text class="small" x="{ends[1] + 4}" y="{y + 11}">{number(multiple)}</text>'
