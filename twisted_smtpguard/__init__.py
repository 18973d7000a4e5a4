"""An SMTP service for Twisted that stays up under abuse: the names that applications and plugins use."""

from twisted_smtpguard.delivery.callable import CallableDelivery
from twisted_smtpguard.delivery.discard import DiscardDelivery
from twisted_smtpguard.delivery.envelope import Envelope
from twisted_smtpguard.delivery.maildir import MaildirDelivery
from twisted_smtpguard.events import Events
from twisted_smtpguard.interfaces import Client, Path, Peer, Refused
from twisted_smtpguard.limits import Limits
from twisted_smtpguard.service import SMTPGuardService
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.statistics import Statistics
from twisted_smtpguard.wire.factory import SMTPGuardFactory

__all__ = [
    "CallableDelivery",
    "Client",
    "DiscardDelivery",
    "Envelope",
    "Events",
    "Limits",
    "MaildirDelivery",
    "Path",
    "Peer",
    "Refused",
    "Reply",
    "SMTPGuardFactory",
    "SMTPGuardService",
    "Statistics",
]
