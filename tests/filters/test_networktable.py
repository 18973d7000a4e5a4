"""Networks of any nesting, and the verdict on an address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.filters.networktable import (
    ALLOWED,
    FIRST_REFUSAL,
    IPV4_BITS,
    IPV6_BITS,
    TRUSTED,
    TableBuilder,
)
from twisted_smtpguard.interfaces import PASS, TRUST, refuse
from twisted_smtpguard.replies import Reply

NETWORK = {IPV4_BITS: IPv4Network, IPV6_BITS: IPv6Network}
ADDRESS = {IPV4_BITS: IPv4Address, IPV6_BITS: IPv6Address}
REFUSALS = [refuse(Reply(421, "4.7.0", (text,))) for text in ("one", "two")]
VERDICTS = [PASS, TRUST, *REFUSALS]


def table(*rows):
    """Of (bits, start, length, index) rows, the indexes those of VERDICTS."""
    builder = TableBuilder()
    assert [builder.index(verdict) for verdict in VERDICTS] == [0, 1, 2, 3]
    for row in rows:
        builder.add(*row)
    return builder.build(lambda: None)


def naive(rows, bits, number):
    """The longest prefix, then a refusal, the first of them, then trust, then allow."""
    found = [
        (length, index >= FIRST_REFUSAL, -index if index >= FIRST_REFUSAL else index)
        for family, start, length, index in rows
        if family == bits and ADDRESS[bits](number) in NETWORK[bits]((start, length))
    ]
    return VERDICTS[abs(max(found)[2])] if found else PASS


@st.composite
def families_and_rows(draw):
    """Rows of few different bits, so that they nest, touch and repeat."""
    rows = []
    for _ in range(draw(st.integers(0, 12))):
        bits = draw(st.sampled_from([IPV4_BITS, IPV6_BITS]))
        # Few lengths and few high bits, around the places where an IPv6 address is cut in two.
        lengths = [0, 1, 2, 3, 4, bits - 2, bits - 1, bits] + ([62, 63, 64, 65, 66] if bits == 128 else [])
        length = draw(st.sampled_from(lengths))
        top, middle, low = (draw(st.integers(0, limit)) for limit in (3, 7, 7))
        number = top << bits - 2 | (middle << 62 if bits == IPV6_BITS else 0) | low
        start = number >> bits - length << bits - length
        rows.append((bits, start, length, draw(st.integers(0, 3))))
    return rows


@given(families_and_rows(), st.data())
def test_the_longest_prefix_decides_whatever_the_nesting(rows, data):
    made = table(*rows)
    for bits in (IPV4_BITS, IPV6_BITS):
        edges = {0, 2**bits - 1, data.draw(st.integers(0, 2**bits - 1))}
        for family, start, length, _ in rows:
            if family == bits:
                edges |= {start, start - 1, start + 2 ** (bits - length) - 1, start + 2 ** (bits - length)}
        for number in edges:
            if 0 <= number < 2**bits:
                assert made.verdict(ADDRESS[bits](number)) == naive(rows, bits, number), hex(number)


@given(st.permutations([ALLOWED, TRUSTED, FIRST_REFUSAL, FIRST_REFUSAL + 1]), st.integers(1, 4))
def test_of_one_network_the_first_refusal_stands_then_trust_whatever_the_order(order, count):
    rows = [(IPV4_BITS, 0x0A000000, 8, index) for index in order[:count]]
    expected = naive(rows, IPV4_BITS, 0x0A000001)
    assert table(*rows).verdict(IPv4Address("10.0.0.1")) == expected
    refusals = [index for index in order[:count] if index >= FIRST_REFUSAL]
    assert expected == VERDICTS[min(refusals) if refusals else max(order[:count])]


def test_an_empty_table_passes_everybody():
    for address in (IPv4Address(0), IPv6Address(0), IPv6Address(2**128 - 1)):
        assert table().verdict(address) is PASS


def test_ten_thousand_networks_out_of_order_are_all_found():
    # More than are sorted in one run.
    starts = [number * 7919 % 65536 << 16 for number in range(10_000)]
    made = table(*((IPV4_BITS, start, 17, FIRST_REFUSAL) for start in starts))
    for start in starts:
        assert made.verdict(IPv4Address(start)) == REFUSALS[0]
        assert made.verdict(IPv4Address(start + 0x7FFF)) == REFUSALS[0]
        assert made.verdict(IPv4Address(start + 0x8000)) is PASS


def test_equal_verdicts_are_held_once():
    builder = TableBuilder()
    assert builder.index(refuse()) == builder.index(refuse()) == FIRST_REFUSAL
    assert builder.index(refuse(Reply(521, "5.7.1", ("no",)))) == FIRST_REFUSAL + 1


def test_neighbours_of_one_verdict_take_no_more_than_one_of_them():
    alone = table((IPV4_BITS, 0, 8, TRUSTED))
    together = table(*((IPV4_BITS, number << 8, 24, TRUSTED) for number in range(65536)))
    assert len(together._ipv4._starts) == len(alone._ipv4._starts) == 2


def test_long_work_is_interrupted():
    rests = []
    builder = TableBuilder()
    for number in range(10_000):
        builder.add(IPV4_BITS, number << 16, 32, TRUSTED)
    builder.build(lambda: rests.append(1))
    assert len(rests) > 10_000 // 500
