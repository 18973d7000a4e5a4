"""What the answers of several workers are together. Plain functions of plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from twisted_smtpguard.operations.sessions import TOP_ROWS
from twisted_smtpguard.operations.verbs import TOP

Counts = dict[str, Any]

_NOW = ("live_connections",)
"""The counts of what there is, which end with their worker. All others only rise."""


def summed(counts: Iterable[Mapping[str, Any]]) -> Counts:
    """The sums of numbers, name by name; also of those in a mapping below a name."""
    total: Counts = {}
    for each in counts:
        for name, value in each.items():
            if isinstance(value, Mapping):
                total[name] = summed([total.get(name, {}), value])
            else:
                total[name] = total.get(name, 0) + value
    return total


def of_ended(statistics: Mapping[str, Any]) -> Counts:
    """The statistics of a worker that has ended, as a part of those of all."""
    return {**statistics, **{name: 0 for name in _NOW if name in statistics}}


_SUMS = ("connections", "sessions", "lingering", "tls_handshakes")


def status_of(statuses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The status of a guard whose workers have `statuses`. What is the same in all is that of the first."""
    first = statuses[0] if statuses else {}
    return {**first, **{name: sum(each[name] for each in statuses) for name in _SUMS}}


Answers = Sequence[tuple[int, Mapping[str, Any]]]
"""The answers of workers, each with the number of its worker."""

_LATEST = 5
"""How many refusals and sessions of one client are shown."""


def _sessions(answers: Answers, _: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """The sessions of all."""
    return ({**row, "worker": number} for number, answer in answers for row in answer["rows"])


def _top(answers: Answers, arguments: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """The clients that have most in all workers together, of those that have most in one of them."""
    sums: dict[str, dict[str, Any]] = {}
    for _, answer in answers:
        for row in answer["rows"]:
            client = row["client"]
            counts = {name: count for name, count in row.items() if name != "client"}
            sums[client] = {"client": client, **summed([sums.get(client, {}).get("of", {}), counts])}
            sums[client]["of"] = {name: sums[client][name] for name in counts}
    order = str(arguments.get("by", TOP[0]))
    rows = sorted(sums.values(), key=lambda row: -row[order])[:TOP_ROWS]
    return ({name: value for name, value in row.items() if name != "of"} for row in rows)


def _why(answers: Answers, _: Mapping[str, object]) -> dict[str, Any]:
    """The decision of one worker, which is that of all, and what the client has met in any of them."""
    told = [answer["done"] for _, answer in answers]
    latest = {}
    for name, time in (("recent_refusals", "time"), ("recent_sessions", "ended")):
        rows = [row for each in told for row in each[name]]
        latest[name] = sorted(rows, key=lambda row: str(row[time]), reverse=True)[:_LATEST]
    return {**told[0], **latest}


MERGED: Mapping[str, Callable[[Answers, Mapping[str, object]], Any]] = {
    "sessions": _sessions,
    "top": _top,
    "why": _why,
}
"""How the answers to a verb become one, from them and its arguments."""
