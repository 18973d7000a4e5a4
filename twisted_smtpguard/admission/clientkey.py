"""What counts as one client: an address, or a network that is given to one user as a whole."""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop

from twisted_smtpguard.values import Address

UNIX = "unix"
"""All peers on UNIX sockets are one client."""


def client_key(address: Address | None, ipv4_bits: int, ipv6_bits: int) -> str:
    """The client that `address` belongs to, by the leading bits that make a client: `192.0.2.1` where all do,
    else `192.0.2.0/24` or `2001:db8::/64`.

    A Peer's address is never IPv4-mapped. The zone of a link-local address (`%eth0`) is left out. Made for every
    connection: str() of an IPv6Address takes three times as long, and ip_network() six times.
    """
    if address is None:
        return UNIX
    number = int(address)
    family, length, bits = AF_INET, 32, ipv4_bits
    if address.version == 6:
        family, length, bits = AF_INET6, 128, ipv6_bits
    if bits == length:
        return inet_ntop(family, number.to_bytes(length // 8, "big"))
    rest = length - bits
    network = number >> rest << rest
    return f"{inet_ntop(family, network.to_bytes(length // 8, 'big'))}/{bits}"
