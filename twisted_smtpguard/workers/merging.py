"""What the answers of several workers are together. Plain functions of plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from twisted_smtpguard.operations.operator import RECENT
from twisted_smtpguard.operations.sessions import TOP_ROWS
from twisted_smtpguard.operations.suggestions import merged
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
    return {
        **first,
        **{name: sum(each[name] for each in statuses) for name in _SUMS},
        "stress": any(each.get("stress") for each in statuses),
        "upstream": summed(each.get("upstream", {}) for each in statuses),
        "problem": next(filter(None, (each.get("problem") for each in statuses)), ""),
    }


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
    return {
        **told[0],
        "recent_refusals": _latest(told, "recent_refusals", "time", _LATEST),
        "recent_sessions": _latest(told, "recent_sessions", "ended", _LATEST),
    }


def _recent(answers: Answers, _: Mapping[str, object]) -> dict[str, Any]:
    """The latest of all."""
    told = [answer["done"] for _, answer in answers]
    return {
        "refusals": _latest(told, "refusals", "time", RECENT),
        "sessions": _latest(told, "sessions", "ended", RECENT),
    }


def _latest(told: Sequence[Mapping[str, Any]], name: str, time: str, most: int) -> list[dict[str, Any]]:
    rows = [row for each in told for row in each[name]]
    return sorted(rows, key=lambda row: str(row[time]), reverse=True)[:most]


def _hooks(answers: Answers, _: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """The answers of a filter or a hook in all workers together. As fast as 95 of 100 came in each worker, they came in
    all; None, the longest time of all, if one worker does not know."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in (row for _, answer in answers for row in answer["rows"]):
        key = row["part"], row["name"], row["outcome"]
        rows[key] = _both(rows[key], row) if key in rows else row
    return iter(rows.values())


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    answers, seconds = one["answers"] + other["answers"], one["seconds"] + other["seconds"]
    times = one["within_seconds"], other["within_seconds"]
    return {
        **one,
        "answers": answers,
        "seconds": round(seconds, 6),
        "mean_seconds": round(seconds / answers, 6),
        "within_seconds": None if None in times else max(times),
    }


def _suggest(answers: Answers, _: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """The suggestions that follow from the peaks of all."""
    return merged(row for _, answer in answers for row in answer["rows"])


MERGED: Mapping[str, Callable[[Answers, Mapping[str, object]], Any]] = {
    "sessions": _sessions,
    "top": _top,
    "why": _why,
    "recent": _recent,
    "hooks": _hooks,
    "suggest": _suggest,
}
"""How the answers to a verb become one, from them and its arguments."""
