"""The declaration of a limit: a field of Limits with its unit, its help, its replies and its value in the profile
edge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from twisted_smtpguard.limits.units import Unit

_N = TypeVar("_N")


@attrs.frozen
class LimitSpec:
    """The declaration of a limit, without its value. `Limits.specs()` lists all of them."""

    name: str
    """The name of the field of Limits. If a refusal has this reason, the log has the limit's value too."""
    default: Any
    edge: Any
    """Its default in the profile edge."""
    unit: Unit
    help: str
    replies: tuple[str, ...]
    """The names in replies.py of the replies that the client gets. Empty if there is none."""
    dry_run: bool
    """Whether the limit has a dry run. A limit that bounds memory, disk or time has none."""

    @property
    def option(self) -> str:
        """The command-line option without its dashes."""
        return self.name.replace("_", "-")


def limit(
    default: _N,
    unit: Unit,
    help: str,  # noqa: A002
    *replies: str,
    edge: _N | None = None,
    dry_run: bool = False,
    converter: Callable[[Any], _N] | None = None,
) -> _N:
    """A field of Limits. `replies` are names in replies.py; `edge` is the default of that profile, if it differs;
    `dry_run` says whether the limit has a dry run."""
    field: _N = attrs.field(
        default=default,
        validator=_check,
        converter=converter,
        metadata={
            "unit": unit,
            "help": help,
            "edge": default if edge is None else edge,
            "replies": replies,
            "dry_run": dry_run,
        },
    )
    return field


def _check(limits: object, field: attrs.Attribute[Any], value: object) -> None:
    problem = field.metadata["unit"].check(value)
    if problem:
        raise ValueError(f"{field.name} {problem}, not {value!r}")
