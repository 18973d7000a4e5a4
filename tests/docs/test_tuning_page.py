"""docs/how-to/tune-for-a-busy-mx.md: its figures were measured, its sums are right, its options exist."""

from __future__ import annotations

import re

import pytest
from commandline import parsed
from documents import DOCS, ROOT, options
from test_docs import NAMES

from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.service import service

PAGE = DOCS / "how-to" / "tune-for-a-busy-mx.md"
TEXT = PAGE.read_text()
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()
_SUM = r"(\d+) \u00d7 (\d+) KiB = (\d+) MiB"
_FIGURE = r"\b(\d[\d.,]*)(?: to (\d[\d.,]*))? (µs|ms|s|KiB|MiB)\b"
"""In the tables of the benchmarks the unit stands above."""


def figures(text: str) -> set[tuple[str, str]]:
    """Each number that has a unit, with it. `36 to 75 ms` are two."""
    return {
        (number, unit)
        for first, second, unit in re.findall(_FIGURE, text)
        for number in (first, second)
        if number
    }


def numbers(text: str) -> set[float]:
    return {float(each.replace(",", "")) for each in re.findall(r"\b\d[\d,]*(?:\.\d+)?", text)}


def test_every_figure_was_measured() -> None:
    found = figures(re.sub(_SUM, r"\2 KiB", TEXT))
    assert len(found) >= 15
    assert {number for number, _ in found if not numbers(number) <= numbers(BENCHMARKS)} == set()


def test_every_sum_is_right() -> None:
    sums = re.findall(_SUM, TEXT)
    assert sums
    (command,) = (words for words in options(PAGE) if "--max-connections" in words)
    limits = parsed(*command).limits
    cap = limits.max_connections
    for clients, octets, total in sums:
        assert int(clients) == cap
        assert round(int(clients) * int(octets) / 1024) == int(total)
    assert set(re.findall(r"(?:LimitNOFILE=|ulimit -n )(\d+)", TEXT)) == {
        str(2 * cap + limits.max_lingering + 100)
    }


@pytest.mark.parametrize(
    ("told", "true"),
    [
        (r"The guard gives its TCP listeners one of ([\d,]+)", service.BACKLOG),
        (r"than the (\d+) of the\s+profile", Limits.for_profile("edge").max_connections_per_client),
        (r"`--read-timeout` of (\d+)", Limits().read_timeout),
    ],
)
def test_every_number_of_the_guard_is_its_own(told: str, true: float) -> None:
    (number,) = re.findall(told, TEXT)
    assert int(number.replace(",", "")) == true


def test_every_option_that_is_named_exists() -> None:
    assert set(re.findall(r"`--([a-z0-9-]+)", TEXT)) - NAMES - {"log-level"} == set()
