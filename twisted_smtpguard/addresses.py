"""IP addresses, and when two of them are one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from twisted_smtpguard.arguments import unfit


def unmapped(
    address: IPv4Address | IPv6Address | None, name: str = "address"
) -> IPv4Address | IPv6Address | None:
    """An IPv4-mapped IPv6 address as the IPv4 address that it is (RFC 4291 2.5.5.2); any other as it is. TypeError,
    for the argument `name`, where it is none."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    if address is None or isinstance(address, IPv4Address):
        return address
    raise unfit(name, "an IPv4Address or an IPv6Address or None", address)
