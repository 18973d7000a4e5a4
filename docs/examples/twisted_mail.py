"""The guard with mail code that was written for twisted.mail: python twisted_mail.py ENDPOINT DIRECTORY"""

import sys
from pathlib import Path

from twisted.cred.checkers import AllowAnonymousAccess
from twisted.cred.portal import IRealm, Portal
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.threads import deferToThread
from twisted.mail import smtp
from zope.interface import implementer

from twisted_smtpguard import Limits, SMTPGuardService, TwistedMailDelivery

# What there was before.


@implementer(smtp.IMessage)
class MaildirMessage:
    """One message to one user."""

    def __init__(self, maildir):
        self.maildir = maildir
        self.name = smtp.messageid().strip(b"<>").decode()
        self.file = (maildir / "tmp" / self.name).open("wb")

    def lineReceived(self, line):
        self.file.write(line + b"\n")

    def eomReceived(self):
        self.file.close()
        return deferToThread((self.maildir / "tmp" / self.name).rename, self.maildir / "new" / self.name)

    def connectionLost(self):
        self.file.close()
        (self.maildir / "tmp" / self.name).unlink()


@implementer(smtp.IMessageDelivery)
class MaildirDelivery:
    """Users have a folder below `directory`; nobody else is known."""

    def __init__(self, directory):
        self.directory = directory

    def validateFrom(self, helo, origin):
        return origin

    def validateTo(self, user):
        for maildir in self.directory.iterdir():
            if maildir.name.encode() == user.dest.local:
                return lambda: MaildirMessage(maildir)
        raise smtp.SMTPBadRcpt(user, resp="No such user")

    def receivedHeader(self, helo, origin, recipients):
        name, address = helo
        return b"Received: from %b ([%b]); %b" % (name, address, smtp.rfc822date())


@implementer(IRealm)
class Realm:
    def __init__(self, directory):
        self.directory = directory

    def requestAvatar(self, avatar_id, mind, *interfaces):
        return smtp.IMessageDelivery, MaildirDelivery(self.directory), lambda: None


def make_portal(directory):
    return Portal(Realm(directory), [AllowAnonymousAccess()])


# What stands in the place of SMTPFactory.


def make_service(endpoint, directory):
    return SMTPGuardService(
        reactor,
        [serverFromString(reactor, endpoint)],
        TwistedMailDelivery(make_portal(directory), "mail.example.org"),
        limits=Limits(max_connections=500, max_recipients=20),
        hostname="mail.example.org",
    )


if __name__ == "__main__":
    endpoint, directory = sys.argv[1], Path(sys.argv[2])
    for user in ("alice", "bob"):
        for folder in ("tmp", "new", "cur"):
            (directory / user / folder).mkdir(parents=True, exist_ok=True)
    service = make_service(endpoint, directory)
    service.startService()
    print(f"listening on port {service.ports[0].getHost().port}", flush=True)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
