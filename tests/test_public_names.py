"""The names that applications and plugins may rely on. Others have built on what is listed here."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TypeVar

import pytest
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
        "Client",
        "DiscardDelivery",
        "Envelope",
        "Events",
        "FilterEntry",
        "Limits",
        "LmtpDelivery",
        "MaildirDelivery",
        "NetworksFile",
        "NetworksFilter",
        "Path",
        "Peer",
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
        "FakeTransport",
        "Guard",
        "SlowFilter",
        "Turn",
        "check_delivery",
        "check_filter",
        "codes",
        "dialogue",
    ],
}
INTERFACES = [
    "Address",
    "Client",
    "ICounterStore",
    "IDelivery",
    "IDeliveryFactory",
    "IIPFilter",
    "IIPFilterFactory",
    "IMailTransaction",
    "IMessageSink",
    "IPreparedReload",
    "IRelayDelivery",
    "IRelayTransaction",
    "IReloadable",
    "ISessionDelivery",
    "Later",
    "PASS",
    "Path",
    "Peer",
    "Refused",
    "TRUST",
    "Verdict",
    "refuse",
]
SERVICE = ["drain", "factory", "ports", "reload", "startService", "statistics", "stopService"]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_the_names_of_a_public_module_are_chosen(module: object) -> None:
    assert module.__all__ == PUBLIC[module]
    assert all(hasattr(module, name) for name in PUBLIC[module])


def test_the_names_of_the_interfaces_are_chosen() -> None:
    defined = set()
    for node in ast.parse(Path(interfaces.__file__).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            defined.add(ast.unparse(node.target))
        elif isinstance(node, ast.Assign):
            defined.update(map(ast.unparse, node.targets))
    public = {name for name in defined if not name.startswith("_")}
    assert sorted(name for name in public if not isinstance(getattr(interfaces, name), TypeVar)) == INTERFACES


def test_the_names_of_a_service_are_chosen() -> None:
    service = twisted_smtpguard.SMTPGuardService(Clock(), [], twisted_smtpguard.DiscardDelivery())
    own = {*vars(type(service)), *(set(vars(service)) - set(vars(type(service).__base__())))}
    assert sorted(name for name in own if not name.startswith("_")) == SERVICE
