"""The names that applications and plugins use, which they import from the package itself."""

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.checkers.passwordfile import PasswordFile
from twisted_smtpguard.control.server import ControlService
from twisted_smtpguard.delivery.callable import CallableDelivery
from twisted_smtpguard.delivery.discard import DiscardDelivery
from twisted_smtpguard.delivery.domains import AcceptedDomains
from twisted_smtpguard.delivery.envelope import Envelope
from twisted_smtpguard.delivery.lmtp import LmtpDelivery
from twisted_smtpguard.delivery.maildir import MaildirDelivery
from twisted_smtpguard.delivery.smtp import SmtpDelivery
from twisted_smtpguard.delivery.twistedmail import TwistedMailDelivery
from twisted_smtpguard.filters.networks import NetworksFile, NetworksFilter
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.log.eventfile import EventFile
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.metrics.serving import MetricsService
from twisted_smtpguard.policies.policyentry import PolicyEntry
from twisted_smtpguard.policies.policyserver import PolicyServer
from twisted_smtpguard.policyvalues import PolicyRequest, PolicyUnavailable, PolicyVerdict
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.service.process import ProcessService
from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.tls.files import CertificateFiles
from twisted_smtpguard.transport.factory import SMTPGuardFactory
from twisted_smtpguard.upstream.parameters import UpstreamOptions
from twisted_smtpguard.values import (
    PASS,
    TRUST,
    CheckerUnavailable,
    Client,
    Path,
    Peer,
    Refused,
    Verdict,
    refuse,
)

__all__ = [
    "PASS",
    "TRUST",
    "AcceptedDomains",
    "CallableDelivery",
    "CertificateFiles",
    "CheckerUnavailable",
    "Client",
    "ControlService",
    "DiscardDelivery",
    "Envelope",
    "EventFile",
    "Events",
    "FilterEntry",
    "Limits",
    "LmtpDelivery",
    "MaildirDelivery",
    "MetricsService",
    "NetworksFile",
    "NetworksFilter",
    "PasswordFile",
    "Path",
    "Peer",
    "PolicyEntry",
    "PolicyRequest",
    "PolicyServer",
    "PolicyUnavailable",
    "PolicyVerdict",
    "ProcessService",
    "Rate",
    "Refused",
    "Reply",
    "SMTPGuardFactory",
    "SMTPGuardService",
    "SmtpDelivery",
    "Statistics",
    "TwistedMailDelivery",
    "UpstreamOptions",
    "Verdict",
    "refuse",
]
