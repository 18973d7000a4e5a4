"""Resident memory of the server: of idle connections, of large messages, of clients that never read or never end a
line; and how soon one client is answered while thousands are idle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs

from . import bounds
from .load import ENVELOPE, smtp_source
from .rows import Row, Verdict
from .servers import Kind, Server, Wrong, running
from .sessions import idle, sessions

KIB = 1024
MIB = 1024 * 1024
SPARE_DESCRIPTORS = 200
"""Of this process and of the server, for all that is no client."""
CROWDS = (5_000, 20_000)
HELD = 100
QUIET_SECONDS = 0.5
"""After which a client that is not read any more stops trying."""


def idle_connections(
    guards: Sequence[Kind], peers: Sequence[Kind], descriptors: int, scale: float
) -> list[Row]:
    """W6. The guards alone have to bear the largest crowd."""
    rows = []
    for wanted, others in zip(CROWDS, (peers, ()), strict=True):
        crowd = min(max(1, round(wanted * scale)), descriptors - SPARE_DESCRIPTORS)
        cells = {}
        for kind in (*guards, *(peer for peer in others if "W6" not in peer.not_in)):
            with running(kind) as server:
                _warm(server)
                before = server.vitals.resident
                with idle(server, crowd):
                    cells[kind.name] = (server.vitals.resident - before) / KIB / crowd
                _still_serves(server)
                server.stop()
        note = (
            f"the machine's hard limit is {descriptors:,} descriptors: {wanted:,} connections are out of reach"
            if crowd < wanted * scale
            else ""
        )
        verdicts = _each(guards, "KiB each", cells, bounds.IDLE_CONNECTION)
        rows.append(Row("W6", f"{crowd:,} idle connections", "KiB each", cells, {}, verdicts, {}, note))
    return rows


def large_messages(guards: Sequence[Kind], peers: Sequence[Kind]) -> Row:
    """The most that twenty at once take above idle, at any moment."""
    send_large = smtp_source("-l", "5000000", messages=20, at_once=20)
    cells = {}
    for kind in (*guards, *(peer for peer in peers if "MEMORY" not in peer.not_in)):
        with running(kind) as server:
            _warm(server)
            before = server.vitals.resident
            server.vitals.forget_peak()
            with send_large(server) as send:
                send()
            cells[kind.name] = (server.vitals.peak - before) / MIB
            server.stop()
    verdicts = _each(guards, "MiB", cells, bounds.LARGE_MESSAGES)
    return Row("MEMORY", "20 messages of 5 MB at once, peak", "MiB", cells, {}, verdicts)


@attrs.frozen
class Hold:
    """How a client holds a session: what it says first, and then until it is not read any more, or so many octets."""

    name: str
    first: bytes
    for_ever: bytes
    octets: int


HOLDS = [
    Hold("never reads, NOOP", b"", b"NOOP\r\n", 1 << 30),
    Hold("never reads, HELP", b"", b"HELP\r\n", 1 << 30),
    Hold("never ends a command line", b"", b"x", 60_000),
    Hold("never ends a line of a message", ENVELOPE, b"x", 1_000_000),
]


def held_sessions(guards: Sequence[Kind], scale: float) -> list[Row]:
    """Only the guards: others set no bound on this."""
    rows = []
    clients = max(2, round(HELD * scale))
    for hold in HOLDS:
        cells = {}
        for kind in guards:
            with running(kind) as server:
                _warm(server)
                before = server.vitals.resident
                server.vitals.forget_peak()
                with _holding(server, hold, clients):
                    cells[kind.name] = (server.vitals.peak - before) / KIB / clients
                _still_serves(server)
                server.stop()
        verdicts = _each(guards, "KiB each", cells, bounds.HELD_SESSION)
        rows.append(Row("MEMORY", f"{clients} clients, each {hold.name}", "KiB each", cells, {}, verdicts))
    return rows


@contextmanager
def _holding(server: Server, hold: Hold, clients: int) -> Iterator[None]:
    with sessions(server, clients) as opened:
        for session in opened:
            if hold.first:
                session.say(hold.first)
                session.expect(b"250", b"250", b"354")
            session.socket.setblocking(False)
        chunk = hold.for_ever * (16384 // len(hold.for_ever))
        said = dict.fromkeys(opened, 0)
        moved = time.monotonic()
        while time.monotonic() - moved < QUIET_SECONDS:
            for session in opened:
                piece = chunk[: hold.octets - said[session]]
                try:
                    sent = session.socket.send(piece) if piece else 0
                except BlockingIOError:
                    continue
                if sent:
                    said[session] += sent
                    moved = time.monotonic()
        yield
        if not all(said.values()):
            raise Wrong("a client that was to hold a session could say nothing")


def latency(kind: Kind, scale: float) -> Row:
    """How long one client of a guard waits for its reply while others are idle, in ms."""
    crowd = max(1, round(CROWDS[0] * scale))
    waits = []
    with running(kind) as server:
        with idle(server, crowd), sessions(server, 1) as (session,):
            for _ in range(max(50, round(2_000 * scale))):
                for command in (b"RSET\r\n", b"NOOP\r\n"):
                    began = time.perf_counter()
                    session.say(command)
                    session.expect(b"250")
                    waits.append((time.perf_counter() - began) * 1e3)
        server.stop()
    waits.sort()
    cells = {"median": waits[len(waits) // 2], "p99": waits[len(waits) * 99 // 100], "worst": waits[-1]}
    verdicts = [bounds.exactly("p99", cells["p99"], bounds.LATENCY)]
    return Row(
        "LATENCY",
        bounds.told_of(kind.name, f"RSET and NOOP beside {crowd:,} idle"),
        "ms",
        cells,
        {},
        verdicts,
    )


def _each(
    guards: Sequence[Kind], what: str, cells: Mapping[str, float], at_most: float | Mapping[str, float]
) -> list[Verdict]:
    """Whether each guard keeps its bound: the same of all, or by name, of those that have one."""
    most = at_most if isinstance(at_most, Mapping) else dict.fromkeys(cells, at_most)
    return [
        bounds.exactly(bounds.told_of(kind.name, what), cells[kind.name], most[kind.name])
        for kind in guards
        if kind.name in most
    ]


def _warm(server: Server) -> None:
    """What a server makes once, it makes at its first mail."""
    with smtp_source("-l", "1024", messages=40, at_once=20)(server) as send:
        send()


def _still_serves(server: Server) -> None:
    with sessions(server, 1):
        pass
