"""What EHLO offers, and what may be used of it."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Conversation, FakeDelivery, Guard

ALL = ["PIPELINING", "SIZE 10485760", "CHUNKING"]
LAST = "ENHANCEDSTATUSCODES"


def client_of(*extensions: str, max_message_octets: int = 0, **limits: Any) -> Conversation:
    """A client, greeted, of a delivery with these extensions."""
    delivery: Any = FakeDelivery()
    delivery.extensions = frozenset(extensions)
    delivery.max_message_octets = max_message_octets
    client = Guard(delivery, **limits).connect()
    client.heard()
    return client


def keywords(*extensions: str, **settings: Any) -> list[str]:
    """What EHLO announces."""
    lines = client_of(*extensions, **settings).say("EHLO client.example").split("\r\n")
    assert lines[0] == "250-guard.example"
    assert all(line.startswith("250-") for line in lines[:-2])
    assert lines[-2].startswith("250 ")
    assert lines[-1] == ""
    return [line[4:] for line in lines[1:-1]]


def test_what_is_announced_by_default() -> None:
    assert keywords() == [*ALL, "LIMITS RCPTMAX=100", LAST]


def test_what_the_delivery_carries_is_announced_and_nothing_else() -> None:
    assert keywords("8BITMIME", "SMTPUTF8", "DSN", "X-OWN") == [
        *ALL,
        "8BITMIME",
        "SMTPUTF8",
        "DSN",
        "LIMITS RCPTMAX=100",
        LAST,
    ]
    assert "BINARYMIME" in keywords("BINARYMIME")


def test_limits_that_are_off_are_left_out() -> None:
    assert keywords(max_recipients=0, max_messages=7)[-2] == "LIMITS MAILMAX=7"
    assert keywords(max_recipients=5, max_messages=7)[-2] == "LIMITS RCPTMAX=5 MAILMAX=7"
    assert keywords(max_recipients=0) == [*ALL, LAST]


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_recipients": 0}, {"max_message_size": 0}, {"max_recipients": 0, "max_messages": 7}],
    ids=str,
)
@pytest.mark.parametrize("extensions", [(), ("8BITMIME", "SMTPUTF8", "DSN"), ("BINARYMIME",)], ids=str)
def test_the_last_line_is_the_same_whatever_else_is_offered(
    extensions: tuple[str, ...], settings: dict[str, int]
) -> None:
    reply = client_of(*extensions, **settings).say("EHLO client.example")
    assert reply.endswith("\r\n250 ENHANCEDSTATUSCODES\r\n")
    assert reply.count("ENHANCEDSTATUSCODES") == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "announced"),
    [
        (1000, 0, "SIZE 1000"),
        (1000, 400, "SIZE 400"),
        (400, 1000, "SIZE 400"),
        (0, 700, "SIZE 700"),
        (0, 0, "SIZE"),
    ],
)
def test_the_size_is_the_smaller_of_the_operators_and_the_deliverys(
    ours: int, theirs: int, announced: str
) -> None:
    assert announced in keywords(max_message_size=ours, max_message_octets=theirs)


def test_extensions_are_read_at_each_ehlo() -> None:
    client = client_of()
    client.say("EHLO client.example")
    client.heard()
    client.guard.delivery.extensions = frozenset({"SMTPUTF8"})
    assert client.codes("MAIL FROM:<a@b.example> SMTPUTF8") == [555]
    assert "SMTPUTF8" in client.say("EHLO client.example")
    assert client.codes("MAIL FROM:<a@b.example> SMTPUTF8") == [250]


def test_helo_announces_nothing() -> None:
    assert client_of("SMTPUTF8").say("HELO client.example") == "250 guard.example\r\n"


PARAMETERS = ["SIZE=1", "BODY=7BIT", "BODY=8BITMIME", "BODY=BINARYMIME", "SMTPUTF8"]


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_parameters_may_be_used_only_after_an_ehlo(parameter: str) -> None:
    client = client_of("8BITMIME", "SMTPUTF8", "BINARYMIME")
    mail = f"MAIL FROM:<a@b.example> {parameter}"
    assert client.codes("HELO x", mail) == [250, 555]
    assert client.codes("EHLO x", mail, "RSET") == [250, 250, 250]
    assert client.codes("HELO x", mail) == [250, 555]


@pytest.mark.parametrize("parameter", PARAMETERS[1:])
def test_parameters_of_extensions_that_were_not_announced_are_refused(parameter: str) -> None:
    assert client_of().codes("EHLO x", f"MAIL FROM:<a@b.example> {parameter}") == [250, 555]


def test_the_parameters_reach_the_delivery() -> None:
    client = client_of("8BITMIME", "SMTPUTF8")
    client.say(
        "EHLO x",
        "MAIL FROM:<a@b.example> size=12 body=8bitmime SMTPUTF8",
        "RCPT TO:<c@d.example>",
        "DATA",
        ".",
    )
    (message,) = client.guard.delivery.messages
    assert message.sender.parameters == {"SIZE": "12", "BODY": "8BITMIME", "SMTPUTF8": None}


@pytest.mark.parametrize(
    ("hello", "parameter", "word"),
    [("HELO", "", "SMTP"), ("EHLO", "", "ESMTP"), ("EHLO", " SMTPUTF8", "UTF8SMTP")],
)
def test_the_delivery_is_told_who_the_client_is(hello: str, parameter: str, word: str) -> None:
    client = client_of("SMTPUTF8")
    client.say(f"{hello} [192.0.2.1]", f"MAIL FROM:<>{parameter}", "RCPT TO:<c@d.example>", "DATA", ".")
    seen = client.guard.delivery.messages[0].client
    assert (seen.helo, seen.protocol, seen.identity, seen.trusted) == ("[192.0.2.1]", word, None, False)
    assert (str(seen.peer.address), seen.peer.port, seen.peer.tls, seen.peer.proxied) == (
        "192.0.2.1",
        4711,
        False,
        False,
    )
    assert seen.session == client.protocol.engine.name


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("my_host", 250),
        ("localhost", 250),
        ("[IPv6:2001:db8::1]", 250),
        ("!@#$", 250),
        ("x" * 255, 250),
        ("x" * 256, 501),
        ("", 501),
        ("two words", 501),
        ("b\x07ll", 501),
        ("müller.example", 501),
    ],
)
@pytest.mark.parametrize("hello", ["HELO", "EHLO"])
def test_a_hello_takes_any_one_printable_word(hello: str, name: str, code: int) -> None:
    assert client_of().codes(f"{hello} {name}") == [code]
