"""IP filters in their order: each is asked in its turn until one decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.admission.refusal import NotAdmitted, Refusal
from twisted_smtpguard.admission.visitor import Visitor
from twisted_smtpguard.arguments import check_fields
from twisted_smtpguard.events import Events
from twisted_smtpguard.interfaces import TRUST, IIPFilter, Verdict
from twisted_smtpguard.later import FAULTS, CallLater, as_deferred, explained, is_later, within
from twisted_smtpguard.limits import IP_FILTER, Limits
from twisted_smtpguard.smtp import replies


@attrs.frozen
class FilterEntry:
    """An IP filter, and what the operator decided about it."""

    filter: IIPFilter
    name: str = attrs.field(default=attrs.Factory(lambda self: type(self.filter).__name__, takes_self=True))
    """What the log calls it; by default the name of its class."""
    fail_open: bool = False
    """Where it cannot judge, the next filter is asked. By default the client is refused."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)


Ruling: TypeAlias = Refusal | bool
"""What came of asking one filter. True: the client is trusted; False: the next one is asked."""


class FilterChain:
    """The IP filters of one guard. `call_later` gives each its time limit."""

    def __init__(
        self, entries: Sequence[FilterEntry], limits: Limits, call_later: CallLater, events: Events
    ) -> None:
        self.entries = tuple(entries)
        self._limits = limits
        self._call_later = call_later
        self._events = events

    async def judge(self, visitor: Visitor, before_waiting: Callable[[], Awaitable[None]]) -> bool:
        """Whether a filter trusts the visitor. NotAdmitted where one refuses it, or fails and is not to fail open.

        `before_waiting` is called when the first filter does not answer at once; what it raises ends the asking.
        """
        waited = False
        for entry in self.entries:
            try:
                answer: Any = entry.filter.check(visitor.peer)
                if is_later(answer):
                    promise = within(
                        self._limits.ip_filter_timeout,
                        self._call_later,
                        as_deferred(answer),
                        partial(self._canceller_raised, entry, visitor),
                    )
                    if not (waited or promise.called):
                        waited = True
                        await _unless_refused(before_waiting(), promise)
                    answer = await promise
            except NotAdmitted:
                raise
            except FAULTS:
                visitor.stays()
                ruling = self._failed(entry, visitor, explained(Failure()))
            else:
                visitor.stays()
                ruling = self._read(entry, visitor, answer)
            if isinstance(ruling, Refusal):
                ruling.enforce(self._events, self._limits, visitor, IP_FILTER)
            elif ruling:
                return True
        return False

    def _read(self, entry: FilterEntry, visitor: Visitor, verdict: object) -> Ruling:
        if not isinstance(verdict, Verdict):
            self._events.failure(
                Failure(TypeError(f"{verdict!r} is no Verdict")), f"IP filter {entry.name}", peer=visitor.name
            )
            return self._cannot_judge(entry, visitor, "no_verdict")
        if verdict.reply is not None:
            reply = replies.with_enhanced_code(verdict.reply)
            return Refusal(reply, "ip_filter", ip_filter=entry.name, rule=verdict.rule)
        return verdict == TRUST

    def _canceller_raised(self, entry: FilterEntry, visitor: Visitor, failure: Failure, what: str) -> None:
        self._events.failure(failure, f"IP filter {entry.name}: {what}", peer=visitor.name)

    def _failed(self, entry: FilterEntry, visitor: Visitor, failure: Failure) -> Ruling:
        if isinstance(failure.value, TimeoutError):
            return self._cannot_judge(entry, visitor, "timeout")
        self._events.failure(failure, f"IP filter {entry.name}", peer=visitor.name)
        return self._cannot_judge(entry, visitor, "exception")

    def _cannot_judge(self, entry: FilterEntry, visitor: Visitor, problem: str) -> Ruling:
        let_in = entry.fail_open or IP_FILTER in self._limits.dry_run
        self._events.filter_failed(entry.name, visitor.name, problem, let_in=let_in)
        if entry.fail_open:
            return False
        reason = "ip_filter_timeout" if problem == "timeout" else "internal_error"
        return Refusal(replies.LOCAL_ERROR_CLOSING, reason, ip_filter=entry.name)


async def _unless_refused(limits: Awaitable[None], promise: Deferred[Any]) -> None:
    """Wait for `limits`. Where they refuse the visitor, or it leaves, the filter's promise is cancelled."""
    try:
        await limits
    except BaseException:
        promise.addErrback(_drop)
        promise.cancel()
        raise


def _drop(_: Failure) -> None:
    """Nobody waits for it any more."""
