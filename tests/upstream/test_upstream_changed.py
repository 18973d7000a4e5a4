"""An upstream server whose EHLO is not what it was, or that answers STARTTLS or DATA as no server should."""

from __future__ import annotations

import pytest
from mailserver import KEYWORDS, Behind, MailServer
from twisted.logger import capturedLogs, formatEvent

from twisted_smtpguard import replies
from twisted_smtpguard.interfaces import Path, Refused
from twisted_smtpguard.testing import Conversation
from twisted_smtpguard.upstream.hello import Hello
from twisted_smtpguard.upstream.mailcommands import mail_command

MAIL, RCPT = "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>"
QUEUED = "250 2.0.0 Queued as 4711"
UNSUITABLE = "451 4.3.5 Upstream server cannot be used as configured, try again later"


# EHLO.


def offered(client: Conversation) -> set[str]:
    return {line[4:] for line in client.say("EHLO client.example").split("\r\n")[1:-1]}


@pytest.mark.parametrize("lmtp", [False, True])
def test_what_is_offered_follows_a_server_that_offers_something_else_by_now(lmtp: bool) -> None:
    server = MailServer("SIZE 1000", "8BITMIME", "CHUNKING", "DSN")
    behind = Behind(server, lmtp=lmtp)
    client = behind.greeted()
    assert offered(client) >= {"SIZE 1000", "8BITMIME", "CHUNKING", "DSN"}
    for keywords, there, gone in [
        (("SIZE 2000", "SMTPUTF8"), {"SIZE 2000", "SMTPUTF8"}, {"8BITMIME", "CHUNKING", "DSN"}),
        (("SIZE 500", "DSN", "CHUNKING"), {"SIZE 500", "DSN", "CHUNKING"}, {"SMTPUTF8", "8BITMIME"}),
    ]:
        server.keywords = keywords
        for link in server.open_links:
            link.close()
        assert behind.sends(client) == QUEUED
        words = offered(client)
        assert words >= there
        assert not words & gone
    assert client.say(f"{MAIL} SIZE=501").startswith("552 5.3.4 ")
    behind.assert_nothing_is_left()


def test_so_it_does_where_the_server_was_down_meanwhile() -> None:
    server = MailServer("DSN")
    behind = Behind(server)
    client = behind.greeted()
    server.keywords, server.reachable = ("8BITMIME",), False
    server.links[0].close()
    assert client.say(MAIL).startswith("451 4.4.1 ")
    assert "DSN" in offered(client)
    server.reachable = True
    behind.clock.advance(5)
    words = offered(client)
    assert "8BITMIME" in words
    assert "DSN" not in words
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("lost", ["CHUNKING", "BINARYMIME", "8BITMIME"])
def test_a_binary_message_is_put_off_where_the_server_lacks_what_it_takes_by_now(lost: str) -> None:
    server = MailServer(*KEYWORDS, "BINARYMIME")
    behind = Behind(server)
    client = behind.greeted()
    assert "BINARYMIME" in offered(client)
    server.keywords = tuple(word for word in server.keywords if word != lost)
    server.links[0].close()
    assert client.say(f"{MAIL} BODY=BINARYMIME").startswith("451 4.5.1 ")
    assert not any(line.startswith("MAIL") for line in server.commands)
    assert behind.sends(client) == QUEUED
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("lost", ["CHUNKING", "BINARYMIME", "8BITMIME"])
def test_it_takes_three_extensions(lost: str) -> None:
    whole = {"CHUNKING": "", "BINARYMIME": "", "8BITMIME": ""}
    path = Path("a@b", {"BODY": "BINARYMIME"})
    assert mail_command(path, Hello(whole)) == b"MAIL FROM:<a@b> BODY=BINARYMIME"
    del whole[lost]
    with pytest.raises(Refused) as refused:
        mail_command(path, Hello(whole))
    assert refused.value.reply is replies.UPSTREAM_CHANGED


# STARTTLS.


@pytest.mark.parametrize("answer", ["250 2.0.0 Ok", "299 2.0.0 Ok"])
def test_a_server_that_may_speak_tls_or_not_by_now_gets_no_mail_in_clear(answer: str) -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = answer
    with capturedLogs() as events:
        behind = Behind(server, tls="opportunistic")
    assert [formatEvent(event) for event in events if "upstream" in event] == [
        f"upstream_down upstream=upstream it answers STARTTLS with {answer}"
    ]
    assert behind.greeted().say(MAIL) == f"{UNSUITABLE}\r\n"
    assert server.commands == ["EHLO guard.example", "STARTTLS"]
    assert server.open_links == []
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("answer", ["454 4.7.0 Not now", "502 5.5.1 What?"])
def test_one_that_refuses_to_gets_it_in_clear(answer: str) -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = answer
    with capturedLogs() as events:
        behind = Behind(server, tls="opportunistic")
        for _ in range(3):
            server.open_links[0].close()
            assert behind.sends(behind.greeted()) == QUEUED
    # Once, however often it is tried.
    assert [formatEvent(event) for event in events if "upstream" in event] == [
        f"upstream_in_clear upstream=upstream it answers STARTTLS with {answer}"
    ]
    assert not any(link.secure for link in server.links)
    behind.assert_nothing_is_left()


# DATA.


@pytest.mark.parametrize("answer", ["250 2.0.0 Ok", "220 mx", "299 Ok", "334 AAAA", "350 Go on", "399 Well"])
def test_a_connection_whose_server_may_wait_for_a_message_or_not_is_not_used_again(answer: str) -> None:
    server = MailServer()
    server.answers["DATA"] = answer
    behind = Behind(server)
    client = behind.greeted()
    heard = client.say(MAIL, RCPT, "DATA").splitlines()[-1]
    assert heard == "451 4.5.0 Upstream server sent an invalid reply, try again later"
    assert server.open_links == []
    # What is not said politely either: QUIT might be the message.
    assert server.links[0].heard[-1] == "DATA"
    del server.answers["DATA"]
    assert behind.sends(client) == QUEUED
    assert len(server.links) == 2
    behind.assert_nothing_is_left()


def test_one_that_refuses_data_is_used_again() -> None:
    server = MailServer()
    server.answers["DATA"] = "451 4.3.1 Disk full"
    behind = Behind(server)
    client = behind.greeted()
    assert client.say(MAIL, RCPT, "DATA").endswith("451 4.3.1 Disk full\r\n")
    del server.answers["DATA"]
    assert behind.sends(client) == QUEUED
    assert len(server.links) == 1
    behind.assert_nothing_is_left()
