"""The units of limits: how an operator writes each kind of value, and how it is checked and shown."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Generic, Literal, TypeVar

import attrs

T = TypeVar("T")

_SIZE = re.compile(r"([0-9]{1,18})(?:([kKmMgG])(?:i?[bB])?)?")
_FACTOR = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_YES = {"yes", "true", "on", "1"}
_NO = {"no", "false", "off", "0"}


def parse_count(text: str) -> int:
    """Parse a whole number such as `20`. ValueError says what is expected."""
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise ValueError("a whole number such as 20 is expected")
    return int(text)


def parse_octets(text: str) -> int:
    """Parse `10485760`, `64k`, `10M` or `1G` into octets. k, M and G (also kB, MB, GB, KiB, MiB, GiB) are powers of
    1024."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("a size such as 10M, 64k or 10485760 is expected")
    return int(match[1]) * _FACTOR[(match[2] or "").lower()]


def parse_seconds(text: str) -> float:
    """Parse `300`, `1.5`, `30s`, `5m`, `2h` or `1d` into seconds."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("a time such as 300, 1.5 or 5m is expected")
    seconds = float(match[1]) * _SECONDS[match[2]]
    return int(seconds) if seconds.is_integer() else seconds


def parse_path(text: str) -> str:
    """Expand `~/users` and `~ann/users`, as a shell does. A shell does not expand them in a file, or after `=` or a
    colon."""
    return os.path.expanduser(text)  # noqa: PTH111 - Path's own raises if there is no such user


def parse_flag(text: str) -> bool:
    """Parse `yes` or `no`."""
    if text.lower() not in _YES | _NO:
        raise ValueError("yes or no is expected")
    return text.lower() in _YES


def format_octets(octets: int) -> str:
    """The shortest spelling that `parse_octets` reads back."""
    for letter, factor in (("G", 1024**3), ("M", 1024**2), ("k", 1024)):
        if octets and octets % factor == 0:
            return f"{octets // factor}{letter}"
    return str(octets)


def format_days(seconds: float) -> str:
    """A time as whole days, such as `30d`, if it is some; else in seconds."""
    return f"{seconds // 86400:g}d" if seconds and seconds % 86400 == 0 else str(seconds)


def _check_seconds(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "must be a number"
    return None if math.isfinite(value) and value >= 0 else "must be 0 or more"


def _check_count(value: object) -> str | None:
    return "must be a whole number" if isinstance(value, float) else _check_seconds(value)


def _check_flag(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be True or False"


@attrs.frozen
class Rate:
    """At most `events` in a window of `seconds`, which begins with the first of them. `Rate(0, 0)` is no limit."""

    events: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.events}/{self.seconds}" if self else "0"

    def __bool__(self) -> bool:
        return self.events > 0

    def __mul__(self, factor: int) -> Rate:
        return Rate(self.events * factor, self.seconds)


NO_RATE = Rate(0, 0)


def parse_rate(text: str) -> Rate:
    """Parse `60/60` or `600/1h`, which is a number of events in a time; `0` is no limit."""
    events, slash, seconds = text.partition("/")
    try:
        rate = Rate(parse_count(events), parse_seconds(seconds if slash else "0"))
        if rate and not rate.seconds:
            raise ValueError
    except ValueError:
        raise ValueError("a rate such as 60/60, which is 60 in 60 seconds, or 0 is expected") from None
    return rate or NO_RATE


def _check_rate(value: object) -> str | None:
    if not isinstance(value, Rate):
        return "must be a Rate such as Rate(60, 60)"
    if _check_count(value.events) or _check_seconds(value.seconds) or (value and not value.seconds):
        return "must be a whole number of events in a number of seconds"
    return None


@attrs.frozen
class Part:
    """A part of a whole: `number` of it, or with `percent` so many hundredths."""

    number: int
    percent: bool = False

    def of(self, whole: int) -> int:
        """The part of `whole`, rounded down, and never more than that."""
        return min(whole, whole * self.number // 100 if self.percent else self.number)

    def __str__(self) -> str:
        return f"{self.number}%" if self.percent else str(self.number)

    def __bool__(self) -> bool:
        return self.number > 0


def parse_part(text: str) -> Part:
    """Parse `20%` or `100`."""
    number, percent, rest = text.partition("%")
    try:
        part = Part(parse_count(number), percent == "%")
        if rest or _check_part(part):
            raise ValueError
    except ValueError:
        raise ValueError("a part such as 20%, or a whole number such as 100, is expected") from None
    return part


def _check_part(value: object) -> str | None:
    if not isinstance(value, Part) or _check_count(value.number) or not isinstance(value.percent, bool):
        return "must be a Part such as Part(20, percent=True), or a whole number"
    return "must be 100% or less" if value.percent and value.number > 100 else None


NEXT_COMMAND = "the next command"

RESTART = "a restart"
"""What is read once, at the start."""


@attrs.frozen
class Unit(Generic[T]):
    """How the values of a limit are parsed, checked and shown."""

    name: str
    parse: Callable[[str], T]
    check: Callable[[object], str | None]
    """Returns what is wrong with a value given in Python, or None."""
    format: Callable[[Any], str] = str
    choices: tuple[str, ...] = ()
    """All possible values, if they are words."""
    convert: Callable[[Any], Any] | None = None
    """Makes the value of a field of Limits from what an application gives."""

    def limit(
        self,
        default: T,
        *other_replies: str,
        edge: T | None = None,
        dry_run: bool = True,
        holds_from: str = NEXT_COMMAND,
    ) -> T:
        """A field of Limits that has this unit, and a dry run. `edge` is the default in that profile, if it differs.
        The client gets the replies whose reason is the name of the limit, or those with the names `other_replies`.
        `holds_from` says from when on a change holds in a running guard."""

        def check(limits: object, field: attrs.Attribute[Any], value: object) -> None:
            problem = self.check(value)
            if problem:
                raise ValueError(f"{field.name} {problem}, not {value!r}")

        metadata: dict[str, Any] = {"unit": self, "dry_run": dry_run, "other_replies": other_replies}
        metadata["holds_from"] = holds_from
        metadata["edge"] = default if edge is None else edge
        field: T = attrs.field(default=default, validator=check, converter=self.convert, metadata=metadata)
        return field

    def bound(
        self, default: T, *other_replies: str, edge: T | None = None, holds_from: str = NEXT_COMMAND
    ) -> T:
        """As `limit`, for a limit without a dry run, which bounds memory, disk or time, or refuses nobody by itself."""
        return self.limit(default, *other_replies, edge=edge, dry_run=False, holds_from=holds_from)


def _rate_or_none(value: Rate | Literal[0]) -> Rate:
    """The rate for a field of Limits, where 0 stands for no limit, as in every field."""
    return NO_RATE if type(value) is int and not value else value  # type: ignore[return-value]


def _part(value: Any) -> Any:
    """The part for a field of Limits, where a whole number stands for so many."""
    return Part(value) if type(value) is int else value


COUNT = Unit("a count", parse_count, _check_count)
OCTETS = Unit("octets", parse_octets, _check_count, format_octets)
OCTETS_A_SECOND = Unit("octets a second", parse_octets, _check_count, format_octets)
SECONDS = Unit("seconds", parse_seconds, _check_seconds)
DAYS = Unit("seconds", parse_seconds, _check_seconds, format_days)
RATE = Unit("events/seconds", parse_rate, _check_rate, convert=_rate_or_none)
PART = Unit("a part or a count", parse_part, _check_part, convert=_part)
FLAG = Unit("yes or no", parse_flag, _check_flag, lambda value: "yes" if value else "no")


def one_of(*choices: str) -> Unit[str]:
    """The unit of a setting whose values are words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is expected")
        return text

    def check(value: object) -> str | None:
        return None if value in choices else f"must be one of {', '.join(choices)}"

    return Unit(" or ".join(choices), parse, check, choices=choices)


