"""IP addresses, and when two of them are one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address


def unmapped(address: IPv4Address | IPv6Address | None) -> IPv4Address | IPv6Address | None:
    """An IPv4-mapped IPv6 address as the IPv4 address that it is (RFC 4291 2.5.5.2); any other as it is."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
