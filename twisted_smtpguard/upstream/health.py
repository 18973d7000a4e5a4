"""The health of the upstream server, which decides whether another connection is attempted: it may be down, or full.

While the server is down every client is told so at once, and the guard probes it from time to time. While it is full it
accepts no further connection, and transactions wait for one that is open.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from twisted_smtpguard import replies
from twisted_smtpguard.hooks.promise import run
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.refusals import describe
from twisted_smtpguard.upstream.smtpclient import stop_timer
from twisted_smtpguard.values import Refused

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 5.0
"""The first and the longest wait before a server that is down is probed again; each wait is twice as long as the one
before. A server that is up again gets mail after the longest at the latest."""

FIRST_UNSUITABLE_RETRY_SECONDS = 30.0
LAST_UNSUITABLE_RETRY_SECONDS = 600.0
"""The same waits for a server that answers and cannot be used as configured. They are longer, since a wrong password
that is sent every few seconds gets the account, or the guard's address, locked out."""

_UNSUITABLE = replies.UPSTREAM_UNSUITABLE


@attrs.define(eq=False)
class Health:
    """The state of one server: up, full or down. `probe()` attempts a connection. `changed()` is called when a server
    that was full may accept one more."""

    _clock: IReactorTime
    _notices: Notices
    _probe: Callable[[], Coroutine[Any, Any, None]]
    _changed: Callable[[], None]
    down: Reply | None = attrs.field(default=None, init=False)
    """The reply for clients while the server is down. None: it is not down."""
    full: IDelayedCall | None = attrs.field(default=None, init=False)
    """The end of the time for which the server counts as full. None: it may accept more connections than are open."""
    careful: bool = attrs.field(default=False, init=False)
    """Whether the server was full and has accepted no connection since. Then only one at a time is attempted."""
    _watching: bool = attrs.field(default=False, init=False)
    """Whether the pool has started, so that the server is probed when that is needed."""
    _retry_seconds: float = attrs.field(default=0.0, init=False)
    """How long to wait before the next probe of a server that is down, if that is within the bounds above."""
    _retry: IDelayedCall | None = attrs.field(default=None, init=False)
    """The next probe, if one is due: the server is down, or may be."""
    _probing: object | None = attrs.field(default=None, init=False)
    """What stands for the probe that is under way. None: there is none."""
    _probe_again: bool = attrs.field(default=False, init=False)
    """Whether the settings have changed during the probe, so that its failure says nothing about the server."""
    _changes: int = attrs.field(default=0, init=False)
    """How often the settings have changed."""
    _times_full: int = attrs.field(default=0, init=False)
    """How often the server was found full. An attempt that began before the last time does not show that the server
    has room again."""

    # Start and stop.

    def start(self) -> None:
        """Probe the server, so that its extensions are known."""
        self._watching = True
        self._begin_probe()

    def stop(self) -> None:
        """Begin no more probes. The pool ends the one that is under way."""
        self._watching = False
        self._end_retry()
        self.place_freed()

    # Reports of the pool.

    def attempt(self) -> tuple[int, int]:
        """Called when a connection is attempted. Returns a value for `succeeded` or `failed`, which shows them what has
        changed since."""
        return self._changes, self._times_full

    def succeeded(self, attempt: tuple[int, int]) -> None:
        """Called when a connection was made."""
        if self.down is not None:
            self._notices.up()
        self.down = None
        self._retry_seconds = 0.0
        self._end_retry()
        if attempt[1] == self._times_full:
            self.careful = False
            self.place_freed()

    def failed(self, refused: Refused, attempt: tuple[int, int]) -> None:
        """Called when a connection failed in a way that shows that the server is down."""
        if attempt[0] != self._changes:
            if self._probing is None and self._watching:
                self._probe_now()
            return
        if self.down is None or (self.down is _UNSUITABLE) != (refused.reply is _UNSUITABLE):
            self._notices.down(describe(refused))
        self.down = refused.reply
        self.place_freed()
        self._retry_if_down()

    def found_full(self, refused: Refused, connections: int, seconds: float) -> None:
        """Called when a connection failed while `connections` others were open. The server counts as full for
        `seconds`, or until one of them has ended."""
        self._times_full += 1
        self.place_freed()
        self.full = self._clock.callLater(seconds, self._full_over)
        if not self.careful:
            self.careful = True
            self._notices.full(connections, describe(refused))

    def cause_unknown(self) -> None:
        """Called when a connection failed for an unknown cause, or because of the client. A probe finds out soon
        whether the server is down."""
        if self._watching and self._retry is None and self._probing is None:
            self._retry = self._clock.callLater(FIRST_RETRY_SECONDS, self._begin_probe)

    def explore(self) -> None:
        """Probe now whether a server that was full has room again."""
        if self._watching and self._probing is None:
            self._begin_probe()

    def place_freed(self) -> None:
        """Called when a connection has ended. The server may have room for another."""
        stop_timer(self.full)
        self.full = None

    def reconfigured(self) -> None:
        """Called when the settings have changed. A server that is down is probed at once."""
        self._changes += 1
        if self._probing is not None:
            self._probe_again = True
        elif self._watching and self.down is not None:
            self._probe_now()

    # Probes and timers.

    def _probe_now(self) -> None:
        self._retry_seconds = 0.0
        self._begin_probe()

    def _begin_probe(self) -> None:
        self._end_retry()
        # Set before the probe begins: a probe that fails at once may otherwise lead to another one, without end.
        self._probing = probing = object()
        run(self._probe()).when_answered(partial(self._probed, probing))

    def _probed(self, probing: object, value: object, error: BaseException | None) -> None:
        if not (error is None or isinstance(error, Refused | CancelledError)):
            # The server has not refused anything: this is a fault of the guard or of the endpoint.
            self._notices.failed(Failure(error))
        if self._probing is probing:
            self._probing = None
        again, self._probe_again = self._probe_again, False
        if not self._watching:
            return
        if again and (error is not None or self.down is not None):
            self._probe_now()
        self._retry_if_down()

    def _retry_if_down(self) -> None:
        if self.down is None or self._retry is not None or self._probing is not None:
            return
        first, last = FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS
        if self.down is _UNSUITABLE:
            first, last = FIRST_UNSUITABLE_RETRY_SECONDS, LAST_UNSUITABLE_RETRY_SECONDS
        seconds = min(max(self._retry_seconds, first), last)
        self._retry = self._clock.callLater(seconds, self._begin_probe)
        self._retry_seconds = 2 * seconds

    def _end_retry(self) -> None:
        stop_timer(self._retry)
        self._retry = None

    def _full_over(self) -> None:
        """Called when the time for which the server counts as full is over."""
        self.full = None
        self._changed()
