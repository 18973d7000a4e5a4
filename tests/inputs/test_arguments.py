"""A wrong argument is refused where it is given, by its name: every public constructor and function, every argument."""

from __future__ import annotations

import inspect
import re
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any

import attrs
import pytest
from certificates import CERTIFICATE
from fakes import FakeDelivery
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

import twisted_smtpguard
from twisted_smtpguard import (
    AcceptedDomains,
    CallableDelivery,
    CertificateFiles,
    Client,
    ControlService,
    DiscardDelivery,
    Envelope,
    EventFile,
    Events,
    FilterEntry,
    Limits,
    LmtpDelivery,
    MaildirDelivery,
    MetricsService,
    NetworksFile,
    NetworksFilter,
    PasswordFile,
    Path,
    Peer,
    PolicyEntry,
    PolicyRequest,
    PolicyServer,
    ProcessService,
    Rate,
    Reply,
    SmtpDelivery,
    SMTPGuardFactory,
    SMTPGuardService,
    Statistics,
    TwistedMailDelivery,
    UpstreamOptions,
    testing,
)

CLOCK = Clock()
PEER = Peer(ip_address("192.0.2.1"), 1, None, None)
CLIENT = Client(PEER, "s", "h", "SMTP", None, False)
PATH = Path("a@b.example", {})
ENDPOINT = TCP4ServerEndpoint(MemoryReactorClock(), 25)
UPSTREAM = TCP4ClientEndpoint(MemoryReactorClock(), "192.0.2.1", 25)
CHECKER = InMemoryUsernamePasswordDatabaseDontUse(bob=b"pw")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    directory = tmp_path_factory.mktemp("files")
    (directory / "networks").write_text("deny 192.0.2.0/24\n")
    (directory / "users").write_text("bob:pw\n")
    (directory / "empty").write_text("# nobody\n")
    return directory


def good(name: str, files: FilePath) -> tuple[Any, dict[str, Any]]:
    """What makes one, and arguments that it takes."""
    makers: dict[str, tuple[Any, dict[str, Any]]] = {
        "AcceptedDomains": (AcceptedDomains, {"delivery": DiscardDelivery(), "domains": ["example.org"]}),
        "CallableDelivery": (CallableDelivery, {"function": print, "reactor": CLOCK}),
        "CertificateFiles": (CertificateFiles, {"certificate": str(CERTIFICATE)}),
        "Client": (Client, attrs.asdict(CLIENT, recurse=False)),
        "ControlService": (
            ControlService,
            {
                "reactor": MemoryReactorClock(),
                "operator": SMTPGuardService(CLOCK, [], DiscardDelivery()).operator,
                "path": "control.sock",
            },
        ),
        "Envelope": (Envelope, {"client": CLIENT, "sender": PATH, "recipients": (PATH,)}),
        "EventFile": (EventFile, {"path": str(files / "events.json")}),
        "Events": (Events, {"statistics": Statistics(), "clock": CLOCK, "limits": Limits()}),
        "FilterEntry": (FilterEntry, {"filter": NetworksFilter()}),
        "Limits": (Limits, {}),
        "LmtpDelivery": (LmtpDelivery, {"endpoint": UPSTREAM, "reactor": CLOCK, "hostname": "g.example"}),
        "MaildirDelivery": (
            MaildirDelivery,
            {
                "path": str(files / "Maildir"),
                "reactor": MemoryReactorClock(),
                "hostname": "g.example",
                "min_free_space": 0,
            },
        ),
        "MetricsService": (
            MetricsService,
            {"guard": SMTPGuardService(CLOCK, [], DiscardDelivery()), "endpoints": [ENDPOINT]},
        ),
        "NetworksFile": (NetworksFile, {"path": str(files / "networks"), "reactor": CLOCK}),
        "NetworksFilter": (NetworksFilter, {}),
        "PasswordFile": (PasswordFile, {"path": str(files / "users"), "reactor": MemoryReactorClock()}),
        "Path": (Path, {"address": "a@b.example", "parameters": {}}),
        "Peer": (Peer, attrs.asdict(PEER, recurse=False)),
        "PolicyEntry": (PolicyEntry, {"policy": testing.FakePolicy()}),
        "PolicyRequest": (PolicyRequest, {"stage": "rcpt", "peer": PEER, "instance": "1"}),
        "PolicyServer": (PolicyServer, {"endpoint": UPSTREAM, "reactor": CLOCK}),
        "ProcessService": (
            ProcessService,
            {
                "reactor": MemoryReactorClock(),
                "guards": [SMTPGuardService(CLOCK, [], FakeDelivery())],
            },
        ),
        "Reply": (Reply, {"code": 550, "enhanced": "5.1.1", "lines": ("No such user",)}),
        "SMTPGuardFactory": (SMTPGuardFactory, {"reactor": CLOCK, "delivery": FakeDelivery()}),
        "SMTPGuardService": (
            SMTPGuardService,
            {"reactor": CLOCK, "endpoints": [ENDPOINT], "delivery": FakeDelivery()},
        ),
        "SmtpDelivery": (SmtpDelivery, {"endpoint": UPSTREAM, "reactor": CLOCK, "hostname": "g.example"}),
        "Statistics": (Statistics, {}),
        "TwistedMailDelivery": (TwistedMailDelivery, {}),
        "UpstreamOptions": (UpstreamOptions, {}),
        "Clients": (
            testing.Clients,
            {"factory": SMTPGuardFactory(CLOCK, FakeDelivery()), "clock": CLOCK},
        ),
        "Delivered": (
            testing.Delivered,
            {"client": CLIENT, "sender": PATH, "recipients": [PATH], "octets": b""},
        ),
        "FakeTransport": (testing.FakeTransport, {}),
        "Guard": (testing.Guard, {}),
        "codes": (testing.codes, {"said": "250 OK\r\n"}),
        "dialogue": (testing.dialogue, {}),
    }
    return makers[name]


