"""How each kind of value is read and shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.limits.units import (
    FACTOR,
    NO_RATE,
    Rate,
    format_octets,
    octets_up_to,
    parse_count,
    parse_flag,
    parse_octets,
    parse_rate,
    parse_seconds,
    prefix_length,
    prefix_lengths,
)

NO_NUMBER = [
    "",
    " ",
    "abc",
    "-1",
    "+1",
    " 1",
    "1 ",
    "1\n",
    "1_000",
    "1,000",
    "0x10",
    "1e3",
    "\u0663",
    "nan",
    "inf",
]


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("20", 20), ("007", 7), ("9" * 18, 10**18 - 1)])
def test_a_count_is_a_whole_number(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", [*NO_NUMBER, "1.5", "10k", "9" * 19, "9" * 100_000])
def test_nothing_else_is_a_count(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a whole number such as 20 is expected$"):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("0", 0),
        ("10485760", 10 * 1024**2),
        ("10M", 10 * 1024**2),
        ("10m", 10 * 1024**2),
        ("64k", 64 * 1024),
        ("64K", 64 * 1024),
        ("1G", 1024**3),
        ("1g", 1024**3),
    ],
)
def test_k_m_and_g_are_powers_of_1024(text: str, octets: int) -> None:
    assert parse_octets(text) == octets


@pytest.mark.parametrize("text", [*NO_NUMBER, "1.5M", "10B", "10 MB", "10 M", "M", "1T", "1kk", "9" * 19])
def test_nothing_else_is_a_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a size such as 10M, 64k or 10485760 is expected$"):
        parse_octets(text)


def test_a_size_that_the_system_bounds_is_not_above_that() -> None:
    unit = octets_up_to(1024**3)
    assert (unit.parse("1G"), unit.check(1024**3)) == (1024**3, None)
    with pytest.raises(ValueError, match=r"^a size of at most 1G is expected$"):
        unit.parse("1048577k")
    assert unit.check(1024**3 + 1) == "must be at most 1073741824"
    assert unit.check("1") == "must be a number"


@given(st.integers(min_value=0, max_value=10**17))
def test_a_size_that_is_shown_reads_back_as_itself(octets: int) -> None:
    assert parse_octets(format_octets(octets)) == octets


@pytest.mark.parametrize(
    ("octets", "shown"),
    [(0, "0"), (1000, "1000"), (1024, "1k"), (1536, "1536"), (10 * 1024**2, "10M"), (1024**3, "1G")],
)
def test_a_size_is_shown_as_short_as_it_can_be(octets: int, shown: str) -> None:
    assert format_octets(octets) == shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("300", 300),
        ("1.5", 1.5),
        ("30s", 30),
        ("5m", 300),
        ("1.5m", 90),
        ("2h", 7200),
        ("1d", 86400),
    ],
)
def test_a_time_is_seconds_unless_a_letter_says_otherwise(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", [*NO_NUMBER, ".5", "5.", "1.5.5", "5M", "5ms", "5 m", "m", "9" * 10])
def test_nothing_else_is_a_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a time such as 300, 1\.5 or 5m is expected$"):
        parse_seconds(text)


def test_whole_seconds_are_shown_without_a_fraction() -> None:
    assert str(parse_seconds("5m")) == "300"


@pytest.mark.parametrize("text", ["yes", "true", "on", "1", "YES"])
def test_a_flag_is_switched_on(text: str) -> None:
    assert parse_flag(text) is True


@pytest.mark.parametrize("text", ["no", "false", "off", "0", "No"])
def test_a_flag_is_switched_off(text: str) -> None:
    assert parse_flag(text) is False


@pytest.mark.parametrize("text", ["", "2", "maybe", "yes "])
def test_nothing_else_is_a_flag(text: str) -> None:
    with pytest.raises(ValueError, match=r"^yes or no is expected$"):
        parse_flag(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("60/60", Rate(60, 60)),
        ("600/1h", Rate(600, 3600)),
        ("1/0.5", Rate(1, 0.5)),
        ("0", NO_RATE),
        ("0/60", NO_RATE),
    ],
)
def test_a_rate_is_events_in_seconds(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "60", "60/", "/60", "60/0", "-1/60", "60/60/60", "60 / 60", "a/b", "60/-1"]
)
def test_nothing_else_is_a_rate(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^a rate such as 60/60, which is 60 in 60 seconds, or 0 is expected$"
    ):
        parse_rate(text)


@pytest.mark.parametrize("rate", [NO_RATE, Rate(60, 60), Rate(5, 0.5)])
def test_a_rate_that_is_shown_reads_back_as_itself(rate: Rate) -> None:
    assert parse_rate(str(rate)) == rate


@pytest.mark.parametrize("text", ["1", "24", "32"])
def test_a_prefix_length_counts_leading_bits(text: str) -> None:
    assert prefix_length(32).parse(text) == int(text)


@pytest.mark.parametrize("text", ["", "0", "33", "-1", "8.0", "/24", "1000"])
def test_nothing_else_is_a_prefix_length(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a prefix length from 1 to 32 is expected$"):
        prefix_length(32).parse(text)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("0", ()),
        ("24", (24,)),
        ("56,48", (56, 48)),
        ("56, 48", (56, 48)),
        ("127,64,48,1", (127, 64, 48, 1)),
    ],
)
def test_prefix_lengths_stand_with_commas_between_them_and_0_is_none(
    text: str, lengths: tuple[int, ...]
) -> None:
    unit = prefix_lengths(127, "56,48")
    assert unit.parse(text) == lengths
    assert unit.parse(unit.format(lengths)) == lengths


@pytest.mark.parametrize(
    "text", ["", "48,56", "48,48", "128", "64,0", "0,0", "/48", "48,", "-1", "9999", "5,4,3,2,1", "48 32"]
)
def test_nothing_else_is_prefix_lengths(text: str) -> None:
    expected = "at most 4 prefix lengths from 1 to 127, each below the one before, such as 56,48, or 0 is"
    with pytest.raises(ValueError, match=rf"^{expected} expected$"):
        prefix_lengths(127, "56,48").parse(text)


@pytest.mark.parametrize("text", ["1", "3", "1000"])
def test_a_factor_is_a_whole_number_and_at_least_1(text: str) -> None:
    assert FACTOR.parse(text) == int(text)


@pytest.mark.parametrize("text", ["", "0", "1001", "1.5", "-1", "3x", "9" * 5000])
def test_nothing_else_is_a_factor(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a whole number from 1 to 1000 is expected$"):
        FACTOR.parse(text)
