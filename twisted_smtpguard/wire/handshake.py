"""One TLS handshake: what is in the way of it, how it begins, and how long it may take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from twisted_smtpguard.wire.deadlines import Deadline

if TYPE_CHECKING:
    from twisted_smtpguard.wire.factory import SMTPGuardFactory


class Upgrading(Protocol):
    """Whose connection is to speak TLS."""

    def tls_begins(self, layer: Any) -> None:
        """`layer` encrypts from here on."""

    def spoke_in_clear(self) -> None:
        """The client sent something after it had asked for TLS, and before it was told to begin."""

    def handshake_timed_out(self) -> None:
        """It has not been completed in time."""


class Handshake:
    """From the wish for TLS to its first octet. What comes in meanwhile is told to `spoke`."""

    __slots__ = ("_begun", "_deadline", "_factory", "_owner", "_transport")

    def __init__(self, factory: SMTPGuardFactory, transport: Any, owner: Upgrading) -> None:
        self._factory = factory
        self._transport = transport
        self._owner = owner
        self._deadline: Deadline | None = None
        self._begun = False

    @property
    def begun(self) -> bool:
        return self._begun

    def begin(self, octets: bytes = b"", *, by_endpoint: bool = False) -> None:
        """From here on only TLS is spoken. `octets` of it have come already. `by_endpoint`: it has begun by itself."""
        self._begun = True
        limits = self._factory.site.limits
        times = [seconds for seconds in (limits.tls_handshake_timeout, limits.read_timeout) if seconds]
        if times:
            self._deadline = self._factory.deadlines.call_later(min(times), self._time_out)
        if by_endpoint:
            self._owner.tls_begins(self._transport)
            return
        self._transport.startTLS(self._factory.tls)
        self._owner.tls_begins(self._transport.protocol)
        if octets:
            self._transport.protocol.dataReceived(octets)

    def spoke(self) -> None:
        """Something came that is no TLS."""
        if not self._begun:
            self._owner.spoke_in_clear()

    def leave(self) -> None:
        """It is complete, or nobody waits for it any more."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        self._deadline = None
        self._owner.handshake_timed_out()