NOT_CALLED = {
    "PASS": "a value",
    "TRUST": "a value",
    "Turn": "a type for annotations",
    "Conversation": "made by Clients.connect()",
    "DiscardDelivery": "takes none",
    "FakeDelivery": "takes none",
    "SlowFilter": "takes none",
    "FakeFilter": "answers whatever a test says, which may be wrong on purpose",
    "FakePolicy": "the same",
    "PolicyVerdict": "its own ValueErrors: test_values_of_policies.py",
    "PolicyUnavailable": "an exception, of any words",
    "CheckerUnavailable": "an exception, of any words",
    "Rate": "goes into Limits, which refuse it: test_limits.py",
    "Refused": "raised by a hook, where it is checked: test_transaction.py",
    "Verdict": "its own ValueErrors: test_filters_asked.py",
    "refuse": "the same",
    "check_delivery": "AssertionErrors say what is wrong: test_check_delivery.py",
    "check_filter": "the same: test_check_filter.py",
    "check_policy": "the same: test_check_policy.py",
    "check_counter_store": "the same: test_check_counter_store.py",
}
ANY = {
    ("Client", "avatar_id"),
    ("TwistedMailDelivery", "deliverer"),
    ("Events", "logger"),
}
"""What has no kind, or is checked in its own test."""


def arguments() -> list[tuple[str, str]]:
    found = []
    for module in (twisted_smtpguard, testing):
        for name in module.__all__:
            if name in NOT_CALLED:
                continue
            for each in inspect.signature(getattr(module, name)).parameters.values():
                if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD) and (name, each.name) not in ANY:
                    found.append((name, each.name))
    return found


@pytest.mark.parametrize(("name", "argument"), arguments())
def test_every_argument_of_a_wrong_kind_is_refused_by_its_name(
    name: str, argument: str, files: FilePath
) -> None:
    make, values = good(name, files)
    if name == "TwistedMailDelivery":
        values = {"deliverer": object()}
    else:
        make(**values)
    with pytest.raises((TypeError, ValueError)) as refusal:
        make(**{**values, argument: object()})
    assert re.search(rf"\b{argument}\b", str(refusal.value)), str(refusal.value)


