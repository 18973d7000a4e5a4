"""The refusal of a connection before its greeting."""

from __future__ import annotations

from typing import Any

import attrs

from twisted_smtpguard import replies
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.replies import Reply


class NotAdmitted(Exception):  # noqa: N818 - a decision, not a fault
    """Ends the admission of a connection with `refusal`."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


@attrs.frozen
class Refusal:
    """Why a connection is refused: the reply for the client, and the fields for the log."""

    reply: Reply
    reason: str
    value: int | None = None
    ip_filter: str = ""
    policy: str = ""
    rule: str = ""
    """The rule of the filter that matched, in the filter's words, or the action of the policy."""
    network: str = ""
    """The network of the client that has exceeded the limit; "" if it is the client itself, or no limit per client."""

    def log(
        self, arrival: Any, events: Any, limits: Limits, *, dry_run: bool = False, value: int | None = None
    ) -> None:
        """Count and log the refusal of `arrival`, which has a `peer_name`, a `port` and a `listener` as an engine has
        them. `dry_run`: the refusal is not enforced. `value`, unless None, replaces the refusal's own."""
        events.reject(
            arrival.peer_name,
            self.reason,
            dry_run=dry_run,
            port=arrival.port,
            listener=arrival.listener,
            ip_filter=self.ip_filter,
            policy=self.policy,
            rule=self.rule,
            network=self.network,
            reply=None if dry_run else self.reply,
            limit=limits.shown(self.reason, self.network),
            value=self.value if value is None else value,
            hint=replies.hint_of(self.reason, arrival.peer_name),
        )

    def enforce(self, events: Any, limits: Limits, arrival: Any, limit: str) -> None:
        """Raise NotAdmitted; if `limit` is in dry run, only log the refusal."""
        if limit not in limits.dry_run:
            raise NotAdmitted(self)
        self.log(arrival, events, limits, dry_run=True)


def refusal_of(reply: Reply, value: int | None = None, network: str = "") -> Refusal:
    """The refusal with `reply`, one of the catalogue, which also gives the log reason."""
    return Refusal(reply, replies.reason_of(reply), value, network=network)
