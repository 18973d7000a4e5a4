"""The batching of replies: connections served in the same turn of the reactor send their replies together at its end.

A client that waits for its reply sleeps, and waking it takes the kernel as long as everything else that a reply costs.
If the replies of a turn are sent one right after the other, their clients are awake already, which saves half of the
kernel's time. Where a turn serves one connection only, batching saves nothing and the reply is sent at once.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.interfaces import IReactorTime

from twisted_smtpguard.transport.fairness import FairScheduler

_TRIAL = 32
"""While replies are sent at once, every 32nd waits for the end of its turn, to see whether other connections reply."""

_TURNS_ALONE = 8
"""The number of turns with one sender each after which replies are sent at once again."""


class ReplyBatcher(FairScheduler):
    """Decides for all connections of a guard whether a reply is sent at once or at the end of the turn."""

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__(clock, most=sys.maxsize)
        self._crowded = False
        self._count = 0

    def delays(self, sender: Any) -> bool:
        """Whether the sender's replies have to wait for the end of this turn, when its `send_now()` is called once."""
        if not (self._crowded or self._waiting):
            self._count += 1
            if self._count % _TRIAL:
                return False
        self.wait(sender.send_now)
        return True

    def _serve(self) -> None:
        if len(self._waiting) > 1:
            self._crowded, self._count = True, 0
        elif self._crowded:
            self._count += 1
            self._crowded = self._count < _TURNS_ALONE
        # Senders that are added meanwhile wait for the next turn.
        super()._serve()
