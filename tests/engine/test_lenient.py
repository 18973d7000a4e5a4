"""--lenient-addresses: what old devices send, what becomes of it, and what stays refused."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address

import pytest
from fakes import Conversation, FakeDelivery, FakeFilter, Guard
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.delivery.trace import delivered_to, received, return_path
from twisted_smtpguard.engine.grammar import parse_mail, parse_rcpt
from twisted_smtpguard.engine.lenient import proper_form
from twisted_smtpguard.interfaces import TRUST, Client, Path, Peer, Refused

OFFERED = frozenset({"SIZE", "BODY", "SMTPUTF8"})

# What follows MAIL, and what the delivery sees.
TAKEN = [
    # Without angle brackets.
    (b"FROM:a@b.example", "a@b.example"),
    (b"FROM: a@b.example", "a@b.example"),
    (b"from:\ta@b.example", "a@b.example"),
    (b"FROM:a@b.example SIZE=5", "a@b.example"),
    (b"FROM:a@b.example\t BODY=7BIT", "a@b.example"),
    (b"FROM:a@[192.0.2.1]", "a@[192.0.2.1]"),
    (b"FROM:a@[IPv6:2001:db8::1]", "a@[IPv6:2001:db8::1]"),
    (b'FROM:"a b"@c', '"a b"@c'),
    (b'FROM:"a> b@\\""@c SIZE=5', '"a> b@\\""@c'),
    (b"FROM:@x,@y:a@b", "a@b"),
    # Blanks inside them, and before the colon.
    (b"FROM:< a@b >", "a@b"),
    (b"FROM:<\ta@b\t>", "a@b"),
    (b"FROM:<a @ b>", "a@b"),
    (b"FROM:<a. b@c .d>", "a.b@c.d"),
    (b'FROM:< "a b" @ c >', '"a b"@c'),
    (b"FROM:< >", ""),
    (b"FROM :<a@b>", "a@b"),
    (b"FROM \t: <a@b>", "a@b"),
    (b"FROM :<>", ""),
    (b"FROM : a@b SIZE=5", "a@b"),
    # Dots.
    (b"FROM:<a..b@c>", '"a..b"@c'),
    (b"FROM:<a.@c>", '"a."@c'),
    (b"FROM:<.a@c>", '".a"@c'),
    (b"FROM:<a.b..c.@d>", '"a.b..c."@d'),
    (b"FROM:a..b@c", '"a..b"@c'),
    (b"FROM:<@x:a.@c>", '"a."@c'),
    (b"FROM:<a@b.example.>", "a@b.example"),
    (b"FROM:a@b.example. SIZE=5", "a@b.example"),
    (b"FROM:<a.@b.>", '"a."@b'),
    ("FROM:<jürgen.@bücher.example.> SMTPUTF8".encode(), '"jürgen."@bücher.example'),
]

# What follows MAIL or RCPT, and is as wrong as ever.
REFUSED = [
    b"",
    b"@",
    b"a@",
    b"@b",
    b"a",
    b"<a@b",
    b"a@b>",
    b"<<a@b>>",
    b"<a@b><c@d>",
    b"a@b,c@d",
    b"a@b c@d",
    b"a b@c",
    b"<a b@c>",
    b"<a@b c>",
    b"Ann <a@b>",
    b'"Ann" <a@b>',
    b"a@b (Ann)",
    b"<a@b@c>",
    b"a@b@c",
    b"<a@b..>",
    b"<a@b..c>",
    b"<a@.b>",
    b"<a@.>",
    b"<a@[192.0.2.1].>",
    b"<a@[ 192.0.2.1 ]>",
    b'<"a@b>',
    b'"a@b',
    b'<"a"..b@c>',
    b'<a.."b"@c>',
    b"<a\\..b@c>",
    b"<(a)..b@c>",
    b"<a..b\x01@c>",
    b"<a..b\xff@c>",
    b"<a@-b.>",
    b"<a@" + b"l" * 64 + b".>",
]


@pytest.mark.parametrize(("argument", "address"), TAKEN)
def test_what_old_devices_send_is_put_into_its_proper_form(argument: bytes, address: str) -> None:
    with pytest.raises(Refused):
        parse_mail(argument, OFFERED)
    proper = proper_form(argument)
    assert proper is not None
    assert parse_mail(proper, OFFERED).address == address
    parameters = {"SIZE", "BODY", "SMTPUTF8"} & parse_mail(proper, OFFERED).parameters.keys()
    assert (
        parameters == {word.split("=")[0] for word in argument.decode().split() if word.isupper()} & OFFERED
    )


@pytest.mark.parametrize("path", REFUSED)
def test_what_is_no_address_stays_refused(path: bytes) -> None:
    for parse, argument in ((parse_mail, b"FROM:" + path), (parse_rcpt, b"TO:" + path)):
        proper = proper_form(argument)
        if proper is not None:
            with pytest.raises(Refused):
                parse(proper, OFFERED, True)


@pytest.mark.parametrize("argument", [b"", b"FROM", b"FROM a@b", b"FROM <a@b>", b"XFROM:a@b", b"a@b"])
def test_without_a_colon_there_is_no_proper_form(argument: bytes) -> None:
    assert proper_form(argument) is None


LETTERS = st.text(st.sampled_from('ab.@<>"\\ \t:,[]1=ü\x00'), max_size=20)


@given(st.sampled_from([b"FROM:", b"FROM :", b"FROM:<"]), LETTERS, st.sampled_from([b"", b">", b"> SIZE=1"]))
def test_whatever_comes_out_is_valid_or_refused_and_a_proper_address_stays_as_it_is(
    begin: bytes, text: str, end: bytes
) -> None:
    argument = begin + text.encode() + end
    proper = proper_form(argument)
    with suppress(Refused):
        if proper is not None:
            path = parse_mail(proper, OFFERED)
            assert (
                parse_mail(b"FROM:<%b>" % path.address.encode() + b" SMTPUTF8", OFFERED).address
                == path.address
            )
    with suppress(Refused):
        path = parse_mail(argument, OFFERED)
        assert proper is None or parse_mail(proper, OFFERED) == path


@pytest.mark.parametrize(
    "octets", [b'"', b'"\\', b'\\"', b'""', b'" ', b" ", b"a ", b"a. ", b"<", b"@", b"@:", b". ", b"a@"]
)
def test_no_line_costs_more_than_linear_time(octets: bytes) -> None:
    """At once, or with a slow pattern not in years."""
    for begin in (b"FROM:", b"FROM:<", b'FROM:<"', b"FROM: @"):
        proper_form(begin + octets * 20_000)


# In a session.


def client_of(whom: str, *, trusted: bool = False) -> Conversation:
    filters = [FakeFilter(TRUST)] if trusted else []
    client = Guard(ip_filters=filters, lenient_addresses=whom).greeted()
    client.heard()
    return client


@pytest.mark.parametrize(
    ("whom", "trusted", "taken"),
    [
        ("off", False, False),
        ("off", True, False),
        ("trusted", False, False),
        ("trusted", True, True),
        ("all", False, True),
        ("all", True, True),
    ],
)
def test_the_operator_says_from_whom_such_addresses_are_taken(whom: str, trusted: bool, taken: bool) -> None:
    client = client_of(whom, trusted=trusted)
    said = client.say("MAIL FROM:a@b.example", "MAIL FROM :<a@b.example>")
    refused = "501 5.1.7 Bad sender address syntax\r\n501 5.5.4 Syntax error in parameters or arguments\r\n"
    accepted = "250 2.1.0 Sender OK\r\n503 5.5.1 Bad sequence of commands\r\n"
    assert said == (accepted if taken else refused)


def test_off_is_the_default() -> None:
    client = Guard().greeted()
    client.heard()
    assert client.codes("MAIL FROM:a@b.example", "MAIL FROM:<a.@b.example>") == [501, 501]


def test_the_delivery_sees_the_proper_form() -> None:
    client = client_of("all")
    recipients = ("RCPT TO:c@d.example.", "RCPT TO : <e..f@d.example>", "RCPT TO:postmaster", "RCPT TO:a b@c")
    assert client.codes("MAIL FROM: a.@b.example BODY=8BITMIME", *recipients, "DATA") == [
        250,
        250,
        250,
        250,
        501,
        354,
    ]
    assert client.codes("Subject: x", "", ".") == [250]
    delivery: FakeDelivery = client.guard.delivery
    (message,) = delivery.messages
    assert message.sender == Path('"a."@b.example', {"BODY": "8BITMIME"})
    assert [path.address for path in message.recipients] == [
        "c@d.example",
        '"e..f"@d.example',
        "postmaster",
    ]


def test_trace_fields_have_the_proper_form() -> None:
    proper = proper_form(b"TO:e..f@d.example.")
    assert proper is not None
    path = parse_rcpt(proper, OFFERED, False)
    assert return_path(path) == b'Return-Path: <"e..f"@d.example>\r\n'
    assert delivered_to(path) == b'Delivered-To: "e..f"@d.example\r\n'
    peer = Peer(ip_address("192.0.2.1"), 1, None, None)
    client = Client(peer, "s1", "x", "ESMTP", None, trusted=False)
    assert b'\r\n\tfor <"e..f"@d.example>;\r\n' in received(client, "mx.example", [path], 0)


def test_a_refusal_of_such_an_address_is_that_of_its_fault() -> None:
    client = client_of("all")
    assert client.codes("MAIL FROM:a@b.example X=1", "MAIL FROM:ü@b.example", "MAIL FROM:a@b..") == [
        555,
        553,
        501,
    ]
