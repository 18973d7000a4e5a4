"""Answers of a guard as text for people: lines of names and values, and tables that fit a terminal.

Whatever is shown is printable ASCII. The guard has escaped what strangers chose, and here it is escaped again, since a
terminal would carry out what it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from twisted_smtpguard.inputs.escaping import escape_text

_GAP = "  "
_LEAST_WIDTH = 6
"""No column is cut to less."""


def cell(value: object) -> str:
    """A value as text."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(cell, value)) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{escape_text(str(name))}={cell(each)}" for name, each in value.items()) or "-"
    return escape_text(str(value))


def pairs(answer: Mapping[str, Any], width: int = 0) -> Iterator[str]:
    """The lines of an answer that is one object: a name and a value each, objects in it indented, and the rows in it as
    tables of at most `width` characters; 0: as wide as they have to be."""
    lines = list(_pairs(answer, 0, width))
    room = max((len(name) for name, value in lines if value is not None), default=0)
    for name, value in lines:
        yield name if value is None else f"{name:<{room}}{_GAP}{value}"


def _pairs(answer: Mapping[str, Any], depth: int, width: int) -> Iterator[tuple[str, str | None]]:
    indent = _GAP * (depth + 1)
    for name, value in answer.items():
        shown = _GAP * depth + escape_text(name).replace("_", " " if not depth else "_")
        if isinstance(value, Mapping) and value:
            yield shown, None
            yield from _pairs(value, depth + 1, width)
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            yield shown, None
            yield from (
                (indent + line, None) for line in table(value, max(1, width - len(indent)) if width else 0)
            )
        elif isinstance(value, list) and any(" " in str(each) for each in value):
            # Sentences or commands.
            yield shown, None
            yield from ((indent + cell(each), None) for each in value)
        else:
            yield shown, cell(value)


def table(rows: Sequence[Mapping[str, Any]], width: int = 0) -> Iterator[str]:
    """The lines of a table with a heading. It is at most `width` characters wide, if its columns can be cut to that:
    the widest is cut first. 0: as wide as it has to be."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return
    lines = [[escape_text(name).upper() for name in names]]
    lines += [[cell(row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    while width and sum(widths) + len(_GAP) * (len(widths) - 1) > width and max(widths) > _LEAST_WIDTH:
        widths[widths.index(max(widths))] -= 1
    numbers = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]
    for line in lines:
        shown = (
            f"{_cut(text, room):{'>' if right else '<'}{room}}"
            for text, room, right in zip(line, widths, numbers, strict=True)
        )
        yield _GAP.join(shown).rstrip()


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 3]}..."


def as_line(row: Mapping[str, Any]) -> str:
    """A row of a stream: its values, one after the other."""
    return _GAP.join(map(cell, row.values()))


def shown(answer: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], width: int) -> Iterator[str]:
    """The lines for a whole answer."""
    yield from table(list(rows), width)
    yield from pairs(answer, width)
