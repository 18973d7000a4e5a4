"""Connections at listeners of implicit TLS: the same guard, but TLS comes before the greeting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory

from twisted_smtpguard.smtp import replies
from twisted_smtpguard.wire.protocol import SMTPGuardProtocol
from twisted_smtpguard.wire.turnaway import TurnAwayUnsaid

if TYPE_CHECKING:
    from twisted_smtpguard.wire.factory import SMTPGuardFactory


class ImplicitTLSFactory(ServerFactory):
    """For plain endpoints: TLS is begun here, behind the PROXY header where there is one.

    Its connections are those of `guard`, and count there.
    """

    noisy = False

    def __init__(self, guard: SMTPGuardFactory) -> None:
        if guard.tls is None:
            raise ValueError("a listener of implicit TLS needs a certificate")
        self._guard = guard
        self._unsaid = TurnAwayUnsaid(replies.TOO_MANY_CONNECTIONS)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Called by the port at accept. Who is turned away hears nothing."""
        protocol = self._guard.buildProtocol(addr)
        if not isinstance(protocol, SMTPGuardProtocol):
            return self._unsaid
        protocol.implicit_tls = True
        return protocol
