"""An upstream server that speaks LMTP: what is said to no other server, and what the log says of its verdicts."""

from __future__ import annotations

import re

import pytest
from mailserver import Behind, MailServer
from twisted.logger import capturedLogs, formatEvent

MAIL, RCPT = "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>"


@pytest.mark.parametrize("answer", ["500 5.5.1 What?", "502 5.5.1 What?", "504 5.5.4 What?", "550 5.7.1 No"])
def test_a_server_that_refuses_lhlo_is_not_said_helo_to(answer: str) -> None:
    server = MailServer()
    server.answers["LHLO"] = answer
    behind = Behind(server, lmtp=True)
    assert behind.greeted().say(MAIL).startswith("451 ")
    assert server.commands == ["LHLO guard.example"]
    behind.assert_nothing_is_left()


def test_of_an_address_that_was_accepted_twice_there_are_two_verdicts() -> None:
    server = MailServer()
    server.verdicts = ["250 2.0.0 one", "452 4.2.2 two"]
    behind = Behind(server, lmtp=True)
    client = behind.greeted()
    client.say(MAIL, RCPT, RCPT, "DATA")
    assert client.say("x", ".").splitlines() == [
        "451-4.3.0 <b@example.org> 452 4.2.2 two",
        "451 4.3.0 <b@example.org> has the message",
    ]
    assert server.taken[0].envelope == [MAIL, RCPT, RCPT]
    # No verdict was left over for the next message.
    server.verdicts = ["250 2.0.0 three"]
    assert behind.sends(client) == "250 2.0.0 three"
    assert len(server.links) == 1
    behind.assert_nothing_is_left()


def test_a_server_s_words_and_a_client_s_addresses_stand_escaped_in_the_log_of_mixed_verdicts() -> None:
    server = MailServer()
    server.verdicts = ["250 2.0.0 one", "552 5.2.2 full\x1b[2J\x00\u2028reject peer=192.0.2.9 caf\u00e9"]
    client = Behind(server, lmtp=True).greeted()
    client.say(f"{MAIL} SMTPUTF8", "RCPT TO:<1@example.org>", "RCPT TO:<j\u00f6rg@example.org>", "DATA")
    with capturedLogs() as events:
        client.say("x", ".")
    (line,) = [formatEvent(event) for event in events if event.get("event") == "mixed_verdicts"]
    assert re.fullmatch("[ -~]+", line)
    assert line.endswith(
        r" code=554 recipients=2 refused=1 a message was accepted for some recipients and refused for others: "
        r"<j\xf6rg@example.org> 552 5.2.2 full\x1b[2J\x00\u2028reject peer=192.0.2.9 caf\xe9; "
        r"<1@example.org> 250 2.0.0 one"
    )
