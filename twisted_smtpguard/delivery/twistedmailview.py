"""What objects written for twisted.mail.smtp see of a connection: `user.protocol`, and what hangs on it."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from twisted_smtpguard.interfaces import Address, Peer


class TransportView:
    """`user.protocol.transport`: whose connection it is. Nothing can be written to it, and it cannot be closed."""

    def __init__(self, peer: Peer) -> None:
        self._peer = _end(peer.address, peer.port)
        self._host = _end(peer.local_address, peer.local_port)

    def getPeer(self) -> IAddress:  # noqa: N802 - ITransport's
        """The client, behind a trusted proxy too."""
        return self._peer

    def getHost(self) -> IAddress:  # noqa: N802 - ITransport's
        """Our end."""
        return self._host


class ProtocolView:
    """`user.protocol`: the same object in all messages of a session."""

    def __init__(self, peer: Peer, host: bytes) -> None:
        self.host = host
        """What the guard calls itself."""
        self.transport = TransportView(peer)


def client_host(peer: Peer) -> bytes:
    """What stands beside the HELO word: the client's IP address, or some text where it has none."""
    return str(peer.address or UNIXAddress(None)).encode()


def _end(address: Address | None, port: int | None) -> IAddress:
    if address is None:
        return UNIXAddress(None)
    kind = IPv4Address if address.version == 4 else IPv6Address
    return kind("TCP", str(address), port or 0)
