"""The factory on an endpoint of your own, without any service: python factory_alone.py ENDPOINT"""

import sys
from typing import Any

from inbox import Inbox, Store
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import react

from twisted_smtpguard import Limits, SMTPGuardFactory


async def main(reactor: Any, endpoint: str) -> None:
    store = Store(["desk@example.org"], {})
    store.startService()
    factory = SMTPGuardFactory(
        reactor, Inbox(store), limits=Limits(max_connections=500), hostname="mx.example.org"
    )
    port = await serverFromString(reactor, endpoint).listen(factory)
    print(f"listening on port {port.getHost().port}", flush=True)

    async def stop() -> None:
        await port.stopListening()
        await factory.drain()
        store.stopService()
        print(f"accepted {factory.statistics.messages_accepted} messages", flush=True)

    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(stop()))
    await Deferred()  # until a signal


if __name__ == "__main__":
    react(main, sys.argv[1:])
