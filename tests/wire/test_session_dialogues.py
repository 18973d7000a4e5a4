"""What a session answers when a limit on commands is reached, and that it does not before."""

from __future__ import annotations

import pytest
from fakes import FakeDelivery, Guard, codes, delivery_without_nobody, refusal

from twisted_smtpguard.engine.commands import COMMANDS
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.testing import Turn, dialogue

UNKNOWN = "500 5.5.1 Command not recognized"
SYNTAX = "500 5.5.2 Syntax error"
TOO_LONG = "500 5.5.2 Line too long"
BAD_END = "500 5.5.2 Line must end with <CR><LF>"
BAD_SEQUENCE = "503 5.5.1 Bad sequence of commands"
BAD_ARGUMENTS = "501 5.5.4 Syntax error in parameters or arguments"
OK = "250 2.0.0 OK"
SENDER_OK = "250 2.1.0 Sender OK"
RECIPIENT_OK = "250 2.1.5 Recipient OK"
START_DATA = "354 End data with <CR><LF>.<CR><LF>"
ACCEPTED = "250 2.0.0 Message accepted"
INVALID_ENOUGH = "421 4.4.0 Too many errors, closing connection"
ERRORS_ENOUGH = "421 4.7.0 Too many errors, closing connection"

MAIL: Turn = ("MAIL FROM:<a@b.example>", SENDER_OK)
RCPT: Turn = ("RCPT TO:<c@d.example>", RECIPIENT_OK)
DATA: Turn = ("DATA", START_DATA)
MESSAGE = (MAIL, RCPT, DATA, ("Subject: x\n\ny\n.", ACCEPTED))
NOBODY: Turn = ("RCPT TO:<nobody@d.example>", "550 5.1.1 No such user")


# Invalid commands.

INVALID: tuple[Turn, ...] = (
    ("BREW coffee", UNKNOWN),
    ("", SYNTAX),
    (" NOOP", SYNTAX),
    ("NO\0OP", SYNTAX),
    ("NOOP \0", SYNTAX),
    ("NÖÖP", SYNTAX),
    (b"\xff\xfe\r\n", SYNTAX),
    ("x" * 2047, TOO_LONG),
    (b"NOOP\nNOOP\r\n", BAD_END),
    (b"NO\rOP\r\n", BAD_END),
    (b"NOOP\r\r\n", BAD_END),
    ("RCPT TO:<c@d.example>", BAD_SEQUENCE),
    ("DATA", BAD_SEQUENCE),
    (b"BDAT 3 LAST\r\nabc", BAD_SEQUENCE),
)
NOT_COUNTED: tuple[Turn, ...] = (
    ("EHLO", BAD_ARGUMENTS),
    ("MAIL", BAD_ARGUMENTS),
    ("MAIL FROM:<a@>", "501 5.1.7 Bad sender address syntax"),
    ("RCPT TO:<c@>", "501 5.1.3 Bad recipient address syntax"),
    ("MAIL FROM:<a@b.example> X=1", "555 5.5.4 Unsupported parameter"),
    ("MAIL FROM:<a@b.example> SIZE=1 SIZE=1", BAD_ARGUMENTS),
    ("MAIL FROM:<ä@b.example>", "553 5.6.7 Non-ASCII address needs SMTPUTF8"),
    ("MAIL FROM:<a@b.example> SIZE=99999999999", "552 5.3.4 Message size exceeds fixed maximum message size"),
    ("VRFY", BAD_ARGUMENTS),
    ("EXPN list", "502 5.5.1 EXPN is not implemented"),
    ("NOOP", OK),
    MAIL,
    NOBODY,
    ("DATA", "554 5.5.1 No valid recipients"),
    (b"BDAT 3\r\nabc", "554 5.5.1 No valid recipients"),
    (b"BDAT 3\r\nabc", "554 5.5.1 No valid recipients"),
)


