"""What `twist smtpguard --help` and `--show-limits` print: text made from `Limits` and the command line."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from twisted_smtpguard.configuration import Setting
from twisted_smtpguard.limits import Limits, LimitSpec
from twisted_smtpguard.units import FLAG

DEFAULT_LISTEN = "tcp:2525:interface=127.0.0.1"
DEFAULT_DELIVERY = "maildir:Maildir"

OPTIONS = {
    "listen": (
        "ENDPOINT",
        "A Twisted endpoint string to listen on, such as tcp:25 or unix:/run/smtp.sock. May be given several "
        f"times. Default: {DEFAULT_LISTEN}.",
    ),
    "hostname": (
        "NAME",
        "What the guard calls itself, in its greeting and in Received fields. Default: this host's full name.",
    ),
    "deliver": (
        "NAME[:ARGS]",
        f"Where messages go. Default: {DEFAULT_DELIVERY}, which is the directory ./Maildir.",
    ),
    "config": (
        "FILE",
        "Read options from FILE, one `option = value` a line, named as here. What is given on the command line "
        "wins over it.",
    ),
    "show-limits": ("", "Print every limit in force and where it came from, and exit."),
    "help-deliveries": ("", "List what --deliver may name, and exit."),
    "help-delivery": ("NAME", "Tell what may stand behind the colon of one of them, and exit."),
    "version": ("", "Print the version and exit."),
    "help": ("", "Print this and exit."),
}
"""Every option that is not a limit: what its value is called, and its explanation."""

_ABOUT_LIMITS = (
    "Limits. 0 means no limit. A size is in octets, or ends in k, M or G for powers of 1024. A time is in seconds, "
    "or ends in s, m, h or d."
)


def usage_text(width: int) -> str:
    """Every option with its explanation, unit and default, in lines of at most `width` characters."""
    options = [_entry(option, value, text, width) for option, (value, text) in OPTIONS.items()]
    limits = [_entry(spec.option, _placeholder(spec), _explanation(spec), width) for spec in Limits.specs()]
    return "\n".join(["Options:", *options, "", textwrap.fill(_ABOUT_LIMITS, width), *limits, ""])


def limits_table(limits: Limits, given: Mapping[str, Setting]) -> str:
    """Every limit with its value, unit and origin. `given` is what the operator set, by option."""
    rows = [("limit", "value", "unit", "from")]
    for spec in Limits.specs():
        value = spec.unit.format(getattr(limits, spec.name))
        rows.append((spec.option, value, spec.unit.name, _origin(given.get(spec.option))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([line.rstrip() for line in lines])


def _entry(option: str, value: str, text: str, width: int) -> str:
    indent = " " * 8
    filled = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
    return f"  --{option}={value}\n{filled}" if value else f"  --{option}\n{filled}"


def _placeholder(spec: LimitSpec) -> str:
    return "" if spec.unit is FLAG else "|".join(spec.unit.choices) or "N"


def _explanation(spec: LimitSpec) -> str:
    return f"{spec.help} ({spec.unit.name}; default: {spec.unit.format(spec.default)})"


def _origin(setting: Setting | None) -> str:
    if setting is None:
        return "default"
    return f"config {setting.line}" if setting.line else "command line"
