"""Replies: what a line on the wire looks like, and that the catalogue says what it must."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_pages import WHEN, assert_rows, row_of_reply

from twisted_smtpguard import replies
from twisted_smtpguard.replies import Entry, Reply

CATALOGUE = list(replies.catalogue())
each_entry = pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        # The mission's own words.
        ("TOO_MANY_CONNECTIONS", "421 4.7.0 Too many connections, try again later"),
        ("TOO_MANY_INVALID_COMMANDS", "421 4.4.0 Too many errors, closing connection"),
        ("TOO_MANY_RECIPIENTS", "452 5.5.3 Too many recipients"),
        ("TOO_MANY_RECIPIENTS_STRICT", "452 4.5.3 Too many recipients"),
        ("MESSAGE_TOO_LARGE", "552 5.3.4 Message size exceeds fixed maximum message size"),
        ("READ_TIMED_OUT", "421 4.4.2 Timeout waiting for client, closing connection"),
        # What else is promised to the letter.
        ("NOT_SMTP", "421 4.7.0 Not an SMTP client, closing connection"),
        ("TOO_MANY_ERRORS", "421 4.7.0 Too many errors, closing connection"),
        ("TOO_MANY_REJECTED_RECIPIENTS", "421 4.7.0 Too many unknown recipients, closing connection"),
        ("TOO_MANY_MESSAGES", "421 4.7.0 Too many messages, please reconnect"),
        ("LINE_TOO_LONG", "500 5.5.2 Line too long"),
        ("BAD_LINE_END", "500 5.5.2 Line must end with <CR><LF>"),
        ("UNRECOGNIZED_COMMAND", "500 5.5.1 Command not recognized"),
        ("SYNTAX_ERROR", "500 5.5.2 Syntax error"),
        ("BAD_SEQUENCE", "503 5.5.1 Bad sequence of commands"),
        ("UNSUPPORTED_PARAMETER", "555 5.5.4 Unsupported parameter"),
        ("UNEXPECTED_PIPELINING", "421 4.7.0 Protocol error: unexpected pipelined input"),
        ("NO_VALID_RECIPIENTS", "554 5.5.1 No valid recipients"),
        ("DATA_NEVER_ENDS", "421 4.3.0 Message too large, closing connection"),
        ("BARE_NEWLINE", "550 5.5.2 Bare <CR> or <LF> received"),
        ("HEADER_TOO_LARGE", "552 5.3.4 Message header too large"),
        ("ROUTING_LOOP", "554 5.4.6 Routing loop detected"),
        ("MALFORMED_BDAT", "421 4.7.0 Protocol error: malformed BDAT"),
        ("INSUFFICIENT_STORAGE", "452 4.3.1 Insufficient system storage"),
        ("DATA_TOO_SLOW", "421 4.4.2 Data transfer too slow, closing connection"),
        ("SESSION_TOO_LONG", "421 4.4.2 Session time limit reached, closing connection"),
        ("SHUTTING_DOWN", "421 4.3.2 Server shutting down"),
    ],
)
def test_the_promised_texts_are_exact(name: str, line: str) -> None:
    assert getattr(replies, name).wire == f"{line}\r\n".encode()


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("BAD_ARGUMENTS", (501, "5.5.4")),
        ("BAD_SENDER_ADDRESS", (501, "5.1.7")),
        ("BAD_RECIPIENT_ADDRESS", (501, "5.1.3")),
        ("NON_ASCII_ADDRESS", (553, "5.6.7")),
        ("CANNOT_VERIFY", (252, "2.0.0")),
        ("EXPN_NOT_IMPLEMENTED", (502, "5.5.1")),
        ("RECIPIENT_OK", (250, "2.1.5")),
        ("MESSAGE_ACCEPTED", (250, "2.0.0")),
        ("GOODBYE", (221, "2.0.0")),
        ("LOCAL_ERROR", (451, "4.3.0")),
        ("LOCAL_ERROR_CLOSING", (421, "4.3.0")),
        ("DELIVERY_TIMED_OUT", (451, "4.3.0")),
    ],
)
def test_the_promised_codes_are_exact(name: str, codes: tuple[int, str]) -> None:
    reply = getattr(replies, name)
    assert (reply.code, reply.enhanced) == codes


@each_entry
def test_a_reply_is_whole_lines_of_at_most_512_octets(entry: Entry) -> None:
    lines = entry.reply.wire.split(b"\r\n")
    assert lines.pop() == b""
    assert max(map(len, lines)) + 2 <= 512
    assert all(line.isascii() and line.decode().isprintable() for line in lines)


@each_entry
def test_the_enhanced_code_has_the_class_of_the_code_but_for_the_one_the_mission_fixed(entry: Entry) -> None:
    if entry.reply == replies.TOO_MANY_RECIPIENTS:
        assert entry.reply.enhanced == "5.5.3"
    elif entry.reply.code == 354:
        assert entry.reply.enhanced == ""
    else:
        assert entry.reply.enhanced.split(".")[0] == str(entry.reply.code)[0]


def test_greeting_and_hello_carry_no_enhanced_code() -> None:
    assert replies.greeting("mx.example.org").wire == b"220 mx.example.org ESMTP ready\r\n"
    assert replies.hello("mx.example.org").wire == b"250 mx.example.org\r\n"


def test_help_names_the_commands_it_is_given() -> None:
    assert replies.commands("MAIL", "QUIT").wire == b"214 2.0.0 Commands: MAIL QUIT\r\n"


def test_ehlo_is_one_line_a_keyword() -> None:
    reply = replies.hello("mx.example.org", ["SIZE 1000", "PIPELINING"])
    assert reply.wire == b"250-mx.example.org\r\n250-SIZE 1000\r\n250 PIPELINING\r\n"


def test_an_enhanced_code_stands_on_every_line() -> None:
    assert Reply(550, "5.1.1", ("No such", "user")).wire == b"550-5.1.1 No such\r\n550 5.1.1 user\r\n"


def test_a_reply_without_text_is_still_a_line() -> None:
    assert Reply(250, "2.0.0", ()).wire == b"250 2.0.0 \r\n"


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\r\n250 2.0.0 OK", b"a\\x0d\\x0a250 2.0.0 OK"),
        ("a\nb", b"a\\x0ab"),
        ("\x00\x1b[31m\x7f", b"\\x00\\x1b[31m\\x7f"),
        ("caf\u00e9", b"caf\\xe9"),
        ("\u2028\U0001f4a9", b"\\u2028\\U0001f4a9"),
        ("\udcff", b"\\udcff"),
    ],
)
def test_hostile_text_is_escaped(hostile: str, shown: bytes) -> None:
    assert Reply(550, "5.1.1", (hostile,)).wire == b"550 5.1.1 " + shown + b"\r\n"


@given(st.lists(st.text(max_size=700), min_size=1, max_size=3))
def test_no_text_makes_a_line_more_or_a_line_too_long(texts: list[str]) -> None:
    lines = Reply(550, "5.1.1", tuple(texts)).wire.split(b"\r\n")
    assert len(lines) == len(texts) + 1
    assert max(map(len, lines)) <= 510
    assert all(0x20 <= octet < 0x7F for line in lines for octet in line)


@each_entry
def test_a_reply_closes_the_session_when_it_is_a_421(entry: Entry) -> None:
    assert entry.reply.closes == (entry.reply.code == 421)


def test_a_521_closes_the_session_too() -> None:
    assert Reply(521, "5.7.1", ("No",)).closes


@each_entry
def test_a_refusal_has_a_reason_for_the_log_and_nothing_else_has(entry: Entry) -> None:
    assert bool(entry.reason) == (entry.reply.code >= 400)
    assert replies.reason_of(entry.reply) == entry.reason


def test_the_reason_of_a_reply_that_is_not_ours_is_that_the_delivery_refused() -> None:
    assert replies.reason_of(Reply(550, "5.1.1", ("No such user",))) == "delivery_refused"


@each_entry
def test_the_reason_of_an_upstream_server_s_reply_is_that_it_refused_even_if_it_says_what_we_say(
    entry: Entry,
) -> None:
    passed_on = attrs.evolve(entry.reply, said=f"{entry.reply.code} its own words")
    assert passed_on == entry.reply
    assert replies.reason_of(passed_on) == "upstream_refused"
    assert replies.words_of(passed_on) == f"{entry.reply.code} its own words"


@each_entry
def test_a_reply_of_the_guard_is_ascribed_to_no_other_source(entry: Entry) -> None:
    assert replies.words_of(entry.reply) == ""


def test_a_delivery_s_own_reply_is_its_words() -> None:
    assert replies.words_of(Reply(550, "5.1.1", ("No such", "user"))) == "550 5.1.1 No such user"


def test_every_reply_says_when_it_is_sent() -> None:
    assert {entry.name for entry in CATALOGUE} <= WHEN.keys()


def test_the_reference_page_has_exactly_the_rows_that_are_true() -> None:
    assert_rows("replies.md", "| `", map(row_of_reply, CATALOGUE))
