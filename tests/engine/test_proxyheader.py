"""PROXY headers: what is one, what is none, and that both are seen at the first octet that decides it."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.engine.proxyheader import (
    MAX_BINARY_OCTETS,
    MAX_LINE_OCTETS,
    HeaderError,
    ProxyHeader,
    parse_header,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = ((IPv4Address("192.0.2.1"), 4711), (IPv4Address("198.51.100.1"), 25))
V6 = ((IPv6Address("2001:db8::1"), 65535), (IPv6Address("2001:db8::25"), 0))
ADDRESSES_4 = struct.pack("!4s4sHH", V4[0][0].packed, V4[1][0].packed, V4[0][1], V4[1][1])
ADDRESSES_6 = struct.pack("!16s16sHH", V6[0][0].packed, V6[1][0].packed, V6[0][1], V6[1][1])


def binary(command: int, family: int, rest: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


GOOD = {
    "v1 over IPv4": (b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 25\r\n", V4),
    "v1 over IPv6": (b"PROXY TCP6 2001:db8::1 2001:db8::25 65535 0\r\n", V6),
    "v1 in full": (
        b"PROXY TCP6 2001:0db8:0000:0000:0000:0000:0000:0001 2001:DB8:0:0:0:0:0:25 65535 0\r\n",
        V6,
    ),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1 unknown with words": (b"PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n", None),
    "v2 over IPv4": (binary(0x21, 0x11, ADDRESSES_4), V4),
    "v2 over IPv6": (binary(0x21, 0x21, ADDRESSES_6), V6),
    "v2 with more after the addresses": (binary(0x21, 0x11, ADDRESSES_4 + b"\x04\x00\x01\x00"), V4),
    "v2 with what looks like more and is none": (binary(0x21, 0x11, ADDRESSES_4 + b"\xff" * 7), V4),
    "v2 local": (binary(0x20, 0x00, b""), None),
    "v2 local with addresses": (binary(0x20, 0x11, ADDRESSES_4), None),
    "v2 unspecified": (binary(0x21, 0x00, b"\x01\x02"), None),
    "v2 from a UNIX socket": (binary(0x21, 0x31, bytes(216)), None),
    "v2 as long as may be": (binary(0x21, 0x11, ADDRESSES_4.ljust(MAX_BINARY_OCTETS, b"\0")), V4),
}
each_good = pytest.mark.parametrize(("header", "ends"), GOOD.values(), ids=GOOD)


@each_good
def test_a_header_tells_both_ends_or_nothing(
    header: bytes, ends: tuple[tuple[IPv4Address, int], tuple[IPv4Address, int]] | None
) -> None:
    expected = ProxyHeader(len(header), *(ends or ()))
    assert parse_header(header) == expected
    assert parse_header(header + b"EHLO a\r\nPROXY ") == expected


@each_good
def test_until_it_is_whole_more_is_needed(header: bytes, ends: object) -> None:
    cuts = range(len(header)) if len(header) < 300 else [*range(60), len(header) - 1]
    for cut in cuts:
        assert parse_header(header[:cut]) is None


BAD = {
    "SMTP": b"EHLO client.example\r\n",
    "a TLS hello": b"\x16\x03\x01",
    "small letters": b"proxy TCP4 ",
    "another family": b"PROXY TCP5 192.0.2.1 198.51.100.1 4711 25\r\n",
    "the family of the other addresses": b"PROXY TCP6 192.0.2.1 198.51.100.1 4711 25\r\n",
    "a port too large": b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 25\r\n",
    "a port with a sign": b"PROXY TCP4 192.0.2.1 198.51.100.1 +25 25\r\n",
    "a port with a zero before it": b"PROXY TCP4 192.0.2.1 198.51.100.1 0025 25\r\n",
    "a port with an underscore": b"PROXY TCP4 192.0.2.1 198.51.100.1 4_7 25\r\n",
    "an address with zeros before it": b"PROXY TCP4 192.000.002.001 198.51.100.1 4711 25\r\n",
    "an address with a scope": b"PROXY TCP6 fe80::1%eth0 2001:db8::25 4711 25\r\n",
    "no address": b"PROXY TCP4 x 198.51.100.1 4711 25\r\n",
    "two blanks": b"PROXY TCP4  192.0.2.1 198.51.100.1 4711 25\r\n",
    "a word more": b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 25 1\r\n",
    "a word less": b"PROXY TCP4 192.0.2.1 198.51.100.1 4711\r\n",
    "nothing": b"PROXY \r\n",
    "a bare LF inside": b"PROXY UNKNOWN \n\r\n",
    "a line too long": b"PROXY UNKNOWN ".ljust(MAX_LINE_OCTETS, b"x"),
    "a signature that ends otherwise": b"\r\n\r\n\0\r\nQUIT\r",
    "version 1 in binary": binary(0x11, 0x11, ADDRESSES_4),
    "another command": binary(0x22, 0x11, ADDRESSES_4),
    "datagrams": binary(0x21, 0x12, ADDRESSES_4),
    "an unknown family": binary(0x21, 0x41, ADDRESSES_4),
    "too short for its addresses": binary(0x21, 0x11, ADDRESSES_4[:-1]),
    "too short for IPv6": binary(0x21, 0x21, ADDRESSES_4),
    "far too long": SIGNATURE + struct.pack("!BBH", 0x21, 0x11, MAX_BINARY_OCTETS + 1),
}


@pytest.mark.parametrize("octets", BAD.values(), ids=BAD)
def test_what_is_none_is_refused(octets: bytes) -> None:
    with pytest.raises(HeaderError):
        parse_header(octets)


def test_a_line_of_the_greatest_length_is_taken() -> None:
    line = b"PROXY UNKNOWN ".ljust(MAX_LINE_OCTETS - 2, b"x") + b"\r\n"
    assert parse_header(line) == ProxyHeader(MAX_LINE_OCTETS)


def test_what_cannot_become_one_is_refused_at_its_first_octet() -> None:
    for octet in set(range(256)) - set(b"P\r"):
        with pytest.raises(HeaderError):
            parse_header(bytes([octet]))


def outcome(octets: bytes) -> object:
    try:
        return parse_header(octets)
    except HeaderError:
        return HeaderError


@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21"]), st.binary(max_size=200)
)
def test_for_any_input_the_answer_is_one_of_three_and_more_octets_never_take_it_back(
    beginning: bytes, rest: bytes
) -> None:
    octets = beginning + rest
    decided: object = None
    for cut in range(len(octets) + 1):
        answer = outcome(octets[:cut])
        if decided is None:
            decided = answer
        assert answer == decided
    assert decided is None or decided is HeaderError or isinstance(decided, ProxyHeader)


@given(st.ip_addresses(), st.data(), st.integers(0, 65535), st.integers(0, 65535))
def test_a_line_reads_back(client: object, data: st.DataObject, one: int, other: int) -> None:
    version = ip_address(str(client)).version
    server = data.draw(st.ip_addresses(v=version))
    header = parse_header(f"PROXY TCP{version} {client} {server} {one} {other}\r\n".encode())
    assert header is not None
    assert (header.client, header.server) == ((client, one), (server, other))
