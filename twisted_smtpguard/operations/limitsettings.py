"""The limits in force, where each of them came from, and those that an operator has set."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import attrs

from twisted_smtpguard.limits.limits import Limits, LimitSpec
from twisted_smtpguard.limits.units import RESTART
from twisted_smtpguard.log.eventlog import utc
from twisted_smtpguard.transport.factory import SMTPGuardFactory

_SPECS = {spec.option: spec for spec in Limits.specs()}


class _Set(NamedTuple):
    """A value that an operator has set."""

    value: Any
    origin: str
    ends_at: float
    """By the guard's clock; infinity: never."""


class Settings:
    """The limits of one guard. What an operator has set stays in force, whatever `configure` brings, until it is
    unset or its time is over."""

    def __init__(self, factory: SMTPGuardFactory) -> None:
        self._factory = factory
        self._configured = factory.limits
        self._origins: Mapping[str, str] = {}
        self._set: dict[str, _Set] = {}
        self._next_end: Any = None

    def configure(self, limits: Limits, origins: Mapping[str, str]) -> None:
        """Replace the configured limits by those of a command line with its file. `origins` says where each came from,
        by the name of its field."""
        self._configured = limits
        self._origins = origins
        ours = {name: each.value for name, each in self._set.items()}
        self._factory.set_limits(attrs.evolve(limits, **ours))

    def set(self, limit: str, value: str, seconds: float | None, by: str) -> dict[str, Any]:
        """Set a limit, which has the name of its option, to a value that is written as the option's, for so many
        seconds; None: until the process ends. Returns its row, with the value that it had."""
        spec, parsed = check_settable(limit, value)
        try:
            attrs.evolve(self._factory.limits, **{spec.name: parsed}).check_networks(spec.name)
        except ValueError as error:
            raise ValueError(f"--{spec.option}: {error}, not {value!r}") from None
        now = self._factory.context.seconds()
        origin, ends_at = f"set by {by} at {utc(now)}", math.inf
        if seconds is not None:
            ends_at = now + seconds
            origin += f" until {utc(ends_at)}"
        return self._change(spec, parsed, _Set(parsed, origin, ends_at))

    def unset(self, limit: str) -> dict[str, Any]:
        """Give a limit the value back that it would have if nobody had set it. Returns its row, with the value that it
        had."""
        spec = _spec_of(limit)
        if spec.name not in self._set:
            raise ValueError(f"{spec.option} is not set, its value is that of: {self._origin(spec)}")
        return self._change(spec, getattr(self._configured, spec.name), None)

    def exported(self) -> dict[str, list[Any]]:
        """What is set, for `restore` of another process: for each option its value, who has set it, and its end."""
        return {
            spec.option: [
                spec.unit.format(self._set[spec.name].value),
                self._set[spec.name].origin,
                None if self._set[spec.name].ends_at == math.inf else self._set[spec.name].ends_at,
            ]
            for spec in _SPECS.values()
            if spec.name in self._set
        }

    def restore(self, exported: Mapping[str, Sequence[Any]]) -> None:
        """Set what was set elsewhere, if its time is not over. ValueError: an option or a value is unknown here."""
        for option, (value, origin, end) in exported.items():
            spec, parsed = check_settable(option, value)
            if end is None or end > self._factory.context.seconds():
                self._change(spec, parsed, _Set(parsed, origin, math.inf if end is None else end))

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each limit."""
        return (self._row(spec) for spec in _SPECS.values())

    def _change(self, spec: LimitSpec, value: Any, by: _Set | None) -> dict[str, Any]:
        _check_changeable(spec)
        limits = self._factory.limits
        before = spec.unit.format(getattr(limits, spec.name))
        self._factory.set_limits(attrs.evolve(limits, **{spec.name: value}))
        self._set.pop(spec.name, None)
        if by is not None:
            self._set[spec.name] = by
        self._plan_end()
        return {**self._row(spec), "before": before}

    def _plan_end(self) -> None:
        """See that the limit whose time is over next gets its value back."""
        if self._next_end is not None:
            self._next_end.cancel()
            self._next_end = None
        ends_at = min((each.ends_at for each in self._set.values()), default=math.inf)
        if ends_at < math.inf:
            wait = max(0, ends_at - self._factory.context.seconds())
            self._next_end = self._factory.context.call_later(wait, self._end)

    def _end(self) -> None:
        self._next_end = None
        now = self._factory.context.seconds()
        over = [name for name, each in self._set.items() if each.ends_at <= now]
        for name in over:
            del self._set[name]
        values = {name: getattr(self._configured, name) for name in over}
        self._factory.set_limits(attrs.evolve(self._factory.limits, **values))
        self._plan_end()

    def _row(self, spec: LimitSpec) -> dict[str, Any]:
        limits = self._factory.limits
        return {
            "limit": spec.option,
            "value": spec.unit.format(getattr(limits, spec.name)),
            "unit": spec.unit.name,
            "dry_run": spec.name in limits.dry_run,
            "from": self._origin(spec),
            "holds_from": spec.holds_from,
        }

    def _origin(self, spec: LimitSpec) -> str:
        value = getattr(self._factory.limits, spec.name)
        by = self._set.get(spec.name)
        if by is not None and by.value == value:
            return by.origin
        if value == getattr(self._configured, spec.name) and spec.name in self._origins:
            return self._origins[spec.name]
        return "default" if value == spec.default else "application"


def check_settable(limit: str, value: str) -> tuple[LimitSpec, Any]:
    """The limit with this name, and the value that is written so. ValueError: it cannot be set to it."""
    spec = _spec_of(limit)
    try:
        parsed = spec.unit.parse(value)
    except ValueError as error:
        raise ValueError(f"--{spec.option}: {error}, not {value[:40]!r}") from None
    _check_changeable(spec)
    return spec, parsed


def _check_changeable(spec: LimitSpec) -> None:
    if spec.holds_from == RESTART:
        raise ValueError(f"{spec.option} cannot be changed while the guard runs, a restart is needed")


def _spec_of(name: str) -> LimitSpec:
    option = name.removeprefix("--").replace("_", "-")
    spec = _SPECS.get(option)
    if spec is None:
        close = difflib.get_close_matches(option, _SPECS, 1)
        hint = f", did you mean {close[0]}?" if close else ""
        raise ValueError(f"there is no limit {name[:40]!r}{hint}")
    return spec
