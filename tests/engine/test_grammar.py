"""What a command line may say. Tables: what is accepted and as what, what is refused and how."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard import replies
from twisted_smtpguard.engine.grammar import (
    NO_PARAMETERS,
    is_not_smtp,
    parse_bdat,
    parse_command,
    parse_hello,
    parse_mail,
    parse_rcpt,
    plain_line,
)
from twisted_smtpguard.interfaces import Path, Refused
from twisted_smtpguard.replies import Reply

NOTHING: frozenset[str] = frozenset()
OFFERED = frozenset({"SIZE", "BODY", "SMTPUTF8"})
BINARY = OFFERED | {"BINARYMIME"}
LABEL = b"l" * 63


def refusal(call: Callable[[], object]) -> Reply:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.reply


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        (b"QUIT", (b"QUIT", b"")),
        (b"quit", (b"QUIT", b"")),
        (b"QuIt \t ", (b"QUIT", b"")),
        (b"MAIL FROM:<a@b> SIZE=1", (b"MAIL", b"FROM:<a@b> SIZE=1")),
        (b"mail  \t FROM:<A@b>\t", (b"MAIL", b"FROM:<A@b>")),
        (b"NOOP\ta\tb  c", (b"NOOP", b"a\tb  c")),
        (b"NOOP\t a", (b"NOOP", b"a")),
        (b"NOOP a\xff", (b"NOOP", b"a\xff")),
        (b"NO\x01P a", (b"NO\x01P", b"a")),
        (b"NOOP\x0ba\x0b", (b"NOOP\x0bA\x0b", b"")),
    ],
)
def test_a_command_is_its_verb_in_upper_case_and_its_argument_as_sent(
    line: bytes, parsed: tuple[bytes, bytes]
) -> None:
    assert parse_command(line) == parsed


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"\t \t",
        b" QUIT",
        b"\tQUIT",
        b"NO\0P",
        b"NOOP \0",
        b"\0",
        b"NOOP a\0b",
        b"NO\xc3\x96P",
        b"\xff",
    ],
)
def test_an_empty_line_a_nul_and_an_8_bit_verb_are_a_syntax_error(line: bytes) -> None:
    assert refusal(lambda: parse_command(line)) == replies.SYNTAX_ERROR


@given(st.binary())
def test_every_line_is_a_command_or_a_syntax_error(line: bytes) -> None:
    try:
        verb, argument = parse_command(line)
    except Refused as refused:
        assert refused.reply == replies.SYNTAX_ERROR
    else:
        assert verb and verb == verb.upper() and not {b" ", b"\t"} & {verb[:1], verb[-1:]}
        assert argument == argument.strip(b" \t")


@pytest.mark.parametrize(
    "argument", [b"a", b"host_name", b"[127.0.0.1]", b"[IPv6:::1]", b"mail.example.org.", b"-", b"x" * 255]
)
def test_hello_takes_any_one_printable_word(argument: bytes) -> None:
    assert parse_hello(argument) == argument.decode()


@pytest.mark.parametrize(
    "argument", [b"", b"a b", b"a\tb", b"x" * 256, b"a\x7f", b"\x1b[31m", b"a\n", b"h\xc3\xb6st", b"a\0"]
)
def test_hello_refuses_no_word_several_controls_and_8_bit(argument: bytes) -> None:
    assert refusal(lambda: parse_hello(argument)) == replies.BAD_ARGUMENTS


# Addresses that both MAIL and RCPT take, and what the delivery sees of them.
ADDRESSES = [
    (b"<a@b>", "a@b"),
    (b"<user.name+tag@mail.example.com>", "user.name+tag@mail.example.com"),
    (b"<A.b@C.d>", "A.b@C.d"),
    (b" \t<a@b>", "a@b"),
    (b"<!#$%&'*+/=?^_`{|}~-@b>", "!#$%&'*+/=?^_`{|}~-@b"),
    (b"<a@under_score._x.example>", "a@under_score._x.example"),
    (b"<a@3com.1>", "a@3com.1"),
    (b"<a@a-b--c.d>", "a@a-b--c.d"),
    (b"<a@" + LABEL + b">", "a@" + LABEL.decode()),
    (b"<a@" + b".".join([LABEL] * 3 + [b"l" * 63]) + b">", "a@" + ".".join([LABEL.decode()] * 4)),
    (b"<" + b"x" * 300 + b"@b>", "x" * 300 + "@b"),
    (b'<"a b"@c>', '"a b"@c'),
    (b'<""@c>', '""@c'),
    (b'<"a>@\\"\\\\b"@c>', '"a>@\\"\\\\b"@c'),
    (b'<"a"@[1.2.3.4]>', '"a"@[1.2.3.4]'),
    (b"<a@[1.2.3.4]>", "a@[1.2.3.4]"),
    (b"<a@[255.0.099.249]>", "a@[255.0.099.249]"),
    (b"<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]"),
    (b"<a@[ipv6:::ffff:1.2.3.4]>", "a@[ipv6:::ffff:1.2.3.4]"),
    (b"<a@[X-tag:content/!]>", "a@[X-tag:content/!]"),
    (b"<@x:a@b>", "a@b"),
    (b"<@x.y,@z_:a@b>", "a@b"),
]
UTF8_ADDRESSES = [
    ("<jürgen@bücher.example>".encode(), "jürgen@bücher.example"),
    ('<"用 户"@例え.テスト>'.encode(), '"用 户"@例え.テスト'),
    ("<😀@b>".encode(), "😀@b"),
]
BAD_ADDRESSES = [
    b"",
    b" ",
    b"a@b",
    b"<a@b",
    b"a@b>",
    b"<<a@b>>",
    b"<a>",
    b"<@>",
    b"<a@>",
    b"<@b>",
    b"< a@b>",
    b"<a@b >",
    b"<a b@c>",
    b"<a@b@c>",
    b"<a@b,c@d>",
    b"<.a@b>",
    b"<a.@b>",
    b"<a..c@b>",
    b"<a@.b>",
    b"<a@b.>",
    b"<a@b..c>",
    b"<a@-b>",
    b"<a@b->",
    b"<a@b-.c>",
    b"<a@" + LABEL + b"l>",
    b"<a@" + b".".join([LABEL] * 4) + b".l>",
    b"<a@" + b".".join([LABEL] * 3 + [b"l" * 62, b"l"]) + b">",
    "<a@{0}.{0}.{0}>".format("ü" * 45).encode(),
    b"<a@b!c>",
    b"<a\x01@b>",
    b"<a@b\x7f>",
    b"<a\r@b>",
    b"<a\n@b>",
    b'<"a@b>',
    b'<"a"b"@c>',
    b'<"a"b@c>',
    b'<"a\\"@c>',
    b'<"a\x01"@c>',
    b'<"a\n"@c>',
    b'<"a\\\n"@c>',
    b'<"a\\\x01"@c>',
    '<"a\\ü"@c>'.encode(),
    b'<"a\t"@c>',
    b"<a@[]>",
    b"<a@[1.2.3]>",
    b"<a@[1.2.3.4.5]>",
    b"<a@[1.2.3.256]>",
    b"<a@[1.2.3.4.]>",
    b"<a@[1.2.3.0004]>",
    b"<a@[1.2.3.4>",
    b"<a@1.2.3.4]>",
    b"<a@[x]>",
    b"<a@[IPv6:]>",
    b"<a@[IPv6:1.2.3.4]>",
    b"<a@[IPv6:1::2::3]>",
    b"<a@[IPv6:fe80::1%eth0]>",
    b"<a@[IPv6:2001:db8::g]>",
    b"<a@[tag-:x]>",
    b"<a@[tag:]>",
    b"<a@[tag:a\\b]>",
    b"<a@[tag:a b]>",
    b"<@x>",
    b"<@x:>",
    b"<@x,y:a@b>",
    b"<@x,:a@b>",
    b"<@[1.2.3.4]:a@b>",
    b"<@x;a@b>",
    b"<x:a@b>",
    b"<a@b\xff>",
    b"<\xff@b>",
    b"<\xc3@b>",
    b"<\xc0\xaf@b>",
    b"<\xed\xa0\x80@b>",
    b"<\xf4\x90\x80\x80@b>",
    "<a\u0085@b>".encode(),
    "<a\u2028b@b>".encode(),
    '<"a\u009b"@b>'.encode(),
    "<a@[tag:\u00e9]>".encode(),
]


@pytest.mark.parametrize(("text", "address"), ADDRESSES)
def test_an_address_is_kept_as_sent_but_for_its_source_route(text: bytes, address: str) -> None:
    assert parse_mail(b"FROM:" + text, NOTHING) == Path(address, {})
    assert parse_rcpt(b"TO:" + text, NOTHING, False) == Path(address, {})


@pytest.mark.parametrize(("text", "address"), UTF8_ADDRESSES)
def test_an_address_in_utf_8_needs_smtputf8(text: bytes, address: str) -> None:
    assert parse_mail(b"FROM:" + text + b" SMTPUTF8", OFFERED) == Path(address, {"SMTPUTF8": None})
    assert parse_rcpt(b"TO:" + text, NOTHING, True) == Path(address, {})
    assert refusal(lambda: parse_mail(b"FROM:" + text, OFFERED)) == replies.NON_ASCII_ADDRESS
    assert refusal(lambda: parse_rcpt(b"TO:" + text, NOTHING, False)) == replies.NON_ASCII_ADDRESS


def test_a_source_route_in_utf_8_needs_smtputf8_too() -> None:
    text = "TO:<@bücher:a@b>".encode()
    assert refusal(lambda: parse_rcpt(text, NOTHING, False)) == replies.NON_ASCII_ADDRESS
    assert parse_rcpt(text, NOTHING, True).address == "a@b"
    text = "FROM:<@bücher:a@b>".encode()
    assert refusal(lambda: parse_mail(text, OFFERED)) == replies.NON_ASCII_ADDRESS
    assert parse_mail(text + b" SMTPUTF8", OFFERED).address == "a@b"


def test_smtputf8_that_was_not_offered_is_an_unsupported_parameter() -> None:
    text = "FROM:<ü@b> SMTPUTF8".encode()
    assert refusal(lambda: parse_mail(text, frozenset({"SIZE"}))) == replies.UNSUPPORTED_PARAMETER


@pytest.mark.parametrize("text", BAD_ADDRESSES)
def test_a_malformed_address_is_refused_with_or_without_smtputf8(text: bytes) -> None:
    assert refusal(lambda: parse_mail(b"FROM:" + text, OFFERED)) == replies.BAD_SENDER_ADDRESS
    assert refusal(lambda: parse_mail(b"FROM:" + text + b" SMTPUTF8", OFFERED)) == replies.BAD_SENDER_ADDRESS
    for utf8 in (False, True):
        assert (
            refusal(lambda utf8=utf8: parse_rcpt(b"TO:" + text, NOTHING, utf8))
            == replies.BAD_RECIPIENT_ADDRESS
        )


def test_the_null_path_is_a_sender_and_no_recipient() -> None:
    assert parse_mail(b"FROM:<>", NOTHING) == Path("", {})
    assert parse_mail(b"from: <> SIZE=5", OFFERED) == Path("", {"SIZE": "5"})
    assert refusal(lambda: parse_rcpt(b"TO:<>", NOTHING, False)) == replies.BAD_RECIPIENT_ADDRESS


@pytest.mark.parametrize("word", ["Postmaster", "postmaster", "POSTMASTER"])
def test_postmaster_without_a_domain_is_a_recipient_and_no_sender(word: str) -> None:
    text = f"<{word}>".encode()
    assert parse_rcpt(b"TO:" + text, NOTHING, False) == Path(word, {})
    assert refusal(lambda: parse_mail(b"FROM:" + text, NOTHING)) == replies.BAD_SENDER_ADDRESS


@pytest.mark.parametrize("text", ["<postmaster2>", '<"postmaster">', "<@x:postmaster>", "<po\u017ftmaster>"])
def test_no_other_recipient_goes_without_a_domain(text: str) -> None:
    assert refusal(lambda: parse_rcpt(b"TO:" + text.encode(), NOTHING, True)) == replies.BAD_RECIPIENT_ADDRESS


@pytest.mark.parametrize(
    "argument",
    [b"", b"FROM", b"FROM <a@b>", b"FROM :<a@b>", b"<a@b>", b"TO:<a@b>", b"XFROM:<a@b>", b"FRO\xcd:<a@b>"],
)
def test_mail_without_from_is_malformed(argument: bytes) -> None:
    assert refusal(lambda: parse_mail(argument, NOTHING)) == replies.BAD_ARGUMENTS


@pytest.mark.parametrize("argument", [b"", b"TO", b"TO <a@b>", b"<a@b>", b"FROM:<a@b>", b"T:<a@b>"])
def test_rcpt_without_to_is_malformed(argument: bytes) -> None:
    assert refusal(lambda: parse_rcpt(argument, NOTHING, False)) == replies.BAD_ARGUMENTS


@pytest.mark.parametrize("spelling", [b"from:<a@b>", b"From:<a@b>", b"FROM: <a@b>", b"FROM:\t<a@b>"])
def test_from_is_read_in_any_case_and_with_blanks_after_it(spelling: bytes) -> None:
    assert parse_mail(spelling, NOTHING).address == "a@b"


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        (b"", {}),
        (b"  ", {}),
        (b" SIZE=0", {"SIZE": "0"}),
        (b" size=12345678901234567890", {"SIZE": "12345678901234567890"}),
        (b"\tSize=007  \t BODY=8bitmime", {"SIZE": "007", "BODY": "8BITMIME"}),
        (b" BODY=7BIT", {"BODY": "7BIT"}),
        (b" BODY=BinaryMime", {"BODY": "BINARYMIME"}),
        (b" smtputf8 SIZE=1", {"SMTPUTF8": None, "SIZE": "1"}),
    ],
)
def test_parameters_are_read_in_any_case_and_order(text: bytes, parameters: dict[str, str | None]) -> None:
    assert parse_mail(b"FROM:<a@b>" + text, BINARY) == Path("a@b", parameters)


@pytest.mark.parametrize(
    "text",
    [
        b"SIZE=1",
        b"x",
        b">",
        b" =",
        b" =1",
        b" -SIZE=1",
        b" SI_ZE=1",
        b" SIZE",
        b" SIZE=",
        b" SIZE=a",
        b" SIZE=-1",
        b" SIZE=+1",
        b" SIZE=1_0",
        b" SIZE=1=1",
        b" SIZE=123456789012345678901",
        " SIZE=\u0663".encode(),
        b" SIZE=\xff",
        b" SIZE=1\x01",
        b" SIZE=1\x0bBODY=7BIT",
        b" SIZE=1\nBODY=7BIT",
        b" SIZE=1\x1cBODY=7BIT",
        " SIZE=1\u2003BODY=7BIT".encode(),
        b" SIZE=1 size=1",
        b" SIZE=1 SIZE=2",
        b" BODY=7BIT BODY=8BITMIME",
        b" BODY",
        b" BODY=",
        b" BODY=9BIT",
        b" BODY=BINARYMIME",
        b" BODY=BinaryMime",
        " BODY=B\u0131NARYMIME".encode(),
        b" SMTPUTF8=",
        b" SMTPUTF8=1",
        b" SMTPUTF8 SMTPUTF8",
        b" X=\x7f",
    ],
)
def test_a_malformed_parameter_is_refused(text: bytes) -> None:
    assert refusal(lambda: parse_mail(b"FROM:<a@b>" + text, OFFERED)) == replies.BAD_ARGUMENTS


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        (b" X", OFFERED),
        (b" RET=HDRS", OFFERED),
        (b" AUTH=<a>", OFFERED),
        (b" AUTH=a@b", OFFERED),
        (b" AUTH=<>x", OFFERED),
        (b" AUTH", OFFERED),
        (b" XAUTH=<>", OFFERED),
        (b" SIZE=1", NOTHING),
        (b" SIZE=x", NOTHING),
        (b" BODY=8BITMIME", frozenset({"SIZE"})),
        (b" BINARYMIME", BINARY),
        (b" SIZE=1 8=9", OFFERED),
    ],
)
def test_a_parameter_that_was_not_offered_is_unsupported(text: bytes, offered: frozenset[str]) -> None:
    assert refusal(lambda: parse_mail(b"FROM:<a@b>" + text, offered)) == replies.UNSUPPORTED_PARAMETER


@pytest.mark.parametrize("offered", [NOTHING, OFFERED], ids=["nothing", "offered"])
def test_an_empty_auth_parameter_is_taken_and_ignored_where_auth_is_not_offered(
    offered: frozenset[str],
) -> None:
    assert parse_mail(b"FROM:<a@b> AUTH=<>", offered) == Path("a@b", {})
    assert parse_mail(b"FROM:<> auth=<>\t", offered) == Path("", {})
    assert parse_mail(b"FROM:<a@b> AUTH=<> SIZE=5", OFFERED) == Path("a@b", {"SIZE": "5"})
    twice = b"FROM:<a@b> AUTH=<> Auth=<>"
    assert refusal(lambda: parse_mail(twice, offered)) == replies.BAD_ARGUMENTS
    both = b"FROM:<a@b> AUTH=<> AUTH=a"
    assert refusal(lambda: parse_mail(both, offered)) == replies.UNSUPPORTED_PARAMETER


def test_an_empty_auth_parameter_is_passed_on_where_auth_is_offered() -> None:
    path = parse_mail(b"FROM:<a@b> AUTH=<>", OFFERED | {"AUTH"})
    assert path == Path("a@b", {"AUTH": "<>"})


def test_an_empty_auth_parameter_is_no_parameter_of_rcpt() -> None:
    text = b"TO:<a@b> AUTH=<>"
    assert refusal(lambda: parse_rcpt(text, OFFERED, False)) == replies.UNSUPPORTED_PARAMETER


def test_rcpt_takes_no_parameters() -> None:
    line = b"TO:<a@b> NOTIFY=NEVER"
    assert refusal(lambda: parse_rcpt(line, NOTHING, False)) == replies.UNSUPPORTED_PARAMETER


def test_the_parameters_that_a_hook_gets_cannot_be_changed() -> None:
    for parameters in (
        parse_mail(b"FROM:<a@b>", OFFERED).parameters,
        parse_mail(b"FROM:<> SIZE=1", OFFERED).parameters,
    ):
        with pytest.raises(TypeError):
            parameters["SIZE"] = "2"  # type: ignore[index]
    assert parse_mail(b"FROM:<a@b>", OFFERED).parameters is NO_PARAMETERS


@given(st.text(st.sampled_from('<>@.,:[]"\\ab1-_ \t=\r\n\0\x85\u00fc\u2028'), max_size=24), st.booleans())
def test_an_accepted_address_has_no_control_octet_and_no_unquoted_blank(text: str, utf8: bool) -> None:
    try:
        address = parse_rcpt(b"TO:" + text.encode(), NOTHING, utf8).address
    except Refused:
        return
    assert address and f"{address}>" in text
    assert not any(letter in "\t\r\n\0\x85\u2028" for letter in address)
    assert utf8 or address.isascii()
    assert " " not in address.rpartition('"')[2]


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except Refused as refused:
        return refused.reply


AROUND = st.text(st.sampled_from('ab0.-_+!@<>"\\ \t\0\u00fc'), max_size=5).map(str.encode)
WORDS = st.sampled_from(
    [b"a", b"A.b", b"x" * 62, b"x" * 64, b"1-", b"a+b", b".", b"@", b"<", b">", b"> SIZE=1"]
)
ARGUMENTS = st.lists(st.one_of(AROUND, WORDS), max_size=12).map(b"".join)


@given(
    st.sampled_from([b"MAIL ", b"RCPT ", b"mail ", b"MAIL\t"]),
    st.sampled_from([b"TO:<", b"to:<", b"TO: <", b"FROM:<", b"From:<"]),
    ARGUMENTS,
    st.sampled_from([b">", b"@b>", b"@" + b"c." * 130 + b"d>", b"> ", b">\n"]),
    st.booleans(),
)
def test_what_is_read_in_one_step_the_long_way_reads_as_well(
    verb: bytes, begin: bytes, octets: bytes, end: bytes, utf8: bool
) -> None:
    line = verb + begin + octets + end
    plain = plain_line(line + b"\r\n", 0)
    if plain is None:
        return
    verb, argument = parse_command(line)
    assert verb == plain[1]
    if plain[2] is None:
        assert argument == (plain[3] or b"")
        return
    path = parse_mail(argument, OFFERED) if verb == b"MAIL" else parse_rcpt(argument, NOTHING, utf8)
    assert path == Path(plain[2].decode(), {})
    assert line.startswith(verb)


@pytest.mark.parametrize(
    ("line", "address"),
    [
        (b"MAIL FROM:<a@b>", "a@b"),
        (b"RCPT TO:<a.b+c@mx.example.org>", "a.b+c@mx.example.org"),
        (b"MAIL from:<a@b_c.d-e>", "a@b_c.d-e"),
        (b"RCPT To:<a@b>", "a@b"),
        (b"RCPT TO:<a@" + b"c" * 63 + b".d>", "a@" + "c" * 63 + ".d"),
    ],
)
def test_a_plain_path_is_read_in_one_step(line: bytes, address: str) -> None:
    match = plain_line(line + b"\r\n", 0)
    assert match is not None
    assert match[2].decode() == address


@pytest.mark.parametrize(
    "line",
    [
        b"MAIL FROM:<>",
        b"MAIL TO:<a@b>",
        b"RCPT FROM:<a@b>",
        b"mail FROM:<a@b>",
        b"MAIL FROM: <a@b>",
        b"MAIL  FROM:<a@b>",
        b"MAIL FROM:<a@b> ",
        b"MAIL FROM:<a@b> SIZE=1",
        b"RCPT TO:<postmaster>",
        b"RCPT TO:<a@b>\n",
        b"RCPT TO:<a\0@b>",
        b"RCPT TO:<a@" + b"c" * 64 + b">",
        b"RCPT TO:<a@" + b"c." * 127 + b"de>",
    ],
)
def test_what_is_not_quite_a_plain_path_is_not_read_in_one_step(line: bytes) -> None:
    match = plain_line(line + b"\r\n", 0)
    assert match is None or match[2] is None


@pytest.mark.parametrize(
    ("line", "argument"),
    [
        (b"NOOP", b""),
        (b"QUIT", b""),
        (b"EHLO client.example", b"client.example"),
        (b"MAIL FROM:<>", b"FROM:<>"),
        (b"DATA x", b"x"),
    ],
)
def test_an_argument_of_one_word_is_read_in_one_step_too(line: bytes, argument: bytes) -> None:
    match = plain_line(line + b"\r\n", 0)
    assert match is not None
    assert (match[2], match[3] or b"") == (None, argument) == (None, parse_command(line)[1])


@pytest.mark.parametrize(
    "line", [b"NOOP a b", b"noop", b"EHLO \xfc", b"EHLO ", b"EHLO a\0", b"NOOP " + b"x" * 256]
)
def test_what_is_no_plain_line_is_left_to_the_long_way(line: bytes) -> None:
    assert plain_line(line + b"\r\n", 0) is None


@given(st.binary(), st.booleans())
def test_no_octets_raise_anything_but_a_refusal(octets: bytes, utf8: bool) -> None:
    for parse in (
        lambda: parse_mail(b"FROM:<" + octets, BINARY),
        lambda: parse_mail(b"FROM:<a@b>" + octets, BINARY),
        lambda: parse_rcpt(b"TO:<a@[" + octets + b"]>", NOTHING, utf8),
        lambda: parse_rcpt(b"TO:<a@[IPv6:" + octets + b"]>", NOTHING, utf8),
        lambda: parse_bdat(octets),
        lambda: parse_hello(octets),
    ):
        try:
            parse()
        except Refused as refused:
            assert 500 <= refused.reply.code < 600
    is_not_smtp(octets)


@pytest.mark.parametrize(
    ("argument", "chunk"),
    [
        (b"0", (0, False)),
        (b"1", (1, False)),
        (b"0 LAST", (0, True)),
        (b"86 last", (86, True)),
        (b"007 \t LaSt", (7, True)),
        (b"99999999999999999999", (99999999999999999999, False)),
    ],
)
def test_bdat_announces_octets_and_whether_they_are_the_last(
    argument: bytes, chunk: tuple[int, bool]
) -> None:
    assert parse_bdat(argument) == chunk


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b"LAST",
        b"-1",
        b"+1",
        b"1.0",
        b"1_0",
        b"0x10",
        b"\xd9\xa3",
        b"1LAST",
        b"1 LAST LAST",
        b"1 FIRST",
        b"1 2",
        b"1\n",
        b"1\x0bLAST",
        b"100000000000000000000000",
        b"000000000000000000001",
    ],
)
def test_any_other_bdat_is_malformed(argument: bytes) -> None:
    assert refusal(lambda: parse_bdat(argument)) == replies.BAD_ARGUMENTS


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1",
        b"get / http/1.0",
        b"POST /cgi-bin/x?y=%0d%0a HTTP/1.1",
        b"CONNECT mail.example.org:25 HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"X-METHOD http://h/ HTTP/1.1",
        b"GET /\xff HTTP/1.1",
        b"GET / HTTP/1.1\r",
        b"SSH-2.0-OpenSSH_9.6",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"Host: example.org",
        b"User-Agent:x",
        b"content-length:",
    ],
)
def test_other_protocols_are_recognised_by_their_first_line(start: bytes) -> None:
    assert is_not_smtp(start)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"EHLO example.org",
        b"EHLO [IPv6:::1]",
        b"EHLO HTTP/1.1",
        b"HELO ssh-gateway.example",
        b"SSHX",
        b"LHLO host:25",
        b"MAIL FROM:<a@b>",
        b"MAIL FROM:<GET@HTTP> SIZE=1",
        b"RCPT TO:<a@b>",
        b"VRFY a:b",
        b"VRFY a HTTP/1.1",
        b"EXPN / HTTP/1.1",
        b"NOOP / HTTP/1.1",
        b"noop host: example.org",
        b"HELP GET HTTP/1.1",
        b"BDAT 10 LAST",
        b"AUTH PLAIN HTTP/1AAA=",
        b"DATA",
        b"RSET",
        b"QUIT",
        b"STARTTLS",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25",
        b"\x16",
        b"\x15\x03\x01",
        b": x",
    ],
)
def test_no_smtp_command_is_taken_for_another_protocol(start: bytes) -> None:
    assert not is_not_smtp(start)


def _seconds(call: Callable[[bytes], object], line: bytes) -> float:
    rounds = []
    for _ in range(5):
        began = time.thread_time()
        with suppress(Refused):
            call(line)
        rounds.append(time.thread_time() - began)
    return min(rounds)


@pytest.mark.parametrize(
    "unit",
    [
        b" ",
        b"\t ",
        b"a",
        b"a ",
        b"a.",
        b"@",
        b"@a,",
        b"@a:",
        b"a-",
        b"<",
        b'"',
        b'\\"',
        b"\\",
        b"[",
        b":",
        b"1.",
        b"=",
        b" a=",
        b" SIZE=1",
        b"a@a.",
        b"\xc3\xbc",
        b"\xff",
        b"0",
        b"a@[tag:",
    ],
)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("command", parse_command),
        ("command", lambda units: parse_command(b"NOOP " + units + b"x")),
        ("hello", parse_hello),
        ("bdat", lambda units: parse_bdat(b"1" + units)),
        ("path", lambda units: parse_rcpt(b"TO:" + units, NOTHING, True)),
        ("route", lambda units: parse_rcpt(b"TO:<@" + units, NOTHING, True)),
        ("local part", lambda units: parse_rcpt(b"TO:<" + units + b"\n", NOTHING, True)),
        ("quoted", lambda units: parse_rcpt(b'TO:<"' + units + b"\n", NOTHING, True)),
        ("domain", lambda units: parse_rcpt(b"TO:<a@a" + units + b"\n", NOTHING, True)),
        ("literal", lambda units: parse_rcpt(b"TO:<a@[" + units + b"]>", NOTHING, True)),
        ("IPv6", lambda units: parse_rcpt(b"TO:<a@[IPv6:" + units + b"]>", NOTHING, True)),
        ("parameters", lambda units: parse_mail(b"FROM:<>" + units, OFFERED)),
        ("value", lambda units: parse_mail(b"FROM:<> SIZE=" + units, OFFERED)),
        ("first line", is_not_smtp),
        ("target", lambda units: is_not_smtp(b"GET " + units)),
    ],
)
def test_a_hostile_line_costs_time_in_proportion_to_its_length(
    name: str, call: Callable[[bytes], object], unit: bytes
) -> None:
    short, long = (_seconds(call, unit * (octets // len(unit))) for octets in (4096, 65536))
    # 16 times as long; with squared cost it would be 256 times as dear. Below a millisecond nothing is dear.
    assert long < max(64 * short, 0.001), name
