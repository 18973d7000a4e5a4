"""The values that hooks get, and those that they answer with. They know neither Twisted nor sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import attrs

from twisted_smtpguard.inputs.arguments import check_fields, unfit
from twisted_smtpguard.replies import CONNECTION_REFUSED, Reply

Address: TypeAlias = IPv4Address | IPv6Address

FAULTS = (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt)
"""The exceptions that are caught when a hook, which is foreign code, raises. The last three are no Exceptions."""


def is_later(answer: Any) -> bool:
    """Whether a hook answered with a Deferred or another awaitable instead of its value."""
    return is_awaitable(type(answer))


def _is_awaitable(kind: Any) -> bool:
    # A Deferred has this method too. isinstance(answer, Awaitable) would cost more, since Awaitable is abstract.
    return hasattr(kind, "__await__")


is_awaitable: Callable[[type], bool] = lru_cache(maxsize=256)(_is_awaitable)
"""Whether the instances of a class are awaitables. Cached, since it is called for every answer of a hook."""


def unmapped(address: Address | None, name: str = "address") -> Address | None:
    """`address`, with an IPv4-mapped IPv6 address turned into the IPv4 address that it stands for (RFC 4291 2.5.5.2).
    TypeError, which names the argument `name`: it is not an address."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    if address is None or isinstance(address, IPv4Address):
        return address
    raise unfit(name, "an IPv4Address or an IPv6Address or None", address)


class Refused(Exception):  # noqa: N818 - a decision of a hook, not a fault
    """Raised by a hook to refuse with `reply`, a 4xx or 5xx. With any other code it is a fault: `451 4.3.0`."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self.reply = reply


class CheckerUnavailable(Exception):  # noqa: N818 - what it says of the checker
    """Raised by a checker that cannot judge credentials now: its file cannot be read, its database is down, or it does
    not know the format of a password. The client gets `454 4.7.0`, and no failure of it is counted.

    The message is logged, so it must contain no password. Of any other exception but UnauthorizedLogin the log has only
    the type and the traceback.
    """


def _local(address: Address | None) -> Address | None:
    return unmapped(address, "local_address")


@attrs.frozen
class Peer:
    """The client of a connection, as it is known before the greeting."""

    address: Address | None = attrs.field(converter=unmapped)
    """The client's address; None for a UNIX socket. An IPv4-mapped IPv6 address becomes an IPv4 address."""
    port: int | None
    local_address: Address | None = attrs.field(converter=_local)
    local_port: int | None
    tls: bool = False
    """Whether the client uses implicit TLS, whose handshake may still be going on, or TLS that ends at a trusted
    proxy."""
    proxied: bool = False
    """Whether a trusted proxy announced the client. Then the values are those of the client, not of the proxy."""
    certificate: bytes | None = None
    """The client's certificate, in DER form. None before the TLS handshake, and if the client was not asked for one or
    has none."""

    def __attrs_post_init__(self) -> None:
        if not (
            type(self.port) is type(self.local_port) is int and type(self.tls) is type(self.proxied) is bool
        ):
            check_fields(self)


@attrs.frozen
class Client:
    """The client and its session, as they are at MAIL."""

    peer: Peer
    session: str
    """The id of the session in the log."""
    helo: str
    """The name that the client gave in HELO or EHLO, as sent: one printable word. It is not verified."""
    protocol: str
    """The "with" word of RFC 3848 and RFC 6531: SMTP, ESMTP, ESMTPS, UTF8SMTP and so on."""
    identity: str | None
    """The authenticated user. None: the client has not logged in."""
    trusted: bool
    """Whether an IP filter trusts the client."""
    tls: str = ""
    """The TLS version and cipher, such as `TLSv1.3 TLS_AES_256_GCM_SHA384`; "" without TLS."""
    avatar_id: object = attrs.field(default=None, eq=False, repr=False)
    """The answer of a twisted.cred checker for that user, which a realm can use. None: the client has not logged in."""
    known: bool = False
    """Whether the client is known: mail of it was accepted lately, or the operator has named it. As of the session's
    first MAIL since EHLO; a verdict on a mail of the session changes it."""

    def __attrs_post_init__(self) -> None:
        texts = type(self.session) is type(self.helo) is type(self.protocol) is type(self.tls) is str
        flags = type(self.trusted) is type(self.known) is bool
        if not (texts and flags and self.identity is None and isinstance(self.peer, Peer)):
            check_fields(self)

    @property
    def is_stranger(self) -> bool:
        """Whether the client is neither known nor trusted, and has not logged in."""
        return not (self.known or self.trusted) and self.identity is None


@attrs.frozen
class LoginClient:
    """The client that logs in, as a mechanism sees it."""

    peer: Peer
    session: str
    """The id of the session in the log."""
    tls: str = ""
    """The TLS version and cipher, such as `TLSv1.3 TLS_AES_256_GCM_SHA384`; "" without TLS."""
    known: bool = False
    """Whether the user has logged in from this client before. It is known for passwords only."""
    key: str = ""
    """The client, or its network, as the limits per client count it."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)


@attrs.frozen
class Challenge:
    """An exchange goes on: the client is sent these octets, and asked for its next response."""

    octets: bytes = b""
    wrong: bool = False
    """Whether the credentials are wrong, and these octets say why (RFC 7628 3.2.2). They count as wrong now; the client
    gets a 535 to whatever it responds, and the exchange is not asked any more."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)


