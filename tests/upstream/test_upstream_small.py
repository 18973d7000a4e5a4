"""`bdat=small`: a small message that came by DATA goes on in one BDAT, if the server has CHUNKING."""

from __future__ import annotations

from typing import Any

import pytest
from mailserver import Behind, MailServer, hangs_up, silence
from twisted.logger import capturedLogs

QUEUED = "250 2.0.0 Queued as 4711"
ENVELOPE = ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>")
DOTS = b"Subject: x\r\n\r\n.\r\n..\r\n.a\r\n"


def begun(behind: Behind) -> Any:
    """A client that has had its 354."""
    client = behind.greeted()
    assert client.codes(*ENVELOPE, "DATA") == [250, 250, 354]
    return client


def stuffed(body: bytes) -> bytes:
    return (b"\r\n" + body).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


def verbs(behind: Behind) -> list[str]:
    """What the server has heard after the envelope."""
    heard = behind.server.links[-1].heard
    return [line.partition(" ")[0] for line in heard[2 + len(ENVELOPE) :]]


@pytest.mark.parametrize("body", [DOTS, b"", b"x\r\n" * 5000])
@pytest.mark.parametrize("lmtp", [False, True])
def test_a_small_message_goes_on_in_one_chunk_octet_for_octet(body: bytes, lmtp: bool) -> None:
    behind = Behind(MailServer(), lmtp=lmtp, bdat="small")
    client = begun(behind)
    assert verbs(behind) == []
    assert client.send(stuffed(body)) == f"{QUEUED}\r\n"
    assert verbs(behind) == ["BDAT"]
    assert behind.server.links[-1].heard[-1].endswith(" LAST")
    (taken,) = behind.server.taken
    assert taken.octets.startswith(b"Received: ")
    assert taken.octets.endswith(body)
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("octets", [20_000, 200_000])
def test_a_larger_one_goes_on_by_data(octets: int) -> None:
    behind = Behind(MailServer(), bdat="small")
    body = DOTS + b"y" * octets + b"\r\n" + DOTS
    client = begun(behind)
    for start in range(0, octets, 9_000):
        client.send(stuffed(body)[start : start + 9_000])
    assert client.send(stuffed(body)[len(range(0, octets, 9_000)) * 9_000 :]) in ("", f"{QUEUED}\r\n")
    assert verbs(behind) == ["DATA"]
    assert behind.server.taken[0].octets.endswith(body)
    behind.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("options", "keywords"), [({"bdat": "small"}, ("8BITMIME",)), ({}, ("8BITMIME", "CHUNKING"))]
)
def test_otherwise_the_354_is_the_server_s(options: dict[str, str], keywords: tuple[str, ...]) -> None:
    server = MailServer(*keywords)
    server.answers["DATA"] = "451 4.3.1 Disk full"
    behind = Behind(server, **options)
    client = behind.greeted()
    assert client.codes(*ENVELOPE, "DATA") == [250, 250, 451]


@pytest.mark.parametrize(
    ("answer", "seconds", "heard"),
    [
        ("451 4.3.1 Disk full", 0, "451 4.3.1 Disk full"),
        ("250 Ok", 0, "451 4.5.0 Upstream server sent an invalid reply, try again later"),
        (hangs_up, 0, "451 4.4.2 Upstream server closed the connection, try again later"),
        (silence, 60, "451 4.4.2 Upstream server did not answer in time, try again later"),
    ],
)
def test_what_the_server_answers_to_data_then_is_heard_at_the_end_of_the_message(
    answer: Any, seconds: float, heard: str
) -> None:
    server = MailServer()
    server.answers["DATA"] = answer
    behind = Behind(server, bdat="small")
    client = begun(behind)
    client.send(b"y" * 20_000)
    behind.clock.advance(seconds)
    assert client.send(b"\r\n.\r\n") == f"{heard}\r\n"
    assert server.taken == []
    del server.answers["DATA"]
    client.say("RSET")
    assert behind.sends(client) == QUEUED
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("answer", ["552 5.3.4 Too big", "452 4.3.1 Later"])
def test_a_refusal_of_the_chunk_is_the_verdict(answer: str) -> None:
    server = MailServer()
    server.answers["."] = answer
    behind = Behind(server, bdat="small")
    assert begun(behind).send(stuffed(DOTS)) == f"{answer}\r\n"
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("octets", [10, 20_000])
def test_a_client_that_leaves_amid_its_message_has_sent_none(octets: int) -> None:
    behind = Behind(MailServer(), bdat="small")
    client = begun(behind)
    with capturedLogs() as events:
        client.send(b"y" * octets)
        client.disconnect()
    assert behind.server.taken == []
    assert not any(line.endswith("LAST") for line in behind.server.commands)
    assert [event for event in events if event.get("event") == "may_come_twice"] == []
    behind.assert_nothing_is_left()


def test_a_verdict_that_does_not_come_is_told_of() -> None:
    server = MailServer()
    server.answers["."] = silence
    behind = Behind(server, bdat="small", limits={"delivery_timeout": 100})
    client = begun(behind)
    with capturedLogs() as events:
        client.send(stuffed(DOTS))
        behind.clock.advance(100)
    assert client.heard().startswith("451 4.3.0 ")
    assert sum(event.get("event") == "may_come_twice" for event in events) == 1
    behind.assert_nothing_is_left()
