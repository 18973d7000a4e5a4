"""The drain of a guard: nobody is admitted any more, the sessions end, and the pending verdicts are waited for."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from twisted.internet.defer import Deferred

from twisted_smtpguard.counters.counting import Counting
from twisted_smtpguard.engine.context import ServerContext
from twisted_smtpguard.hooks.faults import safely
from twisted_smtpguard.records.recordsharing import RecordSharing
from twisted_smtpguard.transport.deadlines import Deadline, Deadlines
from twisted_smtpguard.transport.protocol import SMTPGuardProtocol

_LAST_WAIT_SECONDS = 5
"""How long a stop waits after its grace for pending verdicts."""

_LAST_LINES_SECONDS = 0.5
"""How long a stop waits after its grace for the last replies to be sent. Under TLS a frozen client never answers our
close_notify, and no verdict depends on that answer."""

_LOG_SECONDS = 10
"""How often a drain logs what it waits for."""


class Drain:
    """The drain of one guard, which may begin again after each `reopen`. `connections` are those that are open; the
    factory adds and removes them. `sharing` goes on as long as `counting`."""

    def __init__(
        self,
        context: ServerContext,
        deadlines: Deadlines,
        counting: Counting,
        sharing: RecordSharing | None,
        connections: Collection[SMTPGuardProtocol],
    ) -> None:
        self._context = context
        self._deadlines = deadlines
        self._counting = counting
        self._sharing = sharing
        self._connections = connections
        self._drained: Deferred[None] | None = None
        self.grace_over = False
        """Whether the sessions get no grace, in the drain that goes on or in the next one."""
        self._grace: Deadline | None = None
        self._last_lines: Deadline | None = None
        self._last_wait: Deadline | None = None
        self._next_log: Deadline | None = None

    @property
    def begun(self) -> bool:
        """Whether nobody is admitted, since a drain goes on or is over."""
        return self._drained is not None

    def begin(self) -> Deferred[None]:
        """See `SMTPGuardFactory.drain`."""
        if self._drained is not None:
            again: Deferred[None] = Deferred()
            self._drained.chainDeferred(again)
            return again
        drained = self._drained = Deferred()
        drained.addCallback(self._stop_waiting)
        self._context.draining = True
        grace = self._context.limits.shutdown_grace
        if grace:
            self._grace = self._deadlines.call_later(grace, self.end_now)
        self._shut_down(now=False)
        if self.grace_over:
            self.end_now()
        self.something_ended()
        if not drained.called:
            self._log_progress()
        return drained

    @property
    def pending_verdicts(self) -> int:
        """The number of messages on which the delivery has not given its verdict."""
        waiting = sum(protocol.engine.awaits_verdict for protocol in self._connections)
        return waiting + self._context.pending_deliveries

    def _shut_down(self, *, now: bool) -> None:
        for protocol in list(self._connections):
            shut_down = partial(protocol.engine.shut_down, now=now)
            safely(protocol.failed, "a session could not be ended", shut_down)

    def _log_progress(self) -> None:
        """Log what the drain waits for, now and every few seconds, so that an operator sees why it takes long."""
        self._context.events.draining(len(self._connections), self.pending_verdicts)
        self._next_log = self._deadlines.call_later(_LOG_SECONDS, self._log_progress)

    def reopen(self) -> None:
        """See `SMTPGuardFactory.reopen`."""
        if self._drained is not None and not self._drained.called:
            raise RuntimeError("connections cannot be admitted again before the drain is over")
        self._drained = None
        self.grace_over = False
        self._context.draining = False
        self._counting.start()
        if self._sharing is not None:
            self._sharing.start()

    def end_now(self) -> None:
        """See `SMTPGuardFactory.end_now`."""
        self.grace_over = True
        if self._drained is None:
            return
        if not self._drained.called and self._last_wait is None:
            self._last_wait = self._deadlines.call_later(_LAST_WAIT_SECONDS, self._fire)
            self._last_lines = self._deadlines.call_later(_LAST_LINES_SECONDS, self._cut_off)
        self._shut_down(now=True)

    def _stop_waiting(self, _: object) -> None:
        for timer in (self._grace, self._last_lines, self._last_wait, self._next_log):
            if timer is not None and timer.active():
                timer.cancel()
        self._counting.stop()
        if self._sharing is not None:
            self._sharing.stop()
        self._context.guard.seating.stop()
        self._grace = self._last_lines = self._last_wait = self._next_log = None

    def _cut_off(self) -> None:
        for protocol in list(self._connections):
            safely(protocol.failed, "a connection could not be aborted", protocol.connection_broken)

    def something_ended(self) -> None:
        """Called when a connection, a verdict or a question to the counter store has ended: the drain may be over."""
        if not (self._connections or self._context.pending_deliveries or self._counting.pending):
            self._fire()

    def _fire(self) -> None:
        drained = self._drained
        if drained is not None and not drained.called:
            drained.callback(None)
