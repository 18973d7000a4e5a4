"""The limits of the guard. Each stands here once: its default, its unit, its meaning, and the reply for the client.

Options, --help and --show-limits are made from this file. 0 always means no limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import attrs

from twisted_smtpguard.inputs.arguments import unfit
from twisted_smtpguard.limits.spec import LimitSpec, limit
from twisted_smtpguard.limits.units import (
    COUNT,
    FLAG,
    NO_RATE,
    OCTETS,
    OCTETS_A_SECOND,
    RATE,
    SECONDS,
    Rate,
    one_of,
    prefix_length,
    rate_or_none,
)

PROFILES = ("base", "edge")
"""The sets of defaults. edge is for a guard that strangers can reach: every protection is on."""

IP_FILTER = "ip_filter"
"""The name of IP filters' refusals in `Limits.dry_run`. They belong to no field of Limits."""


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
    max_connections: int = limit(
        0,
        COUNT,
        "Connections at once over all listeners, from accept to the end of the connection.",
        "TOO_MANY_CONNECTIONS",
        edge=2000,
        dry_run=True,
    )
    max_connections_per_client: int = limit(
        0,
        COUNT,
        "Connections at once of one client.",
        "TOO_MANY_CONNECTIONS_OF_CLIENT",
        edge=20,
        dry_run=True,
    )
    connection_rate: Rate = limit(
        NO_RATE,
        RATE,
        "Connections of one client.",
        "CONNECTION_RATE_EXCEEDED",
        edge=Rate(60, 60),
        dry_run=True,
        converter=rate_or_none,
    )
    message_rate: Rate = limit(
        NO_RATE,
        RATE,
        "Messages of one client, counted at MAIL.",
        "MESSAGE_RATE_EXCEEDED",
        dry_run=True,
        converter=rate_or_none,
    )
    recipient_rate: Rate = limit(
        NO_RATE,
        RATE,
        "Recipients of one client, counted at RCPT, with those that the delivery refuses.",
        "RECIPIENT_RATE_EXCEEDED",
        dry_run=True,
        converter=rate_or_none,
    )
    ipv4_client_prefix: int = limit(
        32, prefix_length(32), "The leading bits of an IPv4 address that identify a client."
    )
    ipv6_client_prefix: int = limit(
        64, prefix_length(128), "The leading bits of an IPv6 address that identify a client."
    )
    max_tracked_clients: int = limit(
        100_000,
        COUNT,
        "Clients remembered for each limit per client; the one that was inactive for longest is forgotten first.",
    )
    ip_filter_timeout: float = limit(
        10,
        SECONDS,
        "Time for an IP filter to answer.",
        "LOCAL_ERROR_CLOSING",
    )
    early_talker: str = limit(
        "log",
        one_of("log", "refuse"),
        "A client that speaks before the greeting: log it, or refuse it.",
        "EARLY_TALKER",
        edge="refuse",
        dry_run=True,
    )
    greet_delay: float = limit(
        0,
        SECONDS,
        "Time from the end of all other checks to the greeting; none above 80 % of --max-connections.",
        edge=2,
    )

    # Commands.
    max_invalid_commands: int = limit(
        10,
        COUNT,
        "Invalid commands in a session (unrecognized commands, malformed lines, commands out of sequence); the last "
        "one allowed ends the session.",
        "TOO_MANY_INVALID_COMMANDS",
        dry_run=True,
    )
    max_errors: int = limit(
        0,
        COUNT,
        "Error replies of any kind in a session since its last accepted message; the last one allowed ends the "
        "session.",
        "TOO_MANY_ERRORS",
        edge=20,
        dry_run=True,
    )
    max_junk_commands: int = limit(
        0,
        COUNT,
        "NOOP, RSET, VRFY, EXPN, HELP and repeated HELO or EHLO since the last accepted message; each further one "
        "counts as an error.",
        "TOO_MANY_ERRORS",
        edge=20,
        dry_run=True,
    )
    max_recipients: int = limit(
        100,
        COUNT,
        "Recipients in a mail transaction. A further one is refused, and the transaction goes on.",
        "TOO_MANY_RECIPIENTS",
        "TOO_MANY_RECIPIENTS_STRICT",
        dry_run=True,
    )
    strict_enhanced_codes: bool = limit(
        False,
        FLAG,
        "Refuse a recipient above the limit with 452 4.5.3, as RFC 2034 requires, instead of 452 5.5.3.",
        "TOO_MANY_RECIPIENTS_STRICT",
    )
    max_rejected_recipients: int = limit(
        0,
        COUNT,
        "Recipients refused with a 5xx in a session; the last one allowed ends the session.",
        "TOO_MANY_REJECTED_RECIPIENTS",
        edge=10,
        dry_run=True,
    )
    max_messages: int = limit(
        0,
        COUNT,
        "Mail transactions in a session, counted at MAIL.",
        "TOO_MANY_MESSAGES",
        edge=100,
        dry_run=True,
    )
    max_auth_failures: int = limit(
        3,
        COUNT,
        "Invalid credentials in a session; the last ones allowed end the session.",
        "TOO_MANY_AUTH_FAILURES",
        dry_run=True,
    )
    max_command_line: int = limit(
        2048,
        OCTETS,
        "A command line, with its CRLF. A longer one is skipped to its CRLF.",
        "LINE_TOO_LONG",
    )
    max_auth_line: int = limit(
        12288,
        OCTETS,
        "A line of AUTH, with its CRLF, if AUTH is offered (RFC 4954 4).",
        "LINE_TOO_LONG",
    )
    max_endless_line: int = limit(
        64 * 1024,
        OCTETS,
        "Octets that are skipped of one over-long or malformed command line before the session is ended.",
        "TOO_MANY_INVALID_COMMANDS",
    )
    lenient_addresses: str = limit(
        "off",
        one_of("off", "trusted", "all"),
        "Clients whose addresses may be written as old devices send them: without angle brackets, with blanks, a..b@, "
        "a.@, or with a final dot. They are passed on in their proper form.",
        "BAD_SENDER_ADDRESS",
        "BAD_RECIPIENT_ADDRESS",
    )
    unexpected_pipelining: str = limit(
        "serve",
        one_of("serve", "refuse"),
        "Input after a command that must be the last of its group (EHLO, HELO, AUTH, DATA; RFC 2920 3.1).",
        "UNEXPECTED_PIPELINING",
        edge="refuse",
        dry_run=True,
    )
    max_input_buffer: int = limit(
        64 * 1024,
        OCTETS,
        "Input that waits while a command is being answered; nothing more is read from the client then.",
    )
    max_output_buffer: int = limit(
        16 * 1024,
        OCTETS,
        "Replies that wait for the client to read them; no further command is executed then.",
    )
    socket_send_buffer: int = limit(
        32 * 1024,
        OCTETS,
        "The kernel's send buffer of one connection: what the client has not received yet. 0 leaves it to the system.",
    )
    socket_receive_buffer: int = limit(
        128 * 1024,
        OCTETS,
        "The kernel's receive buffer of one connection: what the guard has not read yet. 0 leaves it to the system.",
    )

    # Messages.
    max_message_size: int = limit(
        10 * 1024 * 1024,
        OCTETS,
        "A message, counted after dot-unstuffing, with line ends. Announced as SIZE.",
        "MESSAGE_TOO_LARGE",
        dry_run=True,
    )
    oversize_drain: int = limit(
        1024 * 1024,
        OCTETS,
        "Octets above the maximum message size that are read and discarded before the session is ended; the maximum "
        "message size itself if that is more.",
        "DATA_NEVER_ENDS",
    )
    bare_newline: str = limit(
        "reject",
        one_of("reject", "normalize"),
        "A bare CR or LF in a message: refuse the message, or change it to CRLF.",
        "BARE_NEWLINE",
        dry_run=True,
    )
    max_header_size: int = limit(
        256 * 1024, OCTETS, "The header section of a message.", "HEADER_TOO_LARGE", dry_run=True
    )
    max_received_fields: int = limit(
        100,
        COUNT,
        "Received fields in a message; more are a routing loop.",
        "ROUTING_LOOP",
        dry_run=True,
    )
    min_free_space: int = limit(
        100 * 1024 * 1024,
        OCTETS,
        "Free space that a Maildir must have, besides the declared size, for MAIL to be accepted.",
        "INSUFFICIENT_STORAGE",
    )
    max_pending_deliveries: int = limit(
        1000,
        COUNT,
        "Pending verdicts of the delivery whose clients have disconnected; above the limit no mail transaction begins.",
        "TOO_MANY_PENDING",
    )

    # Time.
    read_timeout: float = limit(
        300,
        SECONDS,
        "Time for one whole command; in message data, for the next whole line or 1,024 octets.",
        "READ_TIMED_OUT",
    )
    write_timeout: float = limit(
        300,
        SECONDS,
        "Time for the client to read any of the waiting replies. Then the connection is aborted.",
    )
    min_data_rate: int = limit(
        0,
        OCTETS_A_SECOND,
        "The minimum rate of message data, averaged over the data rate window.",
        "DATA_TOO_SLOW",
        edge=500,
        dry_run=True,
    )
    data_rate_window: float = limit(
        60,
        SECONDS,
        "Time over which the minimum data rate is averaged, and for which a message is exempt at its start.",
    )
    max_session_time: float = limit(
        0,
        SECONDS,
        "Time of a session, checked between mail transactions.",
        "SESSION_TOO_LONG",
        edge=1800,
        dry_run=True,
    )
    tls_handshake_timeout: float = limit(
        30,
        SECONDS,
        "Time for a TLS handshake; never longer than the read timeout. Then the connection is aborted.",
    )
    proxy_header_timeout: float = limit(
        5,
        SECONDS,
        "Time for the PROXY header of a proxy; never longer than the read timeout. Then the connection is aborted.",
    )
    delivery_timeout: float = limit(
        300,
        SECONDS,
        "Time for the delivery, or for a checker of credentials, to answer. Below the ten minutes that a client waits "
        "after its final dot.",
        "DELIVERY_TIMED_OUT",
    )
    linger_timeout: float = limit(
        5,
        SECONDS,
        "Time from the guard's half-close after a final 421 to the abort, so that the reply reaches a client that was "
        "still sending.",
    )
    max_lingering: int = limit(
        1024, COUNT, "Connections that linger so at once; further ones are closed without lingering."
    )
    shutdown_grace: float = limit(
        30,
        SECONDS,
        "Time for sessions in a mail transaction to end after the stop has begun.",
        "SHUTTING_DOWN",
    )

    # Log.
    max_log_lines: int = limit(
        200, COUNT, "Refusals logged in a second. The next line tells how many were left out."
    )
    max_log_lines_per_client: int = limit(
        10, COUNT, "Refusals logged in a second for each client and reason."
    )

    dry_run: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    """The names of the limits in dry run: their refusals are counted and logged, but not enforced."""

    @dry_run.validator
    def _check_dry_run(self, _: object, names: frozenset[str]) -> None:
        for name in sorted(names - dry_runnable(), key=str):
            if isinstance(name, str) and name.replace("-", "_") in dry_runnable():
                raise ValueError(
                    f"dry_run: {name!r} is written with underscores here, {name.replace('-', '_')!r}"
                )
            raise ValueError(f"dry_run: {name!r} has no dry run")

    @classmethod
    def specs(cls) -> Iterator[LimitSpec]:
        """Every limit, in the order of this file."""
        for field in attrs.fields(cls):
            if field.metadata:
                yield LimitSpec(field.name, field.default, **field.metadata)

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

    def shown(self, reason: str) -> float | str | None:
        """The `limit` of a refusal for `reason` in the log; None: no limit has that name."""
        value: float | str | Rate | None = getattr(self, reason, None)
        return str(value) if isinstance(value, Rate) else value


def dry_runnable() -> frozenset[str]:
    """The names that `Limits.dry_run` may contain."""
    return frozenset({IP_FILTER, *(spec.name for spec in Limits.specs() if spec.dry_run)})
