"""The deadline of a connection as its engine sees it, and what stands in its place while none runs, or while another
time limit is to follow.

A deadline is extended at nearly every command, by one assignment to its `when`. Whatever is special about it is done by
that assignment.
"""

from __future__ import annotations

from typing import Any, Protocol


class Timer(Protocol):
    """A running deadline."""

    when: float
    """The time of the deadline, by the guard's clock. It may be set to a later time."""


class _NoTimer:
    """Stands in for a deadline where none runs."""

    when = 0.0


NO_TIMER = _NoTimer()


class ChangedLimit:
    """Stands in for a deadline of `connection` whose time limit has changed since it began. It runs to its end as it
    is; where it would be extended, it begins again with the new limit."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._when: float = connection.timer.when

    def _ends(self) -> float:
        return self._when

    def _begin_again(self, when: float) -> None:
        self._connection.set_deadline(self._connection.timed)

    when = property(_ends, _begin_again)
