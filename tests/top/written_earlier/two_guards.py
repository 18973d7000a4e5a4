"""One application with two guards, for strangers and for its own machines: python two_guards.py PUBLIC INTERNAL

Both are endpoints such as tcp:2525:interface=127.0.0.1.
"""

import sys
from typing import Any

from inbox import Inbox, Standing, Store
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IStreamServerEndpoint

from twisted_smtpguard import FilterEntry, Limits, SMTPGuardService


class Mailroom(MultiService):
    """Two guards with limits of their own, and the database that both need."""

    def __init__(
        self, reactor: Any, store: Store, public: IStreamServerEndpoint, internal: IStreamServerEndpoint
    ) -> None:
        super().__init__()
        delivery = Inbox(store)
        self.public = SMTPGuardService(
            reactor,
            [public],
            delivery,
            limits=Limits.for_profile("edge", max_connections=500, max_recipients=10),
            ip_filters=[FilterEntry(Standing(store), "standing", fail_open=True)],
            hostname="mx.example.org",
        )
        self.internal = SMTPGuardService(
            reactor,
            [internal],
            delivery,
            limits=Limits(max_connections=50),
            hostname="relay.example.org",
        )
        # Started in this order.
        for service in (store, self.public, self.internal):
            service.setServiceParent(self)

    def stopService(self) -> Deferred[Any]:  # noqa: N802 - Twisted's name
        """A MultiService stops all its children at the same time. Messages on their way still need the database."""
        drained = gatherResults([self.public.drain(), self.internal.drain()])
        return drained.addCallback(lambda _: super(Mailroom, self).stopService())


if __name__ == "__main__":
    from twisted.internet import reactor

    mailroom = Mailroom(
        reactor,
        Store(["desk@example.org"], {"127.0.0.1": "friend", "127.0.0.2": "banned"}),
        *(serverFromString(reactor, endpoint) for endpoint in sys.argv[1:3]),
    )
    mailroom.startService()
    for guard in (mailroom.public, mailroom.internal):
        print(f"listening on port {guard.ports[0].getHost().port}", flush=True)
    reactor.addSystemEventTrigger("before", "shutdown", mailroom.stopService)
    reactor.run()
