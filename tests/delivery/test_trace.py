"""The header fields that deliveries put on top of a message."""

from __future__ import annotations

import re
from email import message_from_bytes
from ipaddress import IPv4Address, IPv6Address

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.delivery.trace import delivered_to, prepended, received, return_path
from twisted_smtpguard.interfaces import Client, Path, Peer

PEER = Peer(IPv4Address("192.0.2.1"), 4000, None, None, tls=False, proxied=False)
CLIENT = Client(PEER, "s7", "client.example", "ESMTP", None, trusted=False)
WHEN = 1_795_369_450.9
DATE = "Sun, 22 Nov 2026 17:44:10 +0000"
ONE = [Path("a@b.example", {})]


def from_part(helo: str, peer: Peer = PEER) -> str:
    field = received(attrs.evolve(CLIENT, helo=helo, peer=peer), "mx.example", ONE, WHEN)
    return field.decode().splitlines()[0].removeprefix("Received: ")


def test_the_received_field_names_client_server_protocol_session_recipient_and_date():
    assert received(CLIENT, "mx.example", ONE, WHEN) == (
        b"Received: from client.example ([192.0.2.1])\r\n"
        b"\tby mx.example with ESMTP id s7\r\n"
        b"\tfor <a@b.example>;\r\n"
        b"\tSun, 22 Nov 2026 17:44:10 +0000\r\n"
    )


@pytest.mark.parametrize("recipients", [[], ONE * 2])
def test_no_recipient_is_named_unless_it_is_the_only_one(recipients):
    assert b"for" not in received(CLIENT, "mx.example", recipients, WHEN)


def test_dates_of_different_seconds_differ():
    fields = [received(CLIENT, "mx.example", ONE, when) for when in (0, 0.9, 1, 0)]
    assert [field.splitlines()[-1] for field in fields] == [
        b"\tThu, 01 Jan 1970 00:00:00 +0000",
        b"\tThu, 01 Jan 1970 00:00:00 +0000",
        b"\tThu, 01 Jan 1970 00:00:01 +0000",
        b"\tThu, 01 Jan 1970 00:00:00 +0000",
    ]


@pytest.mark.parametrize(
    ("address", "literal"),
    [
        (IPv4Address("192.0.2.1"), "[192.0.2.1]"),
        (IPv6Address("2001:db8::1"), "[IPv6:2001:db8::1]"),
        (IPv6Address("fe80::1%eth0"), "[IPv6:fe80::1]"),
        (None, "UNIX socket"),
    ],
)
def test_the_peer_stands_in_parentheses(address, literal):
    assert from_part("x", attrs.evolve(PEER, address=address)) == f"from x ({literal})"


@pytest.mark.parametrize(
    "helo",
    [
        "localhost",
        "a.b-c.example",
        "1.2.3.4",
        "A1",
        "[192.0.2.9]",
        "[IPv6:2001:db8::9]",
        "[ipv6:::1]",
        "a" * 63,
    ],
)
def test_a_helo_word_that_is_a_domain_or_an_address_literal_stands_as_sent(helo):
    assert from_part(helo) == f"from {helo} ([192.0.2.1])"


@pytest.mark.parametrize(
    "helo",
    [
        "",
        "(",
        "a)(b",
        "a;b",
        "my_host",
        "-a",
        "a-",
        "a..b",
        "a.",
        ".a",
        "a@b",
        '"a"',
        "\\",
        "<a>",
        "a b",
        "a\r\nX: y",
        "a\n",
        "ä.example",
        "[1.2.3]",
        "[1.2.3.456]",
        "[192.0.2.1",
        "[IPv6:1]",
        "[IPv6:fe80::1%)(]",
        "[2001:db8::9]",
        "[tag:content]",
        "a" * 64,
        ".".join(["a" * 60] * 5),
    ],
)
def test_any_other_helo_word_gives_way_to_the_address(helo):
    assert from_part(helo) == "from [192.0.2.1] ([192.0.2.1])"


def test_a_bad_helo_word_on_a_unix_socket_gives_way_to_localhost():
    assert from_part("(", attrs.evolve(PEER, address=None)) == "from localhost (UNIX socket)"


def test_a_server_without_a_usable_name_is_localhost():
    assert b"by localhost with" in received(CLIENT, "\r\n", ONE, WHEN)


def test_the_servers_own_name_may_have_an_underscore():
    assert b"by my_host with" in received(CLIENT, "my_host", ONE, WHEN)


def test_the_null_sender_is_an_empty_return_path():
    assert return_path(Path("", {})) == b"Return-Path: <>\r\n"


@pytest.mark.parametrize("address", ["a@b", '"a \\" > b"@[192.0.2.1]', "jörg@bücher.example", "Postmaster"])
def test_addresses_stand_as_given(address):
    path = Path(address, {})
    assert return_path(path) == f"Return-Path: <{address}>\r\n".encode()
    assert delivered_to(path) == f"Delivered-To: {address}\r\n".encode()
    assert f"\tfor <{address}>;".encode() in received(CLIENT, "mx", [path], WHEN).splitlines()


ANY = st.text(st.characters() | st.sampled_from('\r\n\0\t ()<>;:\\"'))
ADDRESSES = st.ip_addresses() | st.none()


