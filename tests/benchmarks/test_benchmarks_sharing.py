"""The model of guards that share one Redis: its page has what it says, and its figures do not contradict each other."""

from __future__ import annotations

import pytest
from documents import DOCS

from benchmarks.sharing import BUSY, LOADS, Load, most_connections, needs, rows

PAGE = (DOCS / "explanation" / "scaling.md").read_text()


def test_the_page_has_the_table_of_the_model() -> None:
    assert "\n".join(rows()) in PAGE
    assert f"{round(most_connections(10, 5), -2):,.0f} connections a second" in PAGE


@pytest.mark.parametrize("load", LOADS)
def test_a_load_that_one_redis_can_carry_needs_no_more_of_it(load: Load) -> None:
    most = most_connections(load.guards, load.seconds)
    assert needs(load._replace(connections=most)).cores == pytest.approx(BUSY)
    assert (needs(load).cores <= BUSY) == (load.connections <= most)
