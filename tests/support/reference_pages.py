"""Holds the tables of docs/reference/ to the code."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.limits.limits import LimitSpec
from twisted_smtpguard.replies import Entry

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def assert_rows(page: str, start: str, true: Iterable[str]) -> None:
    """The lines of `page` that begin with `start` are those of `true`, in their order. A failure shows the
    lines to write."""
    true = list(true)
    written = [line for line in (REFERENCE / page).read_text().splitlines() if line.startswith(start)]
    wrong = [line for line in written if line not in true]
    missing = [line for line in true if line not in written]
    message = "\n".join(["", f"in docs/reference/{page}", "wrong:", *wrong, "missing:", *missing])
    assert (wrong, missing) == ([], []), message
    assert written == true, (
        f"docs/reference/{page}: the rows stand in another order than in the code, or twice"
    )


def row_of_limit(spec: LimitSpec) -> str:
    """The line of docs/reference/limits.md that is true of `spec`."""

    def text(name: str) -> str:
        reply: Any = getattr(replies, name)
        return f"`{reply.code} {reply.enhanced} {reply.lines[0]}`"

    answer = "<br>".join(map(text, spec.replies)) or "none"
    default, edge = map(spec.unit.format, (spec.default, spec.edge))
    first = f"| `--{spec.option}` | {default} | {edge} | {spec.unit.name} | {spec.help} | {answer} "
    return f"{first}| {spec.holds_from} |"


def sent_when() -> dict[str, str]:
    """When each reply is sent, by its name: what the docstring after it in the catalogue says."""
    body = ast.parse(Path(replies.__file__).read_text()).body
    said: dict[str, str] = {}
    for node, after in pairwise(body):
        match node, after:
            case ast.Assign(targets=[ast.Name(name)]), ast.Expr(ast.Constant(str(text))):
                said[name] = " ".join(text.removeprefix("When: ").removesuffix(".").split())
    return said


WHEN = sent_when()


def row_of_reply(entry: Entry) -> str:
    """The line of docs/reference/replies.md that is true of `entry`."""
    line = entry.reply.wire.decode().strip()
    reason = f"`{entry.reason}`" if entry.reason else "none"
    return f"| `{line}` | {WHEN.get(entry.name, '')} | {reason} | `{entry.name}` |"
