"""The offences of clients, and the points that each of them costs: the table that `--ban-points` changes.

An offence has the reason that the log gives for its refusal. Whatever may be the fault of the guard, of its operator,
of a balancer or of the upstream server is none. What honest clients do that are old, in a hurry or misled has no
points, and an operator may give it some.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from twisted_smtpguard.limits.units import Unit

REJECTED_RECIPIENT = "rejected_recipient"
"""The offence that is no reason: a RCPT that the delivery or the upstream server has refused with a 5xx."""

POINTS: Mapping[str, int] = MappingProxyType(
    {
        # Clients that are no mail servers.
        "early_talker": 5,
        "not_smtp": 10,
        "unexpected_pipelining": 5,
        "starttls_injection": 10,
        "malformed_bdat": 5,
        # Passwords.
        "auth_failed": 5,
        "bad_auth_response": 1,
        "unknown_mechanism": 1,
        "encryption_required": 1,
        # The end of a session that was nothing but errors.
        "max_invalid_commands": 10,
        "max_endless_line": 10,
        "max_errors": 10,
        "max_rejected_recipients": 10,
        # Commands.
        "unrecognized_command": 1,
        "syntax_error": 1,
        "max_command_line": 1,
        "bad_line_end": 1,
        "bad_sequence": 1,
        "bad_arguments": 1,
        "bad_sender_address": 1,
        "bad_recipient_address": 1,
        "expn": 1,
        "tls_required": 1,
        "auth_required": 1,
        "relay_denied": 1,
        REJECTED_RECIPIENT: 1,
        # Messages.
        "bare_newline": 1,
        "max_header_size": 1,
        # Connections that are held and not used.
        "read_timeout": 1,
        "min_data_rate": 1,
        "write_timeout": 1,
        "tls_handshake_timeout": 1,
        # What an honest client may do.
        "auth_failure_rate": 0,
        "max_connections_per_client": 0,
        "connection_rate": 0,
        "message_rate": 0,
        "recipient_rate": 0,
        "max_messages": 0,
        "max_message_size": 0,
        "unsupported_parameter": 0,
        "non_ascii_address": 0,
        "tls_failed": 0,
    }
)
"""The points of each offence, by its reason."""

_MAX_POINTS = 1000

_EXPECTED = (
    f"an offence and its points from 0 to {_MAX_POINTS}, such as early_talker=10, or several with commas"
)


def _check(value: Any) -> str | None:
    right = isinstance(value, tuple) and all(
        isinstance(each, tuple) and len(each) == 2 and _problem(*each) == "" for each in value
    )
    if right and len({name for name, _ in value}) == len(value):
        return None
    return f"must name offences with points from 0 to {_MAX_POINTS}, each once"


def _problem(name: object, points: object) -> str:
    if name not in POINTS:
        return f"there is no offence {str(name)[:40]!r}; there are {', '.join(sorted(POINTS))}"
    right = type(points) is int and 0 <= points <= _MAX_POINTS
    return "" if right else f"{_EXPECTED} is expected"


def _parse(text: str) -> tuple[tuple[str, int], ...]:
    found: dict[str, int] = {}
    for word in [] if text == "0" else text.split(","):
        name, _, number = word.strip().partition("=")
        points = int(number) if re.fullmatch("[0-9]{1,4}", number) else None
        problem = _problem(name, points) if name else f"{_EXPECTED} is expected"
        if problem:
            raise ValueError(problem)
        if name in found:
            raise ValueError(f"{name} is given twice")
        assert points is not None
        found[name] = points
    return tuple(found.items())


def _converted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(value.items())
    return () if value == 0 else value


OFFENCES: Unit[tuple[tuple[str, int], ...]] = Unit(
    "points",
    _parse,
    _check,
    lambda value: ",".join(f"{name}={points}" for name, points in value) or "0",
    convert=_converted,
)
"""The unit of the points of some offences, in place of those of the table; `0` for none. An application may give a
dict."""
