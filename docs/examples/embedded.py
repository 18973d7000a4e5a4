"""Receive mail in a Twisted application: python embedded.py ENDPOINT, such as tcp:2525:interface=127.0.0.1"""

import sys
from email import message_from_binary_file
from email.policy import SMTP
from typing import BinaryIO

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString

from twisted_smtpguard import CallableDelivery, Envelope, Limits, Refused, Reply, SMTPGuardService


async def receive(envelope: Envelope, body: BinaryIO) -> None:
    """One message. To return is to say that it is safe: the client gets its 250."""
    message = message_from_binary_file(body, policy=SMTP)
    if message["Subject"] is None:
        raise Refused(Reply(550, "5.6.0", ("A subject is needed",)))
    recipients = ", ".join(path.address for path in envelope.recipients)
    print(f"{envelope.sender.address} to {recipients}: {message['Subject']}", flush=True)


service = SMTPGuardService(
    reactor,
    [serverFromString(reactor, sys.argv[1])],
    CallableDelivery(receive, reactor),
    limits=Limits(max_connections=500, max_message_size=1024 * 1024),
    hostname="mail.example.org",
)

if __name__ == "__main__":
    service.setServiceParent(Application("mail"))
    service.startService()
    print(f"listening on port {service.ports[0].getHost().port}", flush=True)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
