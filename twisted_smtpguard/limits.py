"""Every number of the guard, once: its default, its unit, what it means, what a client is told.

Command-line options, --help, --show-limits and docs/reference/limits.md are made from this file or checked
against it. 0 always means: no limit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import attrs

_N = TypeVar("_N")

_SIZE = re.compile(r"([0-9]{1,18})([kKmMgG]?)")
_FACTOR = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_YES = {"yes", "true", "on", "1"}
_NO = {"no", "false", "off", "0"}


def parse_count(text: str) -> int:
    """`20` as a whole number of things. ValueError says what is expected."""
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise ValueError("a whole number such as 20 is expected")
    return int(text)


def parse_octets(text: str) -> int:
    """`10485760`, `64k`, `10M` or `1G` as octets; k, M and G are powers of 1024."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("a size such as 10M, 64k or 10485760 is expected")
    return int(match[1]) * _FACTOR[match[2].lower()]


def parse_seconds(text: str) -> float:
    """`300`, `1.5`, `30s`, `5m`, `2h` or `1d` as seconds."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("a time such as 300, 1.5 or 5m is expected")
    seconds = float(match[1]) * _SECONDS[match[2]]
    return int(seconds) if seconds.is_integer() else seconds


def parse_flag(text: str) -> bool:
    """`yes` or `no`."""
    if text.lower() in _YES:
        return True
    if text.lower() in _NO:
        return False
    raise ValueError("yes or no is expected")


def format_octets(octets: int) -> str:
    """The shortest spelling that `parse_octets` reads back."""
    for letter, factor in (("G", 1024**3), ("M", 1024**2), ("k", 1024)):
        if octets and octets % factor == 0:
            return f"{octets // factor}{letter}"
    return str(octets)


def _check_seconds(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "must be a number"
    return None if math.isfinite(value) and value >= 0 else "must be 0 or more"


def _check_count(value: object) -> str | None:
    return "must be a whole number" if isinstance(value, float) else _check_seconds(value)


def _check_flag(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be True or False"


@attrs.frozen
class Unit:
    """How the values of a limit are read, checked and shown."""

    name: str
    parse: Callable[[str], Any]
    check: Callable[[object], str | None]
    """What is wrong with a value given from Python, or None."""
    format: Callable[[Any], str] = str
    choices: tuple[str, ...] = ()
    """All values that there are, where they are words."""


COUNT = Unit("a count", parse_count, _check_count)
OCTETS = Unit("octets", parse_octets, _check_count, format_octets)
OCTETS_A_SECOND = Unit("octets a second", parse_octets, _check_count, format_octets)
SECONDS = Unit("seconds", parse_seconds, _check_seconds)
FLAG = Unit("yes or no", parse_flag, _check_flag, lambda value: "yes" if value else "no")


def _one_of(*choices: str) -> Unit:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is expected")
        return text

    def check(value: object) -> str | None:
        return None if value in choices else f"must be one of {', '.join(choices)}"

    return Unit(" or ".join(choices), parse, check, choices=choices)


@attrs.frozen
class LimitSpec:
    """What is known of a limit besides its value. `Limits.specs()` lists them."""

    name: str
    """The field of Limits. Where a refusal has this reason, the log gives the limit's value with it."""
    default: Any
    unit: Unit
    help: str
    replies: tuple[str, ...]
    """Names in smtp/replies.py: what the client gets. Empty where nothing can be or need be said."""

    @property
    def option(self) -> str:
        """The command-line option without its dashes."""
        return self.name.replace("_", "-")


def _limit(default: _N, unit: Unit, help: str, *replies: str) -> _N:  # noqa: A002
    field: _N = attrs.field(
        default=default,
        validator=_check,
        metadata={"unit": unit, "help": help, "replies": replies},
    )
    return field


def _check(limits: object, field: attrs.Attribute[Any], value: object) -> None:
    problem = field.metadata["unit"].check(value)
    if problem:
        raise ValueError(f"{field.name} {problem}, not {value!r}")


