"""Holds the tables of docs/reference/ to the code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


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
