"""Whether twice the input costs twice the time, for input that invites more: the cost of an octet at each size.

    python -m benchmarks.linear

In this process without sockets, in the 64 KiB pieces that a transport reads; pipelined commands also all at once, and
in a real process. Exit status 1 if the dearest octet of any row costs more than 1.3 times that of its smallest size.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.logger import LogLevel

from twisted_smtpguard.delivery.discard import DiscardDelivery
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.transport.factory import SMTPGuardFactory

from .load import burst
from .servers import GUARD_DEFAULTS, Server, kinds, running

KIB = 1024
MAX_RATIO = 1.3
PIECE = 64 * KIB
ROUNDS = 7

_ADDRESS = IPv4Address("TCP", "192.0.2.1", 4711)
_EHLO = b"EHLO client.example\r\n"
_DATA = _EHLO + b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@guard.example>\r\nDATA\r\n"

COMMANDS = (64 * KIB, 256 * KIB, 1024 * KIB)
HEADERS = (64 * KIB, 128 * KIB, 255 * KIB)
ARGUMENTS = (512, 1024, 2000)


class Client:
    """A transport whose client takes everything at once."""

    def __init__(self) -> None:
        self._producing = False

    def getPeer(self) -> IPv4Address:  # noqa: N802 - Twisted's names
        return _ADDRESS

    getHost = getPeer  # noqa: N815

    def write(self, data: bytes) -> None:
        pass

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802
        self._producing = True
        while self._producing:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:  # noqa: N802
        self._producing = False

    def pauseProducing(self) -> None:  # noqa: N802
        pass

    resumeProducing = loseConnection = loseWriteConnection = abortConnection = pauseProducing  # noqa: N815


def seconds_here(beginning: bytes, octets: bytes, piece: int) -> float:
    """The best of some rounds of `octets` behind `beginning`, in arrivals of `piece` octets."""
    clock, limits = Clock(), Limits(max_invalid_commands=0)
    events = Events(Statistics(), clock, limits, LogLevel.critical)
    factory = SMTPGuardFactory(
        clock, DiscardDelivery(), limits=limits, hostname="guard.example", events=events
    )
    best = float("inf")
    for _ in range(ROUNDS):
        protocol = factory.buildProtocol(_ADDRESS)
        protocol.makeConnection(Client())
        protocol.dataReceived(beginning)
        began = time.perf_counter()
        for start in range(0, len(octets), piece):
            protocol.dataReceived(octets[start : start + piece])
            clock.advance(0)
        best = min(best, time.perf_counter() - began)
        protocol.connectionLost()
    return best


def seconds_there(server: Server, octets: bytes) -> float:
    """Processor time of a real guard for `octets` in a session of their own, on average."""
    sessions = max(1, 4 * COMMANDS[-1] // len(octets))
    with burst(octets, sessions)(server) as send:
        before = server.vitals.seconds
        send()
        return (server.vitals.seconds - before) / sessions


def _row(name: str, sizes: tuple[int, ...], seconds: Callable[[int], float]) -> bool:
    nanoseconds = [seconds(size) / size * 1e9 for size in sizes]
    ratio = max(nanoseconds) / nanoseconds[0]
    cells = "".join(
        f"{size / KIB:8.1f} KiB {each:7.1f}" for size, each in zip(sizes, nanoseconds, strict=True)
    )
    print(f"{name:44}{cells}{ratio:8.2f}", flush=True)
    return ratio <= MAX_RATIO


def _filled(pattern: bytes, size: int) -> bytes:
    """About `size` octets, in whole patterns."""
    return pattern * (size // len(pattern))


REPEATED = {
    "NOOP": (b"", b"NOOP\r\n", COMMANDS),
    "bare LF in DATA": (_DATA, b"\n", COMMANDS),
    "bare CR in DATA": (_DATA, b"\r", COMMANDS),
    "CRLF and two dots in DATA": (_DATA, b"\r\n..", COMMANDS),
    "empty lines in DATA": (_DATA, b"\r\n", COMMANDS),
    "header fields": (_DATA, b"a:\r\n", HEADERS),
    "one header field": (_DATA + b"Subject: ", b"x", HEADERS),
    "a folded header field": (_DATA + b"Subject: x", b"\r\n ", HEADERS),
}
HOSTILE_MAIL = {
    "MAIL, dots": b"MAIL FROM:<%b@b.example>\r\n",
    "MAIL, no end": b"MAIL FROM:<%b\r\n",
    "MAIL, labels": b"MAIL FROM:<a@%bexample>\r\n",
    "MAIL, quoted": b'MAIL FROM:<"%b"@b.example>\r\n',
    "MAIL, route": b"MAIL FROM:<%b:a@b.example>\r\n",
    "MAIL, parameters": b"MAIL FROM:<a@b.example>%b\r\n",
}
FILLINGS = {
    "MAIL, dots": b"a.",
    "MAIL, no end": b"a.",
    "MAIL, labels": b"a-a.",
    "MAIL, quoted": b"\\\\",
    "MAIL, route": b"@a.example,",
    "MAIL, parameters": b" A=B",
}


def main() -> int:
    print(f"{'nanoseconds an octet, at each size':96}{'ratio':>20}")
    linear = [
        _row("NOOP, all at once", COMMANDS, lambda size: seconds_here(b"", _filled(b"NOOP\r\n", size), size))
    ]
    for name, (beginning, pattern, sizes) in REPEATED.items():

        def cost(size: int, beginning: bytes = beginning, pattern: bytes = pattern) -> float:
            return seconds_here(beginning, _filled(pattern, size), PIECE)

        linear.append(_row(name, sizes, cost))
    for name, form in HOSTILE_MAIL.items():

        def cost_of_one(size: int, form: bytes = form, filling: bytes = FILLINGS[name]) -> float:
            line = form % _filled(filling, size)
            return seconds_here(_EHLO, line * 200, PIECE) / 200

        linear.append(_row(name, ARGUMENTS, cost_of_one))
    with running(kinds()[GUARD_DEFAULTS]) as server:
        linear.append(
            _row(
                "NOOP, a real process",
                COMMANDS,
                lambda size: seconds_there(server, _filled(b"NOOP\r\n", size)),
            )
        )
    return 0 if all(linear) else 1


if __name__ == "__main__":
    sys.exit(main())
