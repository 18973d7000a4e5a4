"""The command line of `twist smtpguard`: its options, and the service that is made from them.

`twist` makes an `Options`, lets it parse, and gives it to `makeService`. Every field of `Limits` is an option. A
mistake ends the process with one sentence before anything listens.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from twisted.application.service import IService
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import LogLevel
from twisted.python import usage
from twisted.python.usage import UsageError

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.checkers.named import checker_description, checkers_table, make_checker
from twisted_smtpguard.cli import plugins, settings
from twisted_smtpguard.cli.configuration import Setting, explained, read_configuration
from twisted_smtpguard.cli.helptext import DEFAULT_DELIVERY, DEFAULT_LISTEN, OPTIONS, limits_table, usage_text
from twisted_smtpguard.delivery.domains import AcceptedDomains
from twisted_smtpguard.engine.hostnames import parse_hostname
from twisted_smtpguard.filters.networks import NetworksFilter
from twisted_smtpguard.inputs.regularfile import FaultyFileError
from twisted_smtpguard.interfaces import IDelivery, IDeliveryFactory
from twisted_smtpguard.limits.limits import PROFILES, Limits
from twisted_smtpguard.limits.units import FLAG, one_of, parse_path
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.file import write_quickly
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.service.process import heap_trimmer, ignore_signals
from twisted_smtpguard.service.standalone import StandaloneService
from twisted_smtpguard.tls.files import CertificateFiles
from twisted_smtpguard.tls.names import files_of_names

EX_USAGE = 64
"""The exit status of a wrong command line, as in sysexits.h. Not every system has `os.EX_USAGE`."""

_LIMITS = list(Limits.specs())
_REPEATABLE = frozenset(
    {
        "listen",
        "listen-tls",
        "tls-certificate",
        "tls-key",
        "proxy-protocol-from",
        "auth",
        "accept-domain",
        "ip-filter",
        "deny",
        "trust",
        "dry-run",
    }
)
_CERTIFICATE_FILES = ("tls-certificate", "tls-key", "tls-names", "tls-client-authorities")
_SINGLE = ("hostname", "deliver", "profile", "tls-names", "tls-client-authorities")
_FLAGS = ("auth-without-tls", "require-auth", "require-tls", "proxy-protocol-tls")
_CONFIGURABLE = _REPEATABLE | {*_SINGLE, *_FLAGS, *(spec.option for spec in _LIMITS)}
_QUESTIONS = ("show-limits", "help-deliveries", "help-ip-filters", "help-auth")
_DENY_TRUST = "deny/trust"
"""The name in the log of the filter that --deny and --trust make."""


class Options(usage.Options):
    """The parsed options, checked as far as possible without a reactor.

    Under `twist` a mistake ends the process. Used alone, `parseOptions` raises UsageError.
    """

    # There are no defaults here: None, or for a flag 0, means that an option was not given.
    optParameters = [  # noqa: RUF012 - the base class wants a list
        *(
            [option, None, None, OPTIONS[option][1]]
            for option in (*_SINGLE, "help-delivery", "help-ip-filter", "help-auth-type")
        ),
        *([spec.option, None, None, spec.help] for spec in _LIMITS if spec.unit is not FLAG),
    ]
    optFlags = [  # noqa: RUF012
        *([option, None, OPTIONS[option][1]] for option in (*_FLAGS, *_QUESTIONS)),
        *([spec.option, None, spec.help] for spec in _LIMITS if spec.unit is FLAG),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.update({option: [] for option in _REPEATABLE})
        self["config"] = None

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse as the base class does, but exit on an error, after which `twist` would print a page of help."""
        try:
            try:
                super().parseOptions(options)
            except UsageError as error:
                raise UsageError(
                    explained(str(error), [word.rstrip("=") for word in self.longOpt])
                ) from error
        except UsageError as error:
            if self.parent is None:
                raise
            _exit(error)

    def parseArgs(self, *words: str) -> None:
        """Refuse arguments that are not options."""
        if words:
            raise UsageError(f"{words[0]!r} is not an option, and nothing but options is expected")

    def opt_listen(self, endpoint: str) -> None:
        self["listen"].append(endpoint)

    def opt_listen_tls(self, endpoint: str) -> None:
        self["listen-tls"].append(endpoint)

    def opt_tls_certificate(self, file: str) -> None:
        self["tls-certificate"].append(file)

    def opt_tls_key(self, file: str) -> None:
        self["tls-key"].append(file)

    def opt_proxy_protocol_from(self, network: str) -> None:
        self["proxy-protocol-from"].append(network)

    def opt_auth(self, specification: str) -> None:
        self["auth"].append(specification)

    def opt_accept_domain(self, domain: str) -> None:
        self["accept-domain"].append(domain)

    def opt_ip_filter(self, specification: str) -> None:
        self["ip-filter"].append(specification)

    def opt_deny(self, network: str) -> None:
        self["deny"].append(network)

    def opt_trust(self, network: str) -> None:
        self["trust"].append(network)

    def opt_dry_run(self, limits: str) -> None:
        self["dry-run"].append(limits)

    def opt_config(self, path: str) -> None:
        if self["config"] is not None:
            raise UsageError("--config: one file is expected, not two")
        self["config"] = parse_path(path)

    def opt_version(self) -> NoReturn:
        _answer(f"twisted_smtpguard {version('twisted_smtpguard')}")

    def postOptions(self) -> None:
        """Merge the command line with the configuration file, check every value, and print the help that was asked
        for."""
        given = self._given()
        # If an option is given several times, the last one counts.
        single = {option: settings[-1] for option, settings in given.items()}
        profile = single["profile"].value(one_of(*PROFILES).parse) if "profile" in single else "base"
        self.limits = Limits.for_profile(
            profile,
            dry_run=frozenset[str]().union(
                *(setting.value(settings.parse_dry_run) for setting in given.get("dry-run", []))
            ),
            **{
                spec.name: single[spec.option].value(spec.unit.parse)
                for spec in _LIMITS
                if spec.option in single
            },
        )
        self.hostname = (
            single["hostname"].value(parse_hostname) if "hostname" in single else settings.own_name()
        )
        self.listen_tls = given.get("listen-tls", [])
        self.listen = given.get("listen", [] if self.listen_tls else [Setting("listen", DEFAULT_LISTEN)])
        self.certificate_files = {option: given[option] for option in _CERTIFICATE_FILES if option in given}
        if self.certificate_files and "tls-certificate" not in given:
            raise next(iter(self.certificate_files.values()))[0].wrong("--tls-certificate is needed")
        for setting in self.listen_tls:
            if not self.certificate_files:
                raise setting.wrong("--tls-certificate is needed")
            if setting.text.startswith("ssl:"):
                raise setting.wrong(f"a plain endpoint such as tcp:465 is expected, not {setting.text!r}")
        self.deliver = single.get("deliver", Setting("deliver", DEFAULT_DELIVERY))
        self.accept_domain = given.get("accept-domain", [])
        for setting in self.accept_domain:
            if "/" not in setting.text:
                settings.check_domain(setting)
        self.ip_filter = given.get("ip-filter", [])
        self.auth = given.get("auth", [])
        self.flags = {
            option.replace("-", "_"): option in single and bool(single[option].value(FLAG.parse))
            for option in _FLAGS
        }
        self.proxies = [settings.proxies(setting) for setting in given.get("proxy-protocol-from", [])]
        self._check_security(single)
        self.deny = [settings.network(setting) for setting in given.get("deny", [])]
        self.trust = [settings.network(setting) for setting in given.get("trust", [])]
        self._answer_questions(limits_table(self.limits, single, profile))

    def _check_security(self, given: Mapping[str, Setting]) -> None:
        if self.flags["proxy_protocol_tls"] and not self.proxies:
            raise given["proxy-protocol-tls"].wrong("--proxy-protocol-from is needed")
        if self.flags["require_tls"] and not (self.certificate_files or self.flags["proxy_protocol_tls"]):
            raise given["require-tls"].wrong("--tls-certificate is needed")
        if self.flags["require_auth"] and not self.auth:
            raise given["require-auth"].wrong("--auth is needed")
        tls = self.certificate_files or self.flags["proxy_protocol_tls"]
        if self.auth and not tls and not self.flags["auth_without_tls"]:
            raise self.auth[0].wrong("--tls-certificate is needed, or --auth-without-tls")

    def _answer_questions(self, limits: str) -> None:
        if self["show-limits"]:
            _answer(limits)
        if self["help-deliveries"]:
            _answer(plugins.table(self._deliveries(Setting("help-deliveries", ""))))
        if self["help-delivery"] is not None:
            asked = Setting("help-delivery", self["help-delivery"])
            _answer(settings.description("delivery", asked, self._deliveries(asked)))
        if self["help-auth"]:
            _answer(checkers_table())
        if self["help-auth-type"] is not None:
            asked = Setting("help-auth-type", self["help-auth-type"])
            with asked.blamed():
                _answer(checker_description(asked.text))
        if self["help-ip-filters"]:
            _answer(plugins.table(settings.filter_factories(Setting("help-ip-filters", ""))))
        if self["help-ip-filter"] is not None:
            asked = Setting("help-ip-filter", self["help-ip-filter"])
            _answer(settings.description("IP filter", asked, settings.filter_factories(asked)))

    def getSynopsis(self) -> str:
        """The first line of --help."""
        return "Usage: twist [options of twist] smtpguard [options]"

    def getUsage(self, width: int | None = None) -> str:
        """The text of --help after its first line."""
        return usage_text(width or shutil.get_terminal_size().columns)

    def endpoints(self, reactor: object) -> list[IStreamServerEndpoint]:
        """The endpoints to listen on."""
        return [settings.endpoint(setting, reactor) for setting in self.listen]

    def tls_endpoints(self, reactor: object) -> list[IStreamServerEndpoint]:
        """The endpoints to listen on with implicit TLS."""
        return [settings.endpoint(setting, reactor) for setting in self.listen_tls]

    def certificate(self, reactor: Any) -> CertificateFiles | None:
        """The certificates for TLS; None if there are none."""
        if not self.certificate_files:
            return None
        files = {
            option: [parse_path(setting.text) for setting in self.certificate_files.get(option, [])]
            for option in _CERTIFICATE_FILES
        }
        try:
            return CertificateFiles(
                files["tls-certificate"],
                files["tls-key"],
                *files["tls-client-authorities"][-1:],
                names="".join(files["tls-names"][-1:]),
                reactor=reactor,
            )
        except FaultyFileError as error:
            named = self.certificate_files[error.option]
            # For a file in a directory the operator has named the directory.
            setting = next((each for each in named if parse_path(each.text) == error.file), named[-1])
            raise setting.wrong(str(error)) from error

    def checkers(self, reactor: object) -> list[object]:
        """The checkers of credentials, in the order in which they are asked."""
        made = []
        for setting in self.auth:
            with setting.blamed():
                made.append(make_checker(setting.text, reactor))
        return made

    def delivery(self, reactor: Any) -> IDelivery:
        """The delivery, with --accept-domain applied to it."""
        factories = self._deliveries(self.deliver)
        with self.deliver.blamed():
            delivery = plugins.make_delivery(self.deliver.text, reactor, factories)
        if not self.accept_domain:
            return delivery
        with self.accept_domain[0].blamed():
            domains = [parse_path(setting.text) for setting in self.accept_domain]
            return AcceptedDomains(delivery, domains, reactor)

    def secret_files(self) -> tuple[list[str], list[str]]:
        """The files that may have a private key in them, and the files with passwords."""
        keys = [parse_path(file.text) for files in self.certificate_files.values() for file in files]
        keys += [each for folder in keys for each in files_of_names(folder)]
        passwords = []
        for setting in self.auth:
            name, argument = plugins.split_specification(setting.text)
            if name == "file":
                passwords.append(parse_path(argument))
            elif name == "memory" and setting.line:
                passwords.append(self["config"])
        if plugins.split_specification(self.deliver.text)[0] in ("smtp", "lmtp"):
            passwords += map(parse_path, re.findall(r",auth=([^,]*)", self.deliver.text))
        return keys, passwords

    def ip_filters(self, reactor: object) -> list[FilterEntry]:
        """The IP filters, in the order in which they are asked. All --deny and --trust make the first."""
        entries = []
        if self.deny or self.trust:
            entries.append(FilterEntry(NetworksFilter(self.deny, self.trust), _DENY_TRUST))
        # Plugins are searched for only if one is named, so that a faulty one that is not used keeps nothing from
        # starting.
        factories = settings.filter_factories(self.ip_filter[0]) if self.ip_filter else {}
        for setting in self.ip_filter:
            with setting.blamed():
                entries.append(plugins.make_filter(setting.text, reactor, factories))
        return entries

    def _given(self) -> dict[str, list[Setting]]:
        """The operator's settings, by option. An option on the command line replaces the settings of it in the file."""
        given: dict[str, list[Setting]] = {}
        if self["config"] is not None:
            for setting in read_configuration(self["config"], _CONFIGURABLE, _REPEATABLE):
                given.setdefault(setting.option, []).append(setting)
        for option in _CONFIGURABLE:
            value = self[option]
            if value in (None, 0, []):
                continue
            texts = value if isinstance(value, list) else ["yes" if value == 1 else value]
            given[option] = [Setting(option, text) for text in texts]
        return given

    def _deliveries(self, asked: Setting) -> Mapping[str, IDeliveryFactory]:
        with asked.blamed():
            return plugins.delivery_factories(self.hostname, self.limits)


