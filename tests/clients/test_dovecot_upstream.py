"""A real Dovecot as the upstream server of a real guard, spoken to in LMTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dovecot import Dovecot
from processes import GuardProcess, eventually
from rawclient import RawClient, stuffed

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def dovecot() -> Iterator[Dovecot]:
    with Dovecot() as running:
        yield running


def guard_behind(directory: Path, endpoint: str, keys: str = "") -> GuardProcess:
    guard = GuardProcess(directory, f"--deliver=lmtp:{endpoint}{keys}")
    eventually(
        lambda: "8BITMIME" in hello(guard), f"it does not learn what Dovecot offers\n{guard.log.decode()}"
    )
    return guard


def hello(guard: GuardProcess) -> str:
    with RawClient(guard.address) as client:
        return client.ask("EHLO c")


def send(guard: GuardProcess, *recipients: str, size: int = 10) -> list[str]:
    """What is answered to each recipient and to the message."""
    with RawClient(guard.address) as client:
        client.ask("EHLO client.example")
        client.ask("MAIL FROM:<a@example.com>")
        replies = [client.ask(f"RCPT TO:<{recipient}>") for recipient in recipients]
        assert client.ask("DATA").startswith("354 ")
        client.send(stuffed(b"Subject: x\r\n\r\n" + b"y" * size + b"\r\n"))
        return [*replies, client.reply()]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_mail_goes_into_the_mailboxes_of_all_recipients(tmp_path: Path, dovecot: Dovecot, kind: str) -> None:
    endpoint = f"tcp:127.0.0.1:{dovecot.port}" if kind == "tcp" else f"unix:{dovecot.socket}"
    already = [len(dovecot.mails(user)) for user in ("one", "two")]
    with guard_behind(tmp_path, endpoint) as guard:
        *accepted, verdict = send(guard, "one@example.org", "two@example.org")
        assert accepted == ["250 2.1.5 OK"] * 2
        assert verdict == "250 2.0.0 Delivered to 2 recipients"
        verdict = send(guard, "one@example.org")[-1]
        assert verdict.startswith("250 2.0.0 <one@example.org> "), verdict
    assert [len(dovecot.mails(user)) for user in ("one", "two")] == [already[0] + 2, already[1] + 1]
    mail = dovecot.mails("two")[-1]
    assert b"Received: from client.example ([127.0.0.1])\n" in mail
    assert b"open_relay" not in guard.log


def test_an_unknown_user_is_refused_in_dovecot_s_words(tmp_path: Path, dovecot: Dovecot) -> None:
    with guard_behind(tmp_path, f"unix:{dovecot.socket}") as guard:
        one, nobody, verdict = send(guard, "one@example.org", "nobody@example.org")
        assert one.startswith("250 ")
        assert nobody == "550 5.1.1 <nobody@example.org> User doesn't exist: nobody@example.org"
        assert verdict.startswith("250 ")


def test_a_mailbox_that_is_full_after_the_data_is_told_and_so_is_who_has_the_message(tmp_path: Path) -> None:
    with Dovecot() as dovecot, guard_behind(tmp_path, f"unix:{dovecot.socket}") as guard:
        assert send(guard, "one@example.org", size=950_000)[-1].startswith("250 ")
        verdict = send(guard, "one@example.org", "two@example.org", size=500_000)[-1]
        first, second = verdict.splitlines()
        assert first.startswith("554-5.3.0 <one@example.org> 552 5.2.2 "), verdict
        assert second == "554 5.3.0 <two@example.org> has the message"
        assert (len(dovecot.mails("one")), len(dovecot.mails("two"))) == (1, 1)
        assert guard.wait_for(
            "mixed_verdicts .* code=554 recipients=2 refused=1 a message was accepted for some"
        )


def test_one_recipient_a_message_gives_each_its_own_verdict(tmp_path: Path, dovecot: Dovecot) -> None:
    with guard_behind(tmp_path, f"unix:{dovecot.socket}", ",recipients=1") as guard:
        one, two, verdict = send(guard, "one@example.org", "two@example.org")
        assert one.startswith("250 ")
        assert two == "452 4.5.3 Too many recipients for one message, send the rest separately"
        assert verdict.startswith("250 2.0.0 <one@example.org> ")


def test_bdat_goes_through(tmp_path: Path, dovecot: Dovecot) -> None:
    already = len(dovecot.mails("two"))
    with guard_behind(tmp_path, f"unix:{dovecot.socket}") as guard, RawClient(guard.address) as client:
        client.ask("EHLO c")
        client.send(
            b"MAIL FROM:<a@example.com>\r\nRCPT TO:<one@example.org>\r\nRCPT TO:<two@example.org>\r\n"
            b"BDAT 14\r\nSubject: b\r\n\r\nBDAT 3 LAST\r\n.\r\n"
        )
        assert [client.reply()[:3] for _ in range(5)] == ["250"] * 5
    assert len(dovecot.mails("two")) == already + 1


def test_dovecot_is_told_of_the_client_by_xclient(tmp_path: Path) -> None:
    trusting = "login_trusted_networks = 127.0.0.0/8\n"
    with (
        Dovecot(trusting) as dovecot,
        guard_behind(tmp_path, f"tcp:127.0.0.1:{dovecot.port}", ",announce=xclient") as guard,
        RawClient(guard.address, "127.0.0.2") as client,
    ):
        client.ask("EHLO client.example")
        client.ask("MAIL FROM:<a@example.com>")
        client.ask("RCPT TO:<one@example.org>")
        client.ask("DATA")
        client.send(b"Subject: x\r\n\r\n.\r\n")
        assert client.reply().startswith("250 ")
        (mail,) = dovecot.mails("one")
        assert b"Received: from client.example ([127.0.0.2])\n" in mail
        assert mail.count(b"\nReceived: ") == 1
