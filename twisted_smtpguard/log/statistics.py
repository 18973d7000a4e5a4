"""What was counted. `Events` counts; an application reads, most simply by `snapshot()`."""

from __future__ import annotations

import attrs

from twisted_smtpguard.inputs.arguments import check_fields


@attrs.define
class Statistics:
    """Counts of one guard since it was made. All are whole numbers and only ever rise, but for
    `live_connections`. Every refusal is here, those that the log left out too."""

    connections_accepted: int = 0
    """Connections let in, those still open included."""
    connections_refused: int = 0
    """Connections turned away before their greeting. They are in `refusals` too."""
    live_connections: int = 0
    """Connections let in and not yet ended."""
    peak_live_connections: int = 0
    """The most there ever were at once."""
    sessions_ended: int = 0
    """Connections let in and ended, in whatever way."""
    messages_accepted: int = 0
    """Messages that the delivery took."""
    octets_accepted: int = 0
    """Octets of those messages, as given to the delivery: after dot-unstuffing, line ends included."""
    recipients_accepted: int = 0
    """Recipients of those messages."""
    failures: int = 0
    """Exceptions that should not have been: in the guard, or in a delivery."""
    hangups: int = 0
    """Clients that left before they were let in or refused."""
    refusals: dict[str, int] = attrs.field(factory=dict)
    """Refusals by reason. The reasons are those of the log, so there are no more keys than reasons."""
    dry_run_refusals: dict[str, int] = attrs.field(factory=dict)
    """What would have been refused by limits that are only tried, by reason."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)

    def snapshot(self) -> dict[str, int | dict[str, int]]:
        """All counts by name, as a copy that stays as it is."""
        counts: dict[str, int | dict[str, int]] = attrs.asdict(self)
        return counts
