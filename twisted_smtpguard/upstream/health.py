"""Whether it makes sense to try another connection to the mail server behind: it may be down, or full.

While it is down every client is told so at once, and one connection is tried from time to time. While it is full it has
as many as it takes, and those who want one wait.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.refusals import describe

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 5.0
"""How long after a failure a dead server is tried again: twice as long each time, up to this. A server that is back
gets mail again that soon."""

FIRST_UNSUITABLE_RETRY_SECONDS = 30.0
LAST_UNSUITABLE_RETRY_SECONDS = 600.0
"""The same for a server that is there and cannot be used as configured: a wrong password that is tried every few
seconds has the account, or our address, locked out."""


class Health:
    """What is known of one server. `probe()` tries a connection, `changed()` is called when it may take one more after
    a while."""

    def __init__(
        self,
        clock: IReactorTime,
        notices: Notices,
        probe: Callable[[], Coroutine[Any, Any, None]],
        changed: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._notices = notices
        self._probe = probe
        self._changed = changed
        self._watching = False
        self.down: Reply | None = None
        """What clients are told while it is."""
        self._unsuitable = False
        """Why it is down: it is there, and of no use."""
        self._retry_seconds = 0.0
        """How long to wait the next time, if that is not too short or too long."""
        self._retry: IDelayedCall | None = None
        """The next connection of our own, where one is due: it is down, or that is to be found out."""
        self._probing: Deferred[None] | None = None
        self._probe_again = False
        self._full: IDelayedCall | None = None
        self.careful = False
        """It was full, and has not taken another connection since: one at a time is tried."""
        self._changes = 0
        """Of what is configured."""
        self._crowdings = 0
        """How often it was found to be full: what began before says nothing of what it takes since."""

    @property
    def full(self) -> bool:
        """It wants no more connections than there are."""
        return self._full is not None

    # Its life.

    def start(self) -> None:
        """Try a connection, so that it is known what the server offers."""
        self._watching = True
        self._begin_probe()

    def stop(self) -> None:
        """Try nothing more. What is being tried is the pool's to end."""
        self._watching = False
        self._end_retry()
        self._end_full()

    # What the pool has found out.

    def attempt(self) -> tuple[int, int]:
        """A connection is tried: to be handed back with what comes of it."""
        return self._changes, self._crowdings

    def succeeded(self, attempt: tuple[int, int]) -> None:
        """A connection has come about."""
        if self.down is not None:
            self._notices.up()
        self.down = None
        self._retry_seconds = 0.0
        self._end_retry()
        if attempt[1] == self._crowdings:
            self.careful = False
            self._end_full()

    def failed(self, refused: Refused, attempt: tuple[int, int]) -> None:
        """None has come about, and there is no hope for another by what is configured now."""
        if attempt[0] != self._changes:
            if self._probing is None and self._watching:
                self._probe_now()
            return
        unsuitable = refused.reply is replies.UPSTREAM_UNSUITABLE
        if self.down is None or unsuitable != self._unsuitable:
            self._notices.down(describe(refused))
        self.down = refused.reply
        self._unsuitable = unsuitable
        self._end_full()
        if self._retry is None and self._probing is None:
            self._retry_later()

    def crowded(self, refused: Refused, connections: int, seconds: float) -> None:
        """None has come about beside those that there are: none is tried for so many seconds."""
        self._crowdings += 1
        self._end_full()
        self._full = self._clock.callLater(seconds, self._full_over)
        if not self.careful:
            self.careful = True
            self._notices.full(connections, describe(refused))

    def unknown(self) -> None:
        """None has come about, and why is not known, or may be the client's affair: try one of our own, soon."""
        if self._watching and self._retry is None and self._probing is None:
            self._retry = self._clock.callLater(FIRST_RETRY_SECONDS, self._begin_probe)

    def explore(self) -> None:
        """Try one of our own now: it was full, and perhaps it is no longer."""
        if self._watching and self._probing is None:
            self._end_retry()
            self._begin_probe()

    def place_freed(self) -> None:
        """A connection has ended: there may be a place for another."""
        self._end_full()

    def reconfigured(self) -> None:
        """What is configured has changed: a server that is down may be so no longer."""
        self._changes += 1
        if self._probing is not None:
            self._probe_again = True
        elif self._watching and self.down is not None:
            self._probe_now()

    # Inside.

    def _probe_now(self) -> None:
        self._retry_seconds = 0.0
        self._end_retry()
        self._begin_probe()

    def _begin_probe(self) -> None:
        self._retry = None
        probing = Deferred.fromCoroutine(self._probe())
        self._probing = probing
        probing.addBoth(self._probed, probing)

    def _probed(self, outcome: object, probing: Deferred[None]) -> None:
        failed = isinstance(outcome, Failure)
        if isinstance(outcome, Failure) and not outcome.check(Refused, CancelledError):
            # No answer of the server's: it is our fault, or the endpoint's.
            self._notices.failed(outcome)
        if self._probing is probing:
            self._probing = None
        again, self._probe_again = self._probe_again, False
        if not self._watching:
            return
        if again and (failed or self.down is not None):
            self._probe_now()
        if self.down is not None and self._retry is None and self._probing is None:
            self._retry_later()

    def _retry_later(self) -> None:
        first, last = FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS
        if self._unsuitable:
            first, last = FIRST_UNSUITABLE_RETRY_SECONDS, LAST_UNSUITABLE_RETRY_SECONDS
        seconds = min(max(self._retry_seconds, first), last)
        self._retry = self._clock.callLater(seconds, self._begin_probe)
        self._retry_seconds = 2 * seconds

    def _end_retry(self) -> None:
        retry, self._retry = self._retry, None
        if retry is not None and retry.active():
            retry.cancel()

    def _full_over(self) -> None:
        """Perhaps the server takes one more by now."""
        self._full = None
        self._changed()

    def _end_full(self) -> None:
        if self._full is not None:
            self._full.cancel()
            self._full = None
