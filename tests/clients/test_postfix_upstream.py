"""A real Postfix as the upstream server of a real guard."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest
from documents import DOCS
from postfix import Postfix
from processes import GuardProcess, eventually
from rawclient import RawClient, stuffed
from sealed import Ledger, is_whole, sealed

pytestmark = pytest.mark.clients

RELAYED = "a@elsewhere.example"
NOT_LOCALHOST = "127.0.0.2"
"""A client's address that Postfix does not trust."""


@contextmanager
def behind(
    directory: Path, *options: str, keys: str = "", settings: tuple[str, ...] = ()
) -> Iterator[tuple[GuardProcess, Postfix]]:
    """A guard with `options` whose upstream server is a Postfix with `settings`, once it knows what that offers."""
    with (
        Postfix("mynetworks = 127.0.0.1/32", *settings) as postfix,
        GuardProcess(directory, f"--deliver=smtp:{postfix.endpoint}{keys}", *options) as guard,
    ):
        eventually(lambda: "8BITMIME" in hello(guard), "it does not learn what Postfix offers")
        yield guard, postfix


def hello(guard: GuardProcess) -> list[str]:
    with RawClient(guard.address) as client:
        return [line[4:] for line in client.ask("EHLO c").splitlines()[1:]]


def send(
    client: RawClient, message: bytes, to: str = "user@example.org", sender: str = "a@example.com"
) -> str:
    """The reply that decides."""
    for command in (f"MAIL FROM:<{sender}>", f"RCPT TO:<{to}>", "DATA"):
        reply = client.ask(command)
        if reply[:1] not in "23":
            client.ask("RSET")
            return reply
    client.send(stuffed(message))
    return client.reply()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GuardProcess, Postfix]]:
    directory = tmp_path_factory.mktemp("plain")
    with behind(directory) as both:
        yield both


Both = tuple[GuardProcess, Postfix]


