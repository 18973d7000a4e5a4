"""Which addresses are one client."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.admission.clients import client_key

DEPRECATED = 2**32
"""Below it the C library writes an IPv6 address with an IPv4 address in it (RFC 4291 2.5.5.1)."""


@pytest.mark.parametrize(
    ("address", "ipv4_bits", "ipv6_bits", "key"),
    [
        ("192.0.2.1", 32, 64, "192.0.2.1"),
        ("192.0.2.255", 24, 64, "192.0.2.0/24"),
        ("192.0.2.255", 31, 64, "192.0.2.254/31"),
        ("255.255.255.255", 1, 64, "128.0.0.0/1"),
        ("0.0.0.0", 32, 64, "0.0.0.0"),
        ("2001:db8::1", 32, 64, "2001:db8::/64"),
        ("2001:db8:0:1:ffff:ffff:ffff:ffff", 32, 64, "2001:db8:0:1::/64"),
        ("2001:db8::1", 32, 128, "2001:db8::1"),
        ("2001:db8::1", 32, 127, "2001:db8::/127"),
        ("2001:db8:ffff::1", 32, 48, "2001:db8:ffff::/48"),
        ("ffff::", 32, 1, "8000::/1"),
        ("::1", 32, 64, "::/64"),
        ("::1", 32, 128, "::1"),
        ("::fffe:192.0.2.1", 32, 64, "::/64"),
        ("fe80::1%eth0", 32, 64, "fe80::/64"),
        ("fe80::1%eth0", 32, 128, "fe80::1"),
    ],
)
def test_a_client_is_the_leading_bits_of_an_address(
    address: str, ipv4_bits: int, ipv6_bits: int, key: str
) -> None:
    assert client_key(ip_address(address), ipv4_bits, ipv6_bits) == key


def test_all_on_unix_sockets_are_one_client() -> None:
    assert client_key(None, 32, 64) == "unix"


@given(st.integers(0, 2**32 - 1), st.integers(1, 32))
def test_an_ipv4_client_is_written_as_everybody_writes_it(number: int, bits: int) -> None:
    network = str(ip_network((number, bits), strict=False)).removesuffix("/32")
    assert client_key(IPv4Address(number), bits, 64) == network


@given(st.integers(2**48, 2**128 - 1), st.integers(1, 128))
def test_an_ipv6_client_is_written_as_everybody_writes_it(number: int, bits: int) -> None:
    network = ip_network((number, bits), strict=False)
    key = client_key(IPv6Address(number), 32, bits)
    if int(network.network_address) < DEPRECATED:
        assert ip_network(key) == network
    else:
        assert key == str(network).removesuffix("/128")
