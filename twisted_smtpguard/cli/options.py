"""The command line of `twist smtpguard`: its options, and the service that is made from them.

`twist` makes an `Options`, lets it parse, and gives it to `makeService`. Every field of `Limits` is an option. A
mistake ends the process with one sentence before anything listens.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib.metadata import version
from typing import Any, NoReturn, TypeVar, cast

from twisted.application.service import IService
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel
from twisted.python import usage
from twisted.python.usage import UsageError

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.checkers.named import checker_description, checkers_table, make_checker
from twisted_smtpguard.cli import plugins, settings
from twisted_smtpguard.cli.check import awaited, check
from twisted_smtpguard.cli.configuration import DEFAULT, Setting, explained, read_configuration, variable
from twisted_smtpguard.cli.counterstore import counter_store
from twisted_smtpguard.cli.environment import read_environment
from twisted_smtpguard.cli.helptext import OPTIONS, ROWS, limits_table, options_of_kind, usage_text
from twisted_smtpguard.cli.policyoptions import PolicyOption, policies_of
from twisted_smtpguard.cli.reconfiguring import configure
from twisted_smtpguard.cli.severalprocesses import all_endpoints, join, supervised, told_as_worker
from twisted_smtpguard.cli.statedirectory import check_state, keep_state
from twisted_smtpguard.delivery.domains import AcceptedDomains
from twisted_smtpguard.engine.hostnames import parse_domain, parse_hostname
from twisted_smtpguard.filters.networklist import parse_network
from twisted_smtpguard.inputs.regularfile import FaultyFileError
from twisted_smtpguard.interfaces import IDelivery, IDeliveryFactory
from twisted_smtpguard.limits.limits import PROFILES, Limits
from twisted_smtpguard.limits.units import FLAG, one_of, parse_path
from twisted_smtpguard.log.eventfile import EventFile, check_event_file, observe_too
from twisted_smtpguard.log.eventlog import NAMESPACE
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.file import write_quickly
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.operations.rules import NAME as NETWORK_RULES
from twisted_smtpguard.service.process import StandaloneService, ignore_signals, keep_house
from twisted_smtpguard.tls.files import CertificateFiles

T = TypeVar("T")

EX_USAGE = 64
"""The exit status of a wrong command line, as in sysexits.h. Not every system has `os.EX_USAGE`."""

_LIMITS = list(Limits.specs())
_REPEATABLE = frozenset(options_of_kind("repeatable"))
_FLAGS = options_of_kind("flag")
_CONFIGURABLE = _REPEATABLE.union(options_of_kind("single"), _FLAGS, (spec.option for spec in _LIMITS))
_PLAIN = [(name, *OPTIONS[name]) for kind in ("single", "flag", "question") for name in options_of_kind(kind)]
"""The name, the placeholder and the explanation of each option that is handled by no method here."""


class Options(usage.Options):
    """The parsed options, checked as far as possible without a reactor.

    Under `twist` a mistake ends the process. Used alone, `parseOptions` raises UsageError.
    """

    # There are no defaults here: None, or for a flag 0, means that an option was not given.
    optParameters = [  # noqa: RUF012 - the base class wants a list
        *([name, None, None, text] for name, value, text in _PLAIN if value),
        *([spec.option, None, None, spec.help] for spec in _LIMITS if spec.unit is not FLAG),
    ]
    optFlags = [  # noqa: RUF012
        *([name, None, text] for name, value, text in _PLAIN if not value),
        *([spec.option, None, spec.help] for spec in _LIMITS if spec.unit is FLAG),
    ]

    workers = 0

    def __init__(self) -> None:
        super().__init__()
        self.update({option: [] for option in _REPEATABLE})
        self["config"] = None

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse as the base class does, but exit on an error, after which `twist` would print a page of help."""
        try:
            super().parseOptions(options)
        except UsageError as error:
            problem = explained(str(error), [word.rstrip("=") for word in self.longOpt])
            if self.parent is None:
                raise UsageError(problem) from error
            _exit(problem)

    def parseArgs(self, *words: str) -> None:
        """Refuse arguments that are not options."""
        if words:
            raise UsageError(f"{words[0]!r} is not an option, and nothing but options is expected")

    def opt_config(self, path: str) -> None:
        if self["config"] is not None:
            raise UsageError("--config: one file is expected, not two")
        self["config"] = parse_path(path)

    def opt_version(self) -> NoReturn:
        _answer(f"twisted_smtpguard {version('twisted_smtpguard')}")

    def postOptions(self) -> None:
        """Merge the command line with the configuration file, check every value, and print the help that was asked
        for."""
        self.given = given = self._given()
        self.profile = self._value("profile", one_of(*PROFILES).parse) or "base"
        dry_run = [setting.value(settings.parse_dry_run) for setting in given["dry-run"]]
        numbers = {
            spec.name: self._value(spec.option, spec.unit.parse) for spec in _LIMITS if given[spec.option]
        }
        self.limits = Limits.for_profile(self.profile, dry_run=frozenset[str]().union(*dry_run), **numbers)
        for option in ("ipv4-networks", "ipv6-networks"):
            for setting in given[option][-1:]:
                with setting.blamed(f", not {setting.text!r}"):
                    self.limits.check_networks(option.replace("-", "_"))
        self.hostname = self._value("hostname", parse_hostname) or settings.own_name()
        given["hostname"] = given["hostname"] or [Setting("hostname", self.hostname, DEFAULT)]
        if not (given["listen"] or given["listen-tls"]):
            given["listen"] = [Setting("listen", ROWS["listen"]["default"], DEFAULT)]
        self.listen = given["listen"]
        given["deliver"] = given["deliver"] or [Setting("deliver", ROWS["deliver"]["default"], DEFAULT)]
        self.deliver = given["deliver"][-1]
        self.flags = {option.replace("-", "_"): bool(self._value(option, FLAG.parse)) for option in _FLAGS}
        settings.check_needs(given, self.flags)
        self.each("listen-tls", settings.check_plain)
        self.each("accept-domain", settings.check_domain)
        self.each("proxy-protocol-from", settings.check_proxy)
        self.each("policy", PolicyOption.parse)
        self.each("deny", parse_network)
        self.each("trust", parse_network)
        self.each("metrics-host", parse_domain)
        self.each("control", settings.check_control)
        self.each("state", check_state)
        self.workers = self._value("workers", settings.parse_workers) or 0
        self._answer_questions()

    def again(self) -> Options:
        """The options of the same command line and environment, with the file as it is now. UsageError: there is a
        mistake in it."""
        options = type(self)()
        options.update(self)
        options.postOptions()
        return options

    def each(self, option: str, make: Callable[[str], T]) -> list[T]:
        """The results of `make` for the settings of an option. Its ValueError, which is a sentence, becomes a usage
        error."""
        made = []
        for setting in self.given[option]:
            with setting.blamed():
                made.append(make(setting.text))
        return made

    def _given(self) -> dict[str, list[Setting]]:
        """The operator's settings of each option. An option in the environment replaces the settings of it in the file,
        and one on the command line both."""
        here: list[Setting] = []
        for option in _CONFIGURABLE:
            value = self[option]
            if value not in (None, 0, []):
                texts = value if isinstance(value, list) else ["yes" if value == 1 else value]
                here += [Setting(option, text) for text in texts]
        named = "--config"
        around: list[Setting] = []
        for setting in read_environment(os.environ, _CONFIGURABLE, _REPEATABLE):
            if setting.option != "config":
                around.append(setting)
            elif self["config"] is None:
                self["config"], named = parse_path(setting.text), variable(setting.option)
        file: list[Setting] = []
        if self["config"] is not None:
            file = read_configuration(self["config"], _CONFIGURABLE, _REPEATABLE, named=named)
        given: dict[str, list[Setting]] = {option: [] for option in _CONFIGURABLE}
        for source in (file, around, here):
            given.update({setting.option: [] for setting in source})
            for setting in source:
                given[setting.option].append(setting)
        return given

    def _value(self, option: str, parse: Callable[[str], T]) -> T | None:
        """The value of the last setting of an option; None if it was not given."""
        return self.given[option][-1].value(parse) if self.given[option] else None

    def texts(self, *options: str) -> list[str]:
        """The settings of these options as the operator wrote them."""
        return [setting.text for option in options for setting in self.given[option]]

    def paths(self, *options: str) -> list[str]:
        """The settings of these options, which are paths."""
        return [parse_path(text) for text in self.texts(*options)]

    def _answer_questions(self) -> None:
        def deliveries() -> Mapping[str, IDeliveryFactory]:
            return plugins.delivery_factories(self.hostname, self.limits)

        answers: dict[str, Callable[[str], str]] = {
            "show-limits": lambda _: limits_table(self.limits, self.given, self.profile),
            "help-deliveries": lambda _: plugins.table(deliveries()),
            "help-delivery": lambda name: plugins.description("delivery", name, deliveries()),
            "help-auth": lambda _: checkers_table(),
            "help-auth-type": checker_description,
            "help-ip-filters": lambda _: plugins.table(plugins.filter_factories()),
            "help-ip-filter": lambda name: plugins.description("IP filter", name, plugins.filter_factories()),
            "help-policies": lambda _: plugins.policies_table(),
            "help-policy": lambda name: plugins.description(
                "session policy", name, plugins.policy_factories()
            ),
        }
        for option, answer in answers.items():
            if self[option] not in (None, 0):
                asked = Setting(option, str(self[option]))
                with asked.blamed():
                    _answer(answer(asked.text))

    def getSynopsis(self) -> str:
        """The first line of --help."""
        return "Usage: twist [options of twist] smtpguard [options]"

    def getUsage(self, width: int | None = None) -> str:
        """The text of --help after its first line."""
        return usage_text(width or shutil.get_terminal_size().columns)

    def endpoints(self, option: str, reactor: Any, *, trial: bool = False) -> list[IStreamServerEndpoint]:
        """The endpoints of --listen or of --listen-tls. With `trial` they are not to be listened on."""
        return self.each(option, lambda text: settings.endpoint(text, reactor, trial=trial))

    def certificate(self, reactor: Any) -> CertificateFiles | None:
        """The certificates for TLS; None if there are none."""
        if not self.given["tls-certificate"]:
            return None
        try:
            return CertificateFiles(
                self.paths("tls-certificate"),
                self.paths("tls-key"),
                *self.paths("tls-client-authorities")[-1:],
                names="".join(self.paths("tls-names")[-1:]),
                reactor=reactor,
            )
        except FaultyFileError as error:
            raise self._setting_of_file(error.option, error.file).wrong(str(error)) from error

    def _setting_of_file(self, option: str, file: str) -> Setting:
        """The setting of `option` that names `file`, or its last one: a file in the directory of --tls-names is in
        none."""
        named = self.given[option]
        return next((each for each in named if parse_path(each.text) == file), named[-1])

    def delivery(self, reactor: Any, *, trial: bool = False) -> IDelivery:
        """The delivery, with --accept-domain applied to it. `trial`: see `make_delivery`."""
        with self.deliver.blamed():
            factories = plugins.delivery_factories(self.hostname, self.limits)
            delivery = plugins.make_delivery(self.deliver.text, reactor, factories, trial=trial)
        if not self.given["accept-domain"]:
            return delivery
        with self.given["accept-domain"][0].blamed():
            return AcceptedDomains(delivery, self.paths("accept-domain"), reactor)

    def ip_filters(self, reactor: object) -> list[FilterEntry]:
        """The filters of --ip-filter, in the order in which they are asked, after --deny and --trust."""

        def make(text: str) -> FilterEntry:
            # Plugins are searched for only if one is named, so that a faulty one that is not used keeps nothing from
            # starting.
            return plugins.make_filter(text, reactor, plugins.filter_factories())

        return self.each("ip-filter", make)

    def event_file(self, *, trial: bool = False) -> EventFile | None:
        """The file of --event-log, which is opened; None if there is none, or with `trial` if it could be opened."""
        for setting in self.given["event-log"][-1:]:
            path = parse_path(setting.text)
            try:
                if not trial:
                    return EventFile(path)
                check_event_file(path)
            except OSError as error:
                raise setting.wrong(f"cannot write to {path}: {error.strerror}") from error
        return None

    def secret_files(self) -> tuple[list[str], list[str]]:
        """The files that may have a private key in them, and the files with passwords."""
        return settings.secret_files(self.given, self["config"])


