"""What all sessions of one factory share, and what follows from it for every one of them."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from twisted_smtpguard.events import Events
from twisted_smtpguard.interfaces import IDelivery
from twisted_smtpguard.limits import Limits


@attrs.define(eq=False)
class Site:
    """One guard, as its sessions see it."""

    limits: Limits
    delivery: IDelivery
    hostname: str
    events: Events
    seconds: Callable[[], float]
    """The clock."""
    draining: bool = False
    """The service stops: no new command is carried out."""
    orphans: int = 0
    """finish() calls still pending whose clients are gone."""
    orphan_settled: Callable[[], object] = attrs.field(default=lambda: None)
    """Called when one of them has answered."""

    @property
    def max_octets(self) -> int:
        """The largest message: the smaller of the operator's and the delivery's limit; 0: none."""
        limits = (self.limits.max_message_size, self.delivery.max_message_octets)
        return min((octets for octets in limits if octets), default=0)

    def keywords(self) -> list[str]:
        """What EHLO advertises (RFC 1870, 2034, 2920, 3030, 6152, 6531; LIMITS: RFC 9422)."""
        octets = self.max_octets
        caps = (("RCPTMAX", self.limits.max_recipients), ("MAILMAX", self.limits.max_messages))
        limits = [f"{name}={cap}" for name, cap in caps if cap]
        return [
            "PIPELINING",
            f"SIZE {octets}" if octets else "SIZE",
            "ENHANCEDSTATUSCODES",
            "CHUNKING",
            *(word for word in ("8BITMIME", "BINARYMIME", "SMTPUTF8") if word in self.delivery.extensions),
            *([" ".join(("LIMITS", *limits))] if limits else ()),
        ]

    def mail_parameters(self) -> frozenset[str]:
        """The MAIL parameters that EHLO's keywords allow. BINARYMIME stands for BODY=BINARYMIME."""
        extensions = self.delivery.extensions
        offered = {"SIZE"} | (extensions & {"SMTPUTF8", "BINARYMIME"})
        if extensions & {"8BITMIME", "BINARYMIME"}:
            offered.add("BODY")
        return frozenset(offered)
