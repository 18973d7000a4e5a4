"""The `--config` file of a running guard, which is read again at a reload: a file with any mistake changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import attrs
from twisted.python.usage import UsageError
from zope.interface import implementer

from twisted_smtpguard.cli.configuration import DEFAULT, Setting
from twisted_smtpguard.cli.helptext import origin_of
from twisted_smtpguard.delivery.domains import AcceptedDomains
from twisted_smtpguard.hooks.threads import OneThread, ThreadedReactor
from twisted_smtpguard.inputs.regularfile import FaultyFileError
from twisted_smtpguard.interfaces import IPreparedReload, IReadsFiles
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import RESTART
from twisted_smtpguard.service.service import SMTPGuardService

_CHANGED_AT_ONCE = frozenset({"accept-domain", "deny", "trust", "dry-run", "profile"})
"""The options, beside the limits, that change in a running guard."""

_RESTART_LIMITS = [spec for spec in Limits.specs() if spec.holds_from == RESTART]


class Given(Protocol):
    """What is needed of a command line with its file. It is an Options."""

    limits: Limits
    profile: str

    @property
    def given(self) -> Mapping[str, Sequence[Setting]]: ...

    def __getitem__(self, option: str) -> Any: ...
    def again(self) -> Given: ...
    def endpoints(self, option: str, reactor: Any, *, trial: bool) -> object: ...
    def paths(self, *options: str) -> Sequence[str]: ...


def configure(guard: SMTPGuardService, options: Given, reactor: ThreadedReactor) -> None:
    """Tell a guard that was made by `options` where its limits and networks came from, and have it read the file again
    at each reload, if there is one."""
    guard.operator.settings.configure(options.limits, _origins(options))
    guard.operator.networks.configure(_places(options, "deny"), _places(options, "trust"))
    if options["config"] is not None:
        guard.also_reload("configuration", "config", ConfigurationFile(options, guard, reactor))


@implementer(IPreparedReload, IReadsFiles)
class ConfigurationFile:
    """The file of the options `started`, by which `guard` was made. What is on the command line or in the environment
    stays above it, and so does what an operator has set."""

    def __init__(self, started: Given, guard: SMTPGuardService, reactor: ThreadedReactor) -> None:
        self._path: str = started["config"]
        self._started = started
        self._guard = guard
        self._reactor = reactor
        self._thread = OneThread(reactor)

    @property
    def files(self) -> Mapping[str, str]:
        return {self._path: "config"}

    def _read(self) -> Given:
        """The options with the file as it is now. UsageError: there is a mistake in it."""
        options = self._started.again()
        for option in ("listen", "listen-tls"):
            if _texts(options, option) != _texts(self._started, option):
                # They will be made at the next start.
                options.endpoints(option, self._reactor, trial=True)
        return options

    async def prepare_reload(self) -> Callable[[], None]:
        """Read and check the file."""
        try:
            options = await self._thread.run(self._read)
        except UsageError as error:
            problem = str(error).removeprefix(f"--config {self._path}").lstrip(": ")
            raise FaultyFileError("config", self._path, problem) from error
        delivery = self._guard.factory.context.delivery
        domains = options.paths("accept-domain")
        switch_domains: Callable[[], object] | None = None
        if isinstance(delivery, AcceptedDomains) and domains:
            switch_domains = await delivery.prepare_domains(domains)

        def switch() -> None:
            if switch_domains is not None:
                switch_domains()
            # A guard that takes mail for every domain cannot begin to check it, nor the other way round.
            self._take(options, {"accept-domain"} if switch_domains is None else ())

        return switch

    async def reload(self) -> None:
        (await self.prepare_reload())()

    def _take(self, options: Given, more: Collection[str]) -> None:
        """Switch to other options. `more` has those of which a change needs a restart, beside all that always do."""
        started, guard = self._started, self._guard
        kept = {spec.name: getattr(started.limits, spec.name) for spec in _RESTART_LIMITS}
        limits = attrs.evolve(options.limits, **kept)
        origins, before = _origins(options), _origins(started)
        in_dry_run = guard.factory.limits.dry_run
        guard.operator.settings.configure(limits, {**origins, **{name: before[name] for name in kept}})
        guard.operator.networks.configure(_places(options, "deny"), _places(options, "trust"))
        if limits.dry_run and limits.dry_run != in_dry_run:
            guard.factory.context.events.dry_run(limits.dry_run)
        limits_of = {spec.option for spec in Limits.specs()}
        for option, given in options.given.items():
            if option in limits_of or option in _CHANGED_AT_ONCE - {*more}:
                continue
            if _texts(options, option) != _texts(started, option):
                self._needs_restart(option, given[-1].origin if given else DEFAULT)
        for spec in _RESTART_LIMITS:
            if getattr(options.limits, spec.name) != kept[spec.name]:
                self._needs_restart(spec.option, origins[spec.name])

    def _needs_restart(self, option: str, origin: str) -> None:
        self._guard.factory.context.events.restart_needed(option, origin)


def _origins(options: Given) -> dict[str, str]:
    """Where each limit came from, by the name of its field."""
    return {spec.name: origin_of(spec, options.given, options.profile) for spec in Limits.specs()}


def _places(options: Given, option: str) -> dict[str, str]:
    """The settings of an option, and where each was given."""
    return {setting.text: setting.origin for setting in options.given[option]}


def _texts(options: Given, option: str) -> list[str]:
    """What was given. A default, such as this host's name, may have become another."""
    return [setting.text for setting in options.given[option] if setting.origin != DEFAULT]
