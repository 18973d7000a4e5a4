"""The chain of IP filters: each is asked in its order until one decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

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
    """If it cannot judge, the next filter is asked. By default the client is refused."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)


Ruling: TypeAlias = Refusal | bool
"""The outcome of one filter. True: the client is trusted; False: the next filter is asked."""


class FilterChain:
    """The IP filters of one guard. `call_later` gives each its time limit."""

    def __init__(
        self, entries: Sequence[FilterEntry], limits: Limits, call_later: CallLater, events: Events
    ) -> None:
        self.entries = tuple(entries)
        self._limits = limits
        self._call_later = call_later
        self._events = events

    async def judge(
        self, connection: PendingConnection, before_waiting: Callable[[], Awaitable[None]]
    ) -> bool:
        """Whether a filter trusts the connection. NotAdmitted: a filter refuses it, or fails without fail-open.

        `before_waiting` is called when the first filter does not answer at once. If it raises, no further filter is
        asked.
        """
        waited = False
        for entry in self.entries:
            try:
                answer: Any = entry.filter.check(connection.peer)
                if is_later(answer):
                    promise = within(
                        self._limits.ip_filter_timeout,
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
                ruling = self._failed(entry, connection, explained(Failure()))
            else:
                require_connected(connection)
                ruling = self._read(entry, connection, answer)
            if isinstance(ruling, Refusal):
                ruling.enforce(self._events, self._limits, connection, IP_FILTER)
            elif ruling:
                return True
        return False

    def _read(self, entry: FilterEntry, connection: PendingConnection, verdict: object) -> Ruling:
        if not isinstance(verdict, Verdict):
            self._report(entry, connection, Failure(TypeError(f"{verdict!r} is no Verdict")))
            return self._cannot_judge(entry, connection, "no_verdict")
        if verdict.reply is not None:
            reply = replies.with_enhanced_code(verdict.reply)
            return Refusal(reply, "ip_filter", ip_filter=entry.name, rule=verdict.rule)
        return verdict == TRUST

    def _report(
        self, entry: FilterEntry, connection: PendingConnection, failure: Failure, what: str = ""
    ) -> None:
        text = f"IP filter {entry.name}: {what}" if what else f"IP filter {entry.name}"
        self._events.failure(failure, text, peer=connection.peer_name)

    def _failed(self, entry: FilterEntry, connection: PendingConnection, failure: Failure) -> Ruling:
        if isinstance(failure.value, TimeoutError):
            return self._cannot_judge(entry, connection, "timeout")
        self._report(entry, connection, failure)
        return self._cannot_judge(entry, connection, "exception")

    def _cannot_judge(self, entry: FilterEntry, connection: PendingConnection, problem: str) -> Ruling:
        let_in = entry.fail_open or IP_FILTER in self._limits.dry_run
        self._events.filter_failed(entry.name, connection.peer_name, problem, let_in=let_in)
        if entry.fail_open:
            return False
        reason = "ip_filter_timeout" if problem == "timeout" else "internal_error"
        return Refusal(replies.LOCAL_ERROR_CLOSING, reason, ip_filter=entry.name)


async def _unless_refused(limits: Awaitable[None], promise: Deferred[Any]) -> None:
    """Wait for `limits`. If they refuse the connection, or the client disconnects, the filter's answer is cancelled."""
    try:
        await limits
    except BaseException:
        promise.addErrback(lambda _: None)
        promise.cancel()
        raise
