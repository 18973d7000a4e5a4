"""The limits of the guard. Each stands here once: its default, its unit, and its meaning, which is its docstring.

Options, --help and --show-limits are made from this file. 0 always means no limit.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Collection, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import attrs

from twisted_smtpguard.inputs.arguments import unfit
from twisted_smtpguard.limits.points import OFFENCES, POINTS
from twisted_smtpguard.limits.units import (
    COUNT,
    DAYS,
    FACTOR,
    FLAG,
    NO_RATE,
    OCTETS,
    OCTETS_A_SECOND,
    PART,
    RATE,
    RESTART,
    SECONDS,
    Part,
    Rate,
    Unit,
    octets_up_to,
    one_of,
    prefix_length,
    prefix_lengths,
)
from twisted_smtpguard.replies import catalogue

PROFILES = ("base", "edge")
"""The sets of defaults. edge is for a guard that strangers can reach: every protection is on."""

IP_FILTER = "ip_filter"
"""The name of IP filters' refusals in `Limits.dry_run`. They belong to no field of Limits."""

POLICY = "policy"
"""The name of session policies' refusals there. `policy:NAME` stands for those of one policy."""


STRESS_ERRORS, STRESS_JUNK_COMMANDS, STRESS_SESSION_SECONDS = 1, 1, 60
"""What strangers may do in stress at most, beside `stress_read_timeout`."""


def _sooner(limit: float, other: float) -> Any:
    """The smaller of two limits, where 0 means no limit."""
    return min(limit, other) if limit and other else limit or other


_SOCKET_OCTETS = octets_up_to(1024**3)

_AT_ONCE = "this moment"
_CONNECTION = "the next connection"
_MESSAGE = "the next message"
_HANDSHAKE = "the next TLS handshake"
_END = "the next end of a session"


@attrs.frozen
class LimitSpec:
    """The declaration of a limit, without its value. `Limits.specs()` lists all of them."""

    name: str
    """The name of the field of Limits. If a refusal has this reason, the log has the limit's value too."""
    default: Any
    edge: Any
    """The default in the profile edge."""
    unit: Unit[Any]
    dry_run: bool
    """Whether the limit has a dry run. A limit that bounds memory, disk or time has none."""
    other_replies: tuple[str, ...]
    """The names in replies.py of its replies, if their reason is not the name of the limit."""
    holds_from: str
    """From when on a change in a running guard holds: `the next command` of a session, say. RESTART: it cannot be
    changed in a running guard."""
    owner: type
    """The class that has the field, or inherits it."""

    @property
    def option(self) -> str:
        """The command-line option without its dashes."""
        return self.name.replace("_", "-")

    @property
    def help(self) -> str:
        """The docstring of the field. "" if the package was installed without its source."""
        return next(filter(None, (_docstrings(each).get(self.name) for each in self.owner.__mro__)), "")

    @property
    def replies(self) -> tuple[str, ...]:
        """The names in replies.py of the replies that the client gets: those with the name of the limit as their
        reason, or others. Empty if there is none."""
        return self.other_replies or tuple(each.name for each in catalogue() if each.reason == self.name)


