"""Limits: how each value is read, checked and shown, and that the reference page tells the truth."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_pages import assert_rows

from twisted_smtpguard.limits import (
    Limits,
    LimitSpec,
    format_octets,
    parse_count,
    parse_flag,
    parse_octets,
    parse_seconds,
)
from twisted_smtpguard.smtp import replies

SPECS = list(Limits.specs())
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)

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


@pytest.mark.parametrize("text", [*NO_NUMBER, "1.5M", "10MB", "10 M", "M", "1T", "1kk", "9" * 19])
def test_nothing_else_is_a_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a size such as 10M, 64k or 10485760 is expected$"):
        parse_octets(text)


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
    ("field", "value", "problem"),
    [
        ("max_connections", -1, "must be 0 or more"),
        ("max_connections", 1.0, "must be a whole number"),
        ("max_connections", True, "must be a number"),
        ("max_connections", "20", "must be a number"),
        ("max_connections", None, "must be a number"),
        ("max_message_size", 0.5, "must be a whole number"),
        ("min_data_rate", -500, "must be 0 or more"),
        ("read_timeout", -0.1, "must be 0 or more"),
        ("read_timeout", float("inf"), "must be 0 or more"),
        ("read_timeout", float("nan"), "must be 0 or more"),
        ("read_timeout", "5m", "must be a number"),
        ("bare_newline", "Reject", "must be one of reject, normalize"),
        ("strict_enhanced_codes", 1, "must be True or False"),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(
    field: str, value: object, problem: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        Limits(**{field: value})
    assert str(refusal.value) == f"{field} {problem}, not {value!r}"


def test_a_limit_is_changed_by_its_name_and_the_others_keep_their_defaults() -> None:
    changed = attrs.asdict(Limits(max_connections=500))
    assert changed == {**attrs.asdict(Limits()), "max_connections": 500}


def test_limits_are_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Limits().max_connections = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_connections", 0),
        ("max_invalid_commands", 10),
        ("max_errors", 0),
        ("max_junk_commands", 0),
        ("max_recipients", 100),
        ("strict_enhanced_codes", False),
        ("max_rejected_recipients", 0),
        ("max_messages", 0),
        ("max_command_line", 2048),
        ("max_endless_line", 65536),
        ("max_message_size", 10 * 1024 * 1024),
        ("bare_newline", "reject"),
        ("max_header_size", 256 * 1024),
        ("max_received_fields", 100),
        ("read_timeout", 300),
        ("write_timeout", 300),
        ("min_data_rate", 0),
        ("max_session_time", 0),
        ("delivery_timeout", 300),
        ("max_lingering", 1024),
        ("shutdown_grace", 30),
        ("max_log_lines", 200),
        ("max_log_lines_per_client", 10),
    ],
)
def test_the_defaults_are_those_of_the_base_profile(field: str, value: object) -> None:
    assert getattr(Limits(), field) == value


@each_spec
def test_every_limit_explains_itself(spec: LimitSpec) -> None:
    assert spec.help.endswith(".")
    assert spec.help[0].isupper()
    assert spec.unit.name
    assert spec.option == spec.name.replace("_", "-")


@each_spec
def test_every_reply_that_a_limit_names_is_in_the_catalogue(spec: LimitSpec) -> None:
    assert set(spec.replies) <= {entry.name for entry in replies.catalogue()}


@each_spec
def test_the_default_that_is_shown_reads_back_as_the_default(spec: LimitSpec) -> None:
    assert spec.unit.parse(spec.unit.format(spec.default)) == spec.default


def row(spec: LimitSpec) -> str:
    """The line of docs/reference/limits.md that is true of `spec`."""

    def text(name: str) -> str:
        reply: Any = getattr(replies, name)
        return f"`{reply.code} {reply.enhanced} {reply.lines[0]}`"

    answer = "<br>".join(map(text, spec.replies)) or "none"
    default = spec.unit.format(spec.default)
    return f"| `--{spec.option}` | {default} | {spec.unit.name} | {spec.help} | {answer} |"


def test_the_reference_page_has_exactly_the_rows_that_are_true() -> None:
    assert_rows("limits.md", "| `--", map(row, SPECS))
