"""The rows of processor time: the guard beside its peers, and the guard beside itself, otherwise set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import bounds
from .load import slowed
from .measure import Entry, Measured, measure
from .rows import Row, Verdict
from .servers import (
    GUARD,
    GUARD_DEFAULTS,
    GUARD_INFO,
    GUARD_INFO_TEXT,
    GUARD_MAILDIR,
    Kind,
)
from .workloads import Workload

SMALL_MAIL = ("W1", "W2")
BY_LOAD = ("W1", "W2", "W4", "W5", "W7")


def slower(name: str) -> str:
    """The column of a server whose load is slowed."""
    return f"{name}, slower load"


def beside_peers(workload: Workload, guards: Sequence[Kind], peers: Sequence[Kind], rounds: int) -> Row:
    """Each of the guards beside all peers that can bear the workload."""
    able = [kind for kind in peers if workload.key not in kind.not_in]
    found = _measure(workload, [*guards, *able], rounds)
    ratios: dict[str, float] = {}
    verdicts: list[Verdict] = []
    for guard in guards:
        own = {kind.name: found.ratio(guard.name, kind.name) for kind in able}
        ratios |= {bounds.compared_to(guard.name, other): ratio for other, ratio in own.items()}
        verdicts += bounds.judge_ratios(workload.key, guard.name, own)
    return _row(workload.key, workload, found, verdicts, ratios)


def default_limits(workloads: Mapping[str, Workload], kinds: Mapping[str, Kind], rounds: int) -> list[Row]:
    """What the protections cost: the guard with none of its options set."""
    servers = [kinds[GUARD], kinds[GUARD_DEFAULTS]]
    rows = []
    for key in SMALL_MAIL:
        found = _measure(workloads[key], servers, rounds)
        ratio = {"default limits": found.ratio(GUARD_DEFAULTS, GUARD)}
        rows.append(_row("DEFAULTS", workloads[key], found, (), ratio))
    return rows


def logging(workloads: Mapping[str, Workload], kinds: Mapping[str, Kind], rounds: int) -> list[Row]:
    """What an event of the log costs at info: a message is one, a connection two."""
    servers = [kinds[GUARD], kinds[GUARD_INFO], kinds[GUARD_INFO_TEXT]]
    rows = []
    for key, events in zip(SMALL_MAIL, (3, 1), strict=True):
        found = _measure(workloads[key], servers, rounds)
        verdicts = [
            Verdict(f"µs an event, {what}", found.difference(name, GUARD) / events, bounds.LOG_EVENT)
            for what, name in (("JSON", GUARD_INFO), ("text", GUARD_INFO_TEXT))
        ]
        rows.append(_row("LOG", workloads[key], found, verdicts))
    return rows


def maildir(workloads: Mapping[str, Workload], kinds: Mapping[str, Kind], rounds: int) -> list[Row]:
    """What a message costs that is on the disk before it is answered."""
    servers = [kinds[GUARD], kinds[GUARD_MAILDIR]]
    rows = []
    for key in SMALL_MAIL:
        found = _measure(workloads[key], servers, rounds)
        ratio = {"Maildir": found.ratio(GUARD_MAILDIR, GUARD)}
        rows.append(_row("MAILDIR", workloads[key], found, (), ratio))
    return rows


def load_matters(workload: Workload, servers: Sequence[Kind], rounds: int) -> Row:
    """The same with half of the load's processor taken away: whether figures depend on how fast it is."""
    entries = []
    for kind in servers:
        entries.append(Entry(kind.name, kind, workload.load))
        entries.append(Entry(slower(kind.name), kind, slowed(workload.load)))
    found = measure(entries, rounds, workload.factor, refusing=workload.refusing, count=False)
    ratios = {kind.name: found.ratio(slower(kind.name), kind.name) for kind in servers}
    return _row("LOAD", workload, found, (), ratios)


def _measure(workload: Workload, servers: Sequence[Kind], rounds: int) -> Measured:
    entries = [Entry(kind.name, kind, workload.load_for(kind)) for kind in servers]
    return measure(entries, rounds, workload.factor, refusing=workload.refusing)


def _row(
    key: str,
    workload: Workload,
    found: Measured,
    verdicts: Sequence[Verdict],
    ratios: Mapping[str, float] | None = None,
) -> Row:
    name = workload.name if key == workload.key else f"{workload.key} {workload.name}"
    return Row(
        key,
        name,
        workload.unit,
        {each: found.median(each) for each in found.rounds},
        {each: found.details(each) for each in found.rounds},
        verdicts,
        ratios or {},
    )
