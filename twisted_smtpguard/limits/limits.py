"""Every number of the guard, once: its default, its unit, what it means, what a client is told.

Command-line options, --help, --show-limits and docs/reference/limits.md are made from this file or checked
against it. 0 always means: no limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Literal

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
)

PROFILES = ("base", "edge")
"""Sets of defaults. edge is for a guard that strangers reach: every protection is on."""

IP_FILTER = "ip_filter"
"""What `Limits.dry_run` calls the refusals of IP filters, which are no limit of ours."""


def _rate(value: Rate | Literal[0]) -> Rate:
    return NO_RATE if type(value) is int and not value else value  # type: ignore[return-value]


def _names(names: Collection[str]) -> frozenset[str]:
    if isinstance(names, str) or not isinstance(names, Collection):
        raise unfit("dry_run", "a list of names of limits", names)
    return frozenset(names)


@attrs.frozen(kw_only=True)
class Limits:
    """The numbers of one guard, frozen. `Limits(max_connections=500)` changes one and keeps the rest.

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
        converter=_rate,
    )
    message_rate: Rate = limit(
        NO_RATE,
        RATE,
        "Messages of one client, counted at MAIL.",
        "MESSAGE_RATE_EXCEEDED",
        dry_run=True,
        converter=_rate,
    )
    recipient_rate: Rate = limit(
        NO_RATE,
        RATE,
        "Recipients of one client, counted at RCPT, also those that the delivery refuses.",
        "RECIPIENT_RATE_EXCEEDED",
        dry_run=True,
        converter=_rate,
    )
    ipv4_client_prefix: int = limit(
        32, prefix_length(32), "The leading bits of an IPv4 address that make a client."
    )
    ipv6_client_prefix: int = limit(
        64, prefix_length(128), "The leading bits of an IPv6 address that make a client."
    )
    max_tracked_clients: int = limit(
        100_000,
        COUNT,
        "Clients remembered for each limit per client; the one that did nothing for longest is forgotten first.",
    )
    ip_filter_timeout: float = limit(
        10,
        SECONDS,
        "For an IP filter to answer.",
        "LOCAL_ERROR_CLOSING",
    )
    early_talker: str = limit(
        "log",
        one_of("log", "refuse"),
        "A client that speaks before the greeting.",
        "EARLY_TALKER",
        edge="refuse",
        dry_run=True,
    )
    greet_delay: float = limit(
        0,
        SECONDS,
        "From the end of all other checks to the greeting; none above 80 % of the connection cap.",
        edge=2,
    )

    # Commands.
    max_invalid_commands: int = limit(
        10,
        COUNT,
        "Invalid commands in a session (unrecognized, malformed lines, out of sequence); the last one "
        "allowed ends it.",
        "TOO_MANY_INVALID_COMMANDS",
        dry_run=True,
    )
    max_errors: int = limit(
        0,
        COUNT,
        "Error replies of any kind in a session since its last accepted message; the last one allowed "
        "ends it.",
        "TOO_MANY_ERRORS",
        edge=20,
        dry_run=True,
    )
    max_junk_commands: int = limit(
        0,
        COUNT,
        "NOOP, RSET, VRFY, EXPN, HELP and repeated HELO or EHLO since the last accepted message; each one "
        "more counts as an error.",
        "TOO_MANY_ERRORS",
        edge=20,
        dry_run=True,
    )
    max_recipients: int = limit(
        100,
        COUNT,
        "Recipients in a transaction. Those accepted stay, and the transaction goes on.",
        "TOO_MANY_RECIPIENTS",
        "TOO_MANY_RECIPIENTS_STRICT",
        dry_run=True,
    )
    strict_enhanced_codes: bool = limit(
        False,
        FLAG,
        "Refuse a recipient too many with 452 4.5.3, as RFC 2034 asks, not 452 5.5.3.",
        "TOO_MANY_RECIPIENTS_STRICT",
    )
    max_rejected_recipients: int = limit(
        0,
        COUNT,
        "Recipients refused for good (5xx) in a session; the last one allowed ends it.",
        "TOO_MANY_REJECTED_RECIPIENTS",
        edge=10,
        dry_run=True,
    )
    max_messages: int = limit(
        0, COUNT, "Transactions in a session, begun with MAIL.", "TOO_MANY_MESSAGES", edge=100, dry_run=True
    )
    max_auth_failures: int = limit(
        3,
        COUNT,
        "Wrong credentials in a session; the last ones allowed end it.",
        "TOO_MANY_AUTH_FAILURES",
        dry_run=True,
    )
    max_command_line: int = limit(
        2048,
        OCTETS,
        "A command line, its CRLF included. A longer one is skipped to its CRLF.",
        "LINE_TOO_LONG",
    )
    max_auth_line: int = limit(
        12288,
        OCTETS,
        "A line of AUTH, its CRLF included, where there is AUTH (RFC 4954 4).",
        "LINE_TOO_LONG",
    )
    max_endless_line: int = limit(
        64 * 1024,
        OCTETS,
        "What is skipped of one over-long or malformed command line before the session is ended.",
        "TOO_MANY_INVALID_COMMANDS",
    )
    lenient_addresses: str = limit(
        "off",
        one_of("off", "trusted", "all"),
        "Whose addresses may be as old devices send them: without angle brackets, with blanks, a..b@, a.@, or with a "
        "final dot. They are passed on in their proper form.",
        "BAD_SENDER_ADDRESS",
        "BAD_RECIPIENT_ADDRESS",
    )
    unexpected_pipelining: str = limit(
        "serve",
        one_of("serve", "refuse"),
        "Input behind a command that must be the last of its group (EHLO, HELO, AUTH, DATA; RFC 2920 3.1).",
        "UNEXPECTED_PIPELINING",
        edge="refuse",
        dry_run=True,
    )
    max_input_buffer: int = limit(
        64 * 1024,
        OCTETS,
        "Input that waits unprocessed while a command is being answered; the client is not read past it.",
    )
    max_output_buffer: int = limit(
        16 * 1024,
        OCTETS,
        "Replies that wait for a client to read them; past it no further command is executed.",
    )
    socket_send_buffer: int = limit(
        32 * 1024,
        OCTETS,
        "Of one connection in the kernel: what was sent, and the client has not taken. 0 leaves it to the system.",
    )
    socket_receive_buffer: int = limit(
        128 * 1024,
        OCTETS,
        "Of one connection in the kernel: what the client has sent, and was not read. 0 leaves it to the system.",
    )

    # Messages.
    max_message_size: int = limit(
        10 * 1024 * 1024,
        OCTETS,
        "A message, counted after dot-unstuffing, line ends included. Announced as SIZE.",
        "MESSAGE_TOO_LARGE",
        dry_run=True,
    )
    oversize_drain: int = limit(
        1024 * 1024,
        OCTETS,
        "What is read and thrown away above the maximum message size before the session is ended; the "
        "maximum message size itself where that is more.",
        "DATA_NEVER_ENDS",
    )
    bare_newline: str = limit(
        "reject",
        one_of("reject", "normalize"),
        "A bare CR or LF in a message: refuse the message, or make it CRLF.",
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
        "Delivery verdicts still pending whose clients are gone; above it no transaction begins.",
        "TOO_MANY_PENDING",
    )

    # Time.
    read_timeout: float = limit(
        300,
        SECONDS,
        "For one whole command; in message data for the next whole line or 1,024 octets.",
        "READ_TIMED_OUT",
    )
    write_timeout: float = limit(
        300, SECONDS, "For the client to take any of the replies that wait. The connection is aborted."
    )
    min_data_rate: int = limit(
        0,
        OCTETS_A_SECOND,
        "Message data, on the average of the data rate window.",
        "DATA_TOO_SLOW",
        edge=500,
        dry_run=True,
    )
    data_rate_window: float = limit(
        60,
        SECONDS,
        "Over which the minimum data rate is averaged, and for which a message is spared at its start.",
    )
    max_session_time: float = limit(
        0,
        SECONDS,
        "A session, checked between transactions.",
        "SESSION_TOO_LONG",
        edge=1800,
        dry_run=True,
    )
    tls_handshake_timeout: float = limit(
        30,
        SECONDS,
        "For a TLS handshake; never longer than the read timeout. The connection is aborted.",
    )
    proxy_header_timeout: float = limit(
        5,
        SECONDS,
        "For the PROXY header of a proxy in front; never longer than the read timeout. The connection is aborted.",
    )
    delivery_timeout: float = limit(
        300,
        SECONDS,
        "For the delivery, or who checks credentials, to answer. Below the ten minutes that a client waits after "
        "its final dot.",
        "DELIVERY_TIMED_OUT",
    )
    linger_timeout: float = limit(
        5,
        SECONDS,
        "From our half-close behind a last 421 to the abort, so that the line reaches a client that was "
        "still sending.",
    )
    max_lingering: int = limit(1024, COUNT, "Connections that linger so at once; more are closed plainly.")
    shutdown_grace: float = limit(
        30, SECONDS, "For sessions in a transaction to end after a stop was asked for.", "SHUTTING_DOWN"
    )

    # Log.
    max_log_lines: int = limit(
        200, COUNT, "Refusals logged a second. The next line tells how many were left out."
    )
    max_log_lines_per_client: int = limit(10, COUNT, "Refusals logged a second for each client and reason.")

    dry_run: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    """The limits that are decided, counted and logged, but not enforced: names of fields, and IP_FILTER."""

    @dry_run.validator
    def _check_dry_run(self, _: object, names: frozenset[str]) -> None:
        for name in sorted(names - dry_runnable(), key=str):
            if isinstance(name, str) and name.replace("-", "_") in dry_runnable():
                raise ValueError(
                    f"dry_run: {name!r} is written with underscores here, {name.replace('-', '_')!r}"
                )
            raise ValueError(f"dry_run: {name!r} cannot be tried without being enforced")

    @classmethod
    def specs(cls) -> Iterator[LimitSpec]:
        """Every limit in the order of this file."""
        for field in attrs.fields(cls):
            if field.metadata:
                yield LimitSpec(field.name, field.default, **field.metadata)

    @classmethod
    def for_profile(cls, profile: str, **explicit: Any) -> Limits:
        """The limits of a profile, `base` or `edge`; what is given by name wins, a 0 too."""
        if profile not in PROFILES:
            raise ValueError(f"one of {', '.join(PROFILES)} is expected, not {profile!r}")
        edge = {spec.name: spec.edge for spec in cls.specs()} if profile == "edge" else {}
        return cls(**{**edge, **explicit})

    def enforced(self, name: str) -> Any:
        """The value of a limit; 0 where it is only tried."""
        return 0 if name in self.dry_run else getattr(self, name)

    def shown(self, reason: str) -> float | str | None:
        """What the log gives as the limit of a refusal for `reason`; None where no limit has that name."""
        value: float | str | Rate | None = getattr(self, reason, None)
        return str(value) if isinstance(value, Rate) else value


def dry_runnable() -> frozenset[str]:
    """What `Limits.dry_run` may hold."""
    return frozenset({IP_FILTER, *(spec.name for spec in Limits.specs() if spec.dry_run)})


def parse_dry_run(text: str) -> frozenset[str]:
    """`max-errors,connection-rate` or `all` as the names that `Limits.dry_run` holds."""
    if text == "all":
        return dry_runnable()
    names = frozenset(word.strip().replace("-", "_") for word in text.split(","))
    if not names <= dry_runnable():
        options = ", ".join(sorted(name.replace("_", "-") for name in dry_runnable()))
        raise ValueError(f"all, or some of {options} with a comma between is expected")
    return names
