"""How much the guard may cost. One table of each sort; nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping

from .rows import Verdict

GUARD = "guard"
GUARD_ON_UVLOOP = "guard on uvloop"

RATIOS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    GUARD: {
        "smtp-sink": {"W1": 2.0, "W2": 2.1, "W3": 0.8, "W4": 2.2, "W5": 1.9, "W7": 2.4, "W8": 1.0},
        "smtp-server": {"W1": 1.0, "W2": 1.0, "W3": 1.0, "W4": 1.0, "W5": 1.0, "W7": 1.0},
    },
    GUARD_ON_UVLOOP: {
        "smtp-sink": {"W1": 1.6, "W2": 1.6, "W3": 0.7, "W4": 1.8, "W5": 1.4, "W7": 2.0},
    },
}
"""Processor time of a guard as a multiple of that of another server in the same run, by that server and workload."""

STARTTLS: Mapping[str, float] = {"aiosmtpd": 0.7, "smtp-server": 0.4}
"""Processor time of a mail after STARTTLS with a full handshake, as a multiple of that of another server in the same
run: with a certificate of the kind `STARTTLS_KEY`, where it is the server and not the key that costs."""
STARTTLS_KEY = "ECDSA P-256"

LOG_EVENT = 30.0
"""µs of an event at info."""

IDLE_CONNECTION: Mapping[str, float] = {GUARD: 2.6, GUARD_ON_UVLOOP: 2.8}
"""KiB of resident memory."""

LARGE_MESSAGES = 4.0
"""MiB above idle, of twenty messages of 5 MB at once."""

HELD_SESSION = 160.0
"""KiB of a session whose client never reads, or never ends a line."""

PROXIED_SESSION = 96.0
"""KiB of a session whose message goes on to a slow upstream server, whatever its size."""

PROXIED: Mapping[str, float] = {"W1": 2.5, "W2": 3.0}
"""Processor time of mail that goes on to an upstream server, as a multiple of that of the same guard that discards it
in the same run, by workload."""

LATENCY_ADDED: Mapping[str, float] = {"median": 0.3, "p99": 0.6}
"""ms that the guard adds to what a client of its upstream server waits for a whole mail."""

LATENCY = 1.0
"""ms, of 99 in 100 replies to RSET and NOOP while others are idle."""

FSYNCS_A_MESSAGE = 1.25
"""The disk's own rate of fsyncs, by as many threads as the guard has for small messages, as a multiple of the messages
that are acknowledged."""

GROWTH = 1.3
"""Cost at the largest size as a multiple of that at the smallest, where it must not grow: what caches make of it, and
what differs from one run to the next."""


WORKERS = 1.1
"""Processor time of all processes of a guard with two workers for a mail, as a multiple of that with one."""

WORKERS_SHARE = 0.6
"""Of the mails, that of the worker that has more of them."""


def judge_ratios(key: str, guard: str, ratios: Mapping[str, float]) -> list[Verdict]:
    """`ratios` of the guard of that name to other servers in the workload `key`."""
    bounds = {other: of[key] for other, of in RATIOS.get(guard, {}).items() if key in of}
    return [
        Verdict(compared_to(guard, other), ratios[other], bounds[other])
        for other in bounds
        if other in ratios
    ]


def compared_to(guard: str, other: str) -> str:
    """What a ratio is called. That of the guard on the reactor that Twisted chooses is named by the other alone."""
    return other if guard == GUARD else f"{guard} to {other}"


def told_of(guard: str, what: str) -> str:
    """What a figure is called that has no other beside it."""
    return what if guard == GUARD else f"{what}, {guard}"


def exactly(what: str, value: float, at_most: float) -> Verdict:
    """Of a figure that has no other beside it that would waver as much."""
    return Verdict(what, value, at_most, 1.0)
