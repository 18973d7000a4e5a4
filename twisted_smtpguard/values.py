"""What hooks are told and what they answer: values, which know neither Twisted nor a session."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import TypeAlias

import attrs

from twisted_smtpguard.inputs.arguments import check_fields, unfit
from twisted_smtpguard.replies import CONNECTION_REFUSED, Reply

Address: TypeAlias = IPv4Address | IPv6Address


def unmapped(address: Address | None, name: str = "address") -> Address | None:
    """An IPv4-mapped IPv6 address as the IPv4 address that it is (RFC 4291 2.5.5.2); any other as it is. TypeError,
    for the argument `name`, where it is none."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    if address is None or isinstance(address, IPv4Address):
        return address
    raise unfit(name, "an IPv4Address or an IPv6Address or None", address)


class Refused(Exception):  # noqa: N818 - the word of the field, and what a hook says
    """Raised by a hook to refuse with `reply`, a 4xx or 5xx. Anything else is our fault: `451 4.3.0`."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self.reply = reply


class CheckerUnavailable(Exception):  # noqa: N818 - what it says of the checker
    """Raised by a checker that cannot judge credentials now: its file cannot be read, its database is down, or it does
    not know the format of a password. The client gets `454 4.7.0`, and it counts as nobody's failure.

    The message is logged, so it must hold no password. Of any other exception but UnauthorizedLogin the log has the
    type and the traceback only.
    """


def _local(address: Address | None) -> Address | None:
    return unmapped(address, "local_address")


@attrs.frozen
class Peer:
    """Who connects, as far as it is known before the greeting."""

    address: Address | None = attrs.field(converter=unmapped)
    """None: a UNIX socket. An IPv4-mapped IPv6 address becomes IPv4."""
    port: int | None
    local_address: Address | None = attrs.field(converter=_local)
    local_port: int | None
    tls: bool = False
    """Implicit TLS, whose handshake may still be going on, or TLS that a trusted proxy in front has ended."""
    proxied: bool = False
    """The values are the real client's, told by a trusted proxy in front."""
    certificate: bytes | None = None
    """What the client has shown in the TLS handshake, in DER form. None before the handshake, and where it was not
    asked for one or has none."""

    def __attrs_post_init__(self) -> None:
        if not (
            type(self.port) is type(self.local_port) is int and type(self.tls) is type(self.proxied) is bool
        ):
            check_fields(self)


@attrs.frozen
class Client:
    """The session at MAIL: a value, never the session itself."""

    peer: Peer
    session: str
    """The id in the log."""
    helo: str
    """What the client called itself, as sent: any one printable word. Not verified."""
    protocol: str
    """The "with" word of RFC 3848 and RFC 6531: SMTP, ESMTP, ESMTPS, UTF8SMTP and so on."""
    identity: str | None
    """The authenticated user."""
    trusted: bool
    """An IP filter said so."""
    tls: str = ""
    """How the session is encrypted: version and cipher, such as `TLSv1.3 TLS_AES_256_GCM_SHA384`. "": it is not."""
    avatar_id: object = attrs.field(default=None, eq=False, repr=False)
    """What a checker of twisted.cred answered for that user, for a realm to take. None: nobody has logged in."""

    def __attrs_post_init__(self) -> None:
        texts = type(self.session) is type(self.helo) is type(self.protocol) is type(self.tls) is str
        if not (
            texts and self.identity is None and isinstance(self.peer, Peer) and type(self.trusted) is bool
        ):
            check_fields(self)


@attrs.frozen
class Path:
    """The address of a MAIL or RCPT command with its parameters."""

    address: str
    """"" is the null sender; quoting is kept as sent; non-ASCII only under SMTPUTF8."""
    parameters: Mapping[str, str | None]
    """Upper-case keyword to value, None for a keyword without one. Only what was advertised."""

    def __attrs_post_init__(self) -> None:
        if type(self.address) is not str or type(self.parameters) is not MappingProxyType:
            check_fields(self)


@attrs.frozen
class Verdict:
    """What an IP filter says of a peer: PASS (no opinion), TRUST or `refuse(reply)`, which decide.

    Build it with these three names. A ValueError where it is none of them.
    """

    kind: str
    reply: Reply | None = None
    rule: str = attrs.field(default="", eq=False)
    """What led to a refusal, for the log, such as the network or the list: never the client's to see. Of two verdicts
    that differ in nothing else both mean the same."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.rule, str):
            raise ValueError(f"a rule is a text, not {self.rule!r}")
        if self.kind == "refuse":
            if not isinstance(self.reply, Reply) or not self.reply.closes or not _short(self.reply.lines):
                raise ValueError(f"a connection is refused with a short 421 or 521 reply, not {self.reply!r}")
        elif self.kind not in ("pass", "trust") or self.reply is not None:
            raise ValueError(f"there is no verdict {self.kind!r} with the reply {self.reply!r}")


def _short(lines: object) -> bool:
    """A few lines, which leave in one packet or so: whoever is refused is not waited for."""
    return isinstance(lines, tuple) and len(lines) <= 10 and all(isinstance(line, str) for line in lines)


PASS = Verdict("pass")
"""No opinion: the next filter is asked."""

TRUST = Verdict("trust")
"""Let in, and exempt from limits per client, rates, greet delay, early-talker and error limits."""


def refuse(reply: Reply = CONNECTION_REFUSED, rule: str = "") -> Verdict:
    """The verdict that refuses a connection with `reply`, a 421 or 521. `rule` says in the log what led to it."""
    return Verdict("refuse", reply, rule)
