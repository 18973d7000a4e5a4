"""Why a connection is not let in."""

from __future__ import annotations

from typing import Any, Protocol

import attrs

from twisted_smtpguard import replies
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.replies import Reply


class Guest(Protocol):
    """A connection that has not been greeted, for the log."""

    peer_name: str
    port: int | None
    listener: str


class NotAdmitted(Exception):  # noqa: N818 - a decision, not a fault
    """Ends the admission of a connection with `refusal`."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


@attrs.frozen
class Refusal:
    """Why a connection is not let in, for the client and for the log."""

    reply: Reply
    reason: str
    value: int | None = None
    ip_filter: str = ""
    rule: str = ""
    """What of the filter's rules it was, in the filter's words."""

    def log(
        self,
        events: Any,
        limits: Limits,
        peer: str,
        *,
        port: int | None,
        listener: str,
        dry_run: bool = False,
        value: int | None = None,
    ) -> None:
        """Count and log it. `dry_run`: nothing is refused, and nothing said. `value` stands in for its own."""
        events.reject(
            peer,
            self.reason,
            dry_run=dry_run,
            port=port,
            listener=listener,
            ip_filter=self.ip_filter,
            rule=self.rule,
            reply=None if dry_run else self.reply,
            limit=limits.shown(self.reason),
            value=self.value if value is None else value,
            hint=replies.hint_of(self.reason, peer),
        )

    def log_of(self, guest: Guest, events: Any, limits: Limits, *, dry_run: bool = False) -> None:
        """The same of a guest."""
        self.log(events, limits, guest.peer_name, port=guest.port, listener=guest.listener, dry_run=dry_run)

    def enforce(self, events: Any, limits: Limits, guest: Guest, limit: str) -> None:
        """NotAdmitted, or a line in the log where `limit` is only tried."""
        if limit not in limits.dry_run:
            raise NotAdmitted(self)
        self.log_of(guest, events, limits, dry_run=True)


def refusal_of(reply: Reply, value: int | None = None) -> Refusal:
    """The refusal by one of our own replies, for the reason that the catalogue gives."""
    return Refusal(reply, replies.reason_of(reply), value)
