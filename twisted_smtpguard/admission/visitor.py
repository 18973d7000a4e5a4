"""Who is at the other end of a connection, and what the connection takes of its client's share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import CancelledError

from twisted_smtpguard.interfaces import Peer

if TYPE_CHECKING:
    from twisted_smtpguard.admission.clients import ClientLimits, Place


class Visitor:
    """One connection's client. `name` is what the log calls it. Peer and key are made when first asked for."""

    __slots__ = (
        "_clients",
        "_key",
        "_make_peer",
        "_peer",
        "gone",
        "helo",
        "listener",
        "name",
        "place",
        "port",
        "tls",
        "trusted",
    )

    def __init__(
        self,
        name: str,
        make_peer: Callable[[], Peer],
        clients: ClientLimits,
        *,
        port: int | None = None,
        listener: str = "",
    ) -> None:
        self.name = name
        self.port = port
        """The client's, for the log. None: it came over a UNIX socket."""
        self.listener = listener
        """What the log calls the listener at which it came."""
        self.helo = ""
        """What it called itself last, for the log. Not verified."""
        self.tls = ""
        """How what it says is encrypted, for the log."""
        self._make_peer: Callable[[], Peer] | None = make_peer
        self._clients = clients
        self._peer: Peer | None = None
        self._key = ""
        self.trusted = False
        """An IP filter said so."""
        self.gone = False
        """The connection has ended, or was refused."""
        self.place: Place | None = None
        """Among those that the client may hold at once."""

    @property
    def peer(self) -> Peer:
        """What filters and deliveries are told."""
        if self._peer is None:
            assert self._make_peer is not None
            self._peer = self._make_peer()
            self._make_peer = None
        return self._peer

    @property
    def key(self) -> str:
        """The client that the limits per client count for."""
        if not self._key:
            self._key = self._clients.key_of(self.peer.address)
        return self._key

    def certify(self, certificate: bytes) -> None:
        """The visitor has shown this in a TLS handshake."""
        self._peer = attrs.evolve(self.peer, certificate=certificate)

    def stays(self) -> None:
        """CancelledError once the connection is refused or gone: somebody's hook may have gone on in spite of that."""
        if self.gone:
            raise CancelledError

    def leave(self) -> None:
        """The connection counts no more. May be called twice."""
        self.gone = True
        if self.place is not None:
            self.place.give_back()
