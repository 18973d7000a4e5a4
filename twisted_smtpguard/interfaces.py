"""What plugs into the guard, and what the guard promises it. Imports no reactor.

A hook answers now, or with a Deferred; `async def` is welcome (it is converted once). On the asyncio reactor such a
coroutine is a task of the loop, which may await whatever asyncio has; elsewhere it may await Deferreds. One hook of a
session runs at a time. Raise `Refused` to refuse; any other exception is logged with its traceback and is a
`451 4.3.0` to the client.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias, TypeVar

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import (
    PASS,
    TRUST,
    Address,
    CheckerUnavailable,
    Client,
    Path,
    Peer,
    Refused,
    Verdict,
    refuse,
)

__all__ = [
    "PASS",
    "TRUST",
    "Address",
    "CheckerUnavailable",
    "Client",
    "IConnectingDelivery",
    "ICounterStore",
    "IDelivery",
    "IDeliveryFactory",
    "IIPFilter",
    "IIPFilterFactory",
    "IMailTransaction",
    "IMessageSink",
    "IPreparedReload",
    "IReadsFiles",
    "IRelayDelivery",
    "IRelayTransaction",
    "IReloadable",
    "ISessionDelivery",
    "Later",
    "Path",
    "Peer",
    "Refused",
    "Verdict",
    "refuse",
]

T = TypeVar("T")
Later: TypeAlias = T | Deferred[T] | Awaitable[T]


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
