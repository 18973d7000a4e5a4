"""An asyncio program that receives mail: python asyncio_program.py ENDPOINT, such as tcp:2525:interface=127.0.0.1"""

import asyncio
import signal
import sys
from typing import BinaryIO

from twisted.internet import asyncioreactor
from twisted.logger import STDLibLogObserver, globalLogBeginner

from twisted_smtpguard import CallableDelivery, Envelope, Limits, Refused, Reply, SMTPGuardService


class Inbox:
    """Stands for the program's own work, which knows asyncio and no Twisted."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(maxsize=100)

    async def receive(self, envelope: Envelope, body: BinaryIO) -> None:
        """One message. To return is to say that it is safe: the client gets its 250."""
        message = envelope.sender.address, body.read()
        try:
            await asyncio.wait_for(self._messages.put(message), 10)
        except asyncio.TimeoutError:
            raise Refused(Reply(452, "4.3.1", ("The inbox is full, try again later",))) from None

    async def work(self) -> None:
        while True:
            sender, octets = await self._messages.get()
            print(f"{len(octets)} octets from {sender}", flush=True)


async def main(endpoint: str) -> None:
    # Twisted works in this loop. The reactor is imported when that has been said, and nowhere before.
    loop = asyncio.get_running_loop()
    asyncioreactor.install(loop)
    from twisted.internet import reactor  # noqa: PLC0415
    from twisted.internet.endpoints import serverFromString  # noqa: PLC0415

    reactor.startRunning(installSignalHandlers=False)
    globalLogBeginner.beginLoggingTo([STDLibLogObserver()], redirectStandardIO=False)

    inbox, stop = Inbox(), asyncio.Event()
    working = loop.create_task(inbox.work())
    service = SMTPGuardService(
        reactor,
        [serverFromString(reactor, endpoint)],
        CallableDelivery(inbox.receive, reactor),
        limits=Limits(max_connections=500, max_message_size=1024 * 1024),
        hostname="mail.example.org",
    )
    service.startService()
    print(f"listening on port {service.ports[0].getHost().port}", flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, service.reload)
    await stop.wait()

    # Sessions that are in the middle of a message have `Limits.shutdown_grace` seconds to end it.
    await service.stopService().asFuture(loop)
    working.cancel()
    # A process that ends needs Twisted's threads to end.
    reactor.getThreadPool().stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
