"""What one setting of the operator means. A wrong one is a UsageError, which says where it stands."""

from __future__ import annotations

import os
import socket

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IStreamServerEndpoint

from twisted_smtpguard.cli.configuration import Setting
from twisted_smtpguard.engine.hostnames import parse_domain, parse_hostname
from twisted_smtpguard.filters.networklist import parse_network
from twisted_smtpguard.hooks.endpointfaults import wrong_string
from twisted_smtpguard.limits.limits import dry_runnable
from twisted_smtpguard.limits.units import parse_path
from twisted_smtpguard.transport.proxynetworks import UNIX


def check_network(setting: Setting) -> None:
    """Check a network. For proxies it may be `unix`, which stands for UNIX sockets."""
    if not (setting.option == "proxy-protocol-from" and setting.text == UNIX):
        with setting.blamed():
            parse_network(setting.text)


def endpoint(setting: Setting, reactor: object) -> IStreamServerEndpoint:
    try:
        kind, colon, place = setting.text.partition(":")
        text = f"{kind}{colon}{parse_path(place) if kind == 'unix' else place}"
        endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
    except Exception as error:  # parsers, which may be plugins, raise what they like
        raise setting.wrong(wrong_string(setting.text, error)) from error
    return endpoint


def check_domain(setting: Setting) -> None:
    """Check a domain. The name of a file without a slash would be taken for a domain, and all mail would be refused."""
    name = setting.text
    if os.path.isfile(name):  # noqa: PTH113 - Path's own raises for an impossible file name
        raise setting.wrong(
            f"there is a file {name!r} here: write ./{name} for the domains in it, or start in another directory"
        )
    with setting.blamed():
        parse_domain(name)


def own_name() -> str:
    try:
        return parse_hostname(socket.getfqdn())
    except ValueError:
        return "localhost"


def parse_dry_run(text: str) -> frozenset[str]:
    """Parse `max-errors,connection-rate` or `all` into the names for `Limits.dry_run`."""
    if text == "all":
        return dry_runnable()
    names = frozenset(word.strip().replace("-", "_") for word in text.split(","))
    if not names <= dry_runnable():
        options = ", ".join(sorted(name.replace("_", "-") for name in dry_runnable()))
        raise ValueError(f"all, or some of {options} with commas between them, is expected")
    return names
