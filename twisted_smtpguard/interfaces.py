"""The interfaces of plug-ins, and the guard's promises to them. This file imports no reactor.

A hook answers at once, or later with a Deferred or as an `async def`. On the asyncio reactor such a coroutine is a task
of the event loop, which may await everything that asyncio has; on another reactor it may await Deferreds. One hook of a
session runs at a time. A hook raises `Refused` to refuse; any other exception is logged with its traceback, and the
client gets a `451 4.3.0`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from twisted_smtpguard.authinterfaces import ISaslExchange, ISaslMechanisms, Later
from twisted_smtpguard.policyvalues import PolicyRequest, PolicyUnavailable, PolicyVerdict
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.storeinterfaces import IConnectingCounterStore, ICounterStore, IRecordStore
from twisted_smtpguard.values import (
    PASS,
    TRUST,
    Address,
    Challenge,
    CheckerUnavailable,
    Client,
    CounterStoreUnavailable,
    FilterMetric,
    LoggedIn,
    LoginClient,
    Path,
    Peer,
    Record,
    RecordsSince,
    Refused,
    Verdict,
    Wanted,
    refuse,
)

# fmt: off
__all__ = [
    "PASS", "TRUST", "Address", "Challenge", "CheckerUnavailable", "Client", "CounterStoreUnavailable",
    "FilterMetric", "IAsksForKnownClients", "ICheckableDelivery", "ICheckingDeliveryFactory",
    "IConnectingCounterStore", "IConnectingDelivery", "ICounterStore", "IDelivery", "IDeliveryFactory",
    "IExplainingFilter", "IIPFilter", "IIPFilterFactory", "IMailTransaction", "IMeasuredFilter", "IMessageSink",
    "IPreparedReload", "IPrependingTransaction", "IReadsFiles", "IRecordStore", "IRelayDelivery", "IRelayTransaction",
    "IReloadable", "IReportsHealth", "IReservingDelivery", "ISaslExchange", "ISaslMechanisms", "ISelfTestingFilter",
    "ISessionDelivery", "ISessionPolicy", "ISessionPolicyFactory", "Later", "LoggedIn", "LoginClient", "Path", "Peer",
    "PolicyRequest", "PolicyUnavailable", "PolicyVerdict", "Record", "RecordsSince", "Refused", "Verdict", "Wanted",
    "refuse",
]
# fmt: on


class IIPFilter(Interface):
    """Decides by address which clients are admitted."""

    def check(peer: Peer) -> Later[Verdict]:
        """Called once for each connection, before its greeting, unless the connection was refused before. Called also
        for an operator who asks what would happen to an address; the peer then has no ports and no local address.

        It must not block, and has `Limits.ip_filter_timeout` seconds to answer. Its Deferred is cancelled when the
        client disconnects, at the time limit, or when another limit refuses the client meanwhile. After an exception,
        no answer in time, or an answer that is no Verdict, the client gets `421 4.3.0`; with fail-open the next filter
        is asked.
        """


class IExplainingFilter(IIPFilter):
    """A filter that can tell an operator what in its data gives a verdict. Optional."""

    def explain(peer: Peer) -> Later[str]:
        """Answer what gives the verdict on `peer`, such as `/etc/smtpguard/networks line 7: deny 192.0.2.0/24`; '' if
        nothing in particular does.

        Called only for an operator who asks, and it has the time of `check()`. An exception's text is shown to the
        operator.
        """


class IMeasuredFilter(IIPFilter):
    """A filter that counts something for the metrics. Optional."""

    metrics: Sequence[FilterMetric] = Attribute(
        "Its metrics, which are read at each scrape. Names and labels are always the same few, and none is a text that "
        "a client chose. If several filters have a metric of one name, their values are added."
    )


class IAsksForKnownClients(IIPFilter):
    """A filter that wants to know which clients the guard knows, from which mail was accepted before. Optional."""

    def ask_for_known(known_client: Callable[[Address], str]) -> None:
        """Called once, when a guard is made, with a function that returns the client at an address, such as `192.0.2.1`
        or `2001:db8::/64`, if the guard knows it now, else ""."""


class ISelfTestingFilter(IIPFilter):
    """A filter that can find out whether what it needs is there, such as a server. Optional."""

    def self_test() -> Later[str]:
        """Called by `--check` on a filter that is never started. Answer with "" if it would work, or with a sentence
        about what is missing now and may be there soon. ValueError: it cannot work as it is configured; its text is a
        sentence for the operator."""


class IReloadable(Interface):
    """A filter or delivery that can reload its data: on SIGHUP and `service.reload()`. Optional."""

    def reload() -> Later[None]:
        """Replace the data as a whole, or raise and keep the old data. It has two minutes to answer. New data apply to
        connections that the filter is asked about from then on.

        The exception's text is logged for the operator, so it should name the file and the line.
        """


class IPreparedReload(IReloadable):
    """A filter or delivery that can read new data before it uses them, so that several change at the same time.
    Optional."""

    def prepare_reload() -> Later[Callable[[], None]]:
        """Called instead of `reload()`. Read the new data and answer with a function that switches to them, which must
        not raise; or raise and keep the old data."""


class IReadsFiles(Interface):
    """A filter, delivery or certificate that names the files which its reload reads, for the log. Optional."""

    files: Mapping[str, str] = Attribute(
        "The command-line option, without dashes, that names each path; '' if it is the option of the filter or the "
        "delivery itself. A path that contains a secret must not be among them."
    )


class IIPFilterFactory(Interface):
    """A plugin for `--ip-filter NAME:ARGS` provides this and twisted.plugin.IPlugin."""

    name: str = Attribute("The NAME before the colon: [a-z][a-z0-9-]*.")
    summary: str = Attribute("One line for --help-ip-filters.")
    argument_format: str = Attribute("The argument after the colon, described for --help-ip-filter NAME.")

    def make_filter(argument: str, reactor: object) -> IIPFilter:
        """Called before anything listens. A ValueError is a usage error, and its text is shown to the operator.

        A filter that also provides twisted.application.service.IService becomes a child of the service: it is started
        before any listener, and stopped after the last session.
        """


class ISessionPolicy(Interface):
    """Judges the steps of a session: greylisting, SPF, quotas and the like."""

    stages: frozenset[str] = Attribute(
        "The stages at which it is asked, of POLICY_STAGES: connect, helo, mail, rcpt, data, end-of-data."
    )

    def check(request: PolicyRequest) -> Later[PolicyVerdict]:
        """Called once for each step of one of its stages that the guard's own limits have let pass, in the order of
        the policies, unless one before it has decided; and before the delivery is asked.

        It must not block, and has `Limits.policy_timeout` seconds to answer, or what its PolicyEntry says. Its Deferred
        is cancelled at the time limit, and when the session ends meanwhile. After an exception, no answer in time, or
        an answer that is no PolicyVerdict, the client gets `451 4.3.0`, at `connect` `421 4.3.0`; with fail-open the
        next policy is asked.
        """


class ISessionPolicyFactory(Interface):
    """A plugin for `--policy-plugin NAME:ARGS` provides this and twisted.plugin.IPlugin."""

    name: str = Attribute("The NAME before the colon: [a-z][a-z0-9-]*.")
    summary: str = Attribute("One line for --help-policies.")
    argument_format: str = Attribute("The argument after the colon, described for --help-policy NAME.")

    def make_policy(argument: str, reactor: object) -> ISessionPolicy:
        """Called before anything listens. A ValueError is a usage error, and its text is shown to the operator.

        A policy that also provides twisted.application.service.IService becomes a child of the service: it is started
        before any listener, and stopped after the last session.
        """


class IMessageSink(Interface):
    """Takes one message. The octets are those after dot-unstuffing: with CRLF line ends, without the final dot, and
    without fields added by the guard."""

    def write(data: bytes) -> Deferred[None] | None:
        """Take the next octets, at most 64 KiB in a call.

        While a returned Deferred is pending, no method but `abort()` is called, and nothing is read from the client.
        After `Refused` the rest of the message is discarded, and the client gets the reply at the end of the data.
        """

    def finish() -> Later[Reply | None]:
        """Called when the message is complete and within the limits. Answer when it is safe; None is `250 2.0.0`.

        A disconnect does not cancel it: it runs to its time limit (Limits.delivery_timeout), and `stopService()` waits
        for it. At the time limit its Deferred is cancelled, and the client gets a 451.
        """

    def abort() -> None:
        """Called instead of `finish()`: nothing may be delivered. It may be called while a `write()` is pending, and
        never after `finish()`. It must not raise."""


class IMailTransaction(Interface):
    """A mail transaction. It ends with exactly one of these: `abort()`, or the sink's `finish()` or `abort()`."""

    def recipient(recipient: Path) -> Later[Reply | None]:
        """Called once for each RCPT within the limits. None is `250 2.1.5`; a 2xx Reply is sent instead of it."""

    def data() -> Later[IMessageSink]:
        """Called once, at DATA or the first BDAT, after one accepted recipient or more. The 354 is sent after its
        answer."""

    def abort() -> None:
        """Called at RSET, EHLO, QUIT, a disconnect, a timeout or a stop before `data()` has answered, and never after
        that. It must not raise."""


