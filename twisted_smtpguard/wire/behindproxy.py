"""Connections from a proxy in front: until its header is whole, nothing is known of the client, and nothing is said."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Protocol

from twisted_smtpguard.filters.networklist import parse_network
from twisted_smtpguard.filters.networktable import IPV4_BITS
from twisted_smtpguard.interfaces import Address
from twisted_smtpguard.wire.deadlines import Deadline
from twisted_smtpguard.wire.proxyheader import HeaderError, ProxyHeader, parse_header

if TYPE_CHECKING:
    from twisted_smtpguard.wire.factory import SMTPGuardFactory


UNIX = "unix"
"""Stands for all UNIX sockets where networks of proxies are named."""


class ProxyNetworks:
    """Where proxies are that speak the PROXY protocol: networks, and `unix` for UNIX sockets. Anybody else could say
    what they like. ValueError for what is neither."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._unix = UNIX in networks
        for each in networks:
            if each != UNIX:
                bits, start, length = parse_network(each)
                self._networks.append((IPv4Network if bits == IPV4_BITS else IPv6Network)((start, length)))

    def has(self, address: Address | None) -> bool:
        """Whether a connection from there begins with a header. None: it came over a UNIX socket."""
        if address is None:
            return self._unix
        return any(address in network for network in self._networks)


class Announced(Protocol):
    """Whose client a proxy is to tell."""

    def received(self) -> bytes:
        """What has come so far."""

    def announced(self, header: ProxyHeader) -> None:
        """The header has come, and perhaps something behind it."""

    def proxy_failed(self, reason: str) -> None:
        """It is none, or did not come in time: `reason` is the word for the log."""


class BehindProxy:
    """Calls one of the owner's `announced` and `proxy_failed`, once, unless it is told to `leave` before."""

    __slots__ = ("_deadline", "_owner", "_tls")

    def __init__(self, factory: SMTPGuardFactory, owner: Announced) -> None:
        self._owner = owner
        self._tls = factory.proxy_tls
        limits = factory.site.limits
        times = [seconds for seconds in (limits.proxy_header_timeout, limits.read_timeout) if seconds]
        self._deadline: Deadline | None = None
        if times:
            self._deadline = factory.deadlines.call_later(min(times), self._time_out)

    def spoke(self) -> None:
        """Something has come."""
        try:
            header = parse_header(self._owner.received(), tls=self._tls)
        except HeaderError:
            self.leave()
            self._owner.proxy_failed("bad_proxy_header")
            return
        if header is not None:
            self.leave()
            self._owner.announced(header)

    def leave(self) -> None:
        """Nobody waits for it any more."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        self._deadline = None
        self._owner.proxy_failed("proxy_header_timeout")
