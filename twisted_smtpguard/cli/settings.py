"""Parsers and checks of single settings of the operator. A wrong one is a ValueError, whose text is a sentence."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.application.service import IServiceCollection
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint

from twisted_smtpguard.cli.configuration import Setting
from twisted_smtpguard.cli.counterstore import has_password
from twisted_smtpguard.cli.plugins import split_specification
from twisted_smtpguard.control.answering import Operator
from twisted_smtpguard.control.server import ControlService
from twisted_smtpguard.control.socketfile import ControlSocketError, check_place
from twisted_smtpguard.engine.hostnames import parse_domain, parse_hostname
from twisted_smtpguard.filters.networklist import parse_network
from twisted_smtpguard.filters.networks import NamedNetworks
from twisted_smtpguard.hooks.endpointfaults import why_not, wrong_string
from twisted_smtpguard.limits.limits import POLICY, dry_runnable
from twisted_smtpguard.limits.units import parse_path
from twisted_smtpguard.metrics.serving import MetricsService, PagesService, require_client
from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.tls.names import files_of_names
from twisted_smtpguard.transport.proxynetworks import UNIX

MOST_WORKERS = 1024
_CERTIFICATE_FILES = ("tls-certificate", "tls-key", "tls-names", "tls-client-authorities")


class Asked(Protocol):
    """What is asked of a command line. It is an Options."""

    def texts(self, *options: str) -> list[str]: ...
    def paths(self, *options: str) -> list[str]: ...
    def each(self, option: str, make: Callable[[str], Any]) -> list[Any]: ...


def check_proxy(text: str) -> None:
    """Check a proxy: a network, or `unix`, which stands for UNIX sockets."""
    if text != UNIX:
        parse_network(text)


def check_plain(text: str) -> None:
    """Check an endpoint string for --listen-tls: the guard begins TLS itself, so `ssl:` would begin it twice."""
    if text.startswith("ssl:"):
        raise ValueError(f"a plain endpoint such as tcp:465 is expected, not {text!r}")


class PassedEndpoint(AdoptedStreamServerEndpoint):
    """An endpoint on a socket that systemd has passed. It may listen again after a drain, since the socket stays open:
    whoever connects meanwhile waits."""

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Accept connections from now on."""
        listening: Deferred[IListeningPort] = AdoptedStreamServerEndpoint(
            self.reactor, os.dup(self.fileno), self.addressFamily
        ).listen(factory)
        return listening


def endpoint(text: str, reactor: object, *, trial: bool) -> IStreamServerEndpoint:
    """Make the endpoint for a string. The path of a `unix:` endpoint may begin with `~`. `trial`: it will not be
    listened on."""
    try:
        kind, colon, place = text.partition(":")
        if trial and kind == "systemd":
            # systemd has passed no socket to this process.
            kind, place = "tcp", "0"
        path = parse_path(place) if kind == "unix" else place
        endpoint: IStreamServerEndpoint = serverFromString(reactor, f"{kind}{colon}{path}")
        if type(endpoint) is AdoptedStreamServerEndpoint:
            endpoint = PassedEndpoint(endpoint.reactor, endpoint.fileno, endpoint.addressFamily)
    except Exception as error:  # parsers, which may be plugins, raise what they like
        raise ValueError(wrong_string(text, error)) from error
    return endpoint


def metrics_endpoint(text: str, reactor: object, *, trial: bool) -> IStreamServerEndpoint:
    """As `endpoint`, for a string of --metrics. ValueError too if prometheus-client is not installed."""
    require_client()
    return endpoint(text, reactor, trial=trial)


def check_domain(text: str) -> None:
    """Check a domain, or the path of a file with domains, which has a slash in it. A file name without a slash would be
    taken for a domain, and all mail would be refused."""
    if "/" in text:
        return
    if os.path.isfile(text):  # noqa: PTH113 - Path's own raises for an impossible file name
        raise ValueError(
            f"there is a file {text!r} here: write ./{text} for the domains in it, or start in another directory"
        )
    parse_domain(text)


def check_control(text: str) -> None:
    """Check the path of a control socket: that there may be one."""
    check_place(parse_path(text))


class ControlOfProcess(ControlService):
    """A control socket whose failure ends the process with one sentence."""

    def startService(self) -> None:
        """SystemExit: there can be no socket."""
        try:
            super().startService()
        except ControlSocketError as error:
            raise SystemExit(f"--control: {error}") from error


class PagesOfProcess(PagesService):
    """Pages whose failure to listen ends the process with one sentence."""

    def _listen(self, name: str, endpoint: IStreamServerEndpoint) -> None:
        try:
            super()._listen(name, endpoint)
        # OverflowError: a port above 65535.
        except (CannotListenError, OverflowError, OSError) as error:
            raise SystemExit(f"--metrics: cannot listen on {name}: {why_not(name, error, ())}") from error


