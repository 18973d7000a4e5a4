"""The budget of log lines, so that a flood costs neither disk space nor much processor time."""

from __future__ import annotations

MAX_TABLE_KEYS = 10_000
"""The most keys in the table of the lines logged in this second, which bound it if the lines have no limit."""


class LineBudget:
    """Limits the lines logged in each second of the clock: `lines` in all, and `lines_per_client` for each client and
    reason. 0 is no limit.

    The table has one key for each line logged in the current second, and never more than MAX_TABLE_KEYS.
    """

    def __init__(self, lines: int, lines_per_client: int) -> None:
        self.suppressed = 0
        """How many lines were suppressed since `take_suppressed` was called."""
        self._told = 0
        self.set_limits(lines, lines_per_client)
        self._second = -1
        self._lines = 0
        self._lines_by_client: dict[tuple[str, str], int] = {}

    def set_limits(self, lines: int, lines_per_client: int) -> None:
        """Swap the limits, also for the current second."""
        self._max_lines = lines
        self._max_lines_per_client = lines_per_client

    def allows(self, peer: str, reason: str, now: float) -> bool:
        """Whether a line may be logged now. If so it counts as logged, else as suppressed."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._lines = 0
            self._lines_by_client.clear()
        # This check comes first, so that a flood from ever new addresses adds no keys once the budget is used up.
        if self._lines >= self._max_lines > 0:
            self.suppressed += 1
            return False
        if self._max_lines_per_client:
            client = (peer, reason)
            lines = self._lines_by_client.get(client, 0)
            if lines >= self._max_lines_per_client:
                self.suppressed += 1
                return False
            if len(self._lines_by_client) >= MAX_TABLE_KEYS:
                self._lines_by_client.clear()
            self._lines_by_client[client] = lines + 1
        self._lines += 1
        return True

    def take_suppressed(self) -> int:
        """How many lines were suppressed since the last call."""
        suppressed, self.suppressed = self.suppressed, 0
        self._told += suppressed
        return suppressed

    @property
    def suppressed_in_all(self) -> int:
        """How many lines were suppressed since the budget was made."""
        return self._told + self.suppressed
