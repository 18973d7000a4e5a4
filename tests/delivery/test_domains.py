"""Which domains mail is accepted for, how they are compared, and that everything else is the delivery's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from commandline import mistake, parsed, written
from fakes import FakeDelivery, FakeFilter, Guard
from mailserver import MailServer
from manual_threads import ManualThreads
from twisted.application.service import Service
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from twisted_smtpguard import AcceptedDomains, LmtpDelivery, SmtpDelivery, SMTPGuardService, UpstreamOptions
from twisted_smtpguard.delivery.domains import is_for, read_domains
from twisted_smtpguard.engine.hostnames import canonical, parse_domain
from twisted_smtpguard.interfaces import TRUST, IPreparedReload, IReloadable, ISessionDelivery
from twisted_smtpguard.testing import check_delivery
from twisted_smtpguard.upstream.login import Credentials

DENIED = "550 5.7.1 Relay access denied\r\n"


# Comparing.


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("Example.ORG", "example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        # Not strasse.example, as of old: that is somebody else's.
        ("straße.example", "xn--strae-oqa.example"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[192.168.001.001]", "[192.168.1.1]"),
        ("[010.000.00.020]", "[10.0.0.20]"),
        ("[IPv6:2001:DB8:0::1]", "[2001:db8::1]"),
        ("[IPv6:2001:0db8:0000::0001]", "[2001:db8::1]"),
        ("[x-tag:001.Y]", "[x-tag:001.y]"),
        ("[x-tag:Y]", "[x-tag:y]"),
    ],
)
def test_a_domain_has_one_spelling(text: str, spelling: str) -> None:
    assert canonical(text) == spelling
    assert parse_domain(text) == spelling


@pytest.mark.parametrize("text", ["", "a b", "a@b", "<a>", "-", "[", "[1.2.3]", "a..b", "a,b"])
def test_what_is_no_domain_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"a domain such as example\.org is expected, not "):
        parse_domain(text)


ACCEPTED = frozenset(map(parse_domain, ["example.org", "bücher.example", "[192.0.2.25]"]))


@pytest.mark.parametrize(
    ("address", "accepted"),
    [
        ("a@example.org", True),
        ("a@EXAMPLE.ORG", True),
        ("a@bücher.example", True),
        ("a@xn--bcher-kva.example", True),
        ("a@[192.0.2.25]", True),
        ("Postmaster", True),
        ("postmaster@example.org", True),
        ('"a b"@example.org', True),
        ("a@sub.example.org", False),
        ("a@example.org.evil.example", False),
        ("a@elsewhere.example", False),
        ("postmaster@elsewhere.example", False),
        ("a@[192.0.2.26]", False),
        # What an upstream server would send on.
        ("a%elsewhere.example@example.org", False),
        ("elsewhere.example!a@example.org", False),
        ('"a@elsewhere.example"@example.org', False),
    ],
)
def test_who_is_at_home_here(address: str, accepted: bool) -> None:
    assert is_for(address, ACCEPTED) is accepted


# A file.


def test_a_file_has_one_domain_a_line(tmp_path: Path) -> None:
    path = tmp_path / "domains"
    path.write_text("# ours\n\nexample.org # the first\n  Bücher.example\r\n")
    assert list(read_domains(path)) == ["example.org", "xn--bcher-kva.example"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"example.org\nnot one\n", "line 2: a domain such as example.org is expected, not 'not one'"),
        (b"\xff\n", "the file is not UTF-8 text"),
    ],
)
def test_a_file_with_a_mistake_is_named(tmp_path: Path, text: bytes, problem: str) -> None:
    path = tmp_path / "domains"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"{path}:? {problem}|{path}: {problem}"):
        AcceptedDomains(FakeDelivery(), [str(path)])


@pytest_twisted.ensureDeferred
async def test_a_file_is_read_again_and_a_mistake_leaves_the_old_list(tmp_path: Path) -> None:
    path = tmp_path / "domains"
    path.write_text("one.example\n")
    delivery = AcceptedDomains(FakeDelivery(), [str(path), "always.example"])
    service = SMTPGuardService(Clock(), [], delivery)
    for text, domains in [
        ("two.example\n", {"two.example", "always.example"}),
        ("not one\n", {"two.example", "always.example"}),
        ("", {"always.example"}),
    ]:
        path.write_text(text)
        await service.reload()
        assert delivery._domains == domains


def test_a_pipe_would_be_waited_for_and_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "domains"
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"^{path}: Not a regular file$"):
        AcceptedDomains(FakeDelivery(), [str(path)])


def test_a_long_file_is_read_again_in_a_thread_that_lets_the_reactor_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr("twisted_smtpguard.hooks.threads.time.sleep", naps.append)
    path = tmp_path / "domains"
    path.write_text("one.example\n")
    threads = ManualThreads()
    delivery = AcceptedDomains(FakeDelivery(), [str(path)], threads)
    path.write_text("# none\n" * 10_000 + "".join(f"d{number}.example\n" for number in range(10_000)))
    guard = SMTPGuardService(Clock(), [], delivery)
    done = guard.reload()
    assert (done.called, threads.waiting, delivery._domains) == (False, 1, {"one.example"})
    assert naps == []
    threads.work()
    assert done.called
    assert len(delivery._domains) == 10_000
    assert len(naps) > 20_000 // 500


# In a session.


def client_of(delivery: Any) -> Any:
    client = Guard(AcceptedDomains(delivery, ["example.org"])).greeted()
    assert client.codes("MAIL FROM:<a@example.com>") == [250]
    return client


def test_other_recipients_are_refused_and_the_transaction_goes_on() -> None:
    delivery = FakeDelivery()
    client = client_of(delivery)
    assert client.say("RCPT TO:<a@elsewhere.example>") == DENIED
    assert client.codes("RCPT TO:<b@example.org>", "DATA") == [250, 354]
    assert client.codes("x", ".") == [250]
    assert [path.address for path in delivery.messages[0].recipients] == ["b@example.org"]


def test_every_end_of_a_transaction_reaches_the_delivery() -> None:
    delivery = FakeDelivery()
    client_of(delivery).say("RSET")
    assert delivery.calls == ["begin", "transaction.abort"]


def test_a_delivery_that_takes_its_time_is_watched_too() -> None:
    delivery = FakeDelivery()
    waiting: list[Deferred[Any]] = []

    def begin(client: Any, sender: Any) -> Deferred[Any]:
        waiting.append(Deferred())
        return waiting[-1]

    delivery.answers["begin"] = begin
    client = Guard(AcceptedDomains(delivery, ["example.org"])).greeted()
    client.say("MAIL FROM:<a@example.com>")
    del delivery.answers["begin"]
    waiting[0].callback(delivery.begin(None, None))  # type: ignore[arg-type]
    client.heard()
    assert client.say("RCPT TO:<a@elsewhere.example>") == DENIED


def test_a_client_that_has_logged_in_may_send_to_anywhere() -> None:
    delivery = AcceptedDomains(FakeDelivery(), ["example.org"])
    begun: list[Any] = []
    inner = FakeDelivery()
    inner.answers["begin"] = lambda client, sender: begun.append(client)
    Guard(inner).greeted().say("MAIL FROM:<a@example.com>")
    (stranger,) = begun
    known = attrs.evolve(stranger, identity="ann")
    assert not hasattr(delivery.begin(known, None), "_accepts")  # type: ignore[arg-type]
    assert hasattr(delivery.begin(stranger, None), "_accepts")  # type: ignore[arg-type]


def test_a_client_that_is_trusted_may_not() -> None:
    delivery = FakeDelivery()
    trusting = Guard(AcceptedDomains(delivery, ["example.org"]), ip_filters=[FakeFilter(TRUST)])
    client = trusting.greeted()
    client.say("MAIL FROM:<a@example.com>")
    assert client.say("RCPT TO:<a@elsewhere.example>") == DENIED
    assert client.codes("RCPT TO:<b@example.org>", "DATA") == [250, 354]
    client.say("x", ".")
    (message,) = delivery.messages
    assert message.client.trusted
    assert [path.address for path in message.recipients] == ["b@example.org"]


# What the delivery is, it stays.


@implementer(ISessionDelivery, IReloadable)
class Parts(FakeDelivery, Service):
    max_message_octets = 77
    extensions = frozenset({"DSN"})

    def __init__(self) -> None:
        super().__init__()
        self.did: list[str] = []

    def startService(self) -> None:
        self.did.append("start")

    def stopService(self) -> None:
        self.did.append("stop")

    def session_ended(self, session: str) -> None:
        self.did.append("ended")

    def reload(self) -> None:
        self.did.append("reload")


@pytest_twisted.ensureDeferred
async def test_a_delivery_that_is_a_service_hears_of_everything() -> None:
    parts = Parts()
    delivery = AcceptedDomains(parts, ["example.org"])
    assert (delivery.extensions, delivery.max_message_octets, delivery.chunking) == (
        parts.extensions,
        77,
        True,
    )
    service = SMTPGuardService(Clock(), [], delivery)
    service.startService()
    await service.reload()
    delivery.session_ended("1")
    service.stopService()
    assert parts.did == ["start", "reload", "ended", "stop"]


@pytest_twisted.ensureDeferred
async def test_what_a_delivery_prepares_is_switched_to_with_the_list(tmp_path: Path) -> None:
    @implementer(IPreparedReload)
    class Prepared(FakeDelivery):
        switched = 0

        def prepare_reload(self) -> Any:
            return self.switch

        def switch(self) -> None:
            self.switched += 1

    path = tmp_path / "domains"
    path.write_text("a.example\n")
    prepared = Prepared()
    delivery = AcceptedDomains(prepared, [str(path)])
    path.write_text("wrong wrong\n")
    with pytest.raises(ValueError, match="line 1"):
        await delivery.reload()
    assert prepared.switched == 0
    path.write_text("b.example\n")
    await delivery.reload()
    assert prepared.switched == 1


@pytest.mark.parametrize("delivery", [FakeDelivery, None])
@pytest_twisted.ensureDeferred
async def test_the_contract_is_kept(delivery: Any) -> None:
    inner = delivery() if delivery else SmtpDelivery(MailServer(), Clock(), hostname="guard.example")
    assert await check_delivery(AcceptedDomains(inner, ["example.com"])) > 10


def test_bdat_stays_bdat_and_the_server_s_words_stay() -> None:
    server = MailServer()
    proxy = AcceptedDomains(SmtpDelivery(server, Clock(), hostname="g"), ["example.org"])
    proxy.startService()
    client = Guard(proxy).greeted()
    assert client.say("MAIL FROM:<a@example.com>") == "250 2.1.0 Sender noted\r\n"
    assert client.codes("RCPT TO:<a@example.org>", "BDAT 0 LAST") == [250, 250]
    assert "BDAT 0 LAST" not in server.commands[-1]
    assert any(line.startswith("BDAT ") for line in server.commands)


# The warning.


@pytest.mark.parametrize(
    ("kind", "options", "domains", "warned"),
    [
        (SmtpDelivery, {}, [], True),
        (SmtpDelivery, {"announce": "xforward"}, [], True),
        (SmtpDelivery, {"announce": "xclient"}, [], False),
        (SmtpDelivery, {"announce": "proxy"}, [], False),
        (SmtpDelivery, {"announce": "proxy-v1"}, [], False),
        (SmtpDelivery, {}, ["example.org"], False),
        # It sees the client, and the session of a user whom it sends on for.
        (SmtpDelivery, {"announce": "proxy", "auth": Credentials("u", "p")}, [], True),
        (SmtpDelivery, {"announce": "proxy-v1", "auth": Credentials("u", "p")}, [], True),
        (SmtpDelivery, {"announce": "proxy", "auth": Credentials("u", "p")}, ["example.org"], False),
        # It has mailboxes, and sends nothing on.
        (LmtpDelivery, {}, [], False),
        (LmtpDelivery, {"announce": "proxy", "auth": Credentials("u", "p")}, [], False),
    ],
)
def test_a_start_warns_of_an_open_relay(kind: Any, options: Any, domains: list[str], warned: bool) -> None:
    delivery = kind(MailServer(), Clock(), hostname="g", options=UpstreamOptions(**options))
    accepting = AcceptedDomains(delivery, domains) if domains else delivery
    assert warnings(SMTPGuardService(Clock(), [], accepting)) == (["SmtpDelivery"] if warned else [])


@pytest.mark.parametrize("required", [False, True])
def test_where_everybody_has_to_log_in_it_does_not(required: bool) -> None:
    delivery = SmtpDelivery(MailServer(), Clock(), hostname="g")
    checkers = [InMemoryUsernamePasswordDatabaseDontUse(ann=b"secret")]
    service = SMTPGuardService(Clock(), [], delivery, checkers=checkers, require_auth=required)
    assert warnings(service) == ([] if required else ["SmtpDelivery"])


def warnings(service: SMTPGuardService) -> list[str]:
    """The deliveries that a start warns of."""
    heard: list[str] = []
    service.factory.context.events.open_relay = heard.append  # type: ignore[method-assign]
    service.startService()
    return heard


# The option.


def test_the_option_wraps_the_delivery(tmp_path: Path) -> None:
    path = tmp_path / "domains"
    path.write_text("b.example\n")
    options = parsed("--deliver=discard", "--accept-domain=a.example", f"--accept-domain={path}")
    threads = ManualThreads()
    delivery: Any = options.delivery(threads)
    assert delivery._domains == {"a.example", "b.example"}
    Deferred.fromCoroutine(delivery.reload())
    assert threads.waiting == 1
    assert not isinstance(parsed("--deliver=discard").delivery(Clock()), AcceptedDomains)


def test_a_file_of_options_may_name_several(tmp_path: Path) -> None:
    config = written(tmp_path, "deliver = discard\naccept-domain = a.example\naccept-domain = b.example\n")
    delivery: Any = parsed(f"--config={config}").delivery(Clock())
    assert delivery._domains == {"a.example", "b.example"}


@pytest.mark.parametrize("name", ["domains.txt", "domains", "a b"])
def test_a_file_without_a_slash_is_not_taken_for_a_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("a.example\n")
    problem = (
        f"there is a file {name!r} here: write ./{name} for the domains in it, or start in another directory"
    )
    assert mistake("--accept-domain=b.example", f"--accept-domain={name}") == f"--accept-domain: {problem}"
    config = written(tmp_path, f"deliver = discard\naccept-domain = {name}\n")
    assert mistake(f"--config={config}") == f"--config {config} line 2: accept-domain: {problem}"
    delivery: Any = parsed("--deliver=discard", f"--accept-domain=./{name}").delivery(Clock())
    assert delivery._domains == {"a.example"}


def test_a_directory_without_a_slash_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("example.org").mkdir()
    delivery: Any = parsed("--deliver=discard", "--accept-domain=example.org").delivery(Clock())
    assert delivery._domains == {"example.org"}


def test_what_is_no_domain_is_said_in_one_sentence() -> None:
    problem = "--accept-domain: a domain such as example.org is expected, not "
    # No file can have all of these names.
    for text in ("a b", "", "a" * 300, "a\0"):
        assert mistake(f"--accept-domain={text}") == f"{problem}{text!r}"
