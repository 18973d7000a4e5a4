"""What an upstream server said stands in the log: beside each refusal, and beside each message that it took."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fakes import FakeDelivery, Guard
from logbook import Logbook, logbook
from mailserver import Behind, MailServer, silence

from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.testing import Conversation

MAIL, RCPT = "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>"


@pytest.fixture
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def send(client: Conversation) -> None:
    client.say(MAIL, RCPT, "DATA")
    client.say("x", ".")


def told(line: str) -> str:
    """The reason, the code and the server's words, of a line of the log."""
    words = dict(word.split("=", 1) for word in line.split(" ")[1:])
    return " ".join(words.get(name, "-") for name in ("reason", "code", "reply")).replace("\\x20", "_")


@pytest.mark.parametrize(
    ("verb", "answer", "refusal"),
    [
        ("MAIL", "550 5.7.1 Not you", "upstream_refused 550 550_5.7.1_Not_you"),
        ("MAIL", "450-4.7.1 Wait\r\n450 4.7.1 a bit", "upstream_refused 450 450_4.7.1_Wait_4.7.1_a_bit"),
        ("RCPT", "550 No such user", "upstream_refused 550 550_No_such_user"),
        ("DATA", "451 4.3.1 Disk full", "upstream_refused 451 451_4.3.1_Disk_full"),
        (".", "554 5.7.1 Spam 4711", "upstream_refused 554 554_5.7.1_Spam_4711"),
        # As the server said it, not as the client is told.
        (".", "421 4.3.2 Going down", "upstream_refused 451 421_4.3.2_Going_down"),
        ("MAIL", "521 No mail", "upstream_refused 554 521_No_mail"),
        ("MAIL", "599 What", "upstream_refused 550 599_What"),
        # What is ours, word for word.
        ("MAIL", "452 5.5.3 Too many recipients", "upstream_refused 452 452_5.5.3_Too_many_recipients"),
        # It has said nothing that could be told.
        (".", "garbage", "upstream_garbled 451 -"),
        ("MAIL", "354 Go on", "upstream_garbled 451 -"),
    ],
)
def test_a_refusal_has_the_reason_and_the_words_of_the_server(
    verb: str, answer: str, refusal: str, log: Logbook
) -> None:
    server = MailServer()
    behind = Behind(server)
    server.answers[verb] = answer
    send(behind.greeted())
    assert told(log.take("reject")[0]) == refusal


def test_an_accepted_message_has_the_words_with_the_queue_id(log: Logbook) -> None:
    behind = Behind(MailServer())
    send(behind.greeted())
    (line,) = log.take("accept")
    assert r" reply=250\x202.0.0\x20Queued\x20as\x204711" in line


def test_so_has_one_whose_client_was_gone_or_that_was_late(log: Logbook) -> None:
    server = MailServer()
    behind = Behind(server)
    server.answers["."] = silence
    client = behind.greeted()
    send(client)
    client.disconnect()
    server.links[-1].says("250 2.0.0 Queued as 4712")
    (line,) = log.take("accept")
    assert r" reply=250\x202.0.0\x20Queued\x20as\x204712 client_gone=true" in line
    client = behind.greeted()
    send(client)
    client.disconnect()
    server.links[-1].says("554 5.7.1 No")
    (line,) = log.take("reject")
    assert r" code=554 reply=554\x205.7.1\x20No " in line


def test_of_several_recipients_those_without_the_message_stand_first(log: Logbook) -> None:
    server = MailServer()
    server.verdicts = ["250 2.0.0 Saved 1", "552 5.2.2 Full 2"]
    behind = Behind(server, lmtp=True)
    client = behind.greeted()
    client.say(MAIL, RCPT, "RCPT TO:<c@example.org>", "DATA")
    client.say("x", ".")
    assert told(log.take("reject")[0]) == "upstream_refused 554 552_5.2.2_Full_2;_250_2.0.0_Saved_1"
    server.verdicts = ["250 2.0.0 Saved 3", "250 2.0.0 Saved 4"]
    client.say(MAIL, RCPT, "RCPT TO:<c@example.org>", "DATA")
    client.say("x", ".")
    assert told(log.take("accept")[0]) == "- - 250_2.0.0_Saved_3;_250_2.0.0_Saved_4"


def test_a_server_forges_no_line_and_no_field(log: Logbook) -> None:
    server = MailServer()
    behind = Behind(server)
    server.answers["RCPT"] = '550 5.1.1 no\r peer=203.0.113.9 reason=not_smtp \x1b[31m"\\' + "y" * 1000
    send(behind.greeted())
    line = log.take("reject")[0]
    assert line.startswith("reject peer=192.0.2.1 reason=upstream_refused ")
    assert line.count("peer=") == 2
    assert len(re.findall(r" peer=| reason=", line)) == 2
    (shown,) = re.findall(r" reply=(\S+)", line)
    assert len(shown) <= 200
    assert line.isascii()
    assert line.isprintable()


def test_a_delivery_s_own_refusal_has_its_words_too(log: Logbook) -> None:
    delivery = FakeDelivery()

    def refuses(*_: object) -> None:
        raise Refused(Reply(550, "5.1.1", ("No such user",)))

    delivery.answers["recipient"] = refuses
    Guard(delivery).greeted().say(MAIL, RCPT)
    assert told(log.take("reject")[0]) == "delivery_refused 550 550_5.1.1_No_such_user"


def test_a_delivery_s_own_answer_to_a_message_stands_beside_it(log: Logbook) -> None:
    delivery = FakeDelivery()
    delivery.answers["finish"] = lambda: Reply(250, "2.0.0", ("Stored as 17",))
    send(Guard(delivery).greeted())
    assert told(log.take("accept")[0]) == "- - 250_2.0.0_Stored_as_17"