@pytest.mark.parametrize("turn", INVALID, ids=lambda turn: repr(turn[0])[:20])
def test_each_kind_of_invalid_command_ends_the_session_when_the_tenth_arrives(turn: Turn) -> None:
    said, reply = turn
    dialogue(*[turn] * 9)
    dialogue(*[turn] * 9, (said, f"{reply}\n{INVALID_ENOUGH}"), closed=True)


def test_kinds_of_invalid_commands_are_counted_together() -> None:
    dialogue(
        *INVALID[:4],
        (INVALID[4][0], f"{INVALID[4][1]}\n{INVALID_ENOUGH}"),
        max_invalid_commands=5,
        closed=True,
    )


@pytest.mark.parametrize("command", ["MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"])
def test_a_command_between_chunks_counts_as_invalid(command: str) -> None:
    first: Turn = (b"BDAT 3\r\nabc", "250 2.0.0 3 octets received")
    last: Turn = (command, f"{BAD_SEQUENCE}\n{INVALID_ENOUGH}")
    dialogue(MAIL, RCPT, first, (command, BAD_SEQUENCE), last, max_invalid_commands=2, closed=True)


def test_what_is_not_counted_as_an_invalid_command() -> None:
    dialogue(*NOT_COUNTED, max_invalid_commands=1, delivery=delivery_without_nobody)


def test_invalid_commands_are_not_forgiven_for_an_accepted_message() -> None:
    last: Turn = ("BREW", f"{UNKNOWN}\n{INVALID_ENOUGH}")
    dialogue(("BREW", UNKNOWN), *MESSAGE, last, max_invalid_commands=2, closed=True)


def test_without_a_limit_invalid_commands_never_end_the_session() -> None:
    dialogue(*[("BREW", UNKNOWN)] * 100, max_invalid_commands=0)


# Errors and junk.


def test_errors_of_any_kind_end_the_session_when_the_last_allowed_arrives() -> None:
    turns = [
        ("BREW", UNKNOWN),
        ("MAIL", BAD_ARGUMENTS),
        MAIL,
        NOBODY,
        ("EXPN x", "502 5.5.1 EXPN is not implemented"),
    ]
    last: Turn = ("DATA", f"554 5.5.1 No valid recipients\n{ERRORS_ENOUGH}")
    dialogue(*turns, ("NOOP", OK), last, max_errors=5, delivery=delivery_without_nobody, closed=True)


def test_an_accepted_message_sets_errors_back() -> None:
    errors = [("MAIL", BAD_ARGUMENTS)] * 2
    last: Turn = ("MAIL", f"{BAD_ARGUMENTS}\n{ERRORS_ENOUGH}")
    dialogue(*errors, *MESSAGE, *errors, last, max_errors=3, closed=True)


def test_a_refused_message_sets_nothing_back() -> None:
    refused = (MAIL, RCPT, DATA, (".", f"550 5.1.1 Not wanted\n{ERRORS_ENOUGH}"))

    def unwilling() -> FakeDelivery:
        unwilling = FakeDelivery()
        unwilling.answers["finish"] = lambda: refusal(550, "Not wanted")
        return unwilling

    dialogue(("MAIL", BAD_ARGUMENTS), *refused, max_errors=2, delivery=unwilling, closed=True)


JUNK: tuple[Turn, ...] = (
    ("NOOP", OK),
    ("RSET", OK),
    ("VRFY x", "252 2.0.0 Cannot verify the user, but will accept a message and attempt delivery"),
    ("HELP", "214 2.0.0 Commands: EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY EXPN HELP QUIT"),
    ("HELO again", "250 guard.example"),
)


def test_junk_above_its_limit_counts_as_errors() -> None:
    last: Turn = ("NOOP", f"{OK}\n{ERRORS_ENOUGH}")
    dialogue(*JUNK, ("NOOP", OK), last, max_junk_commands=5, max_errors=2, closed=True)


def test_an_accepted_message_sets_junk_back() -> None:
    turns = (*JUNK, *MESSAGE, *JUNK, ("NOOP", OK))
    dialogue(*turns, ("NOOP", f"{OK}\n{ERRORS_ENOUGH}"), max_junk_commands=5, max_errors=2, closed=True)


