"""Values for the limits per client, from the most that clients had: how they are found, and shown as lines for a
`--config` file. Plain functions of plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import Rate

ONE_IN = (1_000, 100_000)
"""The parts of the clients with accepted mail that a suggested value may refuse: one in so many."""

ENFORCED, DRY_RUN, OFF = "enforced", "dry run", "off"

_HIGH = 1_000_000
"""A value that only counts."""
_GROUPS = ("accepted", "refused", "banned")

Row = dict[str, Any]
Pairs = Sequence[Sequence[int]]
"""Peaks, each with the number of clients that had it, the lowest first."""


def row(limits: Limits, name: str, peaks: Mapping[str, Mapping[int, int]], since: str) -> Row:
    """What is known of the limit with this name, from the peaks of the clients of each group."""
    value = getattr(limits, name)
    counting = (DRY_RUN if name in limits.dry_run else ENFORCED) if value else OFF
    pairs = {group: [list(each) for each in sorted(peaks[group].items())] for group in _GROUPS}
    known = {
        "limit": name.replace("_", "-"),
        "counting": counting,
        "value": str(value),
        "since": since,
        "events": value.events if isinstance(value, Rate) else value,
        "peaks": pairs,
    }
    return completed(known)


def completed(known: Row) -> Row:
    """A row with what follows from its peaks: the number of clients, and the suggestions."""
    peaks: Mapping[str, Pairs] = known["peaks"]
    clients = {group: _above(peaks[group], -1) for group in _GROUPS}
    suggestions = [] if known["counting"] == OFF else [_suggestion(known, one_in) for one_in in ONE_IN]
    return {**known, **clients, "suggestions": suggestions}


def merged(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """The rows of several workers as those of one guard. A client is counted in each worker that has served it."""
    by_limit: dict[str, list[Mapping[str, Any]]] = {}
    for each in rows:
        by_limit.setdefault(each["limit"], []).append(each)
    for several in by_limit.values():
        peaks = {group: Counter[int]() for group in _GROUPS}
        for each in several:
            for group in _GROUPS:
                peaks[group].update(dict(each["peaks"][group]))
        pairs = {group: [list(pair) for pair in sorted(counts.items())] for group, counts in peaks.items()}
        yield completed({**several[0], "since": min(each["since"] for each in several), "peaks": pairs})


def _above(pairs: Pairs, value: int) -> int:
    """How many clients had more."""
    return sum(clients for peak, clients in pairs if peak > value)


def _suggestion(known: Row, one_in: int) -> Row:
    """The lowest value that refuses at most one in so many of the clients with accepted mail, and how many of each
    group it would have refused. The value is "" if it is not known."""
    peaks: Mapping[str, Pairs] = known["peaks"]
    seen = _above(peaks["accepted"], -1)
    allowed = seen // one_in
    if not allowed:
        return {"one_in": one_in, "value": "", "why": f"fewer than {one_in:,} clients"}
    value = 1
    for peak, clients in reversed(peaks["accepted"]):
        allowed -= clients
        if allowed < 0:
            value = max(1, peak)
            break
    if known["counting"] == ENFORCED and value > known["events"]:
        return {"one_in": one_in, "value": "", "why": "more were refused already"}
    _, slash, window = known["value"].partition("/")
    return {
        "one_in": one_in,
        "value": f"{value}{slash}{window}",
        **{group: _above(peaks[group], value) for group in _GROUPS},
    }


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as lines of a `--config` file, with what is known in comments. It can be pasted as it is: of the values
    for a limit the most careful one is set."""
    first = rows[0]
    yield f"# Seen since {first['since']}: {_clients(first)}."
    for each in rows:
        yield ""
        yield from _lines(each)


def _clients(each: Mapping[str, Any]) -> str:
    return (
        f"{each['accepted']:,} clients whose mail was accepted, {each['refused']:,} others that were refused, "
        f"{each['banned']:,} others that were banned"
    )


def _lines(each: Mapping[str, Any]) -> Iterator[str]:
    name, counting, value = each["limit"], each["counting"], each["value"]
    if counting == OFF:
        window = "" if name.startswith("max-") else "/60"
        yield f"# {name} is off, so nothing is counted. To have it counted, and nobody refused, set both of these,"
        yield "# with the window that the limit shall have:" if window else "# for a time:"
        yield f"#   {name} = {_HIGH}{window}"
        yield f"#   dry-run = {name}"
        return
    state = "in dry run; take it out of dry-run to have it enforced" if counting == DRY_RUN else "enforced"
    yield f"# {name} is {value}, {state}."
    found = [each for each in each["suggestions"] if each["value"]]
    for suggestion in each["suggestions"]:
        part = f"1 in {suggestion['one_in']:,}"
        if suggestion["value"]:
            refused = (f"{suggestion[group]:,} of {each[group]:,} {group}" for group in _GROUPS)
            yield f"# {part}: {suggestion['value']} would have refused {', '.join(refused)}."
        elif suggestion["why"].startswith("fewer"):
            yield f"# {part}: not known, since mail of {suggestion['why']} was accepted."
        else:
            yield f"# {part}: not known, since {value} has refused more. Have it counted in dry run."
    for suggestion in found[:-1]:
        yield f"#   {name} = {suggestion['value']}"
    for suggestion in found[-1:]:
        yield f"{name} = {suggestion['value']}"
