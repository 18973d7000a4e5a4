"""What all sessions of one factory share, and what follows from it for every one of them."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from twisted_smtpguard.admission.clients import ClientLimits
from twisted_smtpguard.events import Events
from twisted_smtpguard.interfaces import IDelivery
from twisted_smtpguard.limits import Limits
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply


@attrs.frozen
class Offer:
    """What an EHLO was told."""

    made_for: tuple[frozenset[str], int]
    """The delivery's extensions, and the largest message."""
    reply: Reply
    mail_parameters: frozenset[str]
    """The MAIL parameters that may be used. BINARYMIME stands for BODY=BINARYMIME."""


@attrs.define(eq=False)
class Site:
    """One guard, as its sessions see it."""

    limits: Limits
    delivery: IDelivery
    hostname: str
    events: Events
    clients: ClientLimits
    seconds: Callable[[], float]
    """The clock."""
    draining: bool = False
    """The service stops: no new command is carried out."""
    orphans: int = 0
    """finish() calls still pending whose clients are gone."""
    orphan_settled: Callable[[], object] = attrs.field(default=lambda: None)
    """Called when one of them has answered."""
    _offer: Offer | None = attrs.field(default=None, init=False)

    @property
    def max_octets(self) -> int:
        """The largest message: the smaller of the operator's and the delivery's limit; 0: none."""
        limits = (self.limits.enforced("max_message_size"), self.delivery.max_message_octets)
        return min((octets for octets in limits if octets), default=0)

    def offer(self) -> Offer:
        """What EHLO advertises now. A delivery may change its mind, but hardly ever does."""
        made_for = (self.delivery.extensions, self.max_octets)
        if self._offer is None or self._offer.made_for != made_for:
            self._offer = Offer(
                made_for,
                replies.hello(self.hostname, self._keywords(*made_for)),
                _mail_parameters(made_for[0]),
            )
        return self._offer

    def _keywords(self, extensions: frozenset[str], octets: int) -> list[str]:
        """RFC 1870, 2034, 2920, 3030, 6152, 6531; LIMITS: RFC 9422."""
        caps = (("RCPTMAX", "max_recipients"), ("MAILMAX", "max_messages"))
        # What is only tried is not announced: clients that heed it would never meet it.
        enforced = [(word, self.limits.enforced(name)) for word, name in caps]
        limits = [f"{word}={cap}" for word, cap in enforced if cap]
        return [
            "PIPELINING",
            f"SIZE {octets}" if octets else "SIZE",
            "ENHANCEDSTATUSCODES",
            "CHUNKING",
            *(word for word in ("8BITMIME", "BINARYMIME", "SMTPUTF8") if word in extensions),
            *([" ".join(("LIMITS", *limits))] if limits else ()),
        ]


def _mail_parameters(extensions: frozenset[str]) -> frozenset[str]:
    offered = {"SIZE"} | (extensions & {"SMTPUTF8", "BINARYMIME"})
    if extensions & {"8BITMIME", "BINARYMIME"}:
        offered.add("BODY")
    return frozenset(offered)