def test_the_first_hello_is_no_junk() -> None:
    hello: Turn = ("HELO x", "250 guard.example")
    again: Turn = ("HELO x", f"250 guard.example\n{ERRORS_ENOUGH}")
    dialogue(hello, hello, again, hello="", max_junk_commands=1, max_errors=1, closed=True)


def test_junk_that_is_refused_is_one_error() -> None:
    expn = ("EXPN x", "502 5.5.1 EXPN is not implemented")
    turns = (("NOOP", OK), expn, (expn[0], f"{expn[1]}\n{ERRORS_ENOUGH}"))
    dialogue(*turns, max_junk_commands=1, max_errors=2, closed=True)


def test_without_a_limit_junk_and_errors_never_end_the_session() -> None:
    dialogue(*JUNK * 20, *[("MAIL", BAD_ARGUMENTS)] * 100)
    dialogue(*JUNK * 20, ("MAIL", BAD_ARGUMENTS), max_errors=2)


def test_where_one_command_trips_both_limits_the_invalid_commands_win() -> None:
    limits = {"max_invalid_commands": 1, "max_errors": 1, "max_rejected_recipients": 1}
    dialogue(("BREW", f"{UNKNOWN}\n{INVALID_ENOUGH}"), **limits, closed=True)


def test_a_size_too_large_wins_over_too_many_messages() -> None:
    size: Turn = ("MAIL FROM:<> SIZE=2000", "552 5.3.4 Message size exceeds fixed maximum message size")
    dialogue(*MESSAGE, size, max_messages=1, max_message_size=1000)


# Recipients and messages.


@pytest.mark.parametrize(("strict", "enhanced"), [(False, "5.5.3"), (True, "4.5.3")])
def test_recipients_above_the_cap_are_refused_and_those_accepted_stay(strict: bool, enhanced: str) -> None:
    refused: Turn = ("RCPT TO:<e@f.example>", f"452 {enhanced} Too many recipients")
    turns = (MAIL, RCPT, RCPT, refused, refused, DATA, (".", ACCEPTED), MAIL, RCPT)
    client = dialogue(*turns, max_recipients=2, strict_enhanced_codes=strict)
    assert [r.address for r in client.guard.delivery.messages[0].recipients] == ["c@d.example"] * 2


def test_the_hundred_and_first_recipient_is_refused_by_default() -> None:
    dialogue(MAIL, *[RCPT] * 100, (RCPT[0], "452 5.5.3 Too many recipients"))


def test_refused_recipients_do_not_use_up_the_cap() -> None:
    turns = (MAIL, NOBODY, NOBODY, RCPT, (RCPT[0], "452 5.5.3 Too many recipients"))
    dialogue(*turns, max_recipients=1, delivery=delivery_without_nobody)


def test_without_a_cap_there_is_no_end_of_recipients() -> None:
    dialogue(MAIL, *[RCPT] * 300, max_recipients=0)


def test_rejected_recipients_are_counted_over_the_whole_session() -> None:
    last: Turn = (NOBODY[0], f"{NOBODY[1]}\n421 4.7.0 Too many unknown recipients, closing connection")
    turns = (MAIL, NOBODY, RCPT, DATA, (".", ACCEPTED), MAIL, NOBODY, last)
    dialogue(*turns, max_rejected_recipients=3, delivery=delivery_without_nobody, closed=True)
    dialogue(MAIL, *[NOBODY] * 30, delivery=delivery_without_nobody)


def test_a_recipient_refused_for_now_is_not_unknown() -> None:
    def busy() -> FakeDelivery:
        delivery = FakeDelivery()
        delivery.answers["recipient"] = lambda path: refusal(450, "Busy")
        return delivery

    dialogue(MAIL, *[(RCPT[0], "450 4.1.1 Busy")] * 3, max_rejected_recipients=1, delivery=busy)