def _repeated(option: str) -> Callable[[Options, str], None]:
    def keep(options: Options, value: str) -> None:
        options[option].append(value)

    return keep


for _option in _REPEATABLE:
    # The base class calls such a method for each time that an option is given.
    setattr(Options, f"opt_{_option.replace('-', '_')}", _repeated(_option))


def makeService(options: Options) -> IService:
    """Called by `twist` once, after it has chosen the reactor."""
    from twisted.internet import reactor  # noqa: PLC0415

    ignore_signals()
    if options.parent is not None:
        write_quickly(options.parent)
    try:
        if options["check"]:
            _answer("\n".join(awaited(check_service(options, reactor), reactor)))
        worker = told_as_worker(reactor)
        if worker is not None or not options.workers:
            return make_service(options, reactor, worker=worker)
        return supervised(options, make_service(options, reactor), reactor)
    except UsageError as error:
        _exit(str(error))


async def check_service(options: Options, reactor: Any) -> list[str]:
    """The answer to --check, as lines. UsageError: the service could not be made, or would serve nobody."""
    told: list[LogEvent] = []
    logger = Logger(NAMESPACE, observer=cast(ILogObserver, told.append))
    service = make_service(options, reactor, trial=logger)
    found = await check(service, options.given, options._setting_of_file, options.secret_files(), told)
    limits = limits_table(options.limits, options.given, options.profile)
    return [*found, "", limits, "", "A start would find all that it opens, and no mistake."]