@attrs.frozen
class LoggedIn:
    """An exchange has ended, and the client has logged in."""

    user: str
    """The name of the user, for the log and for deliveries."""
    avatar_id: object = attrs.field(default=None, eq=False, repr=False)
    """What deliveries get as `Client.avatar_id`."""
    final: bytes = b""
    """What the client is to be sent besides, such as the proof of a server that it knows the password too."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)


@attrs.frozen
class Path:
    """The address of a MAIL or RCPT command, with its parameters."""

    address: str
    """The address; "" is the null sender. Quoting is kept as sent. It is ASCII unless SMTPUTF8 is in use."""
    parameters: Mapping[str, str | None]
    """The value of each keyword, which is in upper case; None for a keyword without a value. There are only parameters
    that were advertised."""

    def __attrs_post_init__(self) -> None:
        if type(self.address) is not str or type(self.parameters) is not MappingProxyType:
            check_fields(self)


NO_PARAMETERS: Mapping[str, str | None] = MappingProxyType({})
_set_address = vars(Path)["address"].__set__
_set_parameters = vars(Path)["parameters"].__set__


def plain_path(address: bytes) -> Path:
    """The Path of an ASCII address without parameters. It is made for nearly every MAIL and RCPT, and takes a third of
    the time of `Path()`, which checks what it is given."""
    path = object.__new__(Path)
    _set_address(path, address.decode("ascii"))
    _set_parameters(path, NO_PARAMETERS)
    return path


class CounterStoreUnavailable(Exception):  # noqa: N818 - what it says of the store
    """Raised by a counter store that is away, as one on another host may be. The message is logged, without a
    traceback. Of any other exception the log has the traceback too."""


class Wanted(NamedTuple):
    """What one decision wants of a counter store: a place, or events in a window."""

    counter: str
    """The name of what is counted: of a limit, which is a field of Limits, or of something that a limit looks at."""
    client: str
    """The key of a client, such as `192.0.2.1` or `2001:db8::/64`, of a network of clients, such as `2001:db8::/48`, or
    of a user, there or anywhere; "" for the whole guard."""
    limit: int = 0
    """The highest count at which it is taken; 0 for no limit."""
    seconds: float = 0
    """The length of the window, which begins with its first event; 0 for a place, which is held until it is given
    back. All that is wanted of one counter is of one kind."""
    events: int = 1
    """How many events, or places."""


class Record(NamedTuple):
    """What is remembered of a client, or of a user, under a key of its kind."""

    value: str
    """At most 200 octets of printable ASCII. What they say depends on the kind."""
    end: float
    """When it is forgotten, in seconds since 1970."""


MOST_RECORDS = 100_000
"""How many records there are of each kind, in a guard unless its table is told another number, and in Redis. Above that
the one whose end comes first goes."""


class RecordsSince(NamedTuple):
    """What has changed in the records of one kind."""

    records: Mapping[str, Record | None]
    """The records that were put, by their keys; None for one that was removed."""
    mark: str
    """What to ask with next."""
    more: bool
    """Whether there is more already."""
    anew: bool
    """Whether these begin with the first record that there is, since the store does not know the mark that it was asked
    with: it has lost its data, or the mark was ""."""


@attrs.frozen
class Verdict:
    """The verdict of an IP filter on a peer: PASS (no opinion), or TRUST or `refuse(reply)`, which decide.

    Use these three names to make one. Anything else is a ValueError.
    """

    kind: str
    reply: Reply | None = None
    rule: str = attrs.field(default="", eq=False)
    """The rule that led to a refusal, such as the network or the list. It is for the log, and never sent to the client.
    Verdicts that differ only in it are equal."""
    dry_run: bool = False
    """Whether the refusal is only logged, with `dry_run=true`, and the next filter is asked."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.rule, str):
            raise ValueError(f"a rule is a text, not {self.rule!r}")
        if type(self.dry_run) is not bool or (self.dry_run and self.kind != "refuse"):
            raise ValueError(f"only a refusal is in dry run, not {self.kind!r} with dry_run={self.dry_run!r}")
        if self.kind == "refuse":
            if not isinstance(self.reply, Reply) or not self.reply.closes or not is_short(self.reply.lines):
                raise ValueError(f"a connection is refused with a short 421 or 521 reply, not {self.reply!r}")
        elif self.kind not in ("pass", "trust") or self.reply is not None:
            raise ValueError(f"there is no verdict {self.kind!r} with the reply {self.reply!r}")


def is_short(lines: object) -> bool:
    """Whether the lines of a reply are so few that they fit in about one packet: the guard does not wait until a client
    that it refuses has read them."""
    return isinstance(lines, tuple) and len(lines) <= 10 and all(isinstance(line, str) for line in lines)


PASS = Verdict("pass")
"""The filter has no opinion, and the next one is asked."""

TRUST = Verdict("trust")
"""The client is admitted, and exempt from limits per client, rates, greet delay, early-talker and error limits."""


def refuse(reply: Reply = CONNECTION_REFUSED, rule: str = "", *, dry_run: bool = False) -> Verdict:
    """The verdict that refuses a connection with `reply`, a 421 or 521. `rule` is logged as the cause. With `dry_run`
    that is all: the next filter is asked."""
    return Verdict("refuse", reply, rule, dry_run)


class FilterMetric(NamedTuple):
    """A metric of an IP filter."""

    name: str
    """Its name, without `smtpguard_` before it, and without `_total` after it."""
    text: str
    """What it is, in a sentence."""
    labels: tuple[str, ...]
    """The names of its labels."""
    values: Mapping[tuple[str, ...], float]
    """A number for each combination of labels' values."""
    rises: bool = False
    """Whether the numbers only rise: it is a counter then, and else a gauge."""
