"""Python's own SMTP client, and the mails of its e-mail test-suite, against a real guard."""

from __future__ import annotations

import email
import email.policy
import re
import smtplib
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from processes import GuardProcess, eventually
from rawclient import RawClient, stuffed
from stored import empty, stored, unfinished

BARE_NEWLINE = "550 5.5.2 Bare <CR> or <LF> received"
SENDER = "sender@example.com"

# Of the interpreter that runs this. Distributions often ship Python without its tests.
CORPUS = Path(email.__file__).parents[1] / "test" / "test_email" / "data"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardProcess]:
    with GuardProcess(tmp_path_factory.mktemp("guard"), "--max-recipients=3") as guard:
        yield guard


@pytest.fixture
def guard(running: GuardProcess) -> GuardProcess:
    """The same process for every test, with an empty Maildir."""
    empty(running.maildir)
    return running


@pytest.fixture
def client(guard: GuardProcess) -> Iterator[smtplib.SMTP]:
    with smtplib.SMTP(*guard.address, local_hostname="client.example.com", timeout=30) as client:
        yield client


def on_disk(message: bytes) -> bytes:
    return message.replace(b"\r\n", b"\n")


def test_send_message_is_stored_octet_for_octet_below_the_trace_header(
    guard: GuardProcess, client: smtplib.SMTP
) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = SENDER, "a@example.org, b@example.org", "Hello"
    message.set_content("How are you?\n")
    message.add_attachment(bytes(range(256)), maintype="application", subtype="octet-stream")
    message.set_boundary("the-boundary")
    assert client.send_message(message) == {}
    [mail] = stored(guard.maildir)
    assert mail.sender == SENDER
    assert mail.recipients == ("a@example.org", "b@example.org")
    assert mail.received.startswith("Received: from client.example.com ([127.0.0.1])\n\tby ")
    assert " with ESMTP id " in mail.received
    assert mail.message == message.as_bytes()
    assert unfinished(guard.maildir) == []


def test_a_single_recipient_is_named_in_the_received_field(guard: GuardProcess, client: smtplib.SMTP) -> None:
    client.sendmail("", ["a@example.org"], b"\r\nHello\r\n")
    [mail] = stored(guard.maildir)
    assert mail.sender == ""
    assert "\n\tfor <a@example.org>;\n" in mail.received


def test_addresses_in_utf8_are_stored_as_given(guard: GuardProcess, client: smtplib.SMTP) -> None:
    message = EmailMessage(email.policy.SMTPUTF8)
    message["From"], message["To"], message["Subject"] = "jörg@bücher.example", "用户@例え.example", "Grüße"
    message.set_content("Schöne Grüße\n", cte="8bit")
    assert client.send_message(message) == {}
    [mail] = stored(guard.maildir)
    assert (mail.sender, mail.recipients) == ("jörg@bücher.example", ("用户@例え.example",))
    assert " with UTF8SMTP id " in mail.received
    assert "Subject: Grüße\n".encode() in mail.message
    assert mail.message == on_disk(message.as_bytes())


def test_an_8bit_body_is_not_changed(guard: GuardProcess, client: smtplib.SMTP) -> None:
    body = b"Subject: all octets but CR and LF\r\n\r\n" + bytes({*range(256)} - {10, 13}) + b"\r\n"
    client.sendmail(SENDER, "a@example.org", body, mail_options=["BODY=8BITMIME"])
    [mail] = stored(guard.maildir)
    assert mail.message == on_disk(body)


def test_dots_at_line_starts_come_through(guard: GuardProcess, client: smtplib.SMTP) -> None:
    body = b".\r\n..\r\n...\r\n.a\r\n\r\n.\r\n. \r\na.\r\n.."
    client.sendmail(SENDER, "a@example.org", body)
    [mail] = stored(guard.maildir)
    assert mail.message == on_disk(body) + b"\n"


def test_recipients_that_are_refused_do_not_keep_the_message_from_the_others(
    guard: GuardProcess, client: smtplib.SMTP
) -> None:
    recipients = ["1@example.org", "<>@", "2@example.org", "3@example.org", "4@example.org"]
    refused = client.sendmail(SENDER, recipients, b"\r\nHello\r\n")
    assert refused == {
        "<>@": (501, b"5.1.3 Bad recipient address syntax"),
        "4@example.org": (452, b"5.5.3 Too many recipients"),
    }
    [mail] = stored(guard.maildir)
    assert mail.recipients == ("1@example.org", "2@example.org", "3@example.org")


