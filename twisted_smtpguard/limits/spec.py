"""The declaration of a limit: a field of Limits with its unit, its help, its replies and its value in the profile
edge."""

from __future__ import annotations

from typing import Any, TypeVar

import attrs

from twisted_smtpguard.limits.units import Defaults, Unit
from twisted_smtpguard.replies import catalogue

_N = TypeVar("_N")


@attrs.frozen
class LimitSpec:
    """The declaration of a limit, without its value. `Limits.specs()` lists all of them."""

    name: str
    """The name of the field of Limits. If a refusal has this reason, the log has the limit's value too."""
    default: Any
    edge: Any
    """Its default in the profile edge."""
    unit: Unit[Any]
    help: str
    replies: tuple[str, ...]
    """The names in replies.py of the replies that the client gets. Empty if there is none."""
    dry_run: bool
    """Whether the limit has a dry run. A limit that bounds memory, disk or time has none."""

    @classmethod
    def of_field(cls, field: attrs.Attribute[Any]) -> LimitSpec:
        """The declaration of a field that `limit` or `bound` has made."""
        named = tuple(entry.name for entry in catalogue() if entry.reason == field.name)
        replies = field.metadata["replies"] or named
        return cls(field.name, field.default, **{**field.metadata, "replies": replies})

    @property
    def option(self) -> str:
        """The command-line option without its dashes."""
        return self.name.replace("_", "-")


def limit(defaults: Defaults[_N], help: str, *replies: str, dry_run: bool = True) -> _N:  # noqa: A002
    """A field of Limits that has a dry run. The client gets the replies whose reason is the name of the limit, or those
    with the names `replies`."""
    unit = defaults.unit
    metadata = {"unit": unit, "help": help, "edge": defaults.edge, "replies": replies, "dry_run": dry_run}
    field: _N = attrs.field(
        default=defaults.base, validator=_check, converter=unit.convert, metadata=metadata
    )
    return field


def bound(defaults: Defaults[_N], help: str, *replies: str) -> _N:  # noqa: A002
    """The same for one that has no dry run: it bounds memory, disk or time, or refuses nobody by itself."""
    return limit(defaults, help, *replies, dry_run=False)


def _check(limits: object, field: attrs.Attribute[Any], value: object) -> None:
    problem = field.metadata["unit"].check(value)
    if problem:
        raise ValueError(f"{field.name} {problem}, not {value!r}")
