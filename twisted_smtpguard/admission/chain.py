"""IP filters in their order: each is asked in its turn until one decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard import replies
from twisted_smtpguard.admission.guest import Guest, stays
from twisted_smtpguard.engine.port import FAULTS, is_later
from twisted_smtpguard.engine.refusal import NotAdmitted, Refusal
from twisted_smtpguard.hooks.later import CallLater, as_deferred, explained, within
from twisted_smtpguard.inputs.arguments import check_fields
from twisted_smtpguard.interfaces import IIPFilter
from twisted_smtpguard.limits.limits import IP_FILTER, Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.values import TRUST, Verdict


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

    async def judge(self, guest: Guest, before_waiting: Callable[[], Awaitable[None]]) -> bool:
        """Whether a filter trusts the guest. NotAdmitted where one refuses it, or fails and is not to fail open.

        `before_waiting` is called when the first filter does not answer at once; what it raises ends the asking.
        """
        waited = False
        for entry in self.entries:
            try:
                answer: Any = entry.filter.check(guest.peer)
                if is_later(answer):
                    promise = within(
                        self._limits.ip_filter_timeout,
                        self._call_later,
                        as_deferred(answer),
                        partial(self._canceller_raised, entry, guest),
                    )
                    if not (waited or promise.called):
                        waited = True
                        await _unless_refused(before_waiting(), promise)
                    answer = await promise
            except NotAdmitted:
                raise
            except FAULTS:
                stays(guest)
                ruling = self._failed(entry, guest, explained(Failure()))
            else:
                stays(guest)
                ruling = self._read(entry, guest, answer)
            if isinstance(ruling, Refusal):
                ruling.enforce(self._events, self._limits, guest, IP_FILTER)
            elif ruling:
                return True
        return False

    def _read(self, entry: FilterEntry, guest: Guest, verdict: object) -> Ruling:
        if not isinstance(verdict, Verdict):
            self._events.failure(
                Failure(TypeError(f"{verdict!r} is no Verdict")),
                f"IP filter {entry.name}",
                peer=guest.peer_name,
            )
            return self._cannot_judge(entry, guest, "no_verdict")
        if verdict.reply is not None:
            reply = replies.with_enhanced_code(verdict.reply)
            return Refusal(reply, "ip_filter", ip_filter=entry.name, rule=verdict.rule)
        return verdict == TRUST

    def _canceller_raised(self, entry: FilterEntry, guest: Guest, failure: Failure, what: str) -> None:
        self._events.failure(failure, f"IP filter {entry.name}: {what}", peer=guest.peer_name)

    def _failed(self, entry: FilterEntry, guest: Guest, failure: Failure) -> Ruling:
        if isinstance(failure.value, TimeoutError):
            return self._cannot_judge(entry, guest, "timeout")
        self._events.failure(failure, f"IP filter {entry.name}", peer=guest.peer_name)
        return self._cannot_judge(entry, guest, "exception")

    def _cannot_judge(self, entry: FilterEntry, guest: Guest, problem: str) -> Ruling:
        let_in = entry.fail_open or IP_FILTER in self._limits.dry_run
        self._events.filter_failed(entry.name, guest.peer_name, problem, let_in=let_in)
        if entry.fail_open:
            return False
        reason = "ip_filter_timeout" if problem == "timeout" else "internal_error"
        return Refusal(replies.LOCAL_ERROR_CLOSING, reason, ip_filter=entry.name)


async def _unless_refused(limits: Awaitable[None], promise: Deferred[Any]) -> None:
    """Wait for `limits`. Where they refuse the guest, or it leaves, the filter's promise is cancelled."""
    try:
        await limits
    except BaseException:
        promise.addErrback(_drop)
        promise.cancel()
        raise


def _drop(_: Failure) -> None:
    """The promise was cancelled: what comes of it is dropped."""
