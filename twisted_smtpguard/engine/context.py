"""What the engines of one guard share: its limits, its delivery, what EHLO offers, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from re import Match
from typing import Any

import attrs

from twisted_smtpguard import replies
from twisted_smtpguard.engine import grammar
from twisted_smtpguard.engine.message import MessageRules, message_rules
from twisted_smtpguard.engine.port import Cancellable
from twisted_smtpguard.engine.sasl import MECHANISMS
from twisted_smtpguard.engine.stages import Stage, StageRow
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import no_limit
from twisted_smtpguard.replies import Reply

_MAX_UNWRITTEN_OCTETS = 64 * 1024
"""Where there is no limit on replies that wait: to add to more than that takes too long."""


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
class ServerContext:
    """One guard, as its engines see it. Made by the factory; engines only read it, but for `pending_deliveries`."""

    limits: Limits
    delivery: Any
    """An IDelivery."""
    hostname: str
    events: Any
    """`Events`: counts and logs."""
    clients: Any
    """`ClientLimits`: what each client may have and do."""
    admission: Any
    """`Admission`: decides whether a connection is let in."""
    seconds: Callable[[], float]
    """The clock."""
    call_later: Callable[[float, Callable[[], object]], Cancellable]
    """Calls a function so many seconds later."""
    stages: Mapping[Stage, StageRow]
    """The table of stages."""
    next_session_name: Callable[[], str]
    greet_delay: Callable[[], float]
    """Seconds from the end of all other checks to the greeting, now."""
    release: Callable[[Any], None]
    """Called with an engine, once: its connection holds no slot any more."""
    may_linger: Callable[[], bool]
    """Whether one more connection may linger; if so it does."""
    session_times: Any
    """`ExpiryQueue` of engines whose session has a time limit."""
    pending_delivery_settled: Callable[[], object]
    """Called when a verdict has come after its client disconnected."""
    is_relay: Callable[[Any], bool]
    """Whether a mail transaction is one with another server, with a reply to MAIL and BDAT of its own."""
    offers_chunking: Callable[[], bool]
    """Whether the delivery takes BDAT now."""
    session_ended: Callable[[str], object] | None = None
    """The `session_ended()` of the delivery, if it is an ISessionDelivery."""
    starttls: bool = False
    """Whether there is a certificate, so that STARTTLS is possible."""
    asks_for_certificates: bool = False
    """Whether clients are asked for a certificate, which IP filters get."""
    proxy_tls: bool = False
    """What a trusted proxy says of its client's TLS is taken for true."""
    identify: Callable[[Any], Any] | None = None
    """Called with a `Login`: the judgement of the checkers, now or later. None: there is no AUTH."""
    auth_without_tls: bool = False
    """Credentials may come in clear."""
    require_tls: bool = False
    """MAIL is refused in clear."""
    require_auth: bool = False
    """MAIL is refused before AUTH."""
    draining: bool = False
    """The service stops: no new command is carried out."""
    pending_deliveries: int = 0
    """finish() calls still pending whose clients are gone."""

    demands: bool = attrs.field(init=False)
    """TLS or AUTH is required."""
    hello: Reply = attrs.field(init=False)
    """The answer to HELO."""
    greeting: Reply = attrs.field(init=False)
    begin: Callable[..., Any] = attrs.field(init=False)
    """The delivery's."""
    timeouts: dict[str, float] = attrs.field(init=False)
    """By the names of StageRow; seconds, 0 for none."""
    max_line: int = attrs.field(init=False)
    """Octets of a command line with its CRLF; 0: no limit."""
    plain_line: Callable[[bytes, int], Match[bytes] | None] = attrs.field(init=False)
    """Reads a plain command line at an offset of the input (see grammar.py)."""
    max_auth_line: int = attrs.field(init=False)
    """The same of a line of AUTH, where there is AUTH."""
    max_unwritten: int = attrs.field(init=False)
    """Octets of replies that are said before they leave, and it is looked at whether the client reads them."""
    configured_max_octets: int = attrs.field(init=False)
    max_messages: float = attrs.field(init=False)
    """Of a session; infinity for no limit, as in the next two."""
    max_recipients: float = attrs.field(init=False)
    """Of a message."""
    max_pending_deliveries: float = attrs.field(init=False)
    """As many pending finish() calls whose clients are gone, and no new message is taken."""
    message_rate: Any = attrs.field(init=False)
    """`ClientRate`: counts the messages of each client; None for no limit, as in the next."""
    recipient_rate: Any = attrs.field(init=False)
    _offers: dict[bool, Offer] = attrs.field(factory=dict, init=False)
    _rules: list[MessageRules] = attrs.field(factory=list, init=False)
    """For messages that are not binary, and for those that are."""
    _rules_made_for: int = attrs.field(default=-1, init=False)
    """The delivery's largest message."""

    def __attrs_post_init__(self) -> None:
        limits = self.limits
        self.demands = self.require_tls or self.require_auth
        self.hello = replies.hello(self.hostname)
        self.greeting = replies.greeting(self.hostname)
        self.begin = self.delivery.begin
        read = limits.read_timeout
        self.timeouts = {
            "": 0,
            "read": read,
            "linger": limits.linger_timeout,
            "tls_handshake": _sooner(limits.tls_handshake_timeout, read),
            "proxy_header": _sooner(limits.proxy_header_timeout, read),
        }
        # A line of any length is still one that has to end: it would be kept, not skipped.
        self.max_line = limits.max_command_line or limits.max_endless_line
        fits = not self.max_line or self.max_line >= grammar.PLAIN_LINE_OCTETS
        self.plain_line = grammar.plain_line if fits else _no_line
        has_auth = self.identify is not None
        self.max_auth_line = (limits.max_auth_line or limits.max_endless_line) if has_auth else self.max_line
        self.max_unwritten = limits.max_output_buffer or _MAX_UNWRITTEN_OCTETS
        self.configured_max_octets = limits.enforced("max_message_size")
        self.max_messages = no_limit(limits.max_messages)
        self.max_recipients = no_limit(limits.max_recipients)
        self.max_pending_deliveries = no_limit(limits.max_pending_deliveries)
        self.message_rate = self.clients.rate("message_rate")
        self.recipient_rate = self.clients.rate("recipient_rate")

    @property
    def max_octets(self) -> int:
        """The largest message: the smaller of the operator's and the delivery's limit; 0: none."""
        ours, theirs = self.configured_max_octets, self.delivery.max_message_octets
        return min(ours, theirs) if ours and theirs else ours or theirs

    def rules(self, binary: bool) -> MessageRules:
        """What a message must satisfy now."""
        theirs = self.delivery.max_message_octets
        if theirs != self._rules_made_for:
            # A delivery may change its mind on the largest message.
            self._rules_made_for = theirs
            self._rules = [message_rules(self.limits, self.max_octets, binary=each) for each in (False, True)]
        return self._rules[binary]

    def offer(self, tls: bool) -> Offer:
        """What EHLO advertises now, under TLS or in clear. A delivery may change its mind, but hardly ever does."""
        made_for = (self.delivery.extensions, self.max_octets, self.offers_chunking())
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
        return self.identify is not None and (tls or self.auth_without_tls)

    def _keywords(self, extensions: frozenset[str], octets: int, chunking: bool, tls: bool) -> list[str]:
        """RFC 1870, 2034, 2920, 3030, 3207, 3461, 4954, 6152, 6531; LIMITS: RFC 9422."""
        caps = (("RCPTMAX", "max_recipients"), ("MAILMAX", "max_messages"))
        # What is in dry run is not announced: clients that heed it would never meet it.
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
            "ENHANCEDSTATUSCODES",
        ]


def _mail_parameters(extensions: frozenset[str], *, auth: bool) -> frozenset[str]:
    offered = {"SIZE"} | (extensions & {"SMTPUTF8", "BINARYMIME", "DSN"})
    if extensions & {"8BITMIME", "BINARYMIME"}:
        offered.add("BODY")
    if auth:
        offered.add("AUTH")
    return frozenset(offered)


def _sooner(*seconds: float) -> float:
    """The smallest of several time limits, 0 being none."""
    return min((each for each in seconds if each), default=0)


def _no_line(buffer: bytes, offset: int) -> None:
    """In the place of `plain_line` where lines may be shorter than a plain one can be."""
