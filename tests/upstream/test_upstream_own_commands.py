"""What an upstream server answers to the guard's own commands is never the client's fault: a 451, another connection
where one may help, and one warning that names the command and the server's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from logbook import Logbook, logbook
from mailserver import Behind, Link, MailServer, silence

from twisted_smtpguard.upstream.login import Credentials

MAIL = "MAIL FROM:<a@example.com>"
QUEUED = "250 2.0.0 Queued as 4711"
UNSUITABLE = "451 4.3.5 Upstream server cannot be used as configured, try again later\r\n"
BAD = "203.0.113.66"

REFUSALS = {
    "501 5.5.4 Bad ADDR syntax": "451 4.5.4 Bad ADDR syntax",
    "554 5.7.1 Not you": "451 4.7.1 Not you",
    "521 5.3.2 None": "451 4.3.2 None",
    "599 What": "451 4.3.0 What",
    "450 4.7.1 Wait": "451 4.7.1 Wait",
    "421 4.7.0 Enough": "451 4.7.0 Enough",
}


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def guard_of(announce: str) -> tuple[MailServer, Behind]:
    server = MailServer("XCLIENT ADDR HELO", "XFORWARD ADDR", "8BITMIME")
    server.answers["PROXY"] = silence
    return server, Behind(server, announce=announce)


def to_bad(refusal: str, otherwise: str) -> Callable[[Link, str], str]:
    """An answer that is a refusal on a connection on which the server was told of that client."""

    def says(link: Link, line: str) -> str:
        return refusal if BAD.encode() in link.octets else otherwise

    return says


HELLO = "250-mx.example\r\n250-XCLIENT ADDR HELO\r\n250 XFORWARD ADDR"
STEPS = [
    ("xclient", "XCLIENT", "XCLIENT", "220 mx"),
    ("xclient", "EHLO", "EHLO", HELLO),
    ("xforward", "XFORWARD", "XFORWARD", "250 Ok"),
    ("proxy-v1", "EHLO", "EHLO", HELLO),
]


@pytest.mark.parametrize(("announce", "verb", "command", "otherwise"), STEPS)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_is_a_451_to_that_client_and_one_warning_and_affects_no_other_client(
    announce: str, verb: str, command: str, otherwise: str, refusal: str, log: Logbook
) -> None:
    server, behind = guard_of(announce)
    assert behind.sends(behind.greeted()) == QUEUED
    server.answers[verb] = to_bad(refusal, otherwise)
    for _ in range(3):
        assert behind.greeted(BAD).say(MAIL) == f"{REFUSALS[refusal]}\r\n"
        behind.clock.advance(6)
        assert behind.sends(behind.greeted()) == QUEUED
    assert log.take("command_refused") == [
        f"command_refused upstream=upstream command={command} it answers {command} with {refusal}"
    ]
    refused = [line for line in log.take("reject") if BAD in line]
    words = refusal.replace(" ", r"\x20")
    assert len(refused) == 3
    assert all(
        " reason=upstream_refused " in line and f" code=451 reply={words} " in line for line in refused
    )
    assert log.take("upstream_down") == log.take("upstream_full") == []
    assert not any("203.0.113.66" in line for line in server.taken[-1].envelope)
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_bad_greeting_after_a_proxy_header_is_that_clients_alone(refusal: str, log: Logbook) -> None:
    server, behind = guard_of("proxy-v1")
    assert behind.sends(behind.greeted()) == QUEUED
    # It waits for the header, as a server has to that expects one.
    server.answers["greeting"] = silence
    server.answers["PROXY"] = to_bad(refusal, "220 mx.example ESMTP")
    for _ in range(3):
        assert behind.greeted(BAD).say(MAIL) == f"{REFUSALS[refusal]}\r\n"
        behind.clock.advance(6)
        assert behind.sends(behind.greeted()) == QUEUED
    (warning,) = log.take("command_refused")
    assert warning.endswith(f" it answers the PROXY header with {refusal}")
    assert log.take("upstream_down") == []
    behind.assert_nothing_is_left()


# Another connection.


@pytest.mark.parametrize(("announce", "verb", "command", "otherwise"), STEPS[:3])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_a_connection_that_was_used_before_refuses_is_tried_on_another_one(
    announce: str, verb: str, command: str, otherwise: str, refusal: str, log: Logbook
) -> None:
    server, behind = guard_of(announce)
    for _ in range(2):
        assert behind.sends(behind.greeted()) == QUEUED
    assert len(server.links) == 1
    used = server.links[0]
    server.answers[verb] = lambda link, line: refusal if link is used else otherwise
    assert behind.sends(behind.greeted()) == QUEUED
    assert used.closed
    assert len(server.links) == 2
    assert [log.take(event) for event in ("command_refused", "upstream_down", "reject")] == [[], [], []]
    behind.assert_nothing_is_left()


# Another form.


@pytest.mark.parametrize("refusal", ["500 5.5.1 What?", "502 5.5.1 What?", "504 5.5.4 What?"])
def test_a_server_without_ehlo_is_said_helo_to(refusal: str) -> None:
    server = MailServer()
    server.answers["EHLO"] = refusal
    behind = Behind(server)
    assert behind.sends(behind.greeted()) == QUEUED
    behind.assert_nothing_is_left()


# A server that says so to everybody.


def test_a_server_that_greets_every_client_with_a_421_is_down_soon(log: Logbook) -> None:
    server, behind = guard_of("proxy-v1")
    client = behind.greeted()
    assert behind.sends(client) == QUEUED
    client.disconnect()
    behind.clock.advance(10)
    server.answers["greeting"] = "421 4.3.2 Too busy"
    assert behind.greeted().say(MAIL) == "451 4.3.2 Too busy\r\n"
    behind.clock.advance(0.5)
    assert log.take("upstream_down") == [
        "upstream_down upstream=upstream it answers the PROXY header with 421 4.3.2 Too busy"
    ]
    links = len(server.links)
    for _ in range(5):
        assert behind.greeted().say(MAIL) == "451 4.3.2 Too busy\r\n"
    assert len(server.links) == links
    server.answers["greeting"] = "220 mx"
    behind.clock.advance(5)
    assert len(log.take("upstream_up")) == 1
    assert behind.sends(behind.greeted()) == QUEUED
    behind.assert_nothing_is_left()


def test_a_flood_of_clients_that_it_refuses_costs_no_more_than_a_connection_of_our_own_in_five_seconds() -> (
    None
):
    server, behind = guard_of("proxy-v1")
    server.answers["greeting"] = silence
    server.answers["PROXY"] = to_bad("554 5.7.1 Not you", "220 mx.example ESMTP")
    links = len(server.links)
    for _ in range(200):
        assert behind.greeted(BAD).say(MAIL) == "451 4.7.1 Not you\r\n"
        behind.clock.advance(0.1)
    assert len(server.links) - links <= 200 + 20 // 5 + 1
    behind.assert_nothing_is_left()


# A server that knows no PROXY header.


def reads_it_as_a_command_at_once(server: MailServer) -> None:
    server.answers["PROXY"] = "500 5.5.2 Error: bad syntax"


def reads_it_as_a_command_later(server: MailServer) -> None:
    server.answers["PROXY"] = silence
    server.answers["EHLO"] = "502 5.5.2 Error: bad syntax\r\n250 mx.example"


def finds_it_too_early(server: MailServer) -> None:
    server.answers["greeting"] = silence
    server.answers["PROXY"] = "554 5.5.2 Error: bad syntax"


@pytest.mark.parametrize(
    "misreads", [reads_it_as_a_command_at_once, reads_it_as_a_command_later, finds_it_too_early]
)
def test_a_server_that_expects_no_proxy_header_is_asked_whether_it_does(
    misreads: Callable[[MailServer], Any], log: Logbook
) -> None:
    server = MailServer()
    misreads(server)
    behind = Behind(server, announce="proxy-v1")
    (down,) = log.take("upstream_down")
    assert " 5.5.2 Error: bad syntax: does it expect a PROXY header?" in down
    heard = behind.greeted().say(MAIL)
    (refusal,) = log.take("reject")
    if misreads is finds_it_too_early:
        assert heard == "451 4.5.2 Error: bad syntax\r\n"
        assert " reason=upstream_refused " in refusal
    else:
        assert heard == UNSUITABLE
        assert " reason=upstream_unsuitable " in refusal
    assert not any(line.startswith(("HELO", "MAIL")) for line in server.commands)
    behind.assert_nothing_is_left()


def test_a_server_that_has_understood_a_proxy_header_is_not_asked_whether_it_expects_one(
    log: Logbook,
) -> None:
    server, behind = guard_of("proxy-v1")
    server.answers["EHLO"] = to_bad("501 5.5.2 Helo command rejected: Invalid name", HELLO)
    assert behind.greeted(BAD).say(MAIL) == "451 4.5.2 Helo command rejected: Invalid name\r\n"
    (warning,) = log.take("command_refused")
    assert warning.endswith("it answers EHLO with 501 5.5.2 Helo command rejected: Invalid name")
    behind.assert_nothing_is_left()


# AUTH.


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("535 5.7.8 Authentication failed", "535 5.7.8 Authentication failed"),
        ("454 4.7.0 Directory down", "454 4.7.0 Directory down"),
        ("535 5.7.8 s3cret is wrong", "535"),
        ("535 5.7.8 dTpzM2NyZXQ= AHUAczNjcmV0 czNjcmV0 is wrong", "535"),
    ],
)
def test_the_words_of_a_refused_log_in_are_told_unless_they_repeat_the_password(
    mechanism: str, answer: str, shown: str, log: Logbook
) -> None:
    server = MailServer(f"AUTH {mechanism}")
    server.answers["AUTH"] = lambda link, line: "334 VXNlcm5hbWU6" if line.endswith("LOGIN") else answer
    server.answers["DQ=="] = server.answers["dQ=="] = "334 UGFzc3dvcmQ6"
    server.answers["DQ==".upper()] = "334 UGFzc3dvcmQ6"
    server.answers["CZNJCMV0"] = answer
    behind = Behind(server, auth=Credentials("u", "s3cret"))
    (down,) = log.take("upstream_down")
    assert down == f"upstream_down upstream=upstream it answers AUTH with {shown}"
    assert "s3cret" not in down
    assert behind.greeted().say(MAIL).startswith("451 4.")
    behind.assert_nothing_is_left()