def test_a_message_above_the_limit_ends_the_session_at_mail() -> None:
    last: Turn = (MAIL[0], "421 4.7.0 Too many messages, please reconnect")
    dialogue(*MESSAGE, MAIL, ("RSET", OK), last, max_messages=2, closed=True)
    dialogue(*MESSAGE * 20)


# Lines.


def test_a_line_may_have_2048_octets_with_its_end() -> None:
    dialogue(("NOOP " + "x" * 2041, OK), ("NOOP " + "x" * 2042, TOO_LONG), ("NOOP", OK))
    dialogue(("NOOP " + "x" * 5000, OK), max_command_line=0)


def test_a_line_that_never_ends_ends_the_session_past_64_kib() -> None:
    dialogue((b"x" * 65536, ""))
    dialogue((b"x" * 65536, ""), (b"x", f"{TOO_LONG}\n{INVALID_ENOUGH}"), closed=True)
    dialogue((b"x" * 65534 + b"\r\n", TOO_LONG), ("NOOP", OK))
    dialogue((b"x" * 200_000, ""), ("", TOO_LONG), max_endless_line=0, bytewise=False)


def test_nothing_after_a_bad_line_end_is_executed_up_to_the_next_crlf() -> None:
    turns: tuple[Turn, ...] = (
        (b"NOOP\nQUIT\r\n", BAD_END),
        (b"NOOP\rQUIT\r\n", BAD_END),
        (b"NOOP\n", BAD_END),
        (b"QUIT\nQUIT\rQUIT\r\r\n", BAD_END),
        ("NOOP", OK),
    )
    dialogue(*turns)


# Every reply.


def test_nothing_is_executed_once_a_421_was_said() -> None:
    heard = Guard(max_invalid_commands=1).greeted().say("BREW", MAIL[0], RCPT[0], "QUIT")
    assert codes(heard)[-2:] == [500, 421]


def test_a_421_leaves_in_one_write_with_the_reply_before_it() -> None:
    client = Guard(max_invalid_commands=1).greeted()
    client.say("BREW")
    assert client.transport.writes[-1] == f"{UNKNOWN}\r\n{INVALID_ENOUGH}\r\n".encode()


def test_nothing_is_executed_after_quit() -> None:
    client = Guard().greeted()
    client.heard()
    assert client.say("QUIT", MAIL[0]) == "221 2.0.0 Closing connection\r\n"
    assert client.guard.delivery.calls == []
    assert client.transport.lost


@pytest.mark.parametrize("verb", [verb.decode() for verb in COMMANDS] + ["BREW"])
def test_nothing_that_a_client_sent_is_repeated_to_it(verb: str) -> None:
    client = Guard().greeted()
    client.heard()
    said = client.say(f"{verb} FROM:<zebra\x07\x1b[31m\u2028é@zebra>", f"{verb} zebra")
    assert "zebra" not in said
    assert said.replace("\r\n", "").isprintable()


def test_a_delivery_s_reply_is_escaped_and_cut_to_512_octets_a_line() -> None:
    delivery = FakeDelivery()
    lines = ("evil\r\n250 forged \x1b[31m", "é" * 400)
    delivery.answers["recipient"] = lambda path: Reply(550, "5.1.1", lines)
    client = Guard(delivery).greeted()
    client.say(MAIL[0])
    client.heard()
    first, second, end = client.say(RCPT[0]).split("\r\n")
    assert first == "550-5.1.1 evil\\x0d\\x0a250 forged \\x1b[31m"
    assert second.startswith("550 5.1.1 \\xe9\\xe9")
    assert len(second) == 510
    assert end == ""


def test_421s_are_not_counted_as_errors() -> None:
    last: Turn = (MAIL[0], "421 4.7.0 Too many messages, please reconnect")
    dialogue(*MESSAGE, last, max_errors=1, max_messages=1, closed=True)


def test_a_delivery_s_refusal_counts_once_as_an_error() -> None:
    dialogue(MAIL, NOBODY, NOBODY, (NOBODY[0], f"{NOBODY[1]}\n{ERRORS_ENOUGH}"), max_errors=3,
             delivery=delivery_without_nobody, closed=True)  # fmt: skip
