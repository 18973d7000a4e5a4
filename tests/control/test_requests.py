"""The lines of the control protocol: what is a request, and what is said of everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.control.requests import Request, RequestError, line_of, parse_request, request_line


def test_a_request_has_a_verb_arguments_and_an_id() -> None:
    line = b'{"version": 1, "id": "a7", "verb": "end", "args": {"session": "7f3a01"}}'
    assert parse_request(line) == Request("end", {"session": "7f3a01"}, "a7")
    assert parse_request(request_line("status", {})) == Request("status", {})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "a line of JSON such as"),
        (b"status", "a line of JSON such as"),
        (b"[" * 60_000, "a line of JSON such as"),
        (b'{"version": 1' + b"9" * 60_000 + b"}", "a line of JSON such as"),
        (b"\xff\xfe", "a line of JSON such as"),
        (b"[]", "an object of JSON is expected"),
        (b"{}", "version must be 1"),
        (b'{"version": 2, "verb": "status"}', "version must be 1"),
        (b'{"version": 1}', "verb must be a text"),
        (b'{"version": 1, "verb": ["status"]}', "verb must be a text"),
        (b'{"version": 1, "verb": "status", "args": []}', "args must be an object"),
        (b'{"version": 1, "verb": "status", "id": {}}', "id must be a number or a text"),
        (b'{"version": 1, "verb": "status", "id": "%s"}' % (b"a" * 65), "id must be a number or a text"),
        (b'{"version": 1, "verb": "status", "argument": "a"}', "a request has no field 'argument'"),
    ],
)
def test_anything_else_is_told_in_a_sentence(line: bytes, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        parse_request(line)


def test_a_request_of_another_version_is_answered_by_its_id() -> None:
    with pytest.raises(RequestError) as told:
        parse_request(b'{"version": 2, "id": 9}')
    assert told.value.id == 9


@given(st.binary(max_size=300))
def test_no_line_is_anything_but_a_request_or_a_mistake(line: bytes) -> None:
    try:
        parse_request(line)
    except RequestError as error:
        assert str(error)


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_a_line_is_printable_ascii_with_one_lf_at_its_end(value: dict[str, Any]) -> None:
    line = line_of(value)
    assert line.count(b"\n") == 1
    assert line[:-1].decode("ascii").isprintable()
    assert json.loads(line) == value
