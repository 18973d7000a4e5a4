"""Lines of a password file: what is a user and a password, and what is refused by its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.checkers.passwordlines import parse_users


@pytest.mark.parametrize(
    ("line", "password"),
    [
        (b"bob:with:colon", b"with:colon"),
        (b"bob:pw ", b"pw "),
        (b"bob: pw\t", b" pw\t"),
        (b"bob: ", b" "),
        (b"bob::", b":"),
        (b"bob:#pw", b"#pw"),
        (b"bob:p\xc3\xa4ss", b"p\xc3\xa4ss"),
        (b"bob:p\xe4ss", b"p\xe4ss"),
        (b"bob:$5 a pint", b"$5 a pint"),
        (b"bob:{curly}", b"{curly}"),
        (b"bob:x", b"x"),
        (b"bob:pw\r", b"pw"),
    ],
)
def test_all_after_the_first_colon_is_the_password_octet_for_octet(line: bytes, password: bytes) -> None:
    for file in (line, line + b"\n", b"\xef\xbb\xbf" + line, b"\n# a comment\n \r\n" + line + b"\n\n"):
        assert parse_users(file) == {b"bob": password}


@given(st.binary(min_size=1).map(lambda octets: octets.translate(None, b"\0\r\n")).filter(bool))
def test_a_password_may_have_any_octet_but_nul_and_line_ends(password: bytes) -> None:
    try:
        assert parse_users(b"ann:a\nbob:" + password + b"\r\n") == {b"ann": b"a", b"bob": password}
    except ValueError as error:
        assert "hash" in str(error) or "/etc/passwd" in str(error)


def test_the_first_user_may_follow_a_byte_order_mark() -> None:
    assert list(parse_users(b"\xef\xbb\xbfann:a\nj\xc3\xb6rg:b\n")) == [b"ann", "jörg".encode()]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"secret", "there is no colon"),
        (b":secret", "there is no user before the colon"),
        (b"bob:", "there is no password after the colon"),
        (b"bob:\r", "there is no password after the colon"),
        (b"bob :secret", "there is a blank before or after the user's name"),
        (b" bob:secret", "there is a blank before or after the user's name"),
        (b"b\tob:secret", "there is a control character in the user's name"),
        (b"b\xf6b:secret", "the user's name is not UTF-8"),
        (b"bob:sec\0ret", "there is a NUL in the password, as in a file of UTF-16"),
        (b"bob:secret\r\r", "there is a CR in the password"),
        (b"bob:$6$secretsalt$secrethash", "this is a hash, while passwords must be in clear"),
        (b"bob:$2y$05$secretsecretsecret", "this is a hash, while passwords must be in clear"),
        (b"bob:{SSHA}secretsecret", "this is a hash, while passwords must be in clear"),
        (b"bob:$6$secretsalt$secrethash:19000:0:::::", "this is a hash, while passwords must be in clear"),
        (
            b"bob:x:1000:1000:secret:/home/bob:/bin/sh",
            "this is a line of /etc/passwd, which has no passwords",
        ),
    ],
)
def test_what_cannot_be_a_line_is_told_by_its_number_without_a_password(line: bytes, problem: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_users(b"ann:a\n\n" + line + b"\ncarl:c\n")
    assert str(error.value).startswith("line 3: a line `user:password` is expected, and ")
    assert problem in str(error.value)
    assert "secret" not in str(error.value)


def test_two_lines_for_one_user_and_a_file_without_users_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^line 3: the user 'bob' is on line 1 already$"):
        parse_users(b"bob:a\nann:b\nbob:c\n")
    for octets in (b"", b"\xef\xbb\xbf", b"\n# nobody\n"):
        with pytest.raises(ValueError, match=r"^there is no user in it$"):
            parse_users(octets)


@pytest.mark.parametrize("octets", ["bob:pw\n".encode("utf-16"), "bob:pw\n".encode("utf-16-le")])
def test_a_file_in_another_encoding_is_refused(octets: bytes) -> None:
    with pytest.raises(ValueError, match=r"^line 1: "):
        parse_users(octets)


def test_the_interpreter_is_given_away_between_pieces_of_a_long_file() -> None:
    rests: list[None] = []
    parse_users(b"".join(b"user%d:pw\n" % number for number in range(1000)), lambda: rests.append(None))
    assert len(rests) == 3
