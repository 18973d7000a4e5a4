"""The statistics of a guard. `Events` counts, and an application reads them, most simply by `snapshot()`."""

from __future__ import annotations

import attrs

from twisted_smtpguard.inputs.arguments import check_fields


@attrs.define
class Statistics:
    """The counts of one guard since it was made. They are whole numbers, and all but `live_connections` only rise. They
    include every refusal, also those that the log left out."""

    connections_accepted: int = 0
    """Admitted connections, with those that are still open."""
    connections_refused: int = 0
    """Connections refused before their greeting. They are in `refusals` too."""
    live_connections: int = 0
    """Admitted connections that are open."""
    peak_live_connections: int = 0
    """The largest number of admitted connections that were open at once."""
    sessions_ended: int = 0
    """Admitted connections that have ended, in whatever way."""
    messages_accepted: int = 0
    """Messages that the delivery accepted."""
    octets_accepted: int = 0
    """Octets of those messages, as given to the delivery: after dot-unstuffing, with line ends."""
    recipients_accepted: int = 0
    """Recipients of those messages."""
    failures: int = 0
    """Unexpected exceptions, in the guard or in a delivery."""
    hangups: int = 0
    """Clients that disconnected before they were admitted or refused."""
    refusals: dict[str, int] = attrs.field(factory=dict)
    """Refusals by reason. The reasons are those of the log, so there are no more keys than reasons."""
    dry_run_refusals: dict[str, int] = attrs.field(factory=dict)
    """What limits in dry run would have refused, by reason."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)

    def snapshot(self) -> dict[str, int | dict[str, int]]:
        """A copy of all counts, by name."""
        counts: dict[str, int | dict[str, int]] = attrs.asdict(self)
        return counts