def octets_up_to(most: int) -> Unit[int]:
    """The unit of a size that the system bounds."""

    def parse(text: str) -> int:
        octets = parse_octets(text)
        if octets > most:
            raise ValueError(f"a size of at most {format_octets(most)} is expected")
        return octets

    def check(value: Any) -> str | None:
        return _check_count(value) or (f"must be at most {most}" if value > most else None)

    return Unit(OCTETS.name, parse, check, format_octets)


def prefix_length(longest: int) -> Unit[int]:
    """The unit of a number of leading bits of an address."""

    def check(value: object) -> str | None:
        right = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= longest
        return None if right else f"must be a whole number from 1 to {longest}"

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,3}", text) or check(int(text)):
            raise ValueError(f"a prefix length from 1 to {longest} is expected")
        return int(text)

    return Unit("bits", parse, check)


MOST_NETWORKS = 4
"""How many prefix lengths `prefix_lengths` takes."""


def prefix_lengths(longest: int, example: str) -> Unit[tuple[int, ...]]:
    """The unit of several numbers of leading bits of an address, the most bits first; none of them is `0`."""
    expected = f"at most {MOST_NETWORKS} prefix lengths from 1 to {longest}"

    def check(value: Any) -> str | None:
        right = (
            isinstance(value, tuple)
            and len(value) <= MOST_NETWORKS
            and all(type(bits) is int and 1 <= bits <= longest for bits in value)
            and all(bits > wider for bits, wider in pairwise(value))
        )
        return None if right else f"must be {expected}, each below the one before"

    def parse(text: str) -> tuple[int, ...]:
        words = [] if text == "0" else [word.strip() for word in text.split(",")]
        lengths = tuple(int(word) if re.fullmatch("[0-9]{1,3}", word) else 0 for word in words)
        if check(lengths):
            raise ValueError(f"{expected}, each below the one before, such as {example}, or 0 is expected")
        return lengths

    return Unit(
        "bits",
        parse,
        check,
        lambda value: ",".join(map(str, value)) or "0",
        convert=lambda value: tuple(value) if isinstance(value, list) else () if value == 0 else value,
    )


def _check_factor(value: object) -> str | None:
    right = type(value) is int and 1 <= value <= _MAX_FACTOR
    return None if right else f"must be a whole number from 1 to {_MAX_FACTOR}"


def _parse_factor(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or _check_factor(int(text)):
        raise ValueError(f"a whole number from 1 to {_MAX_FACTOR} is expected")
    return int(text)


_MAX_FACTOR = 1000
FACTOR = Unit("a factor", _parse_factor, _check_factor)


def no_limit(value: float) -> float:
    """A limit as a number to compare with: 0, which means no limit, becomes infinity."""
    return value or math.inf
