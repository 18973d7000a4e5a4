"""The guard under twistd: twistd --nodaemon --python mail.tac"""

import os

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString

from twisted_smtpguard import Limits, MaildirDelivery, SMTPGuardService

ENDPOINT = os.environ.get("MAIL_ENDPOINT", "tcp:2525:interface=127.0.0.1")
HOSTNAME = "mx.example.org"

guard = SMTPGuardService(
    reactor,
    [serverFromString(reactor, ENDPOINT)],
    MaildirDelivery("Maildir", reactor, hostname=HOSTNAME, min_free_space=100 * 1024**2),
    limits=Limits.for_profile("edge", greet_delay=0),
    hostname=HOSTNAME,
    names=[ENDPOINT],
)

application = Application("mail")
guard.setServiceParent(application)
