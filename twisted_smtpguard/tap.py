"""The command line of `twist smtpguard`: its options, and the service that they ask for.

`twist` makes an `Options`, lets it parse, and gives it to `makeService`. Every limit is an option because it is
a field of `Limits`. Whatever is wrong ends the process with one sentence before anything listens.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from types import FrameType
from typing import Any, NoReturn

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import LogLevel
from twisted.python import usage
from twisted.python.usage import UsageError

from twisted_smtpguard import plugins
from twisted_smtpguard.configuration import Setting, read_configuration
from twisted_smtpguard.events import Events
from twisted_smtpguard.helptext import DEFAULT_DELIVERY, DEFAULT_LISTEN, OPTIONS, limits_table, usage_text
from twisted_smtpguard.interfaces import IDelivery, IDeliveryFactory, Refused
from twisted_smtpguard.limits import Limits
from twisted_smtpguard.service import SMTPGuardService
from twisted_smtpguard.smtp.grammar import parse_rcpt
from twisted_smtpguard.statistics import Statistics
from twisted_smtpguard.units import FLAG

EX_USAGE = 64
"""The exit status of a wrong command line, as sysexits.h has it. `os.EX_USAGE` is not on every system."""

_LIMITS = list(Limits.specs())
_REPEATABLE = frozenset({"listen"})
_CONFIGURABLE = frozenset({"listen", "hostname", "deliver", *(spec.option for spec in _LIMITS)})


class Options(usage.Options):
    """What was asked for, checked as far as it can be without a reactor.

    Under `twist` a mistake ends the process. Used alone, `parseOptions` raises UsageError.
    """

    # No defaults here: None, or for a flag 0, tells an option that was not given.
    optParameters = [  # noqa: RUF012 - the base class wants a list
        *([option, None, None, OPTIONS[option][1]] for option in ("hostname", "deliver", "help-delivery")),
        *([spec.option, None, None, spec.help] for spec in _LIMITS if spec.unit is not FLAG),
    ]
    optFlags = [  # noqa: RUF012
        *([option, None, OPTIONS[option][1]] for option in ("show-limits", "help-deliveries")),
        *([spec.option, None, spec.help] for spec in _LIMITS if spec.unit is FLAG),
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["config"] = None

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """As the base class, but `twist` gets no chance to print a page of help behind an error."""
        try:
            super().parseOptions(options)
        except UsageError as error:
            if self.parent is None:
                raise
            _exit(error)

    def parseArgs(self, *words: str) -> None:
        """Whatever is not an option is a mistake."""
        if words:
            raise UsageError(f"{words[0]!r} is not an option, and nothing but options is expected")

    def opt_listen(self, endpoint: str) -> None:
        self["listen"].append(endpoint)

    def opt_config(self, path: str) -> None:
        if self["config"] is not None:
            raise UsageError("--config: one file is expected, not two")
        self["config"] = path

    def opt_version(self) -> NoReturn:
        _answer(f"twisted_smtpguard {version('twisted_smtpguard')}")

    def postOptions(self) -> None:
        """Join the command line with the file, check every value, and answer questions."""
        given = self._given()
        # The last one counts.
        single = {option: settings[-1] for option, settings in given.items()}
        self.limits = Limits(
            **{
                spec.name: single[spec.option].value(spec.unit.parse)
                for spec in _LIMITS
                if spec.option in single
            }
        )
        self.hostname = single["hostname"].value(_parse_hostname) if "hostname" in single else _own_name()
        self.listen = given.get("listen", [Setting("listen", DEFAULT_LISTEN)])
        self.deliver = single.get("deliver", Setting("deliver", DEFAULT_DELIVERY))
        if self["show-limits"]:
            _answer(limits_table(self.limits, single))
        if self["help-deliveries"]:
            _answer(plugins.table(self._deliveries()))
        if self["help-delivery"] is not None:
            _answer(self._delivery_help(Setting("help-delivery", self["help-delivery"])))

    def getSynopsis(self) -> str:
        """The first line of --help."""
        return "Usage: twist [options of twist] smtpguard [options]"

    def getUsage(self, width: int | None = None) -> str:
        """The text of --help behind its first line."""
        return usage_text(width or shutil.get_terminal_size().columns)

    def endpoints(self, reactor: object) -> list[IStreamServerEndpoint]:
        """What to listen on."""
        return [_endpoint(setting, reactor) for setting in self.listen]

    def delivery(self, reactor: object) -> IDelivery:
        """Where messages go."""
        factories = self._deliveries()
        try:
            return plugins.make_delivery(self.deliver.text, reactor, factories)
        except ValueError as error:
            raise self.deliver.wrong(str(error)) from error

    def _given(self) -> dict[str, list[Setting]]:
        """What the operator set, by option. The command line replaces what the file says of an option."""
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

    def _deliveries(self) -> Mapping[str, IDeliveryFactory]:
        try:
            return plugins.delivery_factories(self.hostname, self.limits)
        except ValueError as error:
            raise self.deliver.wrong(str(error)) from error

    def _delivery_help(self, asked: Setting) -> str:
        try:
            return plugins.description(plugins.look_up("delivery", asked.text, self._deliveries()))
        except ValueError as error:
            raise asked.wrong(str(error)) from error


class StandaloneService(SMTPGuardService):
    """The service of a process that has no other purpose: one that cannot listen ends, and while it stops a
    second signal means now."""

    def stopService(self) -> Deferred[None]:
        # Twisted's own handler would log that a stop cannot be stopped.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hurry)
        return super().stopService()

    def _hurry(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self.factory.end_now)

    def _listen(self, name: str, endpoint: IStreamServerEndpoint) -> None:
        try:
            super()._listen(name, endpoint)
        # OverflowError: a port above 65535.
        except (CannotListenError, OverflowError, OSError) as error:
            raise SystemExit(f"--listen: {name} cannot be listened on: {error}") from error


def makeService(options: Options) -> IService:
    """Called by `twist` once, after it has chosen the reactor."""
    from twisted.internet import reactor  # noqa: PLC0415

    try:
        return make_service(options, reactor)
    except UsageError as error:
        _exit(error)


def make_service(options: Options, reactor: Any) -> SMTPGuardService:
    """The service that parsed options ask for. UsageError where it cannot be made."""
    # Endpoints first: a wrong one must not leave a new Maildir behind.
    endpoints = options.endpoints(reactor)
    delivery = options.delivery(reactor)
    level = LogLevel.info if options.parent is None else options.parent.get("logLevel", LogLevel.info)
    events = Events(Statistics(), reactor, options.limits, level)
    events.delivering(options.deliver.text)
    return StandaloneService(
        reactor,
        endpoints,
        delivery,
        limits=options.limits,
        hostname=options.hostname,
        events=events,
        names=[setting.text for setting in options.listen],
    )


def _endpoint(setting: Setting, reactor: object) -> IStreamServerEndpoint:
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, setting.text)
    except Exception as error:  # parsers, which may be plugins, raise what they like
        # A TypeError names a function of Twisted's that the operator never called.
        detail = re.sub(r"^\w+\(\) ", "", str(error))
        raise setting.wrong(
            f"an endpoint such as tcp:2525:interface=127.0.0.1 is expected, not {setting.text!r} ({detail})"
        ) from error
    return endpoint


def _parse_hostname(text: str) -> str:
    """A hostname is what may stand behind the @ of an address (RFC 5321 4.1.2)."""
    address = f"postmaster@{text}"
    try:
        path = parse_rcpt(f"TO:<{address}>".encode(errors="replace"), frozenset(), utf8=False)
    except Refused:
        path = None
    if path is None or path.address != address:
        raise ValueError("a domain or an address literal such as mx.example.org or [192.0.2.1] is expected")
    return text


def _own_name() -> str:
    try:
        return _parse_hostname(socket.getfqdn())
    except ValueError:
        return "localhost"


def _answer(text: str) -> NoReturn:
    print(text)  # noqa: T201 - what was asked for
    sys.exit()


def _exit(error: UsageError) -> NoReturn:
    sys.stderr.write(" ".join(str(error).split()) + "\n")
    sys.exit(EX_USAGE)
