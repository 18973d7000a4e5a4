"""The warnings at start: risks in the setup of a guard and of its process that do not keep it from starting."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from twisted_smtpguard.interfaces import IConnectingDelivery, IRelayDelivery

_PRIVATE_KEY = b"PRIVATE KEY-----"
_MAX_OCTETS = 1024 * 1024
"""How many octets of a file are searched for a private key."""

_NO_NAMES = frozenset({"localhost", "localhost.localdomain"})


def warnings_of_process(keys: Iterable[str], passwords: Iterable[str]) -> Iterator[tuple[str, str]]:
    """A word and a sentence for each risk. `keys` are files that may have a private key in them, `passwords` files with
    passwords."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        yield (
            "root",
            "the guard runs as root, which is not needed even for port 25: give it a socket from systemd, or "
            "CAP_NET_BIND_SERVICE",
        )
    for path in dict.fromkeys(keys):
        if _others_can_read(path) and _has_key(path):
            yield (
                "readable_file",
                f"{path} has a private key in it, and every user of this machine can read it",
            )
    for path in dict.fromkeys(passwords):
        if _others_can_read(path):
            yield "readable_file", f"{path} has passwords in it, and every user of this machine can read it"


def warn_of_setup(context: Any, hosts: Iterable[Any]) -> None:
    """Log the risks of how a guard was set up. `context` is that of its factory; `hosts` are the addresses that it
    listens on."""
    events, delivery, cap = context.events, context.delivery, context.limits.enforced("max_connections")
    lingering, upstream = context.limits.max_lingering, 0
    if IConnectingDelivery.providedBy(delivery):
        upstream = IConnectingDelivery(delivery).max_connections
    # Not every system has this module.
    with suppress(ImportError):
        import resource  # noqa: PLC0415

        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if not cap:
            events.no_connection_cap(descriptors)
        elif descriptors != resource.RLIM_INFINITY and cap + lingering + upstream >= descriptors:
            events.descriptors_below_cap(descriptors, cap, lingering, upstream)
    relays = IRelayDelivery.providedBy(delivery) and IRelayDelivery(delivery).may_relay_for_all
    # With require_auth only clients that have logged in can send.
    if relays and not context.require_auth:
        events.open_relay(type(delivery).__name__)
    names = [getattr(host, "host", None) for host in hosts]
    problem = warning_of_hostname(context.hostname, [name for name in names if name])
    if problem:
        events.setup_warning("hostname", problem)


def warning_of_hostname(hostname: str, addresses: Sequence[str]) -> str:
    """The warning about a hostname that means nothing to other hosts; "" if there is none. `addresses` are those that
    the guard listens on."""
    if hostname.lower() not in _NO_NAMES or all(map(_is_loopback, addresses)):
        return ""
    return (
        f"the guard calls itself {hostname}, and listens on an address that others can reach: give it the name that "
        "this server has in the DNS, with --hostname or hostname="
    )


def _is_loopback(address: str) -> bool:
    """Whether only this host can reach the address, which may be no IP address at an endpoint of a plugin."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _others_can_read(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - as it was given
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)


def _has_key(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return _PRIVATE_KEY in file.read(_MAX_OCTETS)
    except OSError:
        return False
