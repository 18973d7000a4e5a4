"""One command: `python -m benchmarks`. See --help."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from . import compared, encrypted, growth, handshakes, maildir, memory, proxied, report, workers
from .options import PROCESSOR_TIME, parse
from .peers import AIOSMTPD, PEERS, PICKED, SINK
from .plot import svg
from .rows import Row, Table
from .servers import (
    GUARD,
    GUARD_DEFAULTS,
    GUARD_INFO,
    GUARD_INFO_TEXT,
    GUARD_MAILDIR,
    Kind,
    Wrong,
    guards,
    kinds,
    on,
    reactor_missing,
)
from .vitals import CORES, pin, raise_descriptor_limit
from .workloads import workloads

MISSED = 1
WRONG = 3


def tables(options: Namespace) -> Iterator[Table]:
    """Each as soon as it is measured."""
    descriptors = raise_descriptor_limit()
    pin(1)
    known, loads = kinds(options.python), workloads(options.scale)
    rounds = options.rounds
    missing = {name: PEERS[name].missing() for name in options.against}
    wanted = guards(options.python, options.reactor)
    if options.reactor:
        missing[on(options.reactor)] = reactor_missing(options.python, options.reactor)
    makers = {name: make for name, make in wanted.items() if not missing.get(name)}
    own = [make() for make in makers.values()]
    peers = [known[name] for name in options.against if not missing[name]]
    names = [*wanted, *options.against]
    notes = [f"{name} could not be had: {why}" for name, why in missing.items() if why]

    def rows(*sources: tuple[str, Callable[[], Sequence[Row]]]) -> list[Row]:
        found: list[Row] = []
        for key, source in sources:
            if key in options.only:
                began = time.monotonic()
                found += source()
                print(f"{key}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        return found

    def beside(key: str) -> tuple[str, Callable[[], Sequence[Row]]]:
        return key, lambda: [compared.beside_peers(loads[key], own, peers, rounds)]

    yield Table("Processor time", names, rows(*map(beside, PROCESSOR_TIME)), notes)
    yield Table(
        "Memory",
        [*wanted, *(name for name in options.against if not {"W6", "MEMORY"} <= {*PEERS[name].not_in})],
        rows(
            ("W6", lambda: memory.idle_connections(own, peers, descriptors, options.crowd_scale)),
            (
                "MEMORY",
                lambda: [memory.large_messages(own, peers), *memory.held_sessions(own, options.crowd_scale)],
            ),
            ("PROXYMEMORY", lambda: proxied.memory(makers, options.scale)),
        ),
        notes,
    )
    yield Table(
        "Latency",
        ["median", "p99", "worst"],
        rows(
            ("LATENCY", lambda: [memory.latency(kind, options.crowd_scale) for kind in own]),
            ("PROXY", lambda: proxied.latency(makers, rounds, options.scale)),
        ),
    )
    yield Table(
        "The guard, otherwise set",
        [GUARD, GUARD_DEFAULTS, GUARD_INFO, GUARD_INFO_TEXT, GUARD_MAILDIR],
        rows(
            ("DEFAULTS", lambda: compared.default_limits(loads, known, rounds)),
            ("LOG", lambda: compared.logging(loads, known, rounds)),
            ("MAILDIR", lambda: compared.maildir(loads, known, rounds)),
        ),
    )
    yield Table(
        "Messages that are on the disk",
        list(maildir.COLUMNS),
        rows(("MAILDIR", lambda: [maildir.rate(known[GUARD_MAILDIR], rounds, options.scale)])),
    )
    yield Table(
        "Two workers",
        list(workers.COLUMNS),
        rows(("WORKERS", lambda: workers.rows(options.python, loads, rounds))),
    )
    yield Table(
        "Under TLS",
        list(encrypted.COLUMNS),
        rows(("TLS", lambda: encrypted.rows(options.python, loads, rounds, options.scale))),
    )
    yield Table(
        "Handshakes",
        list(handshakes.COLUMNS),
        rows(
            (
                "HANDSHAKES",
                lambda: handshakes.rows(options.python, [kind.name for kind in peers], rounds, options.scale),
            )
        ),
        notes,
    )
    yield Table(
        "Mail that goes on to an upstream server",
        proxied.columns(list(wanted)),
        rows(("PROXY", lambda: proxied.cost(makers, loads, rounds))),
        [*notes, *proxied.missing()],
    )
    yield Table(
        "What must not grow",
        ["at 1", "at N", "at 10 N"],
        rows(
            (
                "GROWTH",
                lambda: [
                    row
                    for make in makers.values()
                    for row in growth.growth(make, rounds, options.scale, options.crowd_scale)
                ],
            )
        ),
    )
    yield _slower_load(options, [each for each in (*own, *peers) if each.name in (*makers, SINK)], rows)


def _slower_load(options: Namespace, servers: Sequence[Kind], rows: Callable[..., list[Row]]) -> Table:
    loads = workloads(options.scale)
    found = rows(
        (
            "LOAD",
            lambda: [
                *(compared.load_matters(loads[key], servers, options.rounds) for key in compared.BY_LOAD),
                *encrypted.slower_load(options.python, loads, options.rounds, options.scale),
            ],
        )
    )
    columns = [name for kind in servers for name in (kind.name, compared.slower(kind.name))]
    return Table("The same with half of the load's processor taken away", columns, found)


def about(options: Namespace) -> dict[str, object]:
    """Where and how it was measured."""
    versions = {}
    for name in (AIOSMTPD, "twisted"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "cores": len(CORES),
        "system": f"{platform.system()} {platform.release()}",
        "python": _python(options.python),
        "versions": versions,
        "rounds": options.rounds,
        "scale": options.scale,
    }


def _python(python: str) -> str:
    done = subprocess.run([python, "-V"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    quiet = options.json or options.markdown
    found = []
    for table in tables(options):
        if not table.rows:
            continue
        found.append(table)
        print(report.text(table), end="\n\n", file=sys.stderr if quiet else sys.stdout, flush=True)
    if options.json:
        print(report.as_json(found, about(options)))
    elif options.markdown:
        print(report.conditions(about(options)), *map(report.markdown, found), sep="\n\n")
    if options.plot and found[0].title == "Processor time":
        options.plot.write_text(svg(found[0], SINK, list(guards(options.python, options.reactor)), PICKED))
    missed = report.missed(found)
    print(report.summary(found), file=sys.stderr if quiet else sys.stdout)
    return MISSED if options.judge and missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Wrong as wrong:
        print(wrong, file=sys.stderr)
        sys.exit(WRONG)