TAKES_STRINGS = [
    ("AcceptedDomains", "domains", "example.org"),
    ("NetworksFilter", "deny", "192.0.2.1"),
    ("NetworksFilter", "trust", "192.0.2.1"),
    ("SMTPGuardFactory", "proxy_protocol_from", "192.0.2.1"),
    ("SMTPGuardService", "names", "x"),
    ("Guard", "proxy_protocol_from", "unix"),
    ("Limits", "dry_run", "max_errors"),
    ("Reply", "lines", "No such user"),
]


@pytest.mark.parametrize(("name", "argument", "text"), TAKES_STRINGS)
def test_a_str_is_no_list_of_its_letters(name: str, argument: str, text: str, files: FilePath) -> None:
    make, values = good(name, files)
    with pytest.raises(TypeError, match=rf"^{argument} must be a (list|tuple) "):
        make(**{**values, argument: text})


WRONG_VALUES: list[tuple[str, dict[str, Any], str]] = [
    ("SMTPGuardService", {"tls": "cert.pem"}, "tls must be CertificateFiles, or what else Twisted's "),
    ("SMTPGuardFactory", {"tls": CertificateFiles}, "tls must be CertificateFiles, or what else Twisted's "),
    ("SMTPGuardService", {"require_tls": True}, "require_tls needs tls"),
    ("SMTPGuardService", {"require_auth": True}, "require_auth needs checkers"),
    ("SMTPGuardService", {"checkers": [CHECKER]}, "checkers need tls or auth_without_tls"),
    ("SMTPGuardService", {"checkers": [object()]}, "checkers"),
    (
        "SMTPGuardService",
        {"checkers": ["memory:ann:pw"], "auth_without_tls": True},
        "checkers: 'memory:ann:pw' does not check user names with passwords",
    ),
    ("SMTPGuardService", {"delivery": FakeDelivery}, "delivery must be an IDelivery, not "),
    (
        "SMTPGuardService",
        {"endpoints": ["tcp:25"]},
        "each of endpoints must be an IStreamServerEndpoint, not 'tcp:25'",
    ),
    ("SMTPGuardService", {"endpoints": ENDPOINT}, "endpoints must be a list in which each is "),
    ("SMTPGuardService", {"ip_filters": NetworksFilter()}, "ip_filters must be a list in which each is "),
    ("SMTPGuardService", {"limits": {"max_connections": 5}}, "limits must be a Limits or None, not "),
    ("SMTPGuardService", {"limits": {}}, "limits must be a Limits or None, not {}"),
    ("SMTPGuardService", {"hostname": ""}, "hostname: a domain "),
    ("SMTPGuardService", {"hostname": "a b"}, "hostname: a domain "),
    ("SMTPGuardService", {"hostname": "a\r\nEvil: x"}, "hostname: a domain "),
    ("SMTPGuardService", {"proxy_protocol_from": ["any"]}, "proxy_protocol_from: 'any' is not a network"),
    ("SMTPGuardService", {"require_auth": 1}, "require_auth must be True or False, not 1"),
    ("SMTPGuardService", {"counters": dict}, "counters must be an ICounterStore or None, not "),
    ("PasswordFile", {"reactor": None}, "reactor must be a Reactor, not None"),
    ("AcceptedDomains", {"domains": []}, "domains: one or more are expected"),
    ("CallableDelivery", {"extensions": frozenset({"8bitmime"})}, "extensions must be of "),
    ("CallableDelivery", {"max_message_octets": -1}, "max_message_octets must be 0 or more"),
    ("MaildirDelivery", {"min_free_space": -1}, "min_free_space must be 0 or more"),
    ("MaildirDelivery", {"hostname": "a b"}, "hostname: a domain "),
    ("SmtpDelivery", {"hostname": "a b"}, "hostname: a domain "),
    ("SmtpDelivery", {"options": UpstreamOptions(tls="required")}, "options: tls='required' needs tls_name"),
    ("SmtpDelivery", {"options": UpstreamOptions(recipients=1)}, "options: recipients is for LMTP only"),
    ("UpstreamOptions", {"tls": "yes"}, "tls must be one of off, opportunistic, required, not 'yes'"),
    ("UpstreamOptions", {"announce": "XCLIENT"}, "announce must be one of "),
    ("UpstreamOptions", {"connections": 0}, "connections must be more than 0, not 0"),
    ("UpstreamOptions", {"idle": -1}, "idle must be 0 or more, not -1"),
    ("UpstreamOptions", {"verdict": float("nan")}, "verdict must be 0 or more, not nan"),
    (
        "Limits",
        {"dry_run": {"max-errors"}},
        "dry_run: 'max-errors' is written with underscores here, 'max_errors'",
    ),
    ("Limits", {"dry_run": {"nonsense"}}, "dry_run: 'nonsense' has no dry run"),
    ("Limits", {"dry_run": {5}}, "dry_run: 5 has no dry run"),
    ("Limits", {"connection_rate": Rate("60", 60)}, "connection_rate must be "),  # type: ignore[arg-type]
    ("Reply", {"lines": ("a", 5)}, "lines must be "),
    ("Reply", {"lines": ["a"]}, "lines must be a tuple "),
    ("Reply", {"code": "550"}, "code must be a whole number, not '550'"),
    ("FilterEntry", {"filter": NetworksFilter}, "filter must be an IIPFilter, not "),
    ("FilterEntry", {"name": None}, "name must be a str, not None"),
    ("Events", {"level": "info"}, "level must be one of twisted.logger.LogLevel, not 'info'"),
    (
        "Peer",
        {"address": "192.0.2.1"},
        "address must be an IPv4Address or an IPv6Address or None, not '192.0.2.1'",
    ),
    ("Peer", {"local_address": "192.0.2.1"}, "local_address must be "),
]


