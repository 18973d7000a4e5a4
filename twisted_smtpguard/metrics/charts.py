"""Small charts as inline SVG. They use classes of the page's style, and no other style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STEP, _BAR, _HEIGHT = 4, 3, 56
"""The width of a sample, that of its bar, and the height of the chart, in units of the drawing."""


def bars(
    title: str, samples: Sequence[Mapping[str, Any]], names: Sequence[str], places: int, cap: int = 0
) -> str:
    """A figure with the sums of `names` of each sample, the latest on the right, in a chart for so many `places`. A
    line is at the `cap`, if the bars come near it; 0: there is none."""
    values = [sum(sample[name] for name in names) for sample in samples[-places:]]
    most = max(values, default=0)
    near = bool(cap) and 2 * most >= cap
    scale = max(most, cap if near else 0, 1)
    told = f"now {values[-1] if values else 0:,}"
    if most:
        told += f", most {most:,} at {samples[-places:][values.index(most)]['time'][11:16]}"
    width = places * _STEP
    start = width - len(values) * _STEP
    path = "".join(
        f"M{start + place * _STEP} {_HEIGHT}v-{max(1, round(value / scale * (_HEIGHT - 4)))}h{_BAR}V{_HEIGHT}z"
        for place, value in enumerate(values)
        if value
    )
    line = _HEIGHT - round(cap / scale * (_HEIGHT - 4)) if near else 0
    capped = f'<path class="cap" d="M0 {line}h{width}"/>' if near else ""
    label = escape(f"{title}: {told}")
    drawn = f'{capped}<path class="base" d="M0 {_HEIGHT}h{width}"/><path class="bar" d="{path}"/>'
    return (
        f"<figure><figcaption><b>{escape(title)}</b> <span>{told}</span></figcaption>"
        f'<svg class="chart" viewBox="0 0 {width} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{drawn}</svg>'
        f'<p class="axis"><span>{places} min ago</span><span>now</span></p></figure>'
    )


def meter(value: int, most: int, label: str) -> str:
    """A bar for a part of a whole."""
    part = min(1.0, value / most) if most else 0.0
    level = "high" if part >= 0.8 else "mid" if part >= 0.6 else "low"
    return (
        f'<svg class="meter" viewBox="0 0 100 4" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<rect class="rest" width="100" height="4"/><rect class="{level}" width="{part * 100:.1f}" height="4"/></svg>'
    )
