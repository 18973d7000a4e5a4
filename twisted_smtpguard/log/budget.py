"""How many lines may be logged: a flood fills neither disk nor processor time."""

from __future__ import annotations

MAX_TABLE_KEYS = 10_000
"""What the table of lines logged this second may hold where there is no limit on all lines."""


class LineBudget:
    """How many lines may be logged in each second of the clock: in all, and for each client and reason.

    0 is no limit. It holds one key a line logged in the current second, and never more than MAX_TABLE_KEYS.
    """

    def __init__(self, lines: int, lines_per_client: int) -> None:
        self._suppressed = 0
        self._max_lines = lines
        self._max_lines_per_client = lines_per_client
        self._second = -1
        self._lines = 0
        self._lines_by_client: dict[tuple[str, str], int] = {}

    def allows(self, peer: str, reason: str, now: float) -> bool:
        """Whether a line may be logged now. If so it counts as logged, if not as left out."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._lines = 0
            self._lines_by_client.clear()
        # First, so that a flood from ever new addresses adds no key once the second is used up.
        if self._lines >= self._max_lines > 0:
            self._suppressed += 1
            return False
        if self._max_lines_per_client:
            client = (peer, reason)
            lines = self._lines_by_client.get(client, 0)
            if lines >= self._max_lines_per_client:
                self._suppressed += 1
                return False
            if len(self._lines_by_client) >= MAX_TABLE_KEYS:
                self._lines_by_client.clear()
            self._lines_by_client[client] = lines + 1
        self._lines += 1
        return True

    def take_suppressed(self) -> int:
        """How many lines were left out since this was last asked."""
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
