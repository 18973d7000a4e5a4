"""Who the client of a connection is, and which limits follow from that: whether it is trusted, known, or a stranger.

A base class of `Connection`, which has the state.
"""

from __future__ import annotations

import attrs

from twisted_smtpguard.engine.context import ServerContext
from twisted_smtpguard.engine.port import Host
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.values import Peer


@attrs.define(eq=False, repr=False, weakref_slot=False)
class ClientStanding:
    """The client of a connection, and its standing at this moment: a mail that is accepted makes a stranger known."""

    context: ServerContext
    host: Host
    peer_name: str
    silent: bool = attrs.field(default=False, init=False)
    """Whether the connection is the proxy's own, such as a health check, and has sent nothing yet."""
    known_peer: Peer | None = attrs.field(default=None, init=False)
    known_key: str = attrs.field(default="", init=False)
    known_network: str = attrs.field(default="", init=False)
    trusted: bool = attrs.field(default=False, init=False)
    """Whether an IP filter trusts the client."""

    @property
    def peer(self) -> Peer:
        """The peer, for filters and deliveries. It costs a system call and so is made when it is first needed."""
        if self.known_peer is None:
            self.known_peer = self.host.peer()
        return self.known_peer

    @property
    def key(self) -> str:
        """The key of the client, for the limits per client."""
        if not self.known_key:
            peer = self.known_peer
            address = self.host.address() if peer is None else peer.address
            key = self.context.clients.key_of(address)
            # One text for both saves memory: a single address is its own key.
            self.known_key = self.peer_name if key == self.peer_name else key
        return self.known_key

    @property
    def is_known(self) -> bool:
        """Whether mail of the client was accepted lately, or the operator has named it."""
        known, key = self.context.known, self.key
        address = None
        if known.is_listed is not None:
            # To parse it takes longer than all else.
            peer = self.known_peer
            address = self.host.address() if peer is None else peer.address
        found: bool = known.has(key, address)
        return found

    @property
    def is_stranger(self) -> bool:
        """Whether the client is neither trusted nor known."""
        return not (self.trusted or self.is_known)

    @property
    def may_use_reserve(self) -> bool:
        """Whether the connection may have a seat of `Limits.reserved_connections`, trusted or not: the client is known,
        or it is a proxy's own, whose health check is not to fail."""
        return self.is_known or self.silent

    @property
    def limits(self) -> Limits:
        """The limits on this client. In stress those of strangers are stricter."""
        context = self.context
        return context.stress_limits if context.stressed and self.is_stranger else context.limits

    @property
    def timeouts(self) -> dict[str, float]:
        """The time limits on this client, as in `ServerContext.timeouts`."""
        context = self.context
        return context.stress_timeouts if context.stressed and self.is_stranger else context.timeouts

    @property
    def widest_network(self) -> str:
        """The key of the network that is held to account for the client where all seats are taken."""
        if not self.known_network:
            self.known_network = self.context.clients.widest_network(self.key)
        return self.known_network
