"""How a limit is declared: a field of Limits that knows its unit, its words, its replies and its edge value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from twisted_smtpguard.limits.units import Unit

_N = TypeVar("_N")


@attrs.frozen
class LimitSpec:
    """What is known of a limit besides its value. `Limits.specs()` lists them."""

    name: str
    """The field of Limits. Where a refusal has this reason, the log gives the limit's value with it."""
    default: Any
    edge: Any
    """Its default in the profile edge."""
    unit: Unit
    help: str
    replies: tuple[str, ...]
    """Names in smtp/replies.py: what the client gets. Empty where nothing can be or need be said."""
    dry_run: bool
    """Whether it can be tried without being enforced. What bounds memory, disk or time held cannot."""

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
    """A field of Limits. `replies` are names in smtp/replies.py; `edge` is the default of that profile, where it is
    another; `dry_run` says whether the limit can be tried without being enforced."""
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
