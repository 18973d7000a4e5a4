"""What plugs into the guard, and what the guard promises it. Imports no reactor.

A hook answers now, or with a Deferred; `async def` is welcome (it is converted once). On the asyncio reactor such a
coroutine is a task of the loop, which may await whatever asyncio has; elsewhere it may await Deferreds. One hook of a
session runs at a time. Raise `Refused` to refuse; any other exception is logged with its traceback and is a
`451 4.3.0` to the client.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias, TypeVar

import attrs
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from twisted_smtpguard.addresses import unmapped
from twisted_smtpguard.arguments import check_fields
from twisted_smtpguard.smtp.replies import CONNECTION_REFUSED, Reply

T = TypeVar("T")
Later: TypeAlias = T | Deferred[T] | Awaitable[T]
Address: TypeAlias = IPv4Address | IPv6Address


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
        if type(self.address) is not str or not isinstance(self.parameters, Mapping):
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


class IIPFilter(Interface):
    """Says who may come in, by address."""

    def check(peer: Peer) -> Later[Verdict]:
        """Called once a connection, before its greeting; never for one that was refused before.

        Must not block. It has `Limits.ip_filter_timeout` seconds. Its Deferred is cancelled when the client
        leaves, at the time limit, or when another limit refuses meanwhile. An exception, no answer in time,
        or what is no Verdict: the client gets `421 4.3.0`, or comes in where the operator wrote fail-open.
        """


class IReloadable(Interface):
    """A filter or delivery that can read its data anew: on SIGHUP and `service.reload()`. Optional."""

    def reload() -> Later[None]:
        """Take the new data whole, or raise and keep the old. It has two minutes. New data hold for connections
        that the filter has not been asked about.

        The exception's text is logged for the operator: it should name the file and the line.
        """


class IPreparedReload(IReloadable):
    """One that can read its data before it takes them, so that several change at the same time. Optional."""

    def prepare_reload() -> Later[Callable[[], None]]:
        """Called instead of `reload()`. Read the new data and answer with what switches to them, which must
        not raise; or raise and keep the old."""


class IReadsFiles(Interface):
    """A filter, delivery or certificate that tells the log which files its reload reads. Optional."""

    files: Mapping[str, str] = Attribute(
        "Of each path the option of the command line that names it, without its dashes; '' where that is the option "
        "of the filter or the delivery itself. Never what holds a secret in its name."
    )


class IIPFilterFactory(Interface):
    """A plugin for `--ip-filter NAME:ARGS` provides this and twisted.plugin.IPlugin."""

    name: str = Attribute("What stands before the colon: [a-z][a-z0-9-]*.")
    summary: str = Attribute("One line for --help-ip-filters.")
    argument_format: str = Attribute("What may stand behind the colon, for --help-ip-filter NAME.")

    def make_filter(argument: str, reactor: object) -> IIPFilter:
        """Called before anything listens. ValueError is a usage error; its text is shown.

        A filter that also provides twisted.application.service.IService becomes a child of the service:
        started before any listener, stopped after the last session.
        """


class ICounterStore(Interface):
    """Counts what clients do, for the limits per client. The guard's own is in its memory; one that several
    processes or hosts share may answer with Deferreds.

    `counter` says what is counted: the name of a field of Limits. `client` is the key of a client, such as
    `192.0.2.1` or `2001:db8::/64`. An exception, or no answer within 10 seconds: the client
    gets `421 4.3.0`, in a session `451 4.3.0`. No call is cancelled.
    """

    def acquire(counter: str, client: str, limit: int) -> Later[int]:
        """Take one of the places that `client` may hold at once, and answer how many it then holds, this one
        included. An answer above `limit` means that none was taken; 0 is no limit."""

    def release(counter: str, client: str) -> Later[None]:
        """Give back a place. Called exactly once for each that was taken."""

    def add(counter: str, client: str, events: int, seconds: float, now: float) -> Later[int]:
        """Count `events`, and answer how many there were in this window, these included. 0 only asks, -1 takes
        one back; where there is no window, neither begins one, and the answer is 0, never less.

        A window of `seconds` begins with the first event of a client, or the first after its last window.
        `now` is the guard's clock, which somebody may set back.
        """


class IMessageSink(Interface):
    """One message on its way in. Octets as after dot-unstuffing: CRLF line ends, no final dot, no field
    added by the guard."""

    def write(data: bytes) -> Deferred[None] | None:
        """Take the next octets, at most 64 KiB a call.

        While a returned Deferred is pending there is no other call but `abort()`, and the client is not read.
        `Refused`: the rest of the message is swallowed, and the reply comes at the end of the data.
        """

    def finish() -> Later[Reply | None]:
        """The message is whole and within the limits. Answer when it is safe; None is `250 2.0.0`.

        Never cancelled by a disconnect: it runs to its time limit (Limits.delivery_timeout), and
        `stopService()` waits for it. At the time limit its Deferred is cancelled and the client gets a 451.
        """

    def abort() -> None:
        """Instead of `finish()`: nothing may be delivered. May come while a `write()` is pending, never after
        `finish()`. Must not raise."""


class IMailTransaction(Interface):
    """Ends in exactly one of: `abort()`, or the sink's `finish()` or `abort()`."""

    def recipient(recipient: Path) -> Later[Reply | None]:
        """Called once a RCPT within the limits. None: `250 2.1.5`. A 2xx Reply replaces its text."""

    def data() -> Later[IMessageSink]:
        """Called once, at DATA or the first BDAT, with one accepted recipient or more. The 354 follows its
        answer."""

    def abort() -> None:
        """RSET, EHLO, QUIT, disconnect, timeout or stop before `data()` has answered. Not after. Must not
        raise."""


