"""benchmarks/bounds.py and rows.py: which bound a figure is held against, and when it is missed."""

from __future__ import annotations

import pytest

from benchmarks import handshakes
from benchmarks.bounds import GUARD, PROXIED, RATIOS, STARTTLS, STARTTLS_KEY, exactly, judge_ratios
from benchmarks.compared import SMALL_MAIL
from benchmarks.encrypted import KEYS
from benchmarks.peers import PEERS
from benchmarks.rows import Verdict
from benchmarks.servers import on
from benchmarks.workloads import workloads


@pytest.mark.parametrize(
    ("value", "at_most", "met"),
    [(1.9, 1.9, True), (2.08, 1.9, True), (2.10, 1.9, False), (0.5, 1.0, True), (0.14, 0.12, False)],
)
def test_a_ratio_is_missed_when_it_is_a_tenth_above_its_bound(
    value: float, at_most: float, met: bool
) -> None:
    assert Verdict("smtp-sink", value, at_most).met is met


@pytest.mark.parametrize(("value", "met"), [(3.0, True), (3.01, False)])
def test_a_figure_that_is_no_ratio_is_held_to_its_bound(value: float, met: bool) -> None:
    assert exactly("KiB each", value, 3.0).met is met


@pytest.mark.parametrize(
    ("key", "ratios", "judged"),
    [
        ("W1", {"smtp-sink": 1.0, "smtp-server": 0.9}, [("smtp-sink", 2.0), ("smtp-server", 1.0)]),
        ("W5", {"smtp-sink": 1.0, "twisted.mail": 1.0}, [("smtp-sink", 1.9)]),
        ("W8", {"smtp-sink": 1.0, "smtp-server": 1.0}, [("smtp-sink", 1.0)]),
        ("W1", {"twisted.mail": 1.0}, []),
        ("W1", {}, []),
    ],
)
def test_a_workload_is_judged_by_the_servers_that_were_there(
    key: str, ratios: dict[str, float], judged: list[tuple[str, float]]
) -> None:
    assert [(each.what, each.at_most) for each in judge_ratios(key, GUARD, ratios)] == judged


def test_the_guard_on_uvloop_has_its_own_bounds_and_on_another_reactor_none() -> None:
    ratios = {"smtp-sink": 1.0, "smtp-server": 0.9}
    (verdict,) = judge_ratios("W1", on("uvloop"), ratios)
    assert (verdict.what, verdict.at_most) == ("guard on uvloop to smtp-sink", 1.6)
    assert judge_ratios("W1", on("asyncio"), ratios) == []


def test_every_bound_is_of_a_server_and_a_workload_that_exist() -> None:
    assert set(RATIOS) == {GUARD, on("uvloop")}
    of_others = [item for of in RATIOS.values() for item in of.items()]
    assert {other for other, _ in of_others} <= set(PEERS)
    assert {key for _, of in of_others for key in of} <= set(workloads())
    assert set(PROXIED) == set(SMALL_MAIL)
    assert set(STARTTLS) <= set(handshakes.COLUMNS)
    assert STARTTLS_KEY in KEYS
