"""The lines of Dovecot's authentication protocol."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.checkers.dovecotlines import (
    Answer,
    ProtocolError,
    auth_line,
    cancel_line,
    cont_line,
    escaped,
    hello,
    parse_answer,
    parse_mechanism,
    unescaped,
)
from twisted_smtpguard.values import LoginClient, Peer


def client(tls: str = "", **values: Any) -> LoginClient:
    peer = {
        "address": ip_address("192.0.2.1"),
        "port": 5,
        "local_address": ip_address("::1"),
        "local_port": 25,
    }
    return LoginClient(Peer(**{**peer, **values}), "s-1", tls)


def test_a_request_says_who_logs_in_and_has_the_response_last() -> None:
    assert auth_line(7, "PLAIN", client("TLSv1.3 X"), b"\0a\0b") == (
        b"AUTH\t7\tPLAIN\tservice=smtp\tnologin\tsession=s-1\tlip=::1\trip=192.0.2.1\tlport=25\trport=5\tsecured\t"
        b"resp=AGEAYg==\n"
    )


def test_what_is_not_known_of_a_client_is_not_said() -> None:
    nobody = client(address=None, port=None, local_address=None, local_port=None)
    assert auth_line(1, "SCRAM-SHA-256", nobody, None) == (
        b"AUTH\t1\tSCRAM-SHA-256\tservice=smtp\tnologin\tsession=s-1\n"
    )
    assert auth_line(1, "PLAIN", nobody, b"").endswith(b"\tresp=\n")


def test_the_name_in_a_certificate_cannot_forge_a_word_or_a_line() -> None:
    line = auth_line(1, "EXTERNAL", client(), b"", "a\tnologin\nAUTH\0\x01\r")
    assert b"\tvalid-client-cert\tcert_username=a\x01tnologin\x01nAUTH\x010\x011\x01r\tresp=" in line
    assert line.count(b"\n") == 1


def test_the_other_lines() -> None:
    assert hello().startswith(b"VERSION\t1\t2\nCPID\t")
    assert cont_line(7, b"\xff") == b"CONT\t7\t/w==\n"
    assert cont_line(7, b"") == b"CONT\t7\t\n"
    assert cancel_line(7) == b"CANCEL\t7\n"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["PLAIN", "plaintext"], "PLAIN"),
        (["scram-sha-256", "mutual-auth"], "SCRAM-SHA-256"),
        (["ANONYMOUS", "anonymous"], ""),
        (["DOVECOT-TOKEN", "private"], ""),
        ([], ""),
        (["SCRAM-SHA-256-PLUS"], ""),
        (["scram-sha-256-plus", "mutual-auth"], ""),
        (["PLAIN\r"], ""),
        (["X 250 OK"], ""),
        (["\x00"], ""),
        (["\u00df"], ""),
        (["X" * 21], ""),
    ],
)
def test_a_mechanism_is_offered_unless_nobody_could_be_told_apart_by_it(words: list[str], name: str) -> None:
    assert parse_mechanism(words) == name


def test_answers_are_read() -> None:
    assert parse_answer("OK", ["7", "user=ann\x01t", "nologin", "resp=eA=="]) == Answer(
        "OK", 7, {"user": "ann\t", "nologin": "", "resp": "eA=="}, b"x"
    )
    assert parse_answer("FAIL", ["7", "user=ann", "temp"]) == Answer("FAIL", 7, {"user": "ann", "temp": ""})
    assert parse_answer("CONT", ["7", "eA=="]) == Answer("CONT", 7, {}, b"x")
    assert parse_answer("CONT", ["7"]) == parse_answer("CONT", ["7", ""]) == Answer("CONT", 7, {}, b"")


@pytest.mark.parametrize("words", [[], [""], ["x"], ["-1"], ["\u0663"], ["1" * 5000], ["7", "!"], ["7", "a"]])
def test_what_is_no_answer_breaks_the_protocol(words: list[str]) -> None:
    with pytest.raises(ProtocolError):
        parse_answer("CONT", words)


@given(st.text())
def test_any_text_survives_its_escapes(text: str) -> None:
    assert unescaped(escaped(text)) == text
    assert not set(escaped(text)) & set("\0\t\r\n")
