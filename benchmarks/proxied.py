"""The rows of mail that goes on to an upstream server: what the guard costs and how long it takes, beside other
proxies, before the same smtp-sink; and the memory of a message that the upstream server is slow to take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from . import bounds
from .compared import SMALL_MAIL
from .load import STEPS, Sent, noted
from .measure import Entry, Measured, compare_counts, measure
from .peers import SINK, tool
from .proxies import PROXIES
from .rows import Row, Verdict
from .servers import Guard, Kind, Server, Wrong, kinds, running
from .sessions import Session, sessions
from .vitals import SlowServer, octets_a_session
from .workloads import Workload

DIRECTLY = f"{SINK} directly"
PROXY_CORE, LOAD_CORE = 0, 1
MAILS = 1_000
"""Of a round, where it is measured how long each takes."""
LARGE = 1024
"""MB of the largest message."""
KIB = 1024


def discarding(name: str) -> str:
    """The column of a guard that passes nothing on."""
    return f"{name}, discarding"


def columns(names: Sequence[str]) -> list[str]:
    """Of the costs, where the guards are called so."""
    return [*names, *PROXIES, DIRECTLY, *map(discarding, names)]


def missing() -> list[str]:
    """What is to be said of the proxies that cannot be had."""
    return [f"{name} could not be had: {why}" for name, proxy in PROXIES.items() if (why := proxy.missing())]


def cost(guards: Mapping[str, Guard], workloads: Mapping[str, Workload], rounds: int) -> list[Row]:
    """Processor time, and mails a second: the proxy has a core for itself, the upstream server is on that of the load.
    What an smtp-sink takes that nobody stands before shows how much the load can send."""
    with _upstream(LOAD_CORE) as (upstream, sent):
        found = {}
        for key in SMALL_MAIL:
            workload = workloads[key]
            entries = [
                Entry(kind.name, kind, noted(workload.load_for(kind), sent))
                for kind in _proxies(guards, upstream)
            ]
            entries.append(Entry(DIRECTLY, kinds()[SINK], workload.load))
            entries += [Entry(discarding(name), make(), workload.load) for name, make in guards.items()]
            found[key] = measure(entries, rounds, workload.factor)
    return [row for key, took in found.items() for row in _cost_rows(key, workloads[key], took, list(guards))]


def _cost_rows(key: str, workload: Workload, found: Measured, guards: Sequence[str]) -> list[Row]:
    name = f"{workload.key} {workload.name}"
    ratios = {
        bounds.compared_to(each, other): found.ratio(each, other)
        for each in guards
        for other in PROXIES
        if other in found.rounds
    }
    verdicts = [
        Verdict(
            bounds.compared_to(each, "discarding"), found.ratio(each, discarding(each)), bounds.PROXIED[key]
        )
        for each in guards
    ]
    cells = {each: found.median(each) for each in found.rounds}
    details = {each: found.details(each) for each in found.rounds}
    a_second = {each: found.median(each, lambda took: took.per_second) for each in found.rounds}
    return [
        Row("PROXY", name, workload.unit, cells, details, verdicts, ratios),
        Row("PROXY", name, "mails a second", a_second),
    ]


def latency(guards: Mapping[str, Guard], rounds: int, scale: float) -> list[Row]:
    """How long one client waits for a whole mail, from its MAIL to the last 250, in ms.

    Here the upstream server is on the core of the proxies, since only one of them has something to do at a time:
    whoever answers the client is on the other core, and what it takes to wake that one is in each figure and in no
    difference.
    """
    mails = max(20, round(MAILS * scale))
    with _upstream(PROXY_CORE) as (upstream, sent), ExitStack() as stack:
        servers = [upstream, *(stack.enter_context(running(kind)) for kind in _proxies(guards, upstream))]
        names = [DIRECTLY, *(server.name for server in servers[1:])]
        waits: dict[str, list[list[float]]] = {name: [] for name in names}
        with ExitStack() as clients:
            opened = [clients.enter_context(sessions(server, 1))[0] for server in servers]
            for first in range(rounds + 1):
                for number in range(first, first + len(names)):
                    which = number % len(names)
                    took = _mails(opened[which], mails)
                    sent.append(Sent(mails, 0.0, mails, mails))
                    if first:
                        waits[names[which]].append(took)
        for server in servers[1:]:
            server.stop()
    rows = [_latency_row(name, waits[name]) for name in names]
    added = [_added(name, waits[name], waits[DIRECTLY], judged=name in guards) for name in names[1:]]
    return [*rows, *added]


def _mails(session: Session, number: int) -> list[float]:
    """The ms of each."""
    waits = []
    for _ in range(number):
        began = time.perf_counter()
        for octets, code in STEPS:
            session.say(octets)
            session.expect(code)
        waits.append((time.perf_counter() - began) * 1e3)
    return sorted(waits)


def _p50(waits: Sequence[float]) -> float:
    return waits[len(waits) // 2]


def _p99(waits: Sequence[float]) -> float:
    return waits[len(waits) * 99 // 100]


def _latency_row(name: str, rounds: Sequence[Sequence[float]]) -> Row:
    """Medians of the rounds, as of processor time."""
    cells = {
        "median": statistics.median(map(_p50, rounds)),
        "p99": statistics.median(map(_p99, rounds)),
        "worst": max(each[-1] for each in rounds),
    }
    details = {
        "median": {"rounds": list(map(_p50, rounds))},
        "p99": {"rounds": list(map(_p99, rounds))},
    }
    return Row("PROXY", f"a whole mail, {name}", "ms", cells, details)


def _added(
    name: str, rounds: Sequence[Sequence[float]], directly: Sequence[Sequence[float]], *, judged: bool
) -> Row:
    """Of each round what is more than the same round without anybody between."""
    cells = {
        what: statistics.median(
            of(with_it) - of(without) for with_it, without in zip(rounds, directly, strict=True)
        )
        for what, of in (("median", _p50), ("p99", _p99))
    }
    verdicts = [
        bounds.exactly(what, cells[what], most) for what, most in bounds.LATENCY_ADDED.items() if judged
    ]
    return Row("PROXY", f"a whole mail, what {name} adds", "ms", cells, {}, verdicts)


def memory(guards: Mapping[str, Guard], scale: float) -> list[Row]:
    """What a session takes while the upstream server reads nothing, and then all: one has the large message."""
    megabytes = max(16, round(LARGE * scale))
    rows = []
    for how, keywords in (("DATA", ()), ("BDAT", ("CHUNKING",))):
        cells = {
            name: _octets_a_session(make, keywords, megabytes, chunked=how == "BDAT") / KIB
            for name, make in guards.items()
        }
        verdicts = [
            bounds.exactly(bounds.told_of(name, "KiB a session"), each, bounds.PROXIED_SESSION)
            for name, each in cells.items()
        ]
        name = f"a message of {megabytes:,} MB passed on by {how}"
        rows.append(Row("PROXYMEMORY", name, "KiB a session", cells, {}, verdicts))
    return rows


def _octets_a_session(make: Guard, keywords: Sequence[str], megabytes: int, *, chunked: bool) -> float:
    server = SlowServer(*keywords)
    try:
        kind = make("--max-message-size=2G", deliver=f"smtp:tcp:127.0.0.1:{server.port}")
        with running(kind) as guard:
            address = ("127.0.0.1", guard.port)
            try:
                each = octets_a_session(address, guard.vitals, server, megabytes, chunked=chunked)
            except (AssertionError, OSError) as error:
                raise Wrong(f"{guard.name}, with a slow upstream server: {error}") from error
            guard.stop()
    finally:
        server.close()
    return each


@contextmanager
def _upstream(core: int) -> Iterator[tuple[Server, list[Sent]]]:
    """The upstream server. What is put on the list must have come to it when the block ends."""
    if tool(SINK) is None:
        raise Wrong("smtp-sink of Postfix is needed")
    counting = kinds()[SINK].counted_as
    assert counting is not None
    sent: list[Sent] = []
    with running(counting, core=core) as server:
        yield server, sent
        server.stop()
        compare_counts(server, sent)


def _proxies(guards: Mapping[str, Guard], upstream: Server) -> list[Kind]:
    own = [
        make("--accept-domain=guard.example", deliver=f"smtp:tcp:127.0.0.1:{upstream.port}")
        for make in guards.values()
    ]
    others = [proxy.kind(name, upstream.port) for name, proxy in PROXIES.items() if not proxy.missing()]
    return [*own, *others]