def test_mail_goes_through_and_the_verdicts_are_postfix_s(plain: Both) -> None:
    guard, postfix = plain
    message = b"Subject: through\r\n\r\n.a dot\r\n..\r\n" + bytes(range(128, 256)) + b"\r\n"
    with RawClient(guard.address) as client:
        client.ask("EHLO client.example")
        assert client.ask("MAIL FROM:<a@example.com> BODY=8BITMIME") == "250 2.1.0 Ok"
        assert client.ask("RCPT TO:<user@example.org>") == "250 2.1.5 Ok"
        assert client.ask("DATA").startswith("354 ")
        client.send(stuffed(message))
        assert re.fullmatch(r"250 2\.0\.0 Ok: queued as [0-9A-F]+", client.reply())
    mail = postfix.stored_with(b"\nSubject: through\n")
    assert mail.endswith(message.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n"))
    # Postfix's own field, and below it ours, which tells of the client.
    fields = re.findall(rb"^Received: .*\n(?:[ \t].*\n)*", mail, re.MULTILINE)
    assert len(fields) == 2
    assert b"by mx.postfix.example" in fields[0]
    assert fields[1].startswith(b"Received: from client.example ([127.0.0.1])\n")


def test_an_unknown_user_is_refused_at_rcpt_in_postfix_s_words(plain: Both) -> None:
    guard, _ = plain
    with RawClient(guard.address) as client:
        client.ask("EHLO c")
        client.ask("MAIL FROM:<a@example.com>")
        assert client.ask("RCPT TO:<nobody@example.org>") == (
            "550 5.1.1 <nobody@example.org>: Recipient address rejected: User unknown in virtual mailbox table"
        )
        assert client.ask("RCPT TO:<user@example.org>") == "250 2.1.5 Ok"
        assert client.ask("DATA").startswith("354 ")


def test_a_message_sent_by_bdat_or_data_reaches_postfix_by_the_same_command(tmp_path: Path) -> None:
    with behind(tmp_path) as (guard, postfix):
        with RawClient(guard.address) as client:
            client.ask("EHLO c")
            client.send(
                b"MAIL FROM:<a@example.com>\r\nRCPT TO:<user@example.org>\r\n"
                b"BDAT 14\r\nSubject: b\r\n\r\nBDAT 3 LAST\r\n.\r\n"
            )
            assert [client.reply()[:3] for _ in range(4)] == ["250"] * 4
            assert send(client, b"Subject: d\r\n\r\ntext\r\n").startswith("250 ")
        guard.stop()
        assert " data=1 bdat=1 " in postfix.logs(" disconnect .* bdat=")
        bodies = {mail.partition(b"\n\n")[2] for mail in postfix.stored(2)}
        assert bodies == {b".\n", b"text\n"}


def test_one_connection_serves_many_sessions(tmp_path: Path) -> None:
    with behind(tmp_path) as (guard, postfix):
        for _ in range(5):
            with RawClient(guard.address) as client:
                client.ask("EHLO c")
                assert send(client, b"Subject: x\r\n\r\n").startswith("250 ")
        guard.stop()
        assert " mail=5 " in postfix.logs(" disconnect ")
        assert len(re.findall(r"smtpd\[\d+\]: connect from", postfix.log)) == 1


# What is offered.


def test_what_is_offered_is_what_both_offer(plain: Both) -> None:
    guard, _ = plain
    assert hello(guard) == [
        "PIPELINING",
        "SIZE 5000000",
        "CHUNKING",
        "8BITMIME",
        "SMTPUTF8",
        "DSN",
        "LIMITS RCPTMAX=100",
        "ENHANCEDSTATUSCODES",
    ]


def test_the_smaller_size_is_ours_too(tmp_path: Path) -> None:
    settings = ("smtpd_discard_ehlo_keywords = chunking, dsn, smtputf8", "message_size_limit = 20000000")
    with behind(tmp_path, settings=settings) as (guard, _):
        assert hello(guard) == [
            "PIPELINING",
            "SIZE 10485760",
            "8BITMIME",
            "LIMITS RCPTMAX=100",
            "ENHANCEDSTATUSCODES",
        ]
        with RawClient(guard.address) as client:
            client.ask("EHLO c")
            assert client.ask("MAIL FROM:<a@b> RET=HDRS") == "555 5.5.4 Unsupported parameter"
            client.ask("MAIL FROM:<a@example.com>")
            client.ask("RCPT TO:<user@example.org>")
            # Sent all the same: it goes on as DATA.
            client.send(b"BDAT 14 LAST\r\nSubject: b\r\n\r\n")
            assert client.reply().startswith("250 2.0.0 Ok: queued")


def test_a_message_above_postfix_s_size_is_refused_at_mail(plain: Both) -> None:
    guard, _ = plain
    with RawClient(guard.address) as client:
        client.ask("EHLO c")
        assert client.ask("MAIL FROM:<a@example.com> SIZE=5000001").startswith("552 5.3.4 ")


def test_dsn_parameters_reach_postfix(plain: Both) -> None:
    guard, postfix = plain
    with RawClient(guard.address) as client:
        client.ask("EHLO c")
        assert client.ask("MAIL FROM:<user@example.org> RET=HDRS ENVID=QQ+2B314").startswith("250 ")
        assert client.ask(
            "RCPT TO:<other@example.org> NOTIFY=SUCCESS ORCPT=rfc822;First+2BLast@example.org"
        ).startswith("250 ")
        client.ask("DATA")
        client.send(b"Subject: x\r\n\r\n.\r\n")
        assert client.reply().startswith("250 ")
    report = postfix.stored_with(b"\nOriginal-Envelope-Id: QQ+314\n")
    assert b"Subject: Successful Mail Delivery Report" in report
    assert b"\nOriginal-Recipient: rfc822;First+Last@example.org\n" in report


def test_an_original_recipient_in_utf_8_reaches_postfix_under_smtputf8(plain: Both) -> None:
    guard, postfix = plain
    with RawClient(guard.address) as client:
        client.ask("EHLO c")
        assert client.ask("MAIL FROM:<user@example.org> SMTPUTF8 RET=HDRS").startswith("250 ")
        client.send(
            "RCPT TO:<other@example.org> NOTIFY=SUCCESS,SUCCESS ORCPT=utf-8;j\u00f6rg@example.org\r\n".encode()
        )
        assert client.reply() == "250 2.1.5 Ok"
        client.ask("DATA")
        client.send(b"Subject: x\r\n\r\n.\r\n")
        assert client.reply().startswith("250 ")
    report = postfix.stored_with("\nOriginal-Recipient: utf-8;j\u00f6rg@example.org\n".encode())
    assert b"Subject: Successful Mail Delivery Report" in report


# Who the client is.

ANNOUNCEMENTS = {
    "xclient": ",announce=xclient",
    "proxy": ",announce=proxy",
    "proxy-v1": ",announce=proxy-v1",
}
SETTINGS = {
    "xclient": "smtpd_authorized_xclient_hosts = 127.0.0.1",
    "proxy": "smtpd_upstream_proxy_protocol = haproxy",
    "proxy-v1": "smtpd_upstream_proxy_protocol = haproxy",
}


def test_they_are_those_of_the_how_to() -> None:
    page = (DOCS / "how-to" / "put-it-in-front-of-postfix.md").read_text()
    shown = re.findall(r"^    -o (\S+)$", page, re.MULTILINE)
    assert set(shown) == {setting.replace(" ", "") for setting in SETTINGS.values()}


def test_the_how_to_gives_postfix_more_processes_than_the_guard_has_connections() -> None:
    section = (DOCS / "how-to" / "put-it-in-front-of-postfix.md").read_text().split("\n## ")[1]
    (processes,) = re.findall(r"^127\.0\.0\.1:10025 inet n - y - (\d+) smtpd$", section, re.MULTILINE)
    (connections,) = re.findall(r"announce=xclient,connections=(\d+)$", section, re.MULTILINE)
    assert int(processes) > int(connections)


@pytest.mark.parametrize("announce", ANNOUNCEMENTS)
def test_postfix_sees_the_real_client_and_is_no_open_relay(tmp_path: Path, announce: str) -> None:
    with behind(tmp_path, keys=ANNOUNCEMENTS[announce], settings=(SETTINGS[announce],)) as (guard, postfix):
        with RawClient(guard.address, NOT_LOCALHOST) as client:
            client.ask("EHLO client.example")
            assert send(client, b"Subject: 1\r\n\r\n").startswith("250 ")
            assert send(client, b"Subject: 2\r\n\r\n").startswith("250 ")
            assert send(client, b"", RELAYED) == f"554 5.7.1 <{RELAYED}>: Relay access denied"
        with RawClient(guard.address, "127.0.0.3") as client:
            client.ask("EHLO other.example")
            assert send(client, b"Subject: 3\r\n\r\n").startswith("250 ")
        mails = postfix.stored(3)
        assert f" client=unknown[{NOT_LOCALHOST}]" in postfix.logs(r"client=unknown\[127\.0\.0\.2\]")
        assert postfix.logs(r"client=unknown\[127\.0\.0\.3\]")
        # Its own field is enough.
        assert sorted(len(re.findall(rb"^Received:", mail, re.MULTILINE)) for mail in mails) == [1, 1, 1]
        assert sum(b"Received: from client.example (unknown [127.0.0.2])\n" in mail for mail in mails) == 2
        assert sum(b"Received: from other.example (unknown [127.0.0.3])\n" in mail for mail in mails) == 1
        assert b" open_relay " not in guard.log


@pytest.mark.parametrize("announce", ANNOUNCEMENTS)
@pytest.mark.parametrize(
    ("rule", "refusal"),
    [
        ("reject_unknown_client_hostname", "450 4.7.25 Client host rejected: cannot find your hostname"),
        (
            "reject_unknown_reverse_client_hostname",
            "450 4.7.1 Client host rejected: cannot find your reverse hostname",
        ),
    ],
)
def test_by_xclient_no_client_has_a_host_name_and_by_proxy_postfix_looks_it_up(
    tmp_path: Path, announce: str, rule: str, refusal: str
) -> None:
    settings = (SETTINGS[announce], f"smtpd_client_restrictions = {rule}")
    with (
        behind(tmp_path, keys=ANNOUNCEMENTS[announce], settings=settings) as (guard, _),
        # It has a name on every machine.
        RawClient(guard.address, "127.0.0.1") as client,
    ):
        client.ask("EHLO localhost")
        expected = f"{refusal}, [127.0.0.1]" if announce == "xclient" else "250 2.0.0 Ok: queued as "
        assert send(client, b"Subject: x\r\n\r\n").startswith(expected)


def test_xforward_has_postfix_log_the_client_and_nothing_else(tmp_path: Path) -> None:
    # Postfix logs forwarded attributes where a message comes in, as of a content filter's.
    settings = ("smtpd_authorized_xforward_hosts = 127.0.0.1",)
    with behind(tmp_path, keys=",announce=xforward", settings=settings) as (guard, postfix):
        with RawClient(guard.address, NOT_LOCALHOST) as client:
            client.ask("EHLO client.example")
            assert send(client, b"Subject: 1\r\n\r\n").startswith("250 ")
        postfix.logs(r"orig_client=unknown\[127\.0\.0\.2\]")
        (mail,) = postfix.stored(1)
        assert b"Received: from client.example ([127.0.0.2])\n" in mail
        assert b" open_relay " in guard.log


def test_a_postfix_that_does_not_let_us_say_who_the_client_is_gets_no_mail(tmp_path: Path) -> None:
    with (
        Postfix() as postfix,
        GuardProcess(tmp_path, f"--deliver=smtp:{postfix.endpoint},announce=xclient") as guard,
    ):
        guard.wait_for("upstream_down .* it does not offer XCLIENT with ADDR to this host")
        with RawClient(guard.address) as client:
            client.ask("EHLO c")
            assert client.ask("MAIL FROM:<a@example.com>").startswith("451 4.3.5 ")


# No open relay.


def test_without_any_of_it_the_start_warns_and_with_accepted_domains_there_is_no_relaying(
    tmp_path: Path,
) -> None:
    (tmp_path / "open").mkdir()
    with behind(tmp_path / "open") as (guard, _):
        assert b" open_relay delivery=SmtpDelivery" in guard.log
        with RawClient(guard.address, NOT_LOCALHOST) as client:
            client.ask("EHLO c")
            client.ask("MAIL FROM:<a@example.com>")
            # What the warning is about: Postfix trusts the guard.
            assert client.ask(f"RCPT TO:<{RELAYED}>") == "250 2.1.5 Ok"
    domains = tmp_path / "domains"
    domains.write_text("# ours\nexample.org\n")
    (tmp_path / "closed").mkdir()
    with behind(tmp_path / "closed", f"--accept-domain={domains}") as (guard, _):
        assert b" open_relay " not in guard.log
        with RawClient(guard.address) as client:
            client.ask("EHLO c")
            client.ask("MAIL FROM:<a@example.com>")
            assert client.ask(f"RCPT TO:<{RELAYED}>") == "550 5.7.1 Relay access denied"
            assert client.ask("RCPT TO:<a%elsewhere.example@example.org>") == "550 5.7.1 Relay access denied"
            assert client.ask("RCPT TO:<user@EXAMPLE.org>") == "250 2.1.5 Ok"


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificate")
    subject = ["-subj", "/CN=mx.postfix.example", "-addext", "subjectAltName=DNS:mx.postfix.example"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    return directory


def tls_settings(certificate: Path) -> tuple[str, ...]:
    return (
        "smtpd_tls_security_level = may",
        f"smtpd_tls_cert_file = {certificate}/cert.pem",
        f"smtpd_tls_key_file = {certificate}/key.pem",
        "smtpd_tls_loglevel = 1",
    )


@pytest.mark.parametrize("mode", ["required", "opportunistic"])
def test_mail_goes_to_postfix_under_tls(tmp_path: Path, certificate: Path, mode: str) -> None:
    keys = f",tls={mode}"
    if mode == "required":
        keys += f",tls-name=mx.postfix.example,tls-ca={certificate}/cert.pem"
    with behind(tmp_path, keys=keys, settings=tls_settings(certificate)) as (guard, postfix):
        with RawClient(guard.address) as client:
            client.ask("EHLO c")
            for _ in range(2):
                assert send(client, b"Subject: x\r\n\r\n" + b"y" * 3_000_000 + b"\r\n").startswith("250 ")
        postfix.logs("Anonymous TLS connection established from")
        assert all(len(mail) > 3_000_000 for mail in postfix.stored(2))


@pytest.mark.parametrize(
    "keys", [",tls-name=other.example,tls-ca={}/cert.pem", ",tls-name=mx.postfix.example"]
)
def test_a_certificate_that_is_wrong_is_no_server_of_ours(
    tmp_path: Path, certificate: Path, keys: str
) -> None:
    with (
        Postfix(*tls_settings(certificate)) as postfix,
        GuardProcess(
            tmp_path, f"--deliver=smtp:{postfix.endpoint},tls=required{keys.format(certificate)}"
        ) as guard,
    ):
        guard.wait_for("upstream_down ")
        with RawClient(guard.address) as client:
            client.ask("EHLO c")
            assert client.ask("MAIL FROM:<a@example.com>").startswith("451 4.3.5 ")


def test_without_starttls_there_is_no_mail_where_tls_is_required(tmp_path: Path) -> None:
    with (
        Postfix() as postfix,
        GuardProcess(tmp_path, f"--deliver=smtp:{postfix.endpoint},tls=required") as guard,
    ):
        guard.wait_for("upstream_down .* it offers no STARTTLS")
        with RawClient(guard.address) as client:
            client.ask("EHLO c")
            assert client.ask("MAIL FROM:<a@example.com>").startswith("451 4.3.5 ")


# Down and up.


def test_postfix_goes_down_and_comes_back(tmp_path: Path) -> None:
    with behind(tmp_path) as (guard, postfix), RawClient(guard.address) as client:
        client.ask("EHLO c")
        assert send(client, b"Subject: 1\r\n\r\n").startswith("250 ")
        postfix.run("stop")
        reply = send(client, b"Subject: 2\r\n\r\n")
        assert reply.startswith("451 4."), reply
        postfix.run("start")
        guard.wait_for("upstream_up ")
        assert send(client, b"Subject: 3\r\n\r\n").startswith("250 ")
        postfix.stored(2)


# Nothing is lost.

SENDERS = 8


def keep_sending(guard: GuardProcess, ledger: Ledger, enough: Callable[[], bool], seed: int) -> None:
    sizes = random.Random(seed)
    with suppress(OSError):
        while not enough():
            with RawClient(guard.address) as client:
                client.ask("EHLO c")
                for _ in range(sizes.randrange(1, 20)):
                    name = ledger.next_name()
                    ledger.record(name, send(client, sealed(name, sizes.randrange(20_000))))


@contextmanager
def load(guard: GuardProcess, ledger: Ledger, messages: int, seed: int) -> Iterator[None]:
    """While the block runs, senders send, until the guard is gone or `messages` have got their 250 in all."""

    def enough() -> bool:
        return len(ledger.accepted) >= messages

    threads = [
        Thread(target=keep_sending, args=(guard, ledger, enough, seed * SENDERS + number), daemon=True)
        for number in range(SENDERS)
    ]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a sender hangs"


@pytest.mark.parametrize("end", ["SIGTERM", "kill -9"])
@pytest.mark.parametrize(
    "messages", [100, pytest.param(2000, marks=pytest.mark.soak)], ids=["a hundred", "two thousand"]
)
@pytest.mark.timeout(600)
def test_messages_that_got_250_are_with_postfix_however_the_guard_ends(
    tmp_path: Path, messages: int, end: str
) -> None:
    ledger = Ledger()
    with Postfix() as postfix:
        for number in range(2):
            with GuardProcess(tmp_path, f"--deliver=smtp:{postfix.endpoint}") as guard:
                goal = messages // 2 * (number + 1)
                with load(guard, ledger, messages if number else 10 * messages, seed=number):
                    eventually(lambda goal=goal: len(ledger.accepted) >= goal, "the load does not get on")
                    if not number and end == "SIGTERM":
                        guard.stop()
                    elif not number:
                        guard.kill()
        eventually(lambda: not postfix.queued, "Postfix does not deliver")
        mails = postfix.stored(len(ledger.accepted))
    names = [named(mail) for mail in mails]
    assert len(ledger.accepted) >= messages
    assert ledger.accepted <= set(names), f"lost: {ledger.accepted - set(names)}"
    if end == "SIGTERM":
        assert sorted(names) == sorted(ledger.accepted), "SIGTERM has every message answered"
    print(
        f"\n{end}: {ledger.sent} messages begun, {len(ledger.accepted)} answered 250, {len(set(names))} with Postfix, "
        f"{len(names) - len(set(names))} twice, 0 lost"
    )


def named(mail: bytes) -> str:
    """The name of a message as Postfix has stored it; AssertionError where it is not whole."""
    header, _, body = mail.partition(b"\n\n")
    match = re.search(rb"^Subject: (\d+)$", header, re.MULTILINE)
    assert match is not None
    # What was sealed is the message as it was sent, without the fields that it got on its way.
    assert is_whole(b"Subject: %b\n\n%b" % (match[1], body))
    return match[1].decode()
