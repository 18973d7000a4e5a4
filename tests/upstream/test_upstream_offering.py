"""What the guard offers of the upstream server's extensions, where that does not offer the same to all."""

from __future__ import annotations

import pytest
from mailserver import Behind, Link, MailServer
from twisted.internet.task import Clock

from twisted_smtpguard.upstream.hello import Hello, OfferedExtensions

ALL = Hello({"8BITMIME": "", "DSN": "", "SIZE": "1000", "XCLIENT": "ADDR"})
LESS = Hello({"8BITMIME": "", "SIZE": "500"})


def test_what_the_server_says_last_is_offered() -> None:
    offering = OfferedExtensions(Clock())
    assert offering.hello.keywords == {}
    for hello in (ALL, LESS, ALL):
        offering.update(hello)
        assert offering.hello == hello


def test_what_one_client_is_not_offered_is_offered_to_no_other_for_an_hour() -> None:
    clock = Clock()
    offering = OfferedExtensions(clock)
    offering.update(ALL)
    offering.update(LESS, by_client=True)
    assert offering.hello == LESS
    clock.advance(3599)
    for by_client in (False, True):
        offering.update(ALL, by_client=by_client)
        assert "DSN" not in offering.hello
        assert offering.hello.size == 1000
    clock.advance(1)
    offering.update(ALL)
    assert offering.hello == ALL


def test_a_clock_that_is_set_back_does_not_make_the_hour_longer() -> None:
    clock = Clock()
    clock.advance(100_000)
    offering = OfferedExtensions(clock)
    offering.update(ALL)
    offering.update(LESS, by_client=True)
    clock.rightNow = 50_000
    offering.update(ALL)
    assert offering.hello == ALL


def test_what_is_new_to_us_too_is_offered() -> None:
    offering = OfferedExtensions(Clock())
    offering.update(LESS)
    offering.update(ALL, by_client=True)
    assert "DSN" in offering.hello


def test_what_one_client_is_offered_and_another_is_not_is_offered_to_none() -> None:
    offering = OfferedExtensions(Clock())
    offering.update(LESS)
    for hello in (ALL, LESS, ALL):
        offering.update(hello, by_client=True)
    assert "DSN" not in offering.hello


def test_an_extension_that_no_client_was_offered_is_offered_as_soon_as_the_server_has_it() -> None:
    offering = OfferedExtensions(Clock())
    offering.update(LESS)
    offering.update(LESS, by_client=True)
    offering.update(ALL)
    assert offering.hello == ALL


def hides_dsn() -> MailServer:
    """From those that it was told of."""
    server = MailServer("8BITMIME", "DSN", "XCLIENT ADDR")
    told: set[Link] = set()

    def xclient(link: Link, line: str) -> str:
        told.add(link)
        return "220 mx"

    server.answers["XCLIENT"] = xclient
    server.answers["EHLO"] = lambda link, line: "\r\n".join(
        [
            "250-mx",
            "250-8BITMIME",
            *([] if link in told or "guard" not in line else ["250-DSN"]),
            "250 XCLIENT ADDR",
        ]
    )
    return server


@pytest.mark.parametrize("announce", ["xclient", "proxy"])
def test_mail_that_needs_it_is_put_off_once_at_most(announce: str) -> None:
    behind = Behind(hides_dsn(), announce=announce)
    client = behind.greeted()
    assert client.say("MAIL FROM:<a@example.com> RET=HDRS").startswith("451 4.5.1 ")
    assert "DSN" not in client.say("EHLO client.example")
    assert behind.sends(client).startswith("250 ")
    assert "DSN" not in behind.connect().say("EHLO other.example")
    behind.assert_nothing_is_left()


def test_a_server_that_is_told_nothing_is_believed_at_once() -> None:
    server = MailServer("8BITMIME", "DSN")
    behind = Behind(server, messages=1)
    server.keywords = ("8BITMIME",)
    client = behind.greeted()
    assert behind.sends(client).startswith("250 ")
    assert behind.sends(client).startswith("250 ")
    assert "DSN" not in client.say("EHLO client.example")
    server.keywords = ("8BITMIME", "DSN")
    assert behind.sends(client).startswith("250 ")
    assert "DSN" in client.say("EHLO client.example")