@given(ANY)
def test_no_address_ends_its_field(address):
    for field in (return_path(Path(address, {})), delivered_to(Path(address, {}))):
        assert re.fullmatch(rb"[A-Z][A-Za-z-]+: [^\x00-\x1f\x7f]*\r\n", field)


@given(ADDRESSES, ANY, ANY, ANY, ANY, st.none() | ANY)
def test_no_value_forges_a_part_of_the_received_field(address, helo, protocol, session, hostname, recipient):
    client = attrs.evolve(
        CLIENT, peer=attrs.evolve(PEER, address=address), helo=helo, protocol=protocol, session=session
    )
    recipients = [] if recipient is None else [Path(recipient, {})]
    field = received(client, hostname, recipients, WHEN)
    atom = rb"[^\x00-\x20\x7f-\xff()<>@,;:\\\".\[\]]+"
    assert re.fullmatch(
        rb"Received: from [][A-Za-z0-9.:-]+ \((\[[0-9A-Za-f.:IPv]+\]|UNIX socket)\)\r\n"
        rb"\tby [][A-Za-z0-9._:-]+( with %b)?( id %b)?"
        % (atom, atom)
        + (b"" if recipient is None else rb"\r\n\tfor <[^\x00-\x1f\x7f]*>")
        + rb";\r\n\t%b\r\n" % re.escape(DATE.encode()),
        field,
    )
    assert message_from_bytes(field + b"\r\n").keys() == ["Received"]


def test_the_field_says_how_the_session_was_encrypted_and_nothing_can_be_forged_by_it() -> None:
    client = attrs.evolve(CLIENT, protocol="ESMTPS", tls="TLSv1.3 TLS_AES_256_GCM_SHA384")
    assert b" with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384) id s7" in received(client, "guard.example", [], 0)
    hostile = attrs.evolve(CLIENT, tls="x)\r\nForged: (")
    assert b" (xForged ) id" in received(hostile, "guard.example", [], 0)


def long_address(octets: int) -> Path:
    return Path("x" * (octets - len("@b.example")) + "@b.example", {})


@pytest.mark.parametrize("letter", ["x", "ü"])
@pytest.mark.parametrize("octets", [900, 1900])
def test_no_line_of_a_trace_field_is_longer_than_998_octets(letter: str, octets: int) -> None:
    path = Path(letter * (octets // len(letter.encode())) + "@b.example", {})
    client = attrs.evolve(CLIENT, helo=".".join(["a" * 63] * 4))
    header = return_path(path) + delivered_to(path) + received(client, "h" * 255, [path], WHEN)
    assert all(len(line) <= 998 for line in header.split(b"\r\n"))
    names = message_from_bytes(header + b"\r\n").keys()
    assert names == (["Return-Path", "Delivered-To", "Received"] if octets == 900 else ["Received"])


def test_an_address_that_is_too_long_for_its_line_is_left_out() -> None:
    most = {return_path: 998 - 15, delivered_to: 998 - 14}
    for field, octets in most.items():
        line = field(long_address(octets))
        assert (len(line), line[-2:]) == (1000, b"\r\n")
        assert field(long_address(octets + 1)) == b""
    longest = received(CLIENT, "mx.example", [long_address(998 - 8)], WHEN)
    assert len(longest.split(b"\r\n")[2]) == 998
    too_long = received(CLIENT, "mx.example", [long_address(998 - 7)], WHEN)
    assert too_long == received(CLIENT, "mx.example", [], WHEN)


def test_prepended_fields_are_lines_in_their_order():
    assert prepended([]) == b""
    assert prepended(["X-A: 1", "X-B: gr\u00fcn"]) == "X-A: 1\r\nX-B: gr\u00fcn\r\n".encode()


def test_no_prepended_field_begins_another():
    """The guard has checked them, and still: what looks like an end of a line becomes a question mark."""
    assert prepended(["X: a\r\nBcc: eve@example.org\0"]) == b"X: a??Bcc: eve@example.org?\r\n"


def test_a_tab_in_a_prepended_field_stays():
    assert prepended(["X-A: 1;\tb=2"]) == b"X-A: 1;\tb=2\r\n"


def test_a_long_field_is_folded_at_blanks_and_reads_the_same():
    value = " ".join(["word" * 20] * 60)
    octets = prepended([f"X-Long: {value}", "X-B: 2"])
    lines = octets.split(b"\r\n")
    assert all(len(line) <= 998 for line in lines)
    assert all(line[:1] == b" " for line in lines[1:-2])
    assert octets.replace(b"\r\n ", b" ") == f"X-Long: {value}\r\nX-B: 2\r\n".encode()


@pytest.mark.parametrize("field", [f"X: {'y' * 999}", f"X: a {'y' * 1000} b"])
def test_a_field_that_cannot_be_folded_is_left_out(field):
    assert prepended([field, "X-B: 2"]) == b"X-B: 2\r\n"


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 400)), max_size=40))
def test_no_line_of_a_folded_field_is_blank_or_too_long(parts):
    octets = prepended(["X:" + "".join(" " * blanks + "y" * letters for blanks, letters in parts) + "z"])
    assert octets.endswith(b"\r\n")
    assert all(line.strip() and len(line) <= 998 for line in octets.split(b"\r\n")[:-1])
