"""What was measured as text, as Markdown and as JSON. Nothing is measured here."""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs

from .rows import Row, Table, Verdict


def number(value: float) -> str:
    """Three digits that matter, no more."""
    for most, digits in ((10, 2), (100, 1)):
        if abs(value) < most:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def verdict(judged: Verdict) -> str:
    word = "met" if judged.met else "MISSED"
    return f"{judged.what} {number(judged.value)} of at most {judged.at_most:g}: {word}"


def _line(row: Row, columns: Sequence[str]) -> list[str]:
    cells = [number(row.cells[name]) if name in row.cells else "-" for name in columns]
    return [f"{row.key} {row.name}", row.unit, *cells]


def _verdicts(row: Row) -> str:
    return "; ".join(map(verdict, row.verdicts))


def _multiples(row: Row) -> str:
    """With those that have no bound."""
    judged = {each.what for each in row.verdicts}
    others = [f"{other} {number(ratio)}" for other, ratio in row.ratios.items() if other not in judged]
    return "; ".join([*map(verdict, row.verdicts), *others])


def text(table: Table) -> str:
    """For a terminal."""
    lines = [
        ["", "unit", *table.columns, "the guard as a multiple, or against its bound"],
        *([*_line(row, table.columns), _multiples(row)] for row in table.rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [table.title]
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:-1], widths[2:-1], strict=True)]
        shown.append("  ".join([*left, *right, line[-1]]).rstrip())
    return "\n".join([*shown, *notes(table)])


def markdown(table: Table) -> str:
    """For a document. It has no multiples without a bound: beside each other the cells say as much."""
    header = ["", "unit", *table.columns, "the guard against its bounds"]
    lines = [
        header,
        ["---"] * len(header),
        *([*_line(row, table.columns), _verdicts(row)] for row in table.rows),
    ]
    shown = [f"**{table.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)]
    return "\n".join([*shown, "", *notes(table)]).rstrip()


def notes(table: Table) -> list[str]:
    return [*(f"{row.key}: {row.note}" for row in table.rows if row.note), *table.notes]


def as_json(tables: Sequence[Table], run: dict[str, object]) -> str:
    """Everything. `run` says where and how it was measured."""
    found = []
    for table in tables:
        rows = []
        for row in table.rows:
            verdicts = [{**attrs.asdict(each), "met": each.met} for each in row.verdicts]
            rows.append({**attrs.asdict(row), "verdicts": verdicts})
        found.append(
            {"title": table.title, "columns": list(table.columns), "rows": rows, "notes": table.notes}
        )
    return json.dumps({"run": run, "tables": found}, indent=2, ensure_ascii=False)


def conditions(run: dict[str, object]) -> str:
    """One sentence for a document."""
    return (
        f"On {run['date']}, {run['cores']} cores of {run['machine']}, {run['system']}, {run['python']}, "
        f"{run['rounds']} rounds."
    )


def missed(tables: Sequence[Table]) -> list[tuple[Row, Verdict]]:
    return [(row, each) for table in tables for row in table.rows for each in row.verdicts if not each.met]


def summary(tables: Sequence[Table]) -> str:
    judged = sum(len(row.verdicts) for table in tables for row in table.rows)
    over = missed(tables)
    names = "; ".join(f"{row.key} {row.name}, {each.what}" for row, each in over)
    return f"{judged - len(over)} of {judged} bounds are met." + (f" Missed: {names}." if over else "")
