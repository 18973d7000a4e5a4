"""The budget of log lines: what it holds is bounded. What it allows stands in test_events.py."""

from __future__ import annotations

import pytest

from twisted_smtpguard.log.budget import MAX_TABLE_KEYS, LineBudget


@pytest.mark.parametrize("lines", [200, 0])
def test_a_million_addresses_in_a_second_are_remembered_in_bounded_memory(lines: int) -> None:
    budget = LineBudget(lines, 10)
    largest = 0
    for number in range(100_000):
        budget.allows(str(number), "not_smtp", 0.5)
        largest = max(largest, len(budget._lines_by_client))
    assert largest == (lines or MAX_TABLE_KEYS)
    budget.allows("1.2.3.4", "not_smtp", 1.5)
    assert len(budget._lines_by_client) == 1