@attrs.frozen(kw_only=True)
class Limits:
    """The numbers of one guard, frozen. `Limits(max_connections=500)` changes one and keeps the rest.

    A value out of range is a ValueError that names the field. 0 means no limit.
    """

    # Admission.
    max_connections: int = _limit(
        0,
        COUNT,
        "Connections at once over all listeners, from accept to the end of the connection.",
        "TOO_MANY_CONNECTIONS",
    )

    # Commands.
    max_invalid_commands: int = _limit(
        10,
        COUNT,
        "Invalid commands in a session (unrecognized, malformed lines, out of sequence); the last one "
        "allowed ends it.",
        "TOO_MANY_INVALID_COMMANDS",
    )
    max_errors: int = _limit(
        0,
        COUNT,
        "Error replies of any kind in a session since its last accepted message; the last one allowed "
        "ends it.",
        "TOO_MANY_ERRORS",
    )
    max_junk_commands: int = _limit(
        0,
        COUNT,
        "NOOP, RSET, VRFY, EXPN, HELP and repeated HELO or EHLO since the last accepted message; each one "
        "more counts as an error.",
        "TOO_MANY_ERRORS",
    )
    max_recipients: int = _limit(
        100,
        COUNT,
        "Recipients in a transaction. Those accepted stay, and the transaction goes on.",
        "TOO_MANY_RECIPIENTS",
        "TOO_MANY_RECIPIENTS_STRICT",
    )
    strict_enhanced_codes: bool = _limit(
        False,
        FLAG,
        "Refuse a recipient too many with 452 4.5.3, as RFC 2034 asks, not 452 5.5.3.",
        "TOO_MANY_RECIPIENTS_STRICT",
    )
    max_rejected_recipients: int = _limit(
        0,
        COUNT,
        "Recipients refused for good (5xx) in a session; the last one allowed ends it.",
        "TOO_MANY_REJECTED_RECIPIENTS",
    )
    max_messages: int = _limit(0, COUNT, "Messages in a session.", "TOO_MANY_MESSAGES")
    max_command_line: int = _limit(
        2048,
        OCTETS,
        "A command line, its CRLF included. A longer one is skipped to its CRLF.",
        "LINE_TOO_LONG",
    )
    max_endless_line: int = _limit(
        64 * 1024,
        OCTETS,
        "What is skipped of one over-long or malformed command line before the session is ended.",
        "TOO_MANY_INVALID_COMMANDS",
    )
    unexpected_pipelining: str = _limit(
        "serve",
        _one_of("serve", "refuse"),
        "Input behind a command that must be the last of its group (EHLO, HELO, DATA; RFC 2920 3.1).",
        "UNEXPECTED_PIPELINING",
    )
    max_input_buffer: int = _limit(
        64 * 1024,
        OCTETS,
        "Input that waits unprocessed while a command is being answered; the client is not read past it.",
    )
    max_output_buffer: int = _limit(
        16 * 1024,
        OCTETS,
        "Replies that wait for a client to read them; past it no further command is executed.",
    )

    # Messages.
    max_message_size: int = _limit(
        10 * 1024 * 1024,
        OCTETS,
        "A message, counted after dot-unstuffing, line ends included. Announced as SIZE.",
        "MESSAGE_TOO_LARGE",
    )
    oversize_drain: int = _limit(
        1024 * 1024,
        OCTETS,
        "What is read and thrown away above the maximum message size before the session is ended; the "
        "maximum message size itself where that is more.",
        "DATA_NEVER_ENDS",
    )
    bare_newline: str = _limit(
        "reject",
        _one_of("reject", "normalize"),
        "A bare CR or LF in a message: refuse the message, or make it CRLF.",
        "BARE_NEWLINE",
    )
    max_header_size: int = _limit(256 * 1024, OCTETS, "The header section of a message.", "HEADER_TOO_LARGE")
    max_received_fields: int = _limit(
        100, COUNT, "Received fields in a message; more are a routing loop.", "ROUTING_LOOP"
    )
    min_free_space: int = _limit(
        100 * 1024 * 1024,
        OCTETS,
        "Free space that a Maildir must have, besides the declared size, for MAIL to be accepted.",
        "INSUFFICIENT_STORAGE",
    )
    max_pending_deliveries: int = _limit(
        1000,
        COUNT,
        "Delivery verdicts still pending whose clients are gone; above it no transaction begins.",
        "TOO_MANY_PENDING",
    )

    # Time.
    read_timeout: float = _limit(
        300,
        SECONDS,
        "For one whole command; in message data for the next whole line or 1,024 octets.",
        "READ_TIMED_OUT",
    )
    write_timeout: float = _limit(
        300, SECONDS, "For the client to take any of the replies that wait. The connection is aborted."
    )
    min_data_rate: int = _limit(
        0, OCTETS_A_SECOND, "Message data, on the average of the data rate window.", "DATA_TOO_SLOW"
    )
    data_rate_window: float = _limit(
        60,
        SECONDS,
        "Over which the minimum data rate is averaged, and for which a message is spared at its start.",
    )
    max_session_time: float = _limit(
        0, SECONDS, "A session, checked between transactions.", "SESSION_TOO_LONG"
    )
    delivery_timeout: float = _limit(
        300,
        SECONDS,
        "For the delivery to answer. Below the ten minutes that a client waits after its final dot.",
        "DELIVERY_TIMED_OUT",
    )
    linger_timeout: float = _limit(
        5,
        SECONDS,
        "From our half-close behind a last 421 to the abort, so that the line reaches a client that was "
        "still sending.",
    )
    max_lingering: int = _limit(1024, COUNT, "Connections that linger so at once; more are closed plainly.")
    shutdown_grace: float = _limit(
        30, SECONDS, "For sessions in a transaction to end after a stop was asked for.", "SHUTTING_DOWN"
    )

    # Log.
    max_log_lines: int = _limit(
        200, COUNT, "Refusals logged a second. The next line tells how many were left out."
    )
    max_log_lines_per_client: int = _limit(10, COUNT, "Refusals logged a second for each client and reason.")

    @classmethod
    def specs(cls) -> Iterator[LimitSpec]:
        """Every limit in the order of this file."""
        for field in attrs.fields(cls):
            meta = field.metadata
            yield LimitSpec(field.name, field.default, meta["unit"], meta["help"], meta["replies"])