def make_service(
    options: Options, reactor: Any, *, trial: Logger | None = None, worker: Any = None
) -> StandaloneService:
    """Make the service from parsed options. UsageError: it cannot be made. With `trial` nothing is written, the service
    is not to be started, and logs to that logger. With `worker` it is that of a worker."""
    trying = trial is not None
    named = settings.named_clients(options.given["known"], reactor)
    # The delivery is made last, so that a mistake elsewhere leaves no new Maildir on the disk.
    endpoints, tls_endpoints, metrics = all_endpoints(options, worker, reactor, trial=trying)
    certificate = options.certificate(reactor)
    ip_filters = options.ip_filters(reactor)
    policies = policies_of(options.given, options.limits, reactor)
    checkers = options.each("auth", lambda text: make_checker(text, reactor))
    twist: MutableMapping[str, Any] = options.parent or {}
    counters = counter_store(options.given, reactor)
    event_file = options.event_file(trial=trying)
    delivery = options.delivery(reactor, trial=trying)
    if event_file is not None:
        observe_too(twist, event_file)
    level = LogLevel.info if trying else twist.get("logLevel", LogLevel.info)
    events = Events(Statistics(), reactor, options.limits, level, trial)
    events.delivering(plugins.shown_delivery(options.deliver.text))
    if options.given["deny"] or options.given["trust"]:
        events.filtering(NETWORK_RULES)
    for entry in ip_filters:
        events.filtering(plugins.shown_filter(entry))
    for policy in policies:
        events.policing(plugins.shown_filter(policy), policy.stages)
    service = StandaloneService(
        reactor,
        endpoints,
        delivery,
        ip_filters=ip_filters,
        policies=policies,
        counters=counters or (worker and worker.counters),
        limits=options.limits,
        hostname=options.hostname,
        events=events,
        tls=certificate,
        tls_endpoints=tls_endpoints,
        proxy_protocol_from=options.texts("proxy-protocol-from"),
        checkers=checkers,
        names=options.texts("listen", "listen-tls"),
        secrets=options.secret_files(),
        event_file=event_file,
        **options.flags,
    )
    configure(service, options, reactor)
    for each in named:
        service.factory.known.is_listed = each.has
        service.also_reload("known", "known", each)
    keep_house(reactor, service)
    if worker is not None:
        join(worker, service, metrics=bool(metrics))
    elif not options.workers:
        keep_state(service, options.paths("state"), reactor)
        settings.serve_operators(service, options, metrics, reactor)
    return service


def _answer(text: str) -> NoReturn:
    print(text)  # noqa: T201 - the operator asked for it
    sys.exit()


def _exit(problem: str) -> NoReturn:
    sys.stderr.write(" ".join(problem.split()) + "\n")
    sys.exit(EX_USAGE)
