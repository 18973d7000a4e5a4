"""IP filters in their order: each is asked in its turn until one decides."""

from __future__ import annotations

import attrs

from twisted_smtpguard.interfaces import IIPFilter


@attrs.frozen
class FilterEntry:
    """An IP filter, and what the operator decided about it."""

    filter: IIPFilter
    name: str = ""
    """What the log calls it; the name of its class where it has none."""
    fail_open: bool = False
    """Where it cannot judge, a client is let in (the next filter is asked), not refused."""
