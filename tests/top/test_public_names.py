"""The names that applications and plugins may rely on. Others have built on what is listed here."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from documents import DOCS, section
from twisted.internet.task import Clock

import twisted_smtpguard
from twisted_smtpguard import interfaces, testing

PUBLIC = {
    twisted_smtpguard: [
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
    ],
    testing: [
        "Clients",
        "Conversation",
        "Delivered",
        "FakeDelivery",
        "FakeFilter",
        "FakePolicy",
        "FakeTransport",
        "Guard",
        "SlowFilter",
        "Turn",
        "check_counter_store",
        "check_delivery",
        "check_filter",
        "check_policy",
        "codes",
        "dialogue",
    ],
}
INTERFACES = [
    "Address",
    "Challenge",
    "CheckerUnavailable",
    "Client",
    "CounterStoreUnavailable",
    "FilterMetric",
    "IAsksForKnownClients",
    "ICheckableDelivery",
    "ICheckingDeliveryFactory",
    "IConnectingCounterStore",
    "IConnectingDelivery",
    "ICounterStore",
    "IDelivery",
    "IDeliveryFactory",
    "IExplainingFilter",
    "IIPFilter",
    "IIPFilterFactory",
    "IMailTransaction",
    "IMeasuredFilter",
    "IMessageSink",
    "IPreparedReload",
    "IPrependingTransaction",
    "IReadsFiles",
    "IRecordStore",
    "IRelayDelivery",
    "IRelayTransaction",
    "IReloadable",
    "IReportsHealth",
    "IReservingDelivery",
    "ISaslExchange",
    "ISaslMechanisms",
    "ISelfTestingFilter",
    "ISessionDelivery",
    "ISessionPolicy",
    "ISessionPolicyFactory",
    "Later",
    "LoggedIn",
    "LoginClient",
    "PASS",
    "Path",
    "Peer",
    "PolicyRequest",
    "PolicyUnavailable",
    "PolicyVerdict",
    "Record",
    "RecordsSince",
    "Refused",
    "TRUST",
    "Verdict",
    "Wanted",
    "refuse",
]
SERVICE = [
    "addresses",
    "also_reload",
    "close_listeners",
    "drain",
    "end_grace",
    "factory",
    "failed_endpoint",
    "listener_names",
    "log_statistics",
    "on_listening",
    "operator",
    "ports",
    "ready",
    "reload",
    "reloadable",
    "startService",
    "state",
    "statistics",
    "stopService",
]
FACTORY = [
    "buildProtocol",
    "connections",
    "drain",
    "end_now",
    "limits",
    "reopen",
    "set_limits",
    "statistics",
]
FACTORY_INSIDE = [
    "admission",
    "asks_for_certificates",
    "bans",
    "build",
    "clients",
    "connection_ended",
    "connections_by_stage",
    "context",
    "counting",
    "deadlines",
    "end_session",
    "ends",
    "enforces",
    "filters",
    "greet_delay",
    "known",
    "known_client",
    "lingering",
    "may_linger",
    "next_session_name",
    "noisy",
    "offences",
    "on_connection",
    "output_rules",
    "own_counters",
    "pending_verdicts",
    "policies",
    "proxies",
    "records",
    "release",
    "seating",
    "session_times",
    "sessions",
    "socket_buffers",
    "startFactory",
    "tls",
    "turned_away",
    "turns",
]
"""What protocols, the service, its operator, reloading and tests use of the factory. No promise to anybody else."""


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_the_names_of_a_public_module_are_chosen(module: object) -> None:
    assert module.__all__ == PUBLIC[module]
    assert all(hasattr(module, name) for name in PUBLIC[module])


def test_no_name_of_a_public_module_is_made_up() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Smtpguard'"):
        _ = twisted_smtpguard.Smtpguard  # type: ignore[attr-defined]


def test_the_package_alone_imports_no_twisted_and_its_first_name_all_of_it() -> None:
    code = (
        "import sys, twisted_smtpguard; print('twisted' in sys.modules); "
        "twisted_smtpguard.Limits; print('twisted' in sys.modules, twisted_smtpguard.interfaces.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True", "twisted_smtpguard.interfaces"]


def test_the_names_of_the_interfaces_are_chosen() -> None:
    assert sorted(interfaces.__all__) == INTERFACES


def test_the_names_of_a_service_are_chosen() -> None:
    service = twisted_smtpguard.SMTPGuardService(Clock(), [], twisted_smtpguard.DiscardDelivery())
    assert own_names(service) == SERVICE


def own_names(value: object) -> list[str]:
    """What Twisted's base class does not have, or has otherwise."""
    own = {*vars(type(value)), *(set(vars(value)) - set(vars(type(value).__base__())))}
    return sorted(name for name in own if not name.startswith("_"))


def test_the_names_of_a_factory_are_chosen_and_those_for_others_are_documented() -> None:
    factory = twisted_smtpguard.SMTPGuardFactory(Clock(), twisted_smtpguard.DiscardDelivery())
    assert own_names(factory) == sorted(FACTORY + FACTORY_INSIDE)
    page = DOCS / "how-to" / "embed-in-a-twisted-application.md"
    (names,) = re.findall(
        r"^These names are for you: (.+?)\. ", section(page, "The factory alone"), re.MULTILINE
    )
    assert re.findall(r"`(\w+)(?:\(\))?`", names) == FACTORY
