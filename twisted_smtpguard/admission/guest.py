"""A connection that asks to be admitted, as admission sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import CancelledError

from twisted_smtpguard.values import Peer

if TYPE_CHECKING:
    from twisted_smtpguard.admission.clients import Place


class Guest(Protocol):
    """A connection that has not been greeted."""

    peer_name: str
    """What the log calls it."""
    port: int | None
    """The client's; None where it came over a UNIX socket."""
    listener: str
    """What the log calls the listener at which it came."""
    trusted: bool
    """An IP filter said so."""
    place: Place | None
    """Among those that the client may hold at once."""

    @property
    def peer(self) -> Peer:
        """What filters are told."""

    @property
    def key(self) -> str:
        """The client that the limits per client count for."""

    @property
    def gone(self) -> bool:
        """The connection has ended, or was refused."""


def stays(guest: Guest) -> None:
    """CancelledError once the guest is gone: somebody's hook may have gone on in spite of that."""
    if guest.gone:
        raise CancelledError
