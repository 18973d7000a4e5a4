"""What the engines of one guard share: limits, delivery, the offer of EHLO, and values derived from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from re import Match
from typing import Any

import attrs

from twisted_smtpguard import replies
from twisted_smtpguard.engine import grammar
from twisted_smtpguard.engine.message import MessageRules, message_rules
from twisted_smtpguard.engine.port import Cancellable
from twisted_smtpguard.engine.sasl import MECHANISMS, PasswordExchange
from twisted_smtpguard.engine.stages import Stage, StageRow
from twisted_smtpguard.inputs.arguments import derive_again, derived
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import no_limit
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import LoginClient

_MAX_UNWRITTEN_OCTETS = 64 * 1024
"""Replies are written at this size where `max_output_buffer` is 0: appending to more octets takes too long."""


@attrs.frozen
class Offer:
    """The reply to EHLO, and what it offers."""

    made_for: tuple[frozenset[str], int, bool, Sequence[str]]
    """What the offer depends on: the delivery's extensions, the largest message, whether CHUNKING is offered, and the
    mechanisms of AUTH."""
    reply: Reply
    mail_parameters: frozenset[str]
    """The MAIL parameters that may be used. BINARYMIME stands for BODY=BINARYMIME; DSN for RET and ENVID, and for
    NOTIFY and ORCPT at RCPT."""


@attrs.define(eq=False)
class ServerContext:
    """One guard, as its engines see it. Made by the factory; engines change nothing in it but `pending_deliveries` and
    `handshakes`."""

    limits: Limits
    delivery: Any
    """An IDelivery."""
    hostname: str
    events: Any
    """`Events`: counts and logs."""
    clients: Any
    """`ClientLimits`: what each client may have and do."""
    admission: Any
    """`Admission`: decides whether a connection is admitted."""
    known: Any
    """`KnownClients`: which clients are known."""
    attempts: Any
    """`LoginAttempts`: decides whether the password of a client may be checked."""
    offences: Any
    """`Offences`: counts what clients do wrong; None: nothing is counted."""
    seconds: Callable[[], float]
    """The time of the guard's clock, in seconds."""
    call_later: Callable[[float, Callable[[], object]], Cancellable]
    """Calls a function after so many seconds."""
    stages: Mapping[Stage, StageRow]
    """The table of stages."""
    guard: Any
    """The factory. `next_session_name()` returns a name; `greet_delay()` the seconds from admission to the greeting, at
    this time; `may_linger()` whether one more connection may linger, which is counted then. `release(engine)` is called
    once, when a connection gives back its slot. `session_times` is the `ExpiryQueue` of the greeted engines, for
    `Limits.max_session_time`."""
    pending_delivery_settled: Callable[[], object]
    """Called when a verdict has come after its client disconnected."""
    is_relay: Callable[[Any], bool]
    """Returns whether a mail transaction is an IRelayTransaction, which has its own reply to MAIL and takes chunks."""
    offers_chunking: Callable[[], bool]
    """Returns whether EHLO offers CHUNKING now."""
    session_ended: Callable[[str], object] | None = None
    """The `session_ended()` of the delivery, if it is an ISessionDelivery."""
    starttls: bool = False
    """Whether there is a certificate, so that STARTTLS is possible."""
    asks_for_certificates: bool = False
    """Whether clients are asked for a certificate, which IP filters get."""
    proxy_tls: bool = False
    """Whether the guard believes what a trusted proxy reports of its client's TLS."""
    identify: Callable[[Any], Any] | None = None
    """Called with a `Login`; returns the judgement of the checkers, now or later. None: AUTH is not offered."""
    mechanisms: Callable[[bool], Sequence[str]] = lambda certified: tuple(MECHANISMS)
    """Returns the mechanisms of AUTH, for a client that has shown a certificate or has not."""
    begin_exchange: Callable[[str, LoginClient], Any] = PasswordExchange
    """Begins an exchange by a mechanism that is none of the engine's own. It has `respond()` and `abort()`, as an
    ISaslExchange, and ends with a judgement as `identify` does."""
    auth_without_tls: bool = False
    """Whether AUTH is allowed without TLS."""
    require_tls: bool = False
    """Whether MAIL is refused without TLS."""
    require_auth: bool = False
    """Whether MAIL is refused before AUTH."""
    policies: Mapping[str, Sequence[Any]] = attrs.field(factory=dict)
    """The `PolicyEntry`s of each stage that has any, in their order."""
    deferral: Reply | None = attrs.field(default=None, init=False)
    """The reply to every MAIL while the operator defers all mail; None: mail is taken."""
    stressed: bool = attrs.field(default=False, init=False)
    """Whether the guard is in stress, so that strangers are held to `stress_limits`."""
    draining: bool = False
    """Whether the service is stopping, so that commands are refused."""
    pending_deliveries: int = 0
    """The number of pending finish() calls whose clients are gone."""
    handshakes: dict[Any, float] = attrs.field(factory=dict, init=False)
    """The engines whose TLS handshakes are under way, the oldest first, each with the time at which it began."""

    demands: bool = derived(lambda self: self.require_tls or self.require_auth or self.deferral is not None)
    """Whether TLS or AUTH is required, or every MAIL is refused."""
    hello: Reply = derived(lambda self: replies.hello(self.hostname))
    """The reply to HELO."""
    greeting: Reply = derived(lambda self: replies.greeting(self.hostname))
    begin: Callable[..., Any] = derived(lambda self: self.delivery.begin)
    """The delivery's `begin()`."""
    timeouts: dict[str, float] = derived(lambda self: _timeouts(self.limits))
    """The time limit for each `StageRow.timeout`, in seconds; 0 for none."""
    stress_limits: Limits = derived(lambda self: self.limits.in_stress())
    stress_timeouts: dict[str, float] = derived(lambda self: _timeouts(self.stress_limits))
    """`timeouts` for strangers in stress."""
    # Without a limit on command lines the whole line is kept in memory, so the bound on endless lines applies.
    max_line: int = derived(lambda self: self.limits.max_command_line or self.limits.max_endless_line)
    """The longest command line in octets, its CRLF included; 0 for no limit."""
    plain_line: Callable[[bytes, int], Match[bytes] | None] = derived(lambda self: _plain_line(self.max_line))
    """Matches a plain command line at an offset of the input (see grammar.py)."""
    max_auth_line: int = derived(
        lambda self: (
            self.limits.max_auth_line or self.limits.max_endless_line
            if self.identify is not None
            else self.max_line
        )
    )
    """The longest line of AUTH in octets; without AUTH the same as `max_line`."""
    max_unwritten: int = derived(lambda self: self.limits.max_output_buffer or _MAX_UNWRITTEN_OCTETS)
    """The octets of queued replies at which they are written, to learn whether the client reads them."""
    configured_max_octets: int = derived(lambda self: self.limits.enforced("max_message_size"))
    max_messages: float = derived(lambda self: no_limit(self.limits.max_messages))
    """The most messages of a session; infinity for no limit."""
    max_recipients: float = derived(lambda self: no_limit(self.limits.max_recipients))
    """The most recipients of a message; infinity for no limit."""
    max_pending_deliveries: float = derived(lambda self: no_limit(self.limits.max_pending_deliveries))
    """The number of `pending_deliveries` at which MAIL is refused; infinity for no limit."""
    measured: Any = derived(lambda self: self.events.measured)
    """The `Measurements` of the guard."""
    replies_sent: Any = derived(lambda self: self.events.measured.replies)
    """How many replies there were, by the verb of the last command and the code. A key that is missing counts as 0."""
    message_rate: Any = derived(lambda self: self.clients.rate("message_rate"))
    """`ClientRate`: counts the messages of each client; None for no limit."""
    recipient_rate: Any = derived(lambda self: self.clients.rate("recipient_rate"))
    """`ClientRate`: counts the recipients of each client; None for no limit."""
    _offers: dict[tuple[bool, bool], Offer] = derived(lambda self: {})
    _rules: Callable[[int, bool], MessageRules] = derived(
        lambda self: lru_cache(maxsize=2)(
            lambda max_message_octets, binary: message_rules(self.limits, self.max_octets, binary=binary)
        )
    )
    """Called with the delivery's `max_message_octets`, which may change at any time."""

    def defer(self, reply: Reply | None) -> None:
        """Give `reply` to every MAIL from now on; None: take mail again."""
        self.deferral = reply
        derive_again(self)

    def set_limits(self, limits: Limits) -> None:
        """Swap the limits, and make all that is derived from them again. `clients` has them already."""
        self.limits = limits
        derive_again(self)

    @property
    def max_octets(self) -> int:
        """The largest message in octets: the smaller of the operator's and the delivery's limit; 0 for no limit."""
        ours, theirs = self.configured_max_octets, self.delivery.max_message_octets
        return min(ours, theirs) if ours and theirs else ours or theirs

    def handshake_over(self, engine: Any, outcome: str) -> None:
        """Called when a TLS handshake is complete, has failed, or will not be gone on with. `outcome`: `completed`,
        `abandoned` by the client or by the end of the connection, or the reason in the log. Only the first call for a
        handshake has an effect."""
        if self.handshakes.pop(engine, None) is not None:
            version = engine.tls.partition(" ")[0] if outcome == "completed" else "none"
            self.measured.handshakes[version, outcome] += 1

    def rules(self, binary: bool) -> MessageRules:
        """The rules that a message has to satisfy now."""
        return self._rules(self.delivery.max_message_octets, binary)

    def offer(self, tls: bool, certified: bool = False) -> Offer:
        """The offer of EHLO now, with or without TLS. It is kept until the delivery changes its part, which is rare."""
        mechanisms = self.mechanisms(certified) if self._offers_auth(tls) else ()
        made_for = (self.delivery.extensions, self.max_octets, self.offers_chunking(), mechanisms)
        offer = self._offers.get((tls, certified))
        if offer is None or offer.made_for != made_for:
            offer = self._offers[tls, certified] = Offer(
                made_for,
                replies.hello(self.hostname, self._keywords(*made_for, tls)),
                _mail_parameters(made_for[0], auth=bool(mechanisms)),
            )
        return offer

    def offers_command(self, verb: str, tls: bool) -> bool:
        """Whether a command of the table is offered now, with or without TLS."""
        if verb == "STARTTLS":
            return self._offers_starttls(tls)
        return verb != "AUTH" or self._offers_auth(tls)

    def _offers_starttls(self, tls: bool) -> bool:
        return self.starttls and not tls

    def _offers_auth(self, tls: bool) -> bool:
        return self.identify is not None and (tls or self.auth_without_tls)

    def _keywords(
        self, extensions: frozenset[str], octets: int, chunking: bool, mechanisms: Sequence[str], tls: bool
    ) -> list[str]:
        """The keywords of EHLO (RFC 1870, 2034, 2920, 3030, 3207, 3461, 4954, 6152, 6531; LIMITS: RFC 9422)."""
        caps = (("RCPTMAX", "max_recipients"), ("MAILMAX", "max_messages"))
        # A limit in dry run is not announced: clients that respect it would never reach it.
        enforced = [(word, self.limits.enforced(name)) for word, name in caps]
        limits = [f"{word}={cap}" for word, cap in enforced if cap]
        return [
            "PIPELINING",
            f"SIZE {octets}" if octets else "SIZE",
            *(["CHUNKING"] if chunking else ()),
            *(("STARTTLS",) if self._offers_starttls(tls) else ()),
            *((" ".join(("AUTH", *mechanisms)),) if mechanisms else ()),
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


def _timeouts(limits: Limits) -> dict[str, float]:
    return {
        "": 0,
        "read": limits.read_timeout,
        "linger": limits.linger_timeout,
        "tls_handshake": _sooner(limits.tls_handshake_timeout, limits.read_timeout),
        "proxy_header": _sooner(limits.proxy_header_timeout, limits.read_timeout),
    }


def _sooner(*seconds: float) -> float:
    """The smallest of several time limits in seconds, where 0 means no limit; 0 if there is none."""
    return min((each for each in seconds if each), default=0)


def _plain_line(max_line: int) -> Callable[[bytes, int], Match[bytes] | None]:
    """`plain_line` of grammar.py, or a function that matches nothing where the limit is below a plain line's length."""
    fits = not max_line or max_line >= grammar.PLAIN_LINE_OCTETS
    return grammar.plain_line if fits else lambda buffer, offset: None
