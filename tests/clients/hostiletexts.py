"""An application whose texts have in them what a stranger sent, or are markup themselves: its filter, its delivery.

It prints the ports of the guard and of its pages.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from zope.interface import implementer

from twisted_smtpguard import (
    PASS,
    CallableDelivery,
    Envelope,
    FilterEntry,
    MetricsService,
    Peer,
    Refused,
    Reply,
    SMTPGuardService,
    Verdict,
    refuse,
)
from twisted_smtpguard.interfaces import IIPFilter

USER = "<script>document.title='user'</script>\u202e"
FILTER = "<script>document.title='filter'</script>\u202e"


@implementer(IIPFilter)
class Filter:
    def check(self, peer: Peer) -> Verdict:
        if str(peer.address) == "127.0.0.66":
            return refuse(Reply(421, "4.7.1", (FILTER,)), rule=FILTER)
        return PASS


@implementer(ICredentialsChecker)
class Checker:
    """Admits everybody."""

    credentialInterfaces = (IUsernamePassword,)

    def requestAvatarId(self, credentials: Any) -> Any:
        return credentials.username


def receive(envelope: Envelope, body: BinaryIO) -> None:
    raise Refused(Reply(550, "5.7.1", (f"No mail from {envelope.sender.address}",)))


def endpoint() -> TCP4ServerEndpoint:
    return TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")


if __name__ == "__main__":
    service = SMTPGuardService(
        reactor,
        [endpoint()],
        CallableDelivery(receive, reactor),
        hostname="guard.example",
        ip_filters=[FilterEntry(Filter(), name="<b>filter</b>")],
        checkers=[Checker()],
        auth_without_tls=True,
    )
    pages = MetricsService(service, [endpoint()])
    pages.setServiceParent(service)
    service.startService()
    for port in (*service.ports, *pages.ports):
        print(f"listening on port {port.getHost().port}", flush=True)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