@cache
def _docstrings(cls: type) -> dict[str, str]:
    """The docstring after each field in the source of a class, in one line."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    except (OSError, TypeError):
        return {}
    found = {}
    for each in tree.body:
        if isinstance(each, ast.ClassDef) and each.name == cls.__name__:
            for node, after in pairwise(each.body):
                match node, after:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                        found[name] = " ".join(text.split())
    return found


def _names(names: Collection[str]) -> frozenset[str]:
    if isinstance(names, str) or not isinstance(names, Collection):
        raise unfit("dry_run", "a list of names of limits", names)
    return frozenset(names)


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of one guard. `Limits(max_connections=500)` changes one and keeps the defaults of the others.

    A value out of range is a ValueError that names the field. 0 means no limit.
    """

    # Admission.
    max_connections: int = COUNT.limit(0, edge=2000, holds_from=_CONNECTION)
    """Connections at once over all listeners, from accept to the end of the connection."""
    reserved_connections: Part = PART.limit(
        Part(0), "TOO_MANY_CONNECTIONS", edge=Part(20, percent=True), holds_from=_CONNECTION
    )
    """The last part of --max-connections, such as 20% or 400, which only known and trusted clients may take."""
    max_connections_per_client: int = COUNT.limit(0, edge=20, holds_from=_CONNECTION)
    """Connections at once of one client."""
    connection_rate: Rate = RATE.limit(NO_RATE, edge=Rate(60, 60), holds_from=_CONNECTION)
    """Connections of one client."""
    message_rate: Rate = RATE.limit(NO_RATE)
    """Messages of one client, counted at MAIL."""
    recipient_rate: Rate = RATE.limit(NO_RATE)
    """Recipients of one client, counted at RCPT, with those that the delivery refuses."""
    ipv4_client_prefix: int = prefix_length(32).bound(32, holds_from=_CONNECTION)
    """The leading bits of an IPv4 address that identify a client."""
    ipv6_client_prefix: int = prefix_length(128).bound(64, holds_from=_CONNECTION)
    """The leading bits of an IPv6 address that identify a client."""
    ipv4_networks: tuple[int, ...] = prefix_lengths(31, "24,16").bound((), edge=(24,), holds_from=_CONNECTION)
    """The leading bits of the networks that are held to every limit per client too, with all their IPv4 clients
    together."""
    ipv6_networks: tuple[int, ...] = prefix_lengths(127, "56,48").bound(
        (), edge=(56, 48), holds_from=_CONNECTION
    )
    """The leading bits of the networks that are held to every limit per client too, with all their IPv6 clients
    together."""
    network_factor: int = FACTOR.bound(3, holds_from=_CONNECTION)
    """How many times as much such a network may hold and do as the next narrower one, or as a client."""
    ban_after: int = COUNT.limit(0, edge=20, holds_from=_CONNECTION)
    """Points of a client within 10 minutes at which it is banned: for 10 minutes, and twice as long each time that it
    is banned again within a week, up to a day. A network is banned when 5 different clients of it are."""
    ban_points: tuple[tuple[str, int], ...] = OFFENCES.bound((), holds_from="the next offence")
    """What offences cost, in place of the points of the table of offences, such as early_talker=10,expn=0; an offence
    of no points leads to no ban."""
    known_for: float = DAYS.bound(30 * 86400, holds_from=_AT_ONCE)
    """Time for which a client is known after a mail of it was accepted, and a user where it has logged in; with 0 only
    those of --known are known."""
    max_known_clients: int = COUNT.bound(100_000, holds_from=_AT_ONCE)
    """Known clients remembered; the one whose last mail is oldest is forgotten first."""
    max_tracked_clients: int = COUNT.bound(100_000, holds_from=_AT_ONCE)
    """Clients and networks remembered for each limit per client; the one that was inactive for longest is forgotten
    first."""
    ip_filter_timeout: float = SECONDS.bound(10, "LOCAL_ERROR_CLOSING", holds_from=_CONNECTION)
    """Time for an IP filter to answer."""
    early_talker: str = one_of("log", "refuse").limit("log", edge="refuse", holds_from="the next greeting")
    """A client that speaks before the greeting: log it, or refuse it."""
    greet_delay: float = SECONDS.bound(0, edge=2, holds_from=_CONNECTION)
    """Time from the end of all other checks to the greeting; none above 80 % of --max-connections."""
    policy_timeout: float = SECONDS.bound(10, "POLICY_FAILED", "POLICY_FAILED_CLOSING")
    """Time for a session policy to answer, unless it has its own."""
    max_policy_connections: int = COUNT.bound(
        50, "POLICY_FAILED", "POLICY_FAILED_CLOSING", holds_from=RESTART
    )
    """Connections to one policy server, each for one question at a time. A further question waits for one."""
    max_tls_handshakes: int = COUNT.bound(0, edge=500, holds_from=_HANDSHAKE)
    """TLS handshakes under way at once. A further one aborts the oldest, or is aborted itself while that is younger
    than a second."""

    # Commands.
    max_invalid_commands: int = COUNT.limit(10)
    """Invalid commands in a session (unrecognized commands, malformed lines, commands out of sequence); the last one
    allowed ends the session."""
    max_errors: int = COUNT.limit(0, edge=20)
    """Error replies of any kind in a session since its last accepted message; the last one allowed ends the session."""
    max_junk_commands: int = COUNT.limit(0, "TOO_MANY_ERRORS", edge=20)
    """NOOP, RSET, VRFY, EXPN, HELP and repeated HELO or EHLO since the last accepted message; each further one counts
    as an error."""
    max_recipients: int = COUNT.limit(100)
    """Recipients in a mail transaction. A further one is refused, and the transaction goes on."""
    strict_enhanced_codes: bool = FLAG.bound(False, "TOO_MANY_RECIPIENTS_STRICT")
    """Refuse a recipient above the limit with 452 4.5.3, as RFC 2034 requires, instead of 452 5.5.3."""
    max_rejected_recipients: int = COUNT.limit(0, edge=10)
    """Recipients refused with a 5xx in a session; the last one allowed ends the session."""
    max_messages: int = COUNT.limit(0, edge=100)
    """Mail transactions in a session, counted at MAIL."""
    max_auth_failures: int = COUNT.limit(3)
    """Invalid credentials in a session; the last ones allowed end the session."""
    auth_failure_rate: Rate = RATE.limit(Rate(10, 600), "AUTH_UNAVAILABLE")
    """Wrong passwords of one client, in all its sessions; none is checked above it. A user who has logged in from a
    client before has this rate for itself there."""
    auth_failure_rate_per_user: Rate = RATE.limit(NO_RATE, "AUTH_UNAVAILABLE")
    """Wrong passwords for one user, of all clients together from which it has not logged in before; none of theirs for
    it is checked above it."""
    max_command_line: int = OCTETS.bound(2048)
    """A command line, with its CRLF. A longer one is skipped to its CRLF."""
    max_auth_line: int = OCTETS.bound(12288, "LINE_TOO_LONG")
    """A line of AUTH, with its CRLF, if AUTH is offered (RFC 4954 4)."""
    max_endless_line: int = OCTETS.bound(64 * 1024, "TOO_MANY_INVALID_COMMANDS")
    """Octets that are skipped of one over-long or malformed command line before the session is ended."""
    lenient_addresses: str = one_of("off", "trusted", "all").bound(
        "off", "BAD_SENDER_ADDRESS", "BAD_RECIPIENT_ADDRESS"
    )
    """Clients whose addresses may be written as old devices send them: without angle brackets, with blanks, a..b@, a.@,
    or with a final dot. They are passed on in their proper form."""
    unexpected_pipelining: str = one_of("serve", "refuse").limit("serve", edge="refuse")
    """Input after a command that must be the last of its group (EHLO, HELO, AUTH, DATA; RFC 2920 3.1)."""
    max_input_buffer: int = OCTETS.bound(64 * 1024)
    """Input that waits while a command is being answered; nothing more is read from the client then."""
    max_output_buffer: int = OCTETS.bound(16 * 1024)
    """Replies that wait for the client to read them; no further command is executed then."""
    socket_send_buffer: int = _SOCKET_OCTETS.bound(32 * 1024, holds_from=_CONNECTION)
    """The kernel's send buffer of one connection: what the client has not received yet. 0 leaves it to the system."""
    socket_receive_buffer: int = _SOCKET_OCTETS.bound(128 * 1024, holds_from=_CONNECTION)
    """The kernel's receive buffer of one connection: what the guard has not read yet. 0 leaves it to the system."""

    # Messages.
    max_message_size: int = OCTETS.limit(10 * 1024 * 1024, holds_from=_MESSAGE)
    """A message, counted after dot-unstuffing, with line ends. Announced as SIZE."""
    oversize_drain: int = OCTETS.bound(1024 * 1024, holds_from=_MESSAGE)
    """Octets above the maximum message size that are read and discarded before the session is ended; the maximum
    message size itself if that is more."""
    bare_newline: str = one_of("reject", "normalize").limit("reject", holds_from=_MESSAGE)
    """A bare CR or LF in a message: refuse the message, or change it to CRLF."""
    max_header_size: int = OCTETS.limit(256 * 1024, holds_from=_MESSAGE)
    """The header section of a message."""
    max_received_fields: int = COUNT.limit(100, holds_from=_MESSAGE)
    """Received fields in a message; more are a routing loop."""
    min_free_space: int = OCTETS.bound(100 * 1024 * 1024, "INSUFFICIENT_STORAGE", holds_from=RESTART)
    """Free space that a Maildir must have, besides the declared size, for MAIL to be accepted."""
    max_pending_deliveries: int = COUNT.bound(1000)
    """Pending verdicts of the delivery whose clients have disconnected; above the limit no mail transaction begins."""

    # Time.
    read_timeout: float = SECONDS.bound(300)
    """Time for one whole command; in message data, for the next whole line or 1,024 octets."""
    stress_read_timeout: float = SECONDS.bound(30, holds_from=_AT_ONCE)
    """The read timeout of strangers in stress, if it is shorter than theirs otherwise; with 0 stress does not shorten
    it. Stress begins at 80 % of --max-connections, and ends below 60 %."""
    write_timeout: float = SECONDS.bound(300, holds_from="the next reply")
    """Time for the client to read any of the waiting replies. Then the connection is aborted."""
    min_data_rate: int = OCTETS_A_SECOND.limit(0, edge=500, holds_from=_MESSAGE)
    """The minimum rate of message data, averaged over the data rate window."""
    data_rate_window: float = SECONDS.bound(60, holds_from=_MESSAGE)
    """Time over which the minimum data rate is averaged, and for which a message is exempt at its start."""
    max_session_time: float = SECONDS.limit(0, edge=1800, holds_from=_AT_ONCE)
    """Time of a session, checked between mail transactions."""
    tls_handshake_timeout: float = SECONDS.bound(30, holds_from=_HANDSHAKE)
    """Time for a TLS handshake; never longer than the read timeout. Then the connection is aborted."""
    proxy_header_timeout: float = SECONDS.bound(5, holds_from=_CONNECTION)
    """Time for the PROXY header of a proxy; never longer than the read timeout. Then the connection is aborted."""
    delivery_timeout: float = SECONDS.bound(300)
    """Time for the delivery, or for a checker of credentials, to answer. Below the ten minutes that a client waits
    after its final dot."""
    linger_timeout: float = SECONDS.bound(5, holds_from=_END)
    """Time from the guard's half-close after a final 421 to the abort, so that the reply reaches a client that was
    still sending; under TLS, time for the client's close_notify after any last reply, which begins again while the
    client reads."""
    max_lingering: int = COUNT.bound(1024, holds_from=_END)
    """Connections that linger so at once; further ones are closed without lingering."""
    shutdown_grace: float = SECONDS.bound(30, "SHUTTING_DOWN", holds_from="the next stop")
    """Time for sessions in a mail transaction to end after the stop has begun."""

    # Log.
    max_log_lines: int = COUNT.bound(200, holds_from=_AT_ONCE)
    """Refusals logged in a second. The next line tells how many were left out."""
    max_log_lines_per_client: int = COUNT.bound(10, holds_from=_AT_ONCE)
    """Refusals logged in a second for each client and reason."""

    dry_run: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    """The names of the limits in dry run: their refusals are counted and logged, but not enforced."""

    @dry_run.validator
    def _check_dry_run(self, _: object, names: frozenset[str]) -> None:
        known = dry_runnable() if names else frozenset()
        for name in sorted(names - known, key=str):
            if isinstance(name, str) and name.startswith(f"{POLICY}:") and len(name) > len(POLICY) + 1:
                continue
            if isinstance(name, str) and name.replace("-", "_") in known:
                raise ValueError(
                    f"dry_run: {name!r} is written with underscores here, {name.replace('-', '_')!r}"
                )
            raise ValueError(f"dry_run: {name!r} has no dry run")

    @classmethod
    def specs(cls) -> Iterator[LimitSpec]:
        """Every limit, in the order of this file."""
        for field in attrs.fields(cls):
            if field.metadata:
                yield LimitSpec(field.name, field.default, **field.metadata, owner=cls)

    @classmethod
    def for_profile(cls, profile: str, **explicit: Any) -> Limits:
        """The limits of a profile, `base` or `edge`. An `explicit` value, also 0, overrides the profile."""
        if profile not in PROFILES:
            raise ValueError(f"one of {', '.join(PROFILES)} is expected, not {profile!r}")
        edge = {spec.name: spec.edge for spec in cls.specs()} if profile == "edge" else {}
        return cls(**{**edge, **explicit})

    def enforced(self, name: str) -> Any:
        """The value of a limit; 0 if it is in dry run."""
        return 0 if name in self.dry_run else getattr(self, name)

    def points(self) -> dict[str, int]:
        """The points of each offence that has some."""
        return {name: points for name, points in {**POINTS, **dict(self.ban_points)}.items() if points}

    def in_stress(self) -> Limits:
        """The limits of strangers while the guard is in stress. None of them is wider than without it, and one that is
        in dry run stays there."""
        return attrs.evolve(
            self,
            read_timeout=_sooner(self.read_timeout, self.stress_read_timeout),
            max_errors=_sooner(self.max_errors, STRESS_ERRORS),
            max_junk_commands=_sooner(self.max_junk_commands, STRESS_JUNK_COMMANDS),
            max_session_time=_sooner(self.max_session_time, STRESS_SESSION_SECONDS),
        )

    def networks(self, version: int) -> tuple[int, ...]:
        """The leading bits of the networks that limit the clients of an IP version, the narrowest first. One that is
        not wider than a client is left out."""
        if version == 4:
            return tuple(bits for bits in self.ipv4_networks if bits < self.ipv4_client_prefix)
        return tuple(bits for bits in self.ipv6_networks if bits < self.ipv6_client_prefix)

    def check_networks(self, name: str) -> None:
        """ValueError: a network in the field with this name is not wider than a client, and so limits nothing."""
        client = {"ipv4_networks": self.ipv4_client_prefix, "ipv6_networks": self.ipv6_client_prefix}.get(
            name
        )
        if client is not None and any(bits >= client for bits in getattr(self, name)):
            raise ValueError(f"prefix lengths below {client}, which is that of a client, are expected")

    def times(self, key: str) -> int:
        """How many times the allowance of a client it is that the client, or network of clients, with this key has."""
        bits = key.partition("/")[2]
        networks = self.networks(6 if ":" in key else 4) if bits else ()
        return self.network_factor ** (networks.index(int(bits)) + 1) if bits and int(bits) in networks else 1

    def of_client(self, name: str, key: str) -> Any:
        """The value of a limit per client for the client, or the network of clients, with this key."""
        return getattr(self, name) * self.times(key)

    def shown(self, reason: str, network: str = "") -> float | str | None:
        """The `limit` of a refusal for `reason` in the log, where the network of clients with this key has reached it;
        "": one client, or all. None: no limit has that name."""
        value: float | str | Rate | Part | None = getattr(self, reason, None)
        # For a ban of a network its clients have reached the limit.
        if network and reason != "ban_after":
            value = self.of_client(reason, network)
        return str(value) if isinstance(value, Rate | Part) else value


def dry_runnable() -> frozenset[str]:
    """The names that `Limits.dry_run` may contain."""
    return frozenset({IP_FILTER, POLICY, *(spec.name for spec in Limits.specs() if spec.dry_run)})