@pytest.mark.parametrize(("name", "wrong", "problem"), WRONG_VALUES)
def test_what_cannot_work_is_refused_where_it_is_given(
    name: str, wrong: dict[str, Any], problem: str, files: FilePath
) -> None:
    make, values = good(name, files)
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(problem)}"):
        make(**{**values, **wrong})


def test_a_deliverer_or_a_hostname_that_is_none_is_refused() -> None:
    with pytest.raises(
        TypeError, match="an IMessageDelivery, an IMessageDeliveryFactory or a Portal is expected"
    ):
        TwistedMailDelivery(object(), "g.example")


def test_a_client_of_a_test_says_text_and_sends_octets() -> None:
    client = testing.Guard().greeted()
    with pytest.raises(TypeError, match=r"^lines must be a str, not b'NOOP'"):
        client.say(b"NOOP")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^octets must be bytes, not 'NOOP'"):
        client.send("NOOP")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^turns must be a tuple of "):
        testing.dialogue("NOOP", "250 2.0.0 OK")  # type: ignore[arg-type]


def test_a_file_of_domains_without_any_is_refused_and_leaves_the_old_ones_in_force(files: FilePath) -> None:
    path = files / "domains"
    path.write_text("example.org\n")
    accepted = AcceptedDomains(DiscardDelivery(), [str(path)])
    path.write_text("# example.org\n")
    failures: list[Any] = []
    Deferred.fromCoroutine(accepted.reload()).addErrback(failures.append)
    assert str(failures[0].value) == f"{path}: there is no domain in it"
    assert accepted.accepts(Path("bob@example.org", {}))
    with pytest.raises(ValueError, match=r"there is no domain in it$"):
        AcceptedDomains(DiscardDelivery(), [str(files / "empty")])


def test_tls_of_a_proxy_or_of_the_endpoint_is_enough() -> None:
    plain = {"reactor": CLOCK, "endpoints": [ENDPOINT], "delivery": FakeDelivery()}
    SMTPGuardService(**plain, require_tls=True, proxy_protocol_from=["unix"], proxy_protocol_tls=True)
    SMTPGuardService(**plain, checkers=[CHECKER], auth_without_tls=True)


def test_an_endpoint_that_says_nothing_of_its_interface_is_one() -> None:
    class Endpoint:
        def listen(self, factory: object) -> None:
            """Never called."""

    SMTPGuardService(CLOCK, [Endpoint()], FakeDelivery())  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^each of endpoints must be an IStreamServerEndpoint, not "):
        SMTPGuardService(CLOCK, [Endpoint], FakeDelivery())  # type: ignore[list-item]