class IPrependingTransaction(IMailTransaction):
    """A mail transaction that can put header fields before its message. Optional: without it what policies prepend is
    left out, and the log says so."""

    def prepend(fields: Sequence[str]) -> None:
        """Called at most once, before `data()`, with the fields in their order. Each is one line without its end,
        `Name: value`, and has no control character but tabs. It may have UTF-8, and be longer than the 998 octets of
        a line. They stand above the delivery's own Received field."""


class IRelayTransaction(IMailTransaction):
    """A mail transaction with another server. Optional."""

    begun: Reply = Attribute("The 2xx that answers MAIL, instead of `250 2.1.0`.")

    def data_in_chunks() -> Later[IMessageSink]:
        """Called instead of `data()` if the client sends BDAT (RFC 3030)."""


class IDelivery(Interface):
    """Takes the messages that the guard accepts."""

    extensions: frozenset[str] = Attribute(
        "The SMTP extensions that it supports, of 8BITMIME SMTPUTF8 BINARYMIME DSN; read at each EHLO."
    )
    max_message_octets: int = Attribute(
        "The largest message that it takes; 0: no maximum. SIZE is the smaller of this and the maximum of Limits."
    )

    def begin(client: Client, sender: Path) -> Later[IMailTransaction]:
        """Called at MAIL, after the guard's own limits. If its Deferred is cancelled it must undo what it has done."""


