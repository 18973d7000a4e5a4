"""The rows of mail that goes on to a server behind: what the guard costs and how long it takes, beside HAProxy, which
looks into nothing, before the same smtp-sink; and the memory of a message that the server behind is slow to take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from . import bounds
from .compared import SMALL_MAIL
from .load import STEPS, Sent, noted
from .measure import Entry, Measured, compare_counts, measure
from .peers import HERE, SINK, tool
from .rows import Row
from .servers import GUARD, Kind, Server, Wrong, guard, kinds, running
from .sessions import Session, sessions
from .vitals import SlowServer, octets_a_session
from .workloads import Workload

HAPROXY = "HAProxy"
DIRECTLY = f"{SINK} directly"
COLUMNS = (GUARD, HAPROXY, DIRECTLY)
PROXY_CORE, LOAD_CORE = 0, 1
MAILS = 1_000
"""Of a round, where it is measured how long each takes."""
LARGE = 1024
"""MB of the largest message."""
KIB = 1024


def cost(python: str, workloads: Mapping[str, Workload], rounds: int) -> list[Row]:
    """Processor time, and mails a second: the proxy has a core for itself, the server behind is on that of the load.
    What an smtp-sink takes that has nobody in front shows how much the load can send."""
    with _behind(LOAD_CORE) as (behind, sent):
        found = {}
        for key in SMALL_MAIL:
            load = noted(workloads[key].load, sent)
            entries = [Entry(kind.name, kind, load) for kind in _proxies(python, behind)]
            entries.append(Entry(DIRECTLY, kinds(python)[SINK], workloads[key].load))
            found[key] = measure(entries, rounds, workloads[key].factor)
    return [row for key, took in found.items() for row in _cost_rows(workloads[key], took)]


def _cost_rows(workload: Workload, found: Measured) -> list[Row]:
    name = f"{workload.key} {workload.name}"
    ratios = {other: found.ratio(GUARD, other) for other in found.rounds if other == HAPROXY}
    cells = {each: found.median(each) for each in found.rounds}
    details = {each: found.details(each) for each in found.rounds}
    note = "" if HAPROXY in found.rounds else f"{HAPROXY} could not be had: it is not installed"
    a_second = {each: found.median(each, lambda took: took.per_second) for each in found.rounds}
    return [
        Row("PROXY", name, workload.unit, cells, details, (), ratios, note),
        Row("PROXY", name, "mails a second", a_second),
    ]


def latency(python: str, rounds: int, scale: float) -> list[Row]:
    """How long one client waits for a whole mail, from its MAIL to the last 250, in ms.

    Here the server behind is on the core of the proxies, since only one of them has something to do at a time: whoever
    answers the client is on the other core, and what it takes to wake that one is in each figure and in no difference.
    """
    mails = max(20, round(MAILS * scale))
    with _behind(PROXY_CORE) as (behind, sent), ExitStack() as stack:
        servers = [behind, *(stack.enter_context(running(kind)) for kind in _proxies(python, behind))]
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
    added = [_added(name, waits[name], waits[DIRECTLY]) for name in names[1:]]
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


def _added(name: str, rounds: Sequence[Sequence[float]], directly: Sequence[Sequence[float]]) -> Row:
    """Of each round what is more than the same round without anybody between."""
    cells = {
        what: statistics.median(
            of(with_it) - of(without) for with_it, without in zip(rounds, directly, strict=True)
        )
        for what, of in (("median", _p50), ("p99", _p99))
    }
    return Row("PROXY", f"a whole mail, what {name} adds", "ms", cells)


def memory(python: str, scale: float) -> list[Row]:
    """What a session takes while the server behind reads nothing, and then all: one has the large message."""
    megabytes = max(16, round(LARGE * scale))
    rows = []
    for how, keywords in (("DATA", ()), ("BDAT", ("CHUNKING",))):
        server = SlowServer(*keywords)
        try:
            kind = guard(GUARD, python, "--max-message-size=2G", deliver=f"smtp:tcp:127.0.0.1:{server.port}")
            with running(kind) as running_guard:
                each = _octets_a_session(running_guard, server, megabytes, chunked=how == "BDAT") / KIB
                running_guard.stop()
        finally:
            server.close()
        verdicts = [bounds.exactly("KiB a session", each, bounds.PROXIED_SESSION)]
        name = f"a message of {megabytes:,} MB passed on by {how}"
        rows.append(Row("PROXYMEMORY", name, "KiB a session", {GUARD: each}, {}, verdicts))
    return rows


def _octets_a_session(guard: Server, server: SlowServer, megabytes: int, *, chunked: bool) -> float:
    address = ("127.0.0.1", guard.port)
    try:
        return octets_a_session(address, guard.vitals, server, megabytes, chunked=chunked)
    except (AssertionError, OSError) as error:
        raise Wrong(f"{guard.name}, with a slow server behind: {error}") from error


@contextmanager
def _behind(core: int) -> Iterator[tuple[Server, list[Sent]]]:
    """The server behind. What is put on the list must have come to it when the block ends."""
    if tool(SINK) is None:
        raise Wrong("smtp-sink of Postfix is needed")
    counting = kinds()[SINK].counted_as
    assert counting is not None
    sent: list[Sent] = []
    with running(counting, core=core) as server:
        yield server, sent
        server.stop()
        compare_counts(server, sent)


def _proxies(python: str, behind: Server) -> list[Kind]:
    proxies = [
        guard(GUARD, python, "--accept-domain=guard.example", deliver=f"smtp:tcp:127.0.0.1:{behind.port}")
    ]
    haproxy = tool("haproxy")
    if haproxy is not None:
        proxies.append(Kind(HAPROXY, _haproxy_command(haproxy, behind.port)))
    return proxies


def _haproxy_command(haproxy: str, behind: int) -> Callable[[int, bool], Sequence[str]]:
    def command(port: int, refusing: bool) -> list[str]:
        own = [haproxy, "-db", "-f", str(HERE / "haproxy.cfg")]
        return ["/usr/bin/env", f"FRONT={port}", f"BEHIND={behind}", *own]

    return command
