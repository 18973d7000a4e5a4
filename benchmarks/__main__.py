"""One command: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import bounds, report
from .measure import Measured, measure
from .peers import PEERS
from .rows import Row, Table
from .servers import GUARD, Kind, Wrong, kinds
from .vitals import pin, raise_descriptor_limit
from .workloads import Workload, workloads

MISSED = 1
WRONG = 3


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m benchmarks", description="What the guard costs, beside others.")
    made.add_argument("--only", type=words, default=[], metavar="W1,W3", help="these rows, not all")
    made.add_argument(
        "--against", type=words, default=list(PEERS), metavar="NAMES", help=f"these of {', '.join(PEERS)}"
    )
    made.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each row")
    made.add_argument("--quick", action="store_true", help="less of everything: under three minutes")
    made.add_argument("--json", action="store_true", help="JSON on standard output, tables on standard error")
    made.add_argument("--python", default=sys.executable, help="of the environment whose guard is measured")
    made.add_argument("--scale", type=float, default=0.0, help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    scale = options.scale or (0.4 if options.quick else 1.0)
    rounds = min(options.rounds, 3) if options.quick else options.rounds
    raise_descriptor_limit()
    pin(1)
    known = kinds(options.python)
    missing = {name: PEERS[name].missing() for name in options.against}
    against = [known[name] for name in options.against if not missing[name]]
    rows = []
    out = sys.stderr if options.json else sys.stdout
    for key, workload in workloads(scale).items():
        if options.only and key not in options.only:
            continue
        row = compared(workload, [known[GUARD], *against], rounds)
        rows.append(row)
        print(
            report.text(Table("", [kind.name for kind in [known[GUARD], *against]], [row])),
            file=out,
            flush=True,
        )
    table = Table("Processor time", [GUARD, *(kind.name for kind in against)], rows)
    print(report.text(table), file=out)
    if options.json:
        print(report.as_json([table], {"rounds": rounds}))
    return 0


def compared(workload: Workload, servers: Sequence[Kind], rounds: int) -> Row:
    able = [kind for kind in servers if kind.refuses or not workload.refusing]
    found = measure(workload, able, rounds)
    names = [kind.name for kind in able]
    ratios = {name: found.ratio(GUARD, name) for name in names if name != GUARD}
    return Row(
        workload.key,
        workload.name,
        workload.unit,
        {name: found.median(name) for name in names},
        {name: details(found, name) for name in names},
        bounds.judge_ratios(workload.key, ratios),
        ratios,
    )


def details(found: Measured, name: str) -> dict[str, object]:
    return {
        "rounds": [took.cost for took in found.rounds[name]],
        "load": found.load(name),
        "busy": found.busy(name),
    }


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Wrong as wrong:
        sys.exit(f"{wrong}")