class MetricsOfProcess(PagesOfProcess, MetricsService):
    """The metrics of a guard that is a process."""


def serve_control(
    operator: Operator, paths: Sequence[str], reactor: object, parent: IServiceCollection
) -> None:
    """Give what `operator` is of its control socket, at the last of `paths`, if there is one."""
    for path in paths[-1:]:
        ControlOfProcess(reactor, operator, path).setServiceParent(parent)


def serve_operators(
    guard: SMTPGuardService, options: Asked, metrics: Sequence[IStreamServerEndpoint], reactor: object
) -> None:
    """Give a guard the control socket that `options` ask for, and its `metrics`, if there are any."""
    serve_control(guard.operator, options.paths("control"), reactor, guard)
    if metrics:
        names, hosts = options.texts("metrics"), options.each("metrics-host", parse_domain)
        MetricsOfProcess(guard, metrics, names, hosts).setServiceParent(guard)


def named_clients(given: Sequence[Setting], reactor: Any) -> list[NamedNetworks]:
    """What the file of the last of --known names, if there is one. UsageError: the file is faulty."""
    named = []
    for setting in given[-1:]:
        with setting.blamed():
            named.append(NamedNetworks(parse_path(setting.text), reactor))
    return named


def parse_workers(text: str) -> int:
    """Parse the number of --workers."""
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= MOST_WORKERS:
        raise ValueError(f"a number of processes from 1 to {MOST_WORKERS} is expected")
    if not hasattr(os, "memfd_create"):
        raise ValueError("several processes need Linux, so no number is expected")
    return int(text)


def own_name() -> str:
    """The full name of this host; `localhost` if it is no valid hostname."""
    try:
        return parse_hostname(socket.getfqdn())
    except ValueError:
        return "localhost"


def parse_dry_run(text: str) -> frozenset[str]:
    """Parse `max-errors,connection-rate` or `all` into the names for `Limits.dry_run`."""
    if text == "all":
        return dry_runnable()
    words = [word.strip() for word in text.split(",")]
    # The name of a policy stays as it is.
    names = frozenset(word if word.startswith(f"{POLICY}:") else word.replace("-", "_") for word in words)
    if not {name for name in names if not name.startswith(f"{POLICY}:")} <= dry_runnable():
        options = ", ".join(sorted(name.replace("_", "-") for name in dry_runnable()))
        raise ValueError(f"all, or some of {options} with commas between them, is expected")
    return names


def check_needs(given: Mapping[str, Sequence[Setting]], flags: Mapping[str, bool]) -> None:
    """Refuse options that have no effect, or a dangerous one, without another option. `flags` has the value of each
    flag. UsageError says which."""
    certificate, auth = given["tls-certificate"], given["auth"]
    tls = certificate or flags["proxy_protocol_tls"]

    def on(flag: str) -> Sequence[Setting]:
        return given[flag] if flags[flag.replace("-", "_")] else []

    needs = [
        *((given[option], certificate, "--tls-certificate is needed") for option in _CERTIFICATE_FILES),
        (given["listen-tls"], certificate, "--tls-certificate is needed"),
        (on("proxy-protocol-tls"), given["proxy-protocol-from"], "--proxy-protocol-from is needed"),
        (given["metrics-host"], given["metrics"], "--metrics is needed"),
        (on("require-tls"), tls, "--tls-certificate is needed"),
        (on("require-auth"), auth, "--auth is needed"),
        (auth, tls or flags["auth_without_tls"], "--tls-certificate is needed, or --auth-without-tls"),
    ]
    for asked, there, problem in needs:
        if asked and not there:
            raise asked[0].wrong(problem)


def secret_files(given: Mapping[str, Sequence[Setting]], config: str | None) -> tuple[list[str], list[str]]:
    """The files that may have a private key in them, and the files with passwords. `config` is the path of the file of
    options."""
    keys = [parse_path(setting.text) for option in _CERTIFICATE_FILES for setting in given[option]]
    keys += [each for folder in keys for each in files_of_names(folder)]
    passwords = []
    for setting in given["auth"]:
        name, argument = split_specification(setting.text)
        if name in ("file", "passwd"):
            passwords.append(parse_path(argument))
        elif name == "memory" and setting.in_file and config is not None:
            passwords.append(config)
    if config is not None and any(map(has_password, given["counters"])):
        passwords.append(config)
    deliver = given["deliver"][-1].text
    if split_specification(deliver)[0] in ("smtp", "lmtp"):
        passwords += map(parse_path, re.findall(r",auth=([^,]*)", deliver))
    return keys, passwords
