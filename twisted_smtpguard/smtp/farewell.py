"""When a session is over for the delivery: not before the last of its hooks has answered."""

from __future__ import annotations

from collections.abc import Callable


class Farewell:
    """Calls `say` once: when the session has ended and none of its hooks is at work any more.

    A hook is at work until it answers, though its time may be over and nobody wait for it.
    """

    def __init__(self, say: Callable[[], None]) -> None:
        self._say = say
        self._at_work = 0
        self._session_ended = False

    def hook_called(self) -> None:
        """Of any transaction of the session."""
        self._at_work += 1

    def hook_answered(self) -> None:
        """And whatever follows from the answer has been done."""
        self._at_work -= 1
        self._say_if_over()

    def session_ended(self) -> None:
        """No hook is called from now on. Called once."""
        self._session_ended = True
        self._say_if_over()

    def _say_if_over(self) -> None:
        if self._session_ended and not self._at_work:
            self._say()