class IRelayTransaction(IMailTransaction):
    """A transaction with another server. Optional."""

    begun: Reply = Attribute("The 2xx that answers MAIL, instead of `250 2.1.0`.")

    def data_in_chunks() -> Later[IMessageSink]:
        """Called instead of `data()` where the client sends BDAT (RFC 3030)."""


class IDelivery(Interface):
    """Where messages go."""

    extensions: frozenset[str] = Attribute(
        "The SMTP extensions that it can carry, of 8BITMIME SMTPUTF8 BINARYMIME DSN; read at each EHLO."
    )
    max_message_octets: int = Attribute(
        "The largest message that it takes; 0: no opinion. SIZE is the smaller of this and Limits."
    )

    def begin(client: Client, sender: Path) -> Later[IMailTransaction]:
        """Called at MAIL, after the guard's own limits. If its Deferred is cancelled it must take back what
        it took."""


class ISessionDelivery(IDelivery):
    """A delivery that has something for each session, such as a login, and gives it back at the end. Optional."""

    def session_ended(session: str) -> None:
        """Called exactly once for each session, by its id in the log, for which `begin()` was called.

        The session is over, and every hook that was called for it has answered: a pending `finish()` too, and
        one that went on in spite of its cancellation. No call of a hook or an `abort()` follows. Must not
        raise: that is logged, and nothing else comes of it.
        """


class IRelayDelivery(IDelivery):
    """A delivery that hands messages to another server. Optional."""

    chunking: bool = Attribute(
        "CHUNKING may be offered. Read at each EHLO; other deliveries have no say in it."
    )
    may_relay_for_all: bool = Attribute(
        "The server takes every client for the guard, by its address or its log-in, and every recipient is passed on: "
        "start-up warns of that, unless everybody has to log in."
    )


class IConnectingDelivery(IDelivery):
    """A delivery that has connections of its own, such as to another server. Optional."""

    max_connections: int = Attribute(
        "The most that it has at once; 0: it cannot tell. Start-up counts them among the file descriptors that the "
        "process needs."
    )


class IDeliveryFactory(Interface):
    """A plugin for `--deliver NAME:ARGS` provides this and twisted.plugin.IPlugin."""

    name: str = Attribute("What stands before the colon: [a-z][a-z0-9-]*.")
    summary: str = Attribute("One line for --help-deliveries.")
    argument_format: str = Attribute("What may stand behind the colon, for --help-delivery NAME.")

    def make_delivery(argument: str, reactor: object) -> IDelivery:
        """Called before anything listens. ValueError is a usage error; its text is shown.

        A delivery that also provides twisted.application.service.IService becomes a child of the service:
        started before any listener, stopped after the last session.
        """
