"""The networks of trusted proxies, whose connections begin with a PROXY header."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from twisted_smtpguard.filters.networklist import parse_network
from twisted_smtpguard.filters.networktable import IPV4_BITS
from twisted_smtpguard.values import Address

UNIX = "unix"
"""The word that stands for all UNIX sockets in a list of proxy networks."""


class ProxyNetworks:
    """The proxies whose PROXY header is believed: networks, and `unix` for UNIX sockets. Any other entry raises
    ValueError."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._unix = UNIX in networks
        for each in networks:
            if each != UNIX:
                bits, start, length = parse_network(each)
                self._networks.append((IPv4Network if bits == IPV4_BITS else IPv6Network)((start, length)))

    def has(self, address: Address | None) -> bool:
        """Whether a connection from `address` begins with a PROXY header. None stands for a UNIX socket."""
        if address is None:
            return self._unix
        return any(address in network for network in self._networks)