class ISessionDelivery(IDelivery):
    """A delivery that holds something for each session, such as a login, until the session ends. Optional."""

    def session_ended(session: str) -> None:
        """Called exactly once for each session, with its id in the log, for which `begin()` was called.

        The session has ended, and every hook that was called for it has answered: also a pending `finish()`, and one
        that went on in spite of its cancellation. No hook and no `abort()` is called after that. It must not raise; an
        exception is logged and has no other effect.
        """


class IRelayDelivery(IDelivery):
    """A delivery that passes messages to another server. Optional."""

    chunking: bool = Attribute(
        "Whether CHUNKING may be offered. Read at each EHLO; with other deliveries it is always offered."
    )
    may_relay_for_all: bool = Attribute(
        "Whether the server cannot tell clients from the guard, by address or by login, and every recipient is passed "
        "on. The guard warns of that at its start, unless every client has to log in."
    )


class IConnectingDelivery(IDelivery):
    """A delivery that opens its own connections, such as to another server. Optional."""

    max_connections: int = Attribute(
        "The largest number of them at once; 0: unknown. At its start the guard counts them among the file descriptors "
        "that the process needs."
    )


class IReservingDelivery(IConnectingDelivery):
    """A delivery that keeps a part of its connections for clients that are no strangers, so that a crowd cannot take
    all of them. Optional."""

    def reserve(share: Fraction, guard: object) -> None:
        """Keep this share of the connections, from 0 to 1, for clients whose `Client.is_stranger` is false. It is the
        share of --reserved-connections, and 0 in dry run. Called when a guard is made, and whenever its limits change.
        `guard` tells those apart that share the delivery: the largest of their shares should hold. It must not
        raise."""


class ICheckableDelivery(IDelivery):
    """A delivery that can find out whether what it needs is there, such as another server. Optional."""

    def check() -> Later[str]:
        """Called by `--check` on a delivery that is never started. Answer with "" if a start would find all it needs,
        or with a sentence about what is missing now and may be there soon. ValueError: it cannot work as it is
        configured; its text is a sentence for the operator."""


class IReportsHealth(IDelivery):
    """A delivery that tells how it is, for metrics and health checks. Optional.

    Both are read whenever somebody asks, and so must be ready at hand. They must not raise.
    """

    problem: str = Attribute(
        "Why it cannot take a message now, in one line for the operator without a secret in it; '' while it can."
    )
    connections_by_state: Mapping[str, int] = Attribute(
        "How many connections it has, by a word for what they are doing. The words are always the same few."
    )


class IDeliveryFactory(Interface):
    """A plugin for `--deliver NAME:ARGS` provides this and twisted.plugin.IPlugin."""

    name: str = Attribute("The NAME before the colon: [a-z][a-z0-9-]*.")
    summary: str = Attribute("One line for --help-deliveries.")
    argument_format: str = Attribute("The argument after the colon, described for --help-delivery NAME.")

    def make_delivery(argument: str, reactor: object) -> IDelivery:
        """Called before anything listens. A ValueError is a usage error, and its text is shown to the operator.

        A delivery that also provides twisted.application.service.IService becomes a child of the service: it is started
        before any listener, and stopped after the last session.
        """


class ICheckingDeliveryFactory(IDeliveryFactory):
    """A factory whose deliveries cannot be made without writing something. Optional."""

    def check_delivery(argument: str, reactor: object) -> None:
        """Called by `--check` instead of `make_delivery`: look whether a delivery could be made, and write nothing. A
        ValueError is a usage error, and its text is shown to the operator."""
