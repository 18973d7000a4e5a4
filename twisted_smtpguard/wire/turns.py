"""Who has had a share of the reactor's turn waits for the next, so that no crowd keeps a fresh client waiting.

Twisted hands over up to 64 KiB of every readable connection in one turn. As pipelined commands that is 30 ms of
work, and with some hundred such connections a turn would take seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

COMMANDS_A_TURN = 64
"""Of one connection, the first ones of an arrival included."""

LINE_OCTETS_OF_A_COMMAND = 64
"""A long line counts as one command more for so many octets: 2 KiB take thirty times as long to parse as a NOOP."""

DATA_OCTETS_OF_A_COMMAND = 1024
"""Message data: a whole arrival of 64 KiB is one share."""

SLOW_DATA_OCTETS_OF_A_COMMAND = 128
"""The same where each line may have to be looked at: in the header, and where newlines are made CRLF."""

_CONNECTIONS_A_TURN = 8
"""Of those that wait."""


class Turns:
    """The queue of connections that have more input than a share. First come, first served."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def wait(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` in a later turn. It may wait again."""
        self._waiting.append(go_on)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._serve)

    def _serve(self) -> None:
        self._scheduled = False
        try:
            for _ in range(min(len(self._waiting), _CONNECTIONS_A_TURN)):
                self._waiting.popleft()()
        finally:
            self._schedule()