def test_a_message_with_no_recipient_left_is_not_stored(guard: GuardProcess, client: smtplib.SMTP) -> None:
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        client.sendmail(SENDER, ["<>@"], b"\r\nHello\r\n")
    client.sendmail(SENDER, ["a@example.org"], b"\r\nNext\r\n")
    [mail] = stored(guard.maildir)
    assert mail.message == b"\nNext\n"


def test_many_messages_go_through_one_connection(guard: GuardProcess, client: smtplib.SMTP) -> None:
    for number in range(50):
        client.sendmail(SENDER, f"{number}@example.org", f"\r\n{number}\r\n")
    assert {mail.recipients: mail.message for mail in stored(guard.maildir)} == {
        (f"{number}@example.org",): f"\n{number}\n".encode() for number in range(50)
    }


@pytest.mark.parametrize("sent", [b"Subject: never\r\n", b"x" * 1_000_000], ids=["little", "much"])
def test_a_message_broken_off_leaves_no_file(guard: GuardProcess, sent: bytes) -> None:
    logged = len(guard.lines)
    with RawClient(guard.address) as client:
        for command in ("EHLO c", f"MAIL FROM:<{SENDER}>", "RCPT TO:<a@example.org>", "DATA"):
            client.ask(command)
        client.send(sent)
    eventually(lambda: " disconnect " in "".join(guard.lines[logged:]), "the disconnect is not logged")
    eventually(lambda: not unfinished(guard.maildir), "a file is left in tmp/")
    assert stored(guard.maildir) == []


# The mails, pictures and sounds of Python's e-mail test-suite.


def send_with_smtplib(guard: GuardProcess, messages: list[bytes]) -> list[str]:
    with smtplib.SMTP(*guard.address, timeout=30) as client:
        replies = []
        for number, message in enumerate(messages):
            client.ehlo_or_helo_if_needed()
            client.mail(SENDER)
            client.rcpt(f"{number}@example.org")
            code, text = client.data(message)
            replies.append(f"{code} {text.decode()}")
        return replies


def envelope(number: int) -> bytes:
    return f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{number}@example.org>\r\n".encode()


def send_pipelined_by_data(guard: GuardProcess, messages: list[bytes]) -> list[str]:
    """What may stand together does: the end of a message and the envelope of the next one (RFC 2920)."""
    replies = []
    with RawClient(guard.address) as client:
        client.ask("EHLO c")
        before = b""
        for number, message in enumerate(messages):
            client.send(before + envelope(number) + b"DATA\r\n")
            if before:
                replies.append(client.reply())
            assert [client.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
            before = stuffed(message)
        client.send(before)
        replies.append(client.reply())
    return replies


def send_pipelined_by_bdat(guard: GuardProcess, messages: list[bytes]) -> list[str]:
    """Every message in two chunks, and all of them at once."""
    script = b"EHLO c\r\n"
    for number, message in enumerate(messages):
        middle = len(message) // 3
        script += envelope(number) + b"BDAT %d\r\n%b" % (middle, message[:middle])
        script += b"BDAT %d LAST\r\n%bRSET\r\n" % (len(message) - middle, message[middle:])
    with RawClient(guard.address) as client:
        client.send(script + b"QUIT\r\n")
        client.reply()
        replies = [[client.reply() for _ in "MRBBR"][3] for _ in messages]
        assert client.reply()[:3] == "221"
    return replies


@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"this Python has no {CORPUS}")
@pytest.mark.parametrize("send", [send_with_smtplib, send_pipelined_by_data, send_pipelined_by_bdat])
def test_the_mails_of_pythons_own_test_suite_come_through_unless_they_have_a_bare_newline(
    guard: GuardProcess, send: Callable[[GuardProcess, list[bytes]], list[str]]
) -> None:
    files = [path for path in sorted(CORPUS.iterdir()) if path.is_file()]
    messages = [re.sub(rb"\r?\n", b"\r\n", path.read_bytes()) for path in files]
    # Behind DATA only whole lines can be sent.
    if send is not send_pipelined_by_bdat:
        messages = [message if message.endswith(b"\r\n") else message + b"\r\n" for message in messages]
    clean = [re.search(rb"\r(?!\n)", message) is None for message in messages]
    assert 40 < sum(clean) < len(messages)

    replies = send(guard, messages)
    accepted = [reply.startswith("250 ") for reply in replies]
    assert accepted == clean
    assert {reply for reply in replies if not reply.startswith("250 ")} == {BARE_NEWLINE}
    assert {int(mail.recipients[0].partition("@")[0]): mail.message for mail in stored(guard.maildir)} == {
        number: on_disk(message) for number, message in enumerate(messages) if clean[number]
    }
    assert len(stored(guard.maildir)) == sum(clean)
    assert unfinished(guard.maildir) == []
