"""PLAIN and LOGIN, each as the pure exchange that it is."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard import replies
from twisted_smtpguard.engine.sasl import (
    MECHANISMS,
    Login,
    claimed_user,
    decode_initial,
    decode_response,
    parse_auth,
)
from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.replies import Reply


def outcome(mechanism: str, initial: bytes | None, *responses: bytes) -> Login | list[bytes] | Reply:
    """What it comes to; the challenges so far where more is expected."""
    challenges = []
    try:
        exchange = MECHANISMS[mechanism](initial)
        challenges.append(next(exchange))
        for response in responses:
            challenges.append(exchange.send(response))
    except StopIteration as end:
        login: Login = end.value
        return login
    except Refused as refused:
        return refused.reply
    return challenges


@pytest.mark.parametrize(
    ("initial", "responses"),
    [(b"\0ann\0secret", ()), (None, (b"\0ann\0secret",))],
    ids=["initial", "asked for"],
)
def test_plain_takes_its_message_with_the_command_or_after_it(
    initial: bytes, responses: tuple[bytes]
) -> None:
    assert outcome("PLAIN", initial, *responses) == Login(b"ann", b"secret")


def test_plain_may_name_another_user_to_act_for() -> None:
    assert outcome("PLAIN", b"bob\0ann\0secret") == Login(b"ann", b"secret", b"bob")


def test_login_asks_for_the_name_and_then_for_the_password() -> None:
    assert outcome("LOGIN", None) == [b"Username:"]
    assert outcome("LOGIN", None, b"ann") == [b"Username:", b"Password:"]
    assert outcome("LOGIN", None, b"ann", b"secret") == Login(b"ann", b"secret")


def test_login_takes_the_name_with_the_command_too() -> None:
    assert outcome("LOGIN", b"ann", b"secret") == Login(b"ann", b"secret")
    assert outcome("LOGIN", b"", b"") == Login(b"", b"")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"ann",
        b"\0ann",
        b"ann\0secret",
        b"\0ann\0secret\0",
        b"\0\0\0\0",
    ],
)
def test_what_is_no_message_of_plain_is_refused(message: bytes) -> None:
    assert outcome("PLAIN", message) == replies.BAD_AUTH_RESPONSE


def test_what_is_no_name_or_no_password_is_refused_by_login() -> None:
    assert outcome("LOGIN", b"an\0n", b"secret") == replies.BAD_AUTH_RESPONSE
    assert outcome("LOGIN", b"ann", b"sec\0ret") == replies.BAD_AUTH_RESPONSE


def test_octets_that_are_no_utf8_are_credentials_all_the_same() -> None:
    assert outcome("PLAIN", b"\0j\xf6rg\0p\xe4ss") == Login(b"j\xf6rg", b"p\xe4ss")
    assert outcome("PLAIN", b"\xff\0a\0b") == Login(b"a", b"b", b"\xff")
    assert outcome("LOGIN", None, b"j\xf6rg", b"p\xe4ss") == Login(b"j\xf6rg", b"p\xe4ss")


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(Login(b"ann", b"secret"))


# Lines.


@pytest.mark.parametrize(
    ("argument", "parsed"),
    [
        (b"PLAIN", ("PLAIN", None)),
        (b"plain", ("PLAIN", None)),
        (b"PLAIN =", ("PLAIN", b"=")),
        (b"LOGIN \t YW5u", ("LOGIN", b"YW5u")),
        (b"SCRAM-SHA-256 x", ("SCRAM-SHA-256", b"x")),
    ],
)
def test_the_command_has_a_mechanism_and_perhaps_a_response(
    argument: bytes, parsed: tuple[str, bytes]
) -> None:
    assert parse_auth(argument) == parsed


@pytest.mark.parametrize("argument", [b"", b"PLAIN a b", b"PLA!N", b"M" * 21, b"\xc4"])
def test_anything_else_is_malformed(argument: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        parse_auth(argument)
    assert refusal.value.reply is replies.BAD_ARGUMENTS


@given(st.binary(max_size=100))
def test_base64_reads_back(octets: bytes) -> None:
    assert decode_response(b64encode(octets)) == octets
    assert decode_initial(b64encode(octets) or b"=") == octets


@pytest.mark.parametrize(
    "line",
    [b"=", b"A", b"AB", b"AB=", b"ABC", b"A===", b"AB==AB==", b"AB C", b"AB-_", b"ABCD\n", b"AB CD", b"\xff"],
)
def test_what_is_not_strictly_base64_is_refused(line: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        decode_response(line)
    assert refusal.value.reply is replies.BAD_AUTH_RESPONSE


@pytest.mark.parametrize("line", [b" YW5u", b"YW5u ", b"\t YW5u \t"])
def test_blanks_at_either_end_of_a_response_are_ignored(line: bytes) -> None:
    assert decode_response(line) == b"ann"
    with pytest.raises(Refused) as refusal:
        decode_response(b" * ")
    assert refusal.value.reply is replies.AUTH_CANCELLED


def test_a_star_cancels_but_not_in_the_command() -> None:
    with pytest.raises(Refused) as refusal:
        decode_response(b"*")
    assert refusal.value.reply is replies.AUTH_CANCELLED
    with pytest.raises(Refused) as refusal:
        decode_initial(b"*")
    assert refusal.value.reply is replies.BAD_AUTH_RESPONSE


@pytest.mark.parametrize(
    ("mechanism", "response", "user"),
    [
        ("SCRAM-SHA-256", b"n,,n=ann,r=fyko", b"ann"),
        ("SCRAM-SHA-1", b"y,a=bob,n=a=2Cn=3Dn,r=x", b"a,n=n"),
        ("SCRAM-SHA-256", b"p=tls-unique,,n=ann,r=x", b"ann"),
        ("SCRAM-SHA-256", b"c=biws,r=x,p=y", b""),
        ("OAUTHBEARER", b"n,a=ann@example.org,\1host=x\1auth=Bearer t\1\1", b"ann@example.org"),
        ("OAUTHBEARER", b"n,,\1auth=Bearer t\1\1", b""),
        ("XOAUTH2", b"user=ann@example.org\1auth=Bearer t\1\1", b"ann@example.org"),
        ("EXTERNAL", b"ann", b"ann"),
        ("EXTERNAL", b"", b""),
        ("EXTERNAL", None, b""),
        ("X-OTHER", b"n,,n=ann,r=x", b""),
        ("SCRAM-SHA-256", b"n,,n=" + b"a" * 5000 + b",r=x", b""),
    ],
)
def test_who_wants_to_log_in_is_found_in_the_messages_of_other_mechanisms(
    mechanism: str, response: bytes | None, user: bytes
) -> None:
    assert claimed_user(mechanism, response) == user
