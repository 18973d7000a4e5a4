"""The chain of IP filters, which are asked in order until one decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.python.reflect import safe_repr

from twisted_smtpguard import replies
from twisted_smtpguard.admission.pendingconnection import PendingConnection, require_connected
from twisted_smtpguard.engine.refusal import NotAdmitted, Refusal
from twisted_smtpguard.hooks.later import CallLater, as_deferred, explained, within
from twisted_smtpguard.inputs.arguments import check_fields
from twisted_smtpguard.interfaces import IIPFilter
from twisted_smtpguard.limits.limits import IP_FILTER, Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.values import FAULTS, TRUST, Verdict, is_later


@attrs.frozen
class FilterEntry:
    """An IP filter and its configuration."""

    filter: IIPFilter
    name: str = attrs.field(default=attrs.Factory(lambda self: type(self.filter).__name__, takes_self=True))
    """Its name in the log; by default the name of its class."""
    fail_open: bool = False
    """Whether the next filter is asked if this one cannot judge. By default the client is refused."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)


class FilterChain:
    """The IP filters of one guard. `call_later` schedules their time limits."""

    def __init__(
        self, entries: Sequence[FilterEntry], limits: Limits, call_later: CallLater, events: Events
    ) -> None:
        self.entries = tuple(entries)
        self.limits = limits
        self._call_later = call_later
        self._events = events

    async def judge(
        self, connection: PendingConnection, before_waiting: Callable[[], Awaitable[None]]
    ) -> bool:
        """Ask the filters, and return whether one trusts the client. NotAdmitted: a filter refuses the connection, or
        cannot judge it and is not fail-open.

        `before_waiting` is called once, before the first wait for an answer. If it raises NotAdmitted, the pending
        answer is cancelled, and no further filter is asked.
        """
        waited = False
        for entry in self.entries:
            refusal: Refusal | None = None
            since: float | None = None
            try:
                answer: Any = entry.filter.check(connection.peer)
                if is_later(answer):
                    since = self._events.seconds()
                    promise = within(
                        self.limits.ip_filter_timeout,
                        self._call_later,
                        as_deferred(answer),
                        partial(self._report, entry, connection),
                    )
                    if not (waited or promise.called):
                        waited = True
                        await _unless_refused(before_waiting(), promise)
                    answer = await promise
            except NotAdmitted:
                raise
            except FAULTS:
                require_connected(connection)
                fault = explained(Failure())
                verdict = "timeout" if isinstance(fault.value, TimeoutError) else "error"
                refusal = self._failed(entry, connection, fault, "exception")
            else:
                require_connected(connection)
                if not isinstance(answer, Verdict):
                    verdict = "error"
                    failure = Failure(TypeError(f"{safe_repr(answer)} is no Verdict"))
                    refusal = self._failed(entry, connection, failure, "no_verdict")
                elif answer.reply is None:
                    verdict = "trust" if answer == TRUST else "pass"
                else:
                    verdict = "refuse"
                    reply = replies.with_enhanced_code(answer.reply)
                    refusal = Refusal(reply, "ip_filter", ip_filter=entry.name, rule=answer.rule)
            seconds = 0 if since is None else self._events.seconds() - since
            self._events.measured.filters[entry.name, verdict].observe(seconds)
            if verdict == "trust":
                return True
            if refusal is not None and verdict == "refuse" and answer.dry_run:
                refusal.log(connection, self._events, self.limits, dry_run=True)
            elif refusal is not None:
                refusal.enforce(self._events, self.limits, connection, IP_FILTER)
        return False

    def _report(
        self, entry: FilterEntry, connection: PendingConnection, failure: Failure, what: str = ""
    ) -> None:
        text = f"IP filter {entry.name}: {what}" if what else f"IP filter {entry.name}"
        self._events.failure(failure, text, peer=connection.peer_name)

    def _failed(
        self, entry: FilterEntry, connection: PendingConnection, failure: Failure, problem: str
    ) -> Refusal | None:
        """Log that a filter cannot judge. Returns the refusal; None if it fails open, so that the next one is asked."""
        reason = "internal_error"
        if isinstance(failure.value, TimeoutError):
            reason, problem = "ip_filter_timeout", "timeout"
        else:
            self._report(entry, connection, failure)
        let_in = entry.fail_open or IP_FILTER in self.limits.dry_run
        self._events.filter_failed(entry.name, connection.peer_name, problem, let_in=let_in)
        if entry.fail_open:
            return None
        return Refusal(replies.LOCAL_ERROR_CLOSING, reason, ip_filter=entry.name)


async def _unless_refused(limits: Awaitable[None], promise: Deferred[Any]) -> None:
    """Wait for `limits`. If they refuse the connection, or the client disconnects, the filter's answer is cancelled."""
    try:
        await limits
    except BaseException:
        promise.addErrback(lambda _: None)
        promise.cancel()
        raise
