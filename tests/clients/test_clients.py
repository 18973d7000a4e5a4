"""Clients that nobody here wrote, against a real guard: swaks, curl, nodemailer, and Postfix's smtp-source.

One that is not installed is skipped, or with TESTS_CLIENTS_REQUIRED=1 a failure. nodemailer comes from
tests/clients/nodemailer/node_modules, or from a folder that NODE_PATH names.
"""

from __future__ import annotations

import email
import email.policy
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from processes import LOCAL, GuardProcess
from programs import missing, run
from stored import Stored, empty, stored, unfinished

pytestmark = pytest.mark.clients

TOO_LARGE = "552 5.3.4 Message size exceeds fixed maximum message size"
TOO_MANY_RECIPIENTS = "452 5.5.3 Too many recipients"
SENDER = "sender@example.com"

PLAIN = b"From: sender@example.com\nSubject: plain\n\nOne line.\n.a dot\n..two\n.\n\nThe end\n"
UTF8 = "From: sender@example.com\nSubject: Grüße\n\nSchöne Grüße, 你好\n".encode()

SWAKS_DATA_REFUSED = 26
"""swaks' exit status."""

CURL_REFUSED = 55
"""curl's exit status (CURLE_SEND_ERROR)."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardProcess]:
    directory = tmp_path_factory.mktemp("guard")
    options = ("--max-recipients=3", "--max-message-size=6M")
    with GuardProcess(directory, *options, listen=(LOCAL, f"unix:{directory}/s")) as guard:
        yield guard


@pytest.fixture
def guard(running: GuardProcess) -> Iterator[GuardProcess]:
    """The same process for every test, with an empty Maildir; tmp/ must be empty when the test is done."""
    empty(running.maildir)
    yield running
    assert unfinished(running.maildir) == []


def crlf(text: bytes) -> bytes:
    return text.replace(b"\n", b"\r\n")


# swaks.


def swaks(guard: GuardProcess, *words: str, status: int = 0) -> str:
    """What swaks shows of its session."""
    result = run("swaks", f"--server=127.0.0.1:{guard.port}", f"--from={SENDER}", *words)
    output = result.stdout.decode()
    assert result.returncode == status, output + result.stderr.decode()
    return output


@pytest.mark.parametrize("message", [PLAIN, UTF8], ids=["plain", "8bit"])
def test_swaks_sends_a_message_octet_for_octet(guard: GuardProcess, tmp_path: Path, message: bytes) -> None:
    # It adds its own line end to every message.
    (tmp_path / "message").write_bytes(message.removesuffix(b"\n"))
    swaks(guard, "--to=a@example.org", f"--data=@{tmp_path}/message")
    [mail] = stored(guard.maildir)
    assert (mail.sender, mail.recipients, mail.message) == (SENDER, ("a@example.org",), message)


@pytest.mark.parametrize(
    ("protocol", "command", "word"), [("SMTP", "HELO", "SMTP"), ("ESMTP", "EHLO", "ESMTP")]
)
def test_swaks_speaks_either_protocol(guard: GuardProcess, protocol: str, command: str, word: str) -> None:
    said = swaks(guard, "--to=a@example.org", f"--protocol={protocol}", "--helo=client.example")
    assert f"-> {command} client.example\n" in said
    [mail] = stored(guard.maildir)
    assert mail.received.startswith("Received: from client.example ([127.0.0.1])\n")
    assert f" with {word} id " in mail.received


@pytest.mark.parametrize("words", [(), ("--pipeline",)], ids=["in turn", "pipelined"])
def test_swaks_sends_to_several_recipients(guard: GuardProcess, words: tuple[str, ...]) -> None:
    swaks(guard, "--to=a@example.org,b@example.org,c@example.org", *words)
    [mail] = stored(guard.maildir)
    assert mail.recipients == ("a@example.org", "b@example.org", "c@example.org")


@pytest.mark.parametrize("words", [(), ("--pipeline",)], ids=["in turn", "pipelined"])
def test_a_recipient_too_many_is_refused_and_the_transaction_goes_on(
    guard: GuardProcess, words: tuple[str, ...]
) -> None:
    recipients = [f"{number}@example.org" for number in range(5)]
    said = swaks(guard, f"--to={','.join(recipients)}", *words)
    assert said.count(f"<** {TOO_MANY_RECIPIENTS}\n") == 2
    assert "<-  250 2.0.0 Message accepted\n" in said
    [mail] = stored(guard.maildir)
    assert mail.recipients == tuple(recipients[:3])


def test_swaks_sends_attachments(guard: GuardProcess, tmp_path: Path) -> None:
    octets = bytes(range(256)) * 1000
    (tmp_path / "octets.bin").write_bytes(octets)
    swaks(guard, "--to=a@example.org", "--body=See below", f"--attach=@{tmp_path}/octets.bin")
    [mail] = stored(guard.maildir)
    message = email.message_from_bytes(mail.message, policy=email.policy.default)
    [attachment] = message.iter_attachments()
    assert attachment.get_content() == octets


def test_swaks_is_told_that_a_message_is_too_large_and_the_session_lives_on(
    guard: GuardProcess, tmp_path: Path
) -> None:
    (tmp_path / "message").write_bytes(b"Subject: large\n\n" + (b"x" * 69 + b"\n") * 100_000)
    said = swaks(
        guard,
        "--to=a@example.org",
        f"--data=@{tmp_path}/message",
        "--suppress-data",
        status=SWAKS_DATA_REFUSED,
    )
    assert f"<** {TOO_LARGE}\n" in said
    assert "<-  221 2.0.0 Closing connection\n" in said
    assert stored(guard.maildir) == []


# curl.


def curl(
    guard: GuardProcess, file: Path, *recipients: str, words: tuple[str, ...] = (), status: int = 0
) -> str:
    """What curl shows of its session."""
    url = f"smtp://127.0.0.1:{guard.port}/client.example"
    envelope = [f"--mail-from={SENDER}", *[f"--mail-rcpt={recipient}" for recipient in recipients]]
    given = [word for option in envelope for word in option.split("=", 1)]
    result = run(
        "curl", "--silent", "--show-error", "--verbose", url, *given, "--upload-file", str(file), *words
    )
    output = result.stderr.decode()
    assert result.returncode == status, output
    return output


def test_curl_uploads_a_message_to_several_recipients(guard: GuardProcess, tmp_path: Path) -> None:
    file = tmp_path / "message"
    file.write_bytes(crlf(PLAIN))
    curl(guard, file, "a@example.org", "b@example.org")
    [mail] = stored(guard.maildir)
    assert (mail.sender, mail.recipients) == (SENDER, ("a@example.org", "b@example.org"))
    assert mail.message == PLAIN


def test_curl_uploads_five_megabytes(guard: GuardProcess, tmp_path: Path) -> None:
    file = tmp_path / "message"
    lines = b"".join(b".%d\n" % number for number in range(650_000))
    message = b"Subject: large\n\n" + lines
    file.write_bytes(crlf(message))
    assert file.stat().st_size > 5_000_000
    curl(guard, file, "a@example.org")
    [mail] = stored(guard.maildir)
    assert mail.message == message


def test_curl_is_told_at_once_that_a_message_is_too_large(guard: GuardProcess, tmp_path: Path) -> None:
    file = tmp_path / "message"
    file.write_bytes(b"x" * (6 * 1024 * 1024 + 1))
    said = curl(guard, file, "a@example.org", status=CURL_REFUSED)
    assert f"> MAIL FROM:<{SENDER}> SIZE={6 * 1024 * 1024 + 1}\n< {TOO_LARGE}\n" in said.replace("\r", "")
    assert stored(guard.maildir) == []


def test_curl_goes_on_without_a_recipient_too_many(guard: GuardProcess, tmp_path: Path) -> None:
    file = tmp_path / "message"
    file.write_bytes(crlf(PLAIN))
    recipients = [f"{number}@example.org" for number in range(4)]
    said = curl(guard, file, *recipients, words=("--mail-rcpt-allowfails",))
    assert f"< {TOO_MANY_RECIPIENTS}\n" in said.replace("\r", "")
    [mail] = stored(guard.maildir)
    assert mail.recipients == tuple(recipients[:3])


# nodemailer.


def nodemailer(
    guard: GuardProcess, *messages: Mapping[str, Any], **transport: object
) -> list[dict[str, Any]]:
    """What nodemailer tells of each message: its response and the recipients rejected, or its error."""
    folder = Path(__file__).parent / "nodemailer"
    if run("node", "-e", f"require.resolve('nodemailer', {{paths: ['{folder}']}})").returncode:
        missing("nodemailer")
    settings = {"host": "127.0.0.1", "port": guard.port, "name": "client.example", **transport}
    script = json.dumps({"transport": settings, "messages": messages}).encode()
    result = run("node", str(folder / "send.js"), text=script)
    assert result.returncode == 0, result.stderr.decode()
    outcomes: list[dict[str, Any]] = json.loads(result.stdout)
    return outcomes


def test_nodemailer_sends_many_messages_over_pooled_connections(guard: GuardProcess) -> None:
    logged = len(guard.lines)
    messages = [
        {"from": SENDER, "to": f"{number}@example.org", "subject": f"{number}", "text": f"Number {number}"}
        for number in range(40)
    ]
    outcomes = nodemailer(guard, *messages, pool=True, maxConnections=2, maxMessages=30)
    assert outcomes == [{"response": "250 2.0.0 Message accepted", "rejected": []}] * 40
    assert {mail.recipients: parsed(mail).get_content() for mail in stored(guard.maildir)} == {
        (f"{number}@example.org",): f"Number {number}\n" for number in range(40)
    }
    assert len(stored(guard.maildir)) == 40
    assert sum(" connect " in line for line in guard.lines[logged:]) < 10


def parsed(mail: Stored) -> email.message.EmailMessage:
    return email.message_from_bytes(mail.message, policy=email.policy.default)


def test_nodemailer_sends_a_finished_message_octet_for_octet(guard: GuardProcess) -> None:
    envelope = {"from": SENDER, "to": ["a@example.org", "b@example.org"]}
    [outcome] = nodemailer(guard, {"envelope": envelope, "raw": PLAIN.decode()})
    assert outcome["rejected"] == []
    [mail] = stored(guard.maildir)
    assert (mail.recipients, mail.message) == (("a@example.org", "b@example.org"), PLAIN)


def test_nodemailer_sends_to_an_address_in_utf8(guard: GuardProcess) -> None:
    message = {"from": "jörg@example.com", "to": "用户@example.org", "subject": "Grüße", "text": "你好"}
    [outcome] = nodemailer(guard, message)
    assert outcome["rejected"] == []
    [mail] = stored(guard.maildir)
    assert (mail.sender, mail.recipients) == ("jörg@example.com", ("用户@example.org",))
    assert " with UTF8SMTP id " in mail.received
    assert parsed(mail)["Subject"] == "Grüße"
    assert parsed(mail).get_content().rstrip("\n") == "你好"


def test_nodemailer_sends_an_attachment(guard: GuardProcess, tmp_path: Path) -> None:
    octets = bytes(range(256)) * 1000
    (tmp_path / "octets.bin").write_bytes(octets)
    message = {
        "from": SENDER,
        "to": "a@example.org",
        "text": "See below",
        "attachments": [{"path": str(tmp_path / "octets.bin")}],
    }
    nodemailer(guard, message)
    [mail] = stored(guard.maildir)
    [attachment] = parsed(mail).iter_attachments()
    assert attachment.get_content() == octets


def test_nodemailer_asks_for_no_delivery_notice_since_none_is_offered(guard: GuardProcess) -> None:
    message = {
        "from": SENDER,
        "to": "a@example.org",
        "text": "x",
        "dsn": {"id": "1", "return": "headers", "notify": ["success"], "recipient": SENDER},
    }
    assert nodemailer(guard, message) == [{"response": "250 2.0.0 Message accepted", "rejected": []}]
    assert len(stored(guard.maildir)) == 1


def test_nodemailer_learns_which_recipients_were_too_many(guard: GuardProcess) -> None:
    recipients = [f"{number}@example.org" for number in range(5)]
    [outcome] = nodemailer(guard, {"from": SENDER, "to": recipients, "text": "x"})
    assert outcome["rejected"] == recipients[3:]
    [mail] = stored(guard.maildir)
    assert mail.recipients == tuple(recipients[:3])


def test_nodemailer_is_told_that_a_message_is_too_large(guard: GuardProcess) -> None:
    [outcome] = nodemailer(
        guard, {"from": SENDER, "to": "a@example.org", "text": ("x" * 69 + "\n") * 100_000}
    )
    assert outcome == {"error": TOO_LARGE}
    assert stored(guard.maildir) == []


# smtp-source. It gives up at the first reply that it does not want, so at its end every message had its 250.


def smtp_source(server: str, *words: str) -> None:
    result = run("smtp-source", *words, "-f", SENDER, "-t", "@example.org", server)
    assert result.returncode == 0, result.stderr.decode()


def smtp_source_body(octets: int) -> bytes:
    """What `-l octets` sends below the header: numbered lines of 80 octets, the last one unnumbered."""
    lines = [b"%d%b\n" % (number % 10, b"X" * 77) for number in range(1, (octets - 1) // 80 + 1)]
    return b"".join(lines) + b"X" * (octets - 80 * len(lines)) + b"\n"


# A message a connection; all messages of a session in one; several recipients; a message longer than the pieces
# in which it comes and is written.
LOADS = {
    "a connection each": (3000, 50, 2000, 1, ()),
    "many a connection": (3000, 50, 2000, 1, ("-d",)),
    "two recipients": (1000, 20, 500, 2, ("-d",)),
    "large": (60, 20, 300_000, 1, ()),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_every_message_that_smtp_source_sends_is_stored_once(
    guard: GuardProcess, load: tuple[int, int, int, int, tuple[str, ...]]
) -> None:
    messages, sessions, octets, recipients, words = load
    numbers = ("-m", str(messages), "-s", str(sessions), "-l", str(octets), "-r", str(recipients))
    smtp_source(f"127.0.0.1:{guard.port}", "-N", *numbers, *words)
    mails = stored(guard.maildir)
    assert len(mails) == messages
    bodies = Counter(mail.message.partition(b"\n\n")[2] for mail in mails)
    assert bodies == {smtp_source_body(octets): messages}
    # -N numbers the recipients of all messages.
    assert sorted(int(each.partition("@")[0]) for mail in mails for each in mail.recipients) == list(
        range(1, messages * recipients + 1)
    )
    assert len({email.message_from_bytes(mail.message)["Message-Id"] for mail in mails}) == messages


def test_a_file_that_smtp_source_sends_is_stored_octet_for_octet(guard: GuardProcess, tmp_path: Path) -> None:
    (tmp_path / "message").write_bytes(PLAIN)
    path = next(str(address) for address in guard.addresses if isinstance(address, str))
    smtp_source(f"unix:{path}", "-N", "-m", "200", "-s", "20", "-d", "-F", str(tmp_path / "message"))
    mails = stored(guard.maildir)
    # It ends every message with an empty line.
    assert Counter(mail.message for mail in mails) == {PLAIN + b"\n": 200}
    assert {mail.recipients for mail in mails} == {(f"{number}@example.org",) for number in range(1, 201)}
    assert all("(UNIX socket)" in mail.received for mail in mails)
