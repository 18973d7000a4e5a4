"""Processor time of the server for each unit of work, beside that of smtp-sink and aiosmtpd in the same run.

python benchmarks/compare.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack

from servers import AIOSMTPD, OURS, OURS_LOGGING, SINK, Server, available, pin, running
from workloads import WORKLOADS, Workload, kibibytes_of_idle_connections

IDLE_CONNECTIONS = 2000


def measure(workload: Workload, names: list[str], rounds: int) -> dict[str, list[float]]:
    """What each round took of each server. Rounds are interleaved, so that a busy minute of the machine hits all."""
    took: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        servers = [stack.enter_context(running(name, refusing=workload.refusing)) for name in names]
        for server in servers:
            workload.send(server)
        for _ in range(rounds):
            for server in servers:
                took[server.name].append(_cost(workload, server))
    return took


def _cost(workload: Workload, server: Server) -> float:
    before = server.vitals.seconds
    units = workload.send(server)
    return (server.vitals.seconds - before) / units * workload.factor


def main(rounds: int) -> None:
    pin(1)
    names = available()
    header = "".join(f"{name:>20}" for name in names)
    print(f"{'':36}{'unit':>16}{header}{'ratio at warn':>16}{'at info':>9}")
    for workload in WORKLOADS:
        # aiosmtpd has no way to refuse a connection.
        able = [name for name in names if not (workload.refusing and name == AIOSMTPD)]
        took = measure(workload, able, rounds)
        _print(workload.name, workload.unit, names, {name: statistics.median(took[name]) for name in able})
    idle = {}
    for name in names:
        with running(name) as server:
            idle[name] = kibibytes_of_idle_connections(server, IDLE_CONNECTIONS)
    _print(f"W6 {IDLE_CONNECTIONS} idle connections", "KiB each", names, idle)


def _print(what: str, unit: str, names: list[str], medians: dict[str, float]) -> None:
    cells = "".join(f"{medians[name]:20.1f}" if name in medians else f"{'-':>20}" for name in names)
    ratios = [
        f"{medians[name] / medians[SINK]:.2f}" if SINK in medians else "-" for name in (OURS, OURS_LOGGING)
    ]
    print(f"{what:36}{unit:>16}{cells}{ratios[0]:>16}{ratios[1]:>9}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
