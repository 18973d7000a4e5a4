"""What a mail costs two workers on two cores, beside one: processor time of all processes, and how the mails are
shared. The load is on the same cores, and twice as much for two."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import attrs

from . import bounds
from .bounds import exactly
from .load import Load, Sent
from .measure import Entry, measure
from .rows import Row, Verdict
from .servers import PROTECTIONS, START_SECONDS, Kind, Server, Wrong, guard, running
from .vitals import CORES, pin, sharing
from .workloads import Workload

KEYS = ("W1", "W2", "W5")
ONE, TWO = "one worker", "two workers"
COLUMNS = (ONE, TWO)
_CORES = 2
_CONTROL = "control.sock"
_ON_CORES = f"""
import os, sys
os.sched_setaffinity(0, {CORES[:_CORES]})
os.execv(sys.argv[1], sys.argv[1:])
"""
_LIMITS = {"default limits": (), "all limits": PROTECTIONS}


def rows(python: str, workloads: Mapping[str, Workload], rounds: int) -> list[Row]:
    """Each workload with the default limits and with all of them."""
    return [
        _row(python, workloads[key], f"{workloads[key].name}, {limits}", protections, rounds)
        for limits, protections in _LIMITS.items()
        for key in KEYS
    ]


def _row(python: str, workload: Workload, name: str, protections: tuple[str, ...], rounds: int) -> Row:
    def kind(workers: int, level: str) -> Kind:
        options = (f"--workers={workers}", f"--control={_CONTROL}")
        made = guard(COLUMNS[workers - 1], python, *options, level=level, protections=protections)
        return attrs.evolve(made, command=lambda *how: [python, "-c", _ON_CORES, *made.command(*how)])

    entries = [
        Entry(each, kind(workers, "warn"), from_several(workload.load, workers, python))
        for workers, each in enumerate(COLUMNS, 1)
    ]
    found = measure(entries, rounds, workload.factor, refusing=workload.refusing, count=False)
    with running(kind(2, "info"), refusing=workload.refusing) as server:
        with from_several(workload.load, 2, python)(server) as send:
            send()
        server.stop()
        most = largest_share(
            server.printed, "connections_refused" if workload.refusing else "messages_accepted"
        )
    verdicts = [
        Verdict("two workers to one", found.ratio(TWO, ONE), bounds.WORKERS, 1.0),
        exactly("share of the worker that had more", most, bounds.WORKERS_SHARE),
    ]
    cells = {each: found.median(each) for each in found.rounds}
    details = {each: found.details(each) for each in found.rounds}
    return Row("WORKERS", f"{workload.key} {name}", workload.unit, cells, details, verdicts)


def from_several(load: Load, workers: int, python: str) -> Load:
    """`load` as many times at once as there are workers, so that each has as much to do as one worker alone. It
    is on the cores of the server."""

    @contextmanager
    def several(server: Server) -> Iterator[object]:
        _wait_until_ready(server, workers, python)
        with ExitStack() as stack, ThreadPoolExecutor(workers) as threads:
            sends = [stack.enter_context(load(server)) for _ in range(workers)]

            def send() -> Sent:
                with sharing(_CORES):
                    sent = [attrs.astuple(each) for each in threads.map(_pinned, sends)]
                return Sent(*map(sum, zip(*sent, strict=True)))

            yield send

    return several


def _pinned(send: Callable[[], Sent]) -> Sent:
    pin(1)
    # On other machines the load would interrupt no worker. Here each reply would wake a client that does, up to three
    # times a mail.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    return send()


def _wait_until_ready(server: Server, workers: int, python: str) -> None:
    code = "from twisted_smtpguard.control.command import main; main()"
    command = [python, "-c", code, "--json", "--socket", str(server.directory / _CONTROL), "status"]
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        states = [each["state"] for each in json.loads(done.stdout)["workers"]] if done.stdout else []
        if states == ["ready"] * workers:
            return
    raise Wrong(f"{server.name}: there are no {workers} workers")


def largest_share(log: str, counted: str) -> float:
    """The part of what all workers have counted that one had, from a log in JSON."""
    counts: Counter[int] = Counter()
    for line in log.split("\n"):
        record = json.loads(line.lstrip("\x1e")) if line.startswith("\x1e") else {}
        # The supervisor, which has the sums, is none.
        if record.get("event") == "stopped" and "worker" in record:
            counts[record["worker"]] += record[counted]
    if not counts.total():
        raise Wrong(f"the workers have counted no {counted}")
    return max(counts.values()) / counts.total()
