"""A connection that waits to be admitted, as admission sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import CancelledError

from twisted_smtpguard.values import Peer

if TYPE_CHECKING:
    from twisted_smtpguard.admission.clients import Place


class PendingConnection(Protocol):
    """A connection that has not been greeted."""

    peer_name: str
    """The client's name in the log."""
    port: int | None
    """The client's port; None for a UNIX socket."""
    listener: str
    """The name of its listener in the log."""
    trusted: bool
    """Whether an IP filter trusts the client."""
    place: Place | None
    """Its place among the connections that the client may have at once."""

    seated: bool
    """Whether it has its seat for good."""

    @property
    def may_use_reserve(self) -> bool:
        """Whether it may have a seat that is reserved, if it is not trusted."""

    @property
    def widest_network(self) -> str:
        """The key of the widest network in which the client is and that limits it, or of the client."""

    @property
    def peer(self) -> Peer:
        """The peer that filters are asked about."""

    @property
    def key(self) -> str:
        """The key of the client, for the limits per client."""

    @property
    def is_known(self) -> bool:
        """Whether the client is known."""

    @property
    def names_client(self) -> bool:
        """Whether the address is that of the client, and not of a proxy that has named none."""

    @property
    def gone(self) -> bool:
        """Whether the connection has ended or was refused."""


def require_connected(connection: PendingConnection) -> None:
    """Raise CancelledError if the connection has ended: the hook that answers now has ignored its cancellation."""
    if connection.gone:
        raise CancelledError
