"""The text of `twist smtpguard --help` and `--show-limits`, made from options.ini, `Limits` and the command line."""

from __future__ import annotations

import configparser
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files

from twisted_smtpguard.cli.configuration import Setting
from twisted_smtpguard.limits.limits import IP_FILTER, Limits, LimitSpec
from twisted_smtpguard.limits.points import OFFENCES
from twisted_smtpguard.limits.units import FLAG, RATE

_VALUES = {RATE.name: "N/SECONDS", OFFENCES.name: "OFFENCE=N,..."}
"""The placeholders of values that are no numbers and no words."""

ROWS = configparser.ConfigParser(interpolation=None)
ROWS.read_string(files(__package__).joinpath("options.ini").read_text("utf-8"))


def _explanation(row: Mapping[str, str]) -> str:
    """The help of an option, in one line and with its default."""
    return " ".join(row["help"].split()).replace("{default}", row.get("default", ""))


OPTIONS = {name: (row.get("value", ""), _explanation(row)) for name, row in ROWS.items() if row}
"""Every option that is not a limit: the placeholder of its value, and its explanation."""


def options_of_kind(kind: str) -> list[str]:
    """The names of the options that have this `kind` in options.ini."""
    return [name for name in OPTIONS if ROWS[name]["kind"] == kind]


_ABOUT_LIMITS = (
    "Limits. 0 means no limit. A size is in octets, or ends in k, M or G (or kB, MB, GB) for powers of 1024. A time is "
    "in seconds, or ends in s, m, h or d. A rate such as 60/60 or 600/1h is a number of events of one client in a time."
)


def usage_text(width: int) -> str:
    """The help: every option with its explanation, unit and default, in lines of at most `width` characters."""
    options = [_entry(option, value, text, width) for option, (value, text) in OPTIONS.items()]
    limits = [_limit_entry(spec, width) for spec in Limits.specs()]
    return "\n".join(["Options:", *options, "", textwrap.fill(_ABOUT_LIMITS, width), *limits, ""])


def limits_table(limits: Limits, given: Mapping[str, Sequence[Setting]], profile: str) -> str:
    """A table of every limit with its value, unit and origin. `given` has the operator's settings, by option."""
    rows = [("limit", "value", "unit", "from")]
    for spec in Limits.specs():
        value = spec.unit.format(getattr(limits, spec.name))
        if spec.name in limits.dry_run:
            value += " (dry run)"
        rows.append((spec.option, value, spec.unit.name, origin_of(spec, given, profile)))
    lines = in_columns(rows)
    if IP_FILTER in limits.dry_run:
        lines += ["", "IP filters: their refusals are logged and not enforced (dry run)."]
    return "\n".join(lines)


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Each row as a line, with its cells below those of the first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]


def origin_of(spec: LimitSpec, given: Mapping[str, Sequence[Setting]], profile: str) -> str:
    """Where the value of a limit came from. `given` has the operator's settings, by option."""
    settings = given.get(spec.option, ())
    if settings:
        return settings[-1].origin
    return f"profile {profile}" if profile == "edge" and spec.edge != spec.default else "default"


def _entry(option: str, value: str, text: str, width: int) -> str:
    indent = " " * 8
    filled = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
    return f"  --{option}={value}\n{filled}" if value else f"  --{option}\n{filled}"


def _limit_entry(spec: LimitSpec, width: int) -> str:
    value = _VALUES.get(spec.unit.name) or "|".join(spec.unit.choices) or "N"
    default, edge = map(spec.unit.format, (spec.default, spec.edge))
    defaults = f"default: {default}" if edge == default else f"default: {default}; edge: {edge}"
    text = f"{spec.help} ({spec.unit.name}; {defaults})"
    return _entry(spec.option, "" if spec.unit is FLAG else value, text, width)
