"""What objects written for twisted.mail.smtp see of a connection: `user.protocol` and its attributes."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from twisted_smtpguard.values import Address, Peer


class TransportView:
    """`user.protocol.transport`: the addresses of the connection. It can be neither written to nor closed."""

    def __init__(self, peer: Peer) -> None:
        self._peer = _end(peer.address, peer.port)
        self._host = _end(peer.local_address, peer.local_port)

    def getPeer(self) -> IAddress:  # noqa: N802 - ITransport's
        """The client's address, also if a trusted proxy announced it."""
        return self._peer

    def getHost(self) -> IAddress:  # noqa: N802 - ITransport's
        """The guard's address."""
        return self._host


class ProtocolView:
    """`user.protocol`: the same object in all messages of a session."""

    def __init__(self, peer: Peer, host: bytes) -> None:
        self.host = host
        """The guard's hostname."""
        self.transport = TransportView(peer)


def client_host(peer: Peer) -> bytes:
    """The second item of twisted.mail's `helo`: the client's IP address, or some text if it has none."""
    return str(peer.address or UNIXAddress(None)).encode()


def _end(address: Address | None, port: int | None) -> IAddress:
    if address is None:
        return UNIXAddress(None)
    kind = IPv4Address if address.version == 4 else IPv6Address
    return kind("TCP", str(address), port or 0)
