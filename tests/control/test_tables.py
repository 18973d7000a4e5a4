"""What people see: tables that fit a terminal, and nothing that a terminal would carry out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.control.tables import as_line, cell, pairs, shown, table

ROWS: list[dict[str, Any]] = [
    {"id": "7f3a01", "client": "192.0.2.1", "helo": "mx.client.example", "tls": "", "messages": 3},
    {"id": "7f3a02", "client": "2001:db8::1", "helo": "x", "tls": "TLSv1.3", "messages": 12},
]


def test_a_table_has_a_heading_and_numbers_to_the_right() -> None:
    assert list(table(ROWS)) == [
        "ID      CLIENT       HELO               TLS      MESSAGES",
        "7f3a01  192.0.2.1    mx.client.example  -               3",
        "7f3a02  2001:db8::1  x                  TLSv1.3        12",
    ]


def test_a_table_fits_the_terminal_by_its_widest_columns() -> None:
    lines = list(table(ROWS, 50))
    assert max(map(len, lines)) == 50
    assert lines[1] == "7f3a01  192.0.2.1   mx.clien...  -               3"


def test_a_terminal_that_is_too_narrow_for_any_table_gets_short_columns() -> None:
    assert list(table(ROWS, 1))[1] == "7f3a01  192...  mx....  -            3"


def test_there_is_no_table_without_rows() -> None:
    assert list(table([])) == []
    assert list(shown({}, [], 80)) == []


def test_an_object_is_shown_with_the_objects_in_it_indented() -> None:
    answer = {"state": "listening", "max_connections": 0, "refusals": {"max_errors": 2, "empty": {}}}
    assert list(pairs(answer)) == [
        "state            listening",
        "max connections  0",
        "refusals",
        "  max_errors     2",
        "  empty          -",
    ]


def test_rows_and_commands_in_an_object_are_shown_below_their_name() -> None:
    answer = {
        "outcome": "refused",
        "rules": [{"network": "192.0.2.1", "what": "deny"}, {"network": "2001:db8::/32", "what": "trust"}],
        "would_help": ["smtpguardctl remove 192.0.2.1"],
        "demands": ["tls", "auth"],
    }
    assert list(pairs(answer)) == [
        "outcome  refused",
        "rules",
        "  NETWORK        WHAT",
        "  192.0.2.1      deny",
        "  2001:db8::/32  trust",
        "would help",
        "  smtpguardctl remove 192.0.2.1",
        "demands  tls, auth",
    ]
    assert list(pairs(answer, 18))[2:5] == [
        "  NETWORK    WHAT",
        "  192.0.2.1  deny",
        "  2001:d...  trust",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        ([], "-"),
        (["a", 1], "a, 1"),
        ({}, "-"),
    ],
)
def test_each_kind_of_value_has_its_text(value: object, text: str) -> None:
    assert cell(value) == text


_ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(max_size=9), _ANYTHING, max_size=4), max_size=4), st.integers(0, 90))
def test_a_terminal_is_sent_printable_ascii_only(rows: list[dict[str, Any]], width: int) -> None:
    for row in rows:
        for line in (*shown(row, rows, width), as_line(row)):
            assert line.isascii()
            assert line.isprintable()


def test_what_a_client_says_moves_no_cursor_and_turns_no_line() -> None:
    (_, line) = table([{"helo": "\x1b[2J\u202e\r\n\x9b31m"}])
    assert line == "\\x1b[2J\\u202e\\x0d\\x0a\\x9b31m"
