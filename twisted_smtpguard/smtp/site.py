"""What all sessions of one factory share, and what follows from it for every one of them."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from twisted_smtpguard.admission.clients import ClientLimits
from twisted_smtpguard.checkers.checking import Checkers
from twisted_smtpguard.events import Events
from twisted_smtpguard.interfaces import IDelivery, IRelayDelivery, ISessionDelivery
from twisted_smtpguard.limits import Limits
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.maildata import MessageRules
from twisted_smtpguard.smtp.reception import message_rules
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.smtp.sasl import MECHANISMS


@attrs.frozen
class Offer:
    """What an EHLO was told."""

    made_for: tuple[frozenset[str], int, bool]
    """The delivery's extensions, the largest message, and whether BDAT may be offered."""
    reply: Reply
    mail_parameters: frozenset[str]
    """The MAIL parameters that may be used. BINARYMIME stands for BODY=BINARYMIME, DSN for its four, two of them of
    RCPT."""


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
    starttls: bool = False
    """There is a certificate: TLS may be asked for."""
    checkers: Checkers | None = None
    """Who may log in; None: there is no AUTH."""
    auth_without_tls: bool = False
    """Credentials may come in clear."""
    require_tls: bool = False
    """MAIL is refused in clear."""
    require_auth: bool = False
    """MAIL is refused to who has not logged in."""
    demands: bool = attrs.field(init=False)
    """One of these two."""
    draining: bool = False
    """The service stops: no new command is carried out."""
    orphans: int = 0
    """finish() calls still pending whose clients are gone."""
    orphan_settled: Callable[[], object] = attrs.field(default=lambda: None)
    """Called when one of them has answered."""
    _offers: dict[bool, Offer] = attrs.field(factory=dict, init=False)
    _max_octets: int = attrs.field(init=False)
    _rules: dict[tuple[int, bool], MessageRules] = attrs.field(factory=dict, init=False)
    hello: Reply = attrs.field(init=False)
    """The answer to HELO."""
    says_farewell: bool = attrs.field(init=False)
    """The delivery wants to hear of the end of sessions."""

    def __attrs_post_init__(self) -> None:
        self.demands = self.require_tls or self.require_auth
        self.says_farewell = ISessionDelivery.providedBy(self.delivery)
        self.hello = replies.hello(self.hostname)
        self._max_octets = self.limits.enforced("max_message_size")

    @property
    def max_octets(self) -> int:
        """The largest message: the smaller of the operator's and the delivery's limit; 0: none."""
        ours, theirs = self._max_octets, self.delivery.max_message_octets
        return min(ours, theirs) if ours and theirs else ours or theirs

    def rules(self, *, binary: bool) -> MessageRules:
        """What a message must satisfy now."""
        octets = self.max_octets
        rules = self._rules.get((octets, binary))
        if rules is None:
            # A delivery may change its mind on the largest message; the one before is over then.
            self._rules.clear()
            for each in (False, True):
                self._rules[octets, each] = message_rules(self.limits, octets, binary=each)
            rules = self._rules[octets, binary]
        return rules

    def offer(self, tls: bool) -> Offer:
        """What EHLO advertises now, under TLS or in clear. A delivery may change its mind, but hardly ever does."""
        delivery = self.delivery
        chunking = not IRelayDelivery.providedBy(delivery) or IRelayDelivery(delivery).chunking
        made_for = (delivery.extensions, self.max_octets, chunking)
        offer = self._offers.get(tls)
        if offer is None or offer.made_for != made_for:
            offer = self._offers[tls] = Offer(
                made_for,
                replies.hello(self.hostname, self._keywords(*made_for, tls)),
                _mail_parameters(made_for[0], auth=self._offers_auth(tls)),
            )
        return offer

    def commands(self, tls: bool) -> Reply:
        """The answer to HELP, under TLS or in clear."""
        return replies.commands(starttls=self._offers_starttls(tls), auth=self._offers_auth(tls))

    def _offers_starttls(self, tls: bool) -> bool:
        return self.starttls and not tls

    def _offers_auth(self, tls: bool) -> bool:
        return self.checkers is not None and (tls or self.auth_without_tls)

    def _keywords(self, extensions: frozenset[str], octets: int, chunking: bool, tls: bool) -> list[str]:
        """RFC 1870, 2034, 2920, 3030, 3207, 3461, 4954, 6152, 6531; LIMITS: RFC 9422."""
        caps = (("RCPTMAX", "max_recipients"), ("MAILMAX", "max_messages"))
        # What is only tried is not announced: clients that heed it would never meet it.
        enforced = [(word, self.limits.enforced(name)) for word, name in caps]
        limits = [f"{word}={cap}" for word, cap in enforced if cap]
        return [
            "PIPELINING",
            f"SIZE {octets}" if octets else "SIZE",
            *(["CHUNKING"] if chunking else ()),
            *(("STARTTLS",) if self._offers_starttls(tls) else ()),
            *((" ".join(("AUTH", *MECHANISMS)),) if self._offers_auth(tls) else ()),
            *(word for word in ("8BITMIME", "BINARYMIME", "SMTPUTF8", "DSN") if word in extensions),
            *([" ".join(("LIMITS", *limits))] if limits else ()),
            # The last line has a blank where the others have a hyphen: who looks for `250-STARTTLS` has to find it.
            "ENHANCEDSTATUSCODES",
        ]


def _mail_parameters(extensions: frozenset[str], *, auth: bool) -> frozenset[str]:
    offered = {"SIZE"} | (extensions & {"SMTPUTF8", "BINARYMIME", "DSN"})
    if extensions & {"8BITMIME", "BINARYMIME"}:
        offered.add("BODY")
    if auth:
        offered.add("AUTH")
    return frozenset(offered)