def makeService(options: Options) -> IService:
    """Called by `twist` once, after it has chosen the reactor."""
    from twisted.internet import reactor  # noqa: PLC0415

    ignore_signals()
    if options.parent is not None:
        write_quickly(options.parent)
    try:
        return make_service(options, reactor)
    except UsageError as error:
        _exit(error)


def make_service(options: Options, reactor: Any) -> StandaloneService:
    """Make the service from parsed options. UsageError: it cannot be made."""
    # The delivery is made last, so that a mistake elsewhere leaves no new Maildir on the disk.
    endpoints, tls_endpoints = options.endpoints(reactor), options.tls_endpoints(reactor)
    certificate = options.certificate(reactor)
    ip_filters, checkers = options.ip_filters(reactor), options.checkers(reactor)
    delivery = options.delivery(reactor)
    level = LogLevel.info if options.parent is None else options.parent.get("logLevel", LogLevel.info)
    events = Events(Statistics(), reactor, options.limits, level)
    events.delivering(plugins.shown_delivery(options.deliver.text))
    for entry in ip_filters:
        events.filtering(plugins.shown_filter(entry))
    service = StandaloneService(
        reactor,
        endpoints,
        delivery,
        ip_filters=ip_filters,
        limits=options.limits,
        hostname=options.hostname,
        events=events,
        tls=certificate,
        tls_endpoints=tls_endpoints,
        proxy_protocol_from=options.proxies,
        proxy_protocol_tls=options.flags["proxy_protocol_tls"],
        checkers=checkers,
        require_tls=options.flags["require_tls"],
        require_auth=options.flags["require_auth"],
        auth_without_tls=options.flags["auth_without_tls"],
        names=[setting.text for setting in (*options.listen, *options.listen_tls)],
    )
    service.warn_of(*options.secret_files())
    heap_trimmer(reactor).setServiceParent(service)
    return service


def _answer(text: str) -> NoReturn:
    print(text)  # noqa: T201 - the operator asked for it
    sys.exit()


def _exit(error: UsageError) -> NoReturn:
    sys.stderr.write(" ".join(str(error).split()) + "\n")
    sys.exit(EX_USAGE)
