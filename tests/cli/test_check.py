"""`twist smtpguard --check`: what it tells of a start that it does not make, and what it refuses."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import CERTIFICATE, expired
from commandline import parsed, twist, written
from fakes import FakeFilter
from processes import GuardProcess
from shell import free_port
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError
from zope.interface import implementer

from twisted_smtpguard.cli import plugins
from twisted_smtpguard.cli.check import _shown, awaited
from twisted_smtpguard.cli.configuration import Setting
from twisted_smtpguard.cli.options import check_service
from twisted_smtpguard.delivery.discard import DiscardDelivery
from twisted_smtpguard.interfaces import (
    ICheckableDelivery,
    ICheckingDeliveryFactory,
    IDelivery,
    IIPFilterFactory,
    ISelfTestingFilter,
)

LAST = "A start would find all that it opens, and no mistake."


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory, which is empty afterwards but for what the test put there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("twisted_smtpguard.cli.settings.own_name", lambda: "mx.example.org")
    yield tmp_path
    assert not (tmp_path / "Maildir").exists()


def checked(*words: str) -> list[str]:
    """The lines that are printed."""
    options = parsed("--check", *words)
    reactor = MemoryReactorClock()
    reactor.rightNow = 1_800_000_000.0
    lines = awaited(check_service(options, reactor), reactor)
    assert (reactor.tcpServers, reactor.unixServers) == ([], [])
    assert lines[-1] == LAST
    return "\n".join(lines).split("\n")


def refused(*words: str) -> str:
    """The sentence that is told instead."""
    with pytest.raises(UsageError) as error:
        checked(*words)
    return str(error.value)


def rows(lines: list[str]) -> list[list[str]]:
    """Those of the tables."""
    return [re.split("  +", line) for line in lines]


def warnings(lines: list[str]) -> list[str]:
    """Without that of a run as root."""
    found = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
    return [each for each in found if "what=root" not in each]


# What is in force.


def test_it_prints_each_setting_and_each_limit_with_its_origin(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(here, "listen = tcp:2525\ntrust = 192.0.2.1\n")
    monkeypatch.setenv("SMTPGUARD_ACCEPT_DOMAIN", "example.org")
    found = rows(checked("--config", path, "--max-errors", "5"))
    assert found[:6] == [
        ["option", "value", "from"],
        ["listen", "tcp:2525", f"file {path} line 1"],
        ["hostname", "mx.example.org", "default"],
        ["deliver", "maildir:Maildir", "default"],
        ["accept-domain", "example.org", "environment"],
        ["trust", "192.0.2.1", f"file {path} line 2"],
    ]
    assert ["max-errors", "5", "a count", "command line"] in found


def test_it_prints_no_password_and_no_key(here: Path) -> None:
    text = "\n".join(checked("--auth=memory:ann:geheim", "--auth-without-tls", "--deliver=discard"))
    assert "geheim" not in text
    assert ["auth", "memory", "command line"] in rows(text.split("\n"))
    assert plugins.shown_delivery("pigeon:geheim") == "pigeon"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("networks:/etc/n", "networks:/etc/n"),
        ("name=own:fail-open:networks:/etc/n", "name=own:fail-open:networks:/etc/n"),
        ("dnslist:geheim", "dnslist"),
        ("dnsbl:geheim.bl.example;name=bl", "dnsbl"),
        ("name=own:fail-open:dnslist:geheim", "name=own:fail-open:dnslist"),
    ],
)
def test_the_argument_of_an_ip_filter_that_may_have_a_key_in_it_is_not_printed(text: str, shown: str) -> None:
    assert _shown(Setting("ip-filter", text)) == shown


def test_what_a_start_would_warn_of_is_printed(here: Path) -> None:
    users = here / "users"
    users.write_text("ann:secret\n")
    users.chmod(0o644)
    words = ("--check", "--auth=file:users", "--auth-without-tls", "--deliver=smtp:tcp:127.0.0.1:1")
    status, out, _ = twist(*words, cwd=here)
    assert status == 0
    found = warnings(out.splitlines())
    kinds = [each.split()[0] for each in found]
    assert kinds[:2] == ["no_connection_cap", "open_relay"]
    assert any("readable_file users has passwords in it" in each for each in found)


# Certificates.


def test_of_a_certificate_it_prints_names_end_and_chain() -> None:
    found = checked("--tls-certificate", str(CERTIFICATE), "--hostname=localhost")
    (line,) = [line for line in found if line.startswith(f"{CERTIFICATE}: ")]
    assert re.search(r", for localhost, 127\.0\.0\.1, until 3000-01-01 00:00 UTC, without a chain$", line)


def test_one_that_has_ended_is_an_error_that_names_the_option(here: Path) -> None:
    path = expired()
    told = refused("--tls-certificate", str(path))
    assert re.fullmatch(rf"--tls-certificate: {path}: it expired on \S+ \S+ UTC", told)
    config = written(here, f"\ntls-certificate = {path}\n")
    assert refused("--config", config).startswith(
        f"--config {config} line 2: tls-certificate: {path}: it exp"
    )


def test_one_for_another_name_is_a_warning() -> None:
    words = ("--tls-certificate", str(CERTIFICATE), "--hostname=mx.example.net", "--max-connections=9")
    (told,) = [each for each in warnings(checked(*words)) if "reason=other_name" in each]
    assert told.startswith("doubtful_certificate reason=other_name option=--tls-certificate ")


def test_a_file_that_is_none_is_an_error(here: Path) -> None:
    (here / "guard.pem").write_text("nothing")
    assert refused("--tls-certificate=guard.pem").startswith("--tls-certificate: ")


# Files and directories.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ip-filter=networks:faulty"], "--ip-filter: "),
        (["--ip-filter=networks:missing"], "--ip-filter: "),
        (["--accept-domain=./missing"], "--accept-domain: "),
        (["--auth=file:missing", "--auth-without-tls"], "--auth: "),
        (["--listen=pigeon:1"], "--listen: "),
        (["--deliver=maildir:missing/Maildir"], "--deliver: .*missing is not a directory$"),
        (["--deliver=maildir:full"], "--deliver: .*full is not a Maildir, and not empty$"),
        (["--deliver=maildir:"], "--deliver: maildir needs a path"),
        (["--deliver=pigeon:x"], "--deliver: there is no delivery called 'pigeon'"),
        (["--event-log=missing/events"], "--event-log: cannot write to missing/events: No such file"),
        (["--event-log=full"], "--event-log: cannot write to full: Is a directory"),
    ],
)
def test_what_a_start_would_refuse_is_refused(words: list[str], told: str, here: Path) -> None:
    (here / "faulty").write_text("deny nobody\n")
    (here / "full").mkdir()
    (here / "full" / "file").touch()
    assert re.match(told, refused(*words))


def test_a_directory_that_may_not_be_written_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "shut").mkdir()
    # Whoever runs the tests may write everywhere, if it is root.
    monkeypatch.setattr(os, "access", lambda path, _: "shut" not in str(path))
    assert refused("--deliver=maildir:shut/Maildir").endswith("shut is not a writable directory")
    assert refused("--event-log=shut/events").endswith("cannot write to shut/events: Permission denied")


def test_nothing_is_written(here: Path) -> None:
    (here / "domains").write_text("example.org\n")
    before = {path: path.stat().st_mtime_ns for path in here.iterdir()}
    checked("--deliver=maildir:new", "--event-log=events", "--accept-domain=./domains")
    (here / "old").mkdir()
    checked("--deliver=maildir:old")
    assert list((here / "old").iterdir()) == []
    (here / "old").rmdir()
    assert {path: path.stat().st_mtime_ns for path in here.iterdir()} == before


def test_a_socket_that_systemd_will_pass_is_no_mistake() -> None:
    checked("--listen=systemd:domain=INET:name=smtp", "--deliver=discard")


# Deliveries of others.


@implementer(ICheckableDelivery)
class Strange(DiscardDelivery):
    """Finds that something is missing, or is wrong."""

    def __init__(self, argument: str) -> None:
        self._argument = argument

    def check(self) -> str:
        if self._argument == "wrong":
            raise ValueError("the password is wrong")
        return self._argument


class StrangeFactory:
    """Makes such deliveries."""

    name = "strange"
    summary = argument_format = "A delivery."

    def __init__(self) -> None:
        self.made: list[str] = []

    def make_delivery(self, argument: str, reactor: object) -> IDelivery:
        self.made.append(argument)
        delivery: IDelivery = Strange(argument)  # type: ignore[assignment]
        return delivery


@implementer(ICheckingDeliveryFactory)
class CarefulFactory(StrangeFactory):
    """Would write something when it makes one."""

    def check_delivery(self, argument: str, reactor: object) -> None:
        if argument == "bad":
            raise ValueError("the argument is bad")


def found(factory: StrangeFactory, monkeypatch: pytest.MonkeyPatch) -> StrangeFactory:
    monkeypatch.setattr(plugins, "discover", lambda _: [factory])
    return factory


def test_a_delivery_tells_what_is_missing_and_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = found(StrangeFactory(), monkeypatch)
    assert warnings(checked("--deliver=strange:", "--max-connections=9")) == []
    domain = "--accept-domain=example.org"
    assert warnings(checked("--deliver=strange:it is\x1baway", domain, "--max-connections=9")) == [
        r"it is\x1baway"
    ]
    assert refused("--deliver=strange:wrong", domain) == "--deliver: the password is wrong"
    assert factory.made == ["", "it is\x1baway", "wrong"]


def test_a_factory_that_would_write_something_is_asked_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = found(CarefulFactory(), monkeypatch)
    checked("--deliver=strange:good")
    assert refused("--deliver=strange:bad") == "--deliver: the argument is bad"
    assert factory.made == []


# The command, and an upstream server.


def test_the_command_prints_it_with_status_0_and_leaves_nothing(here: Path) -> None:
    status, out, errors = twist("--check", "--profile=edge", cwd=here)
    assert (status, errors) == (0, "")
    assert out.endswith(f"\n{LAST}\n")
    assert list(here.iterdir()) == []


def test_a_port_that_is_taken_is_none_of_its_business(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        listen = f"--listen=tcp:{busy.getsockname()[1]}:interface=127.0.0.1"
        assert twist("--check", listen, cwd=here)[0] == 0


def test_a_mistake_is_one_sentence_with_status_64(here: Path) -> None:
    status, out, errors = twist("--check", f"--tls-certificate={expired()}", cwd=here)
    assert (status, out) == (64, "")
    assert re.fullmatch(r"--tls-certificate: \S+: it expired on .* UTC\n", errors)


def test_a_connection_to_the_upstream_server_is_made_and_closed(here: Path) -> None:
    (here / "upstream").mkdir()
    with GuardProcess(here / "upstream", "--deliver=discard") as upstream:
        server = f"tcp:127.0.0.1:{upstream.port}"
        status, out, errors = twist("--check", f"--deliver=smtp:{server}", cwd=here)
        assert (status, errors) == (0, "")
        assert f"smtp:{server}:" not in out
        upstream.wait_for(r"\] disconnect .* reason=quit ")
        # It is there, and cannot be used.
        required = f"--deliver=smtp:{server},tls=required,tls-name=localhost"
        status, out, errors = twist("--check", required, cwd=here)
        assert (status, out) == (64, "")
        assert errors == f"--deliver: smtp:{server}: it offers no STARTTLS\n"


def test_one_that_is_away_is_a_warning_since_the_guard_would_start(here: Path) -> None:
    server = f"smtp:tcp:127.0.0.1:{free_port()}"
    status, out, errors = twist("--check", f"--deliver={server}", cwd=here)
    assert (status, errors) == (0, "")
    assert f"\nwarning: {server}: Connection was refused by other side: 111: Connection refused.\n" in out


def test_one_whose_name_is_unknown_is_an_error(here: Path) -> None:
    status, out, errors = twist("--check", "--deliver=smtp:tcp:mx.invalid:25", cwd=here)
    assert (status, out) == (64, "")
    assert errors.startswith("--deliver: smtp:tcp:mx.invalid:25: DNS lookup failed: ")


# Filters of others.


@implementer(ISelfTestingFilter)
class Doubting(FakeFilter):
    """Finds that something is missing, or is wrong."""

    def __init__(self, argument: str) -> None:
        super().__init__()
        self._argument = argument

    def self_test(self) -> str:
        if self._argument == "wrong":
            raise ValueError("the key is wrong")
        return self._argument


class DoubtingFactory:
    name = "testing"
    summary = argument_format = "A filter."

    def make_filter(self, argument: str, reactor: object) -> Doubting:
        return Doubting(argument)


def test_a_filter_tells_what_is_missing_and_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    (here / "networks").write_text("")
    monkeypatch.setattr(
        plugins, "discover", lambda kind: [DoubtingFactory()] if kind is IIPFilterFactory else []
    )
    plain = ("--max-connections=9", "--deliver=discard", "--ip-filter=networks:networks")
    assert warnings(checked(*plain, "--ip-filter=testing:")) == []
    assert warnings(checked(*plain, "--ip-filter=name=own:testing:it is\x1baway")) == [r"own: it is\x1baway"]
    assert refused(*plain, "--ip-filter=testing:wrong") == "--ip-filter: the key is wrong"
