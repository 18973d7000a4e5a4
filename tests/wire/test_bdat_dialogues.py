"""What a session answers to BDAT (RFC 3030): whatever comes, it knows where the chunk ends, or hangs up."""

from __future__ import annotations

import tracemalloc

import pytest
from fakes import Guard, codes, delivery_without_nobody
from test_message_dialogues import BARE_NEWLINE, NEVER_ENDS, TOO_LARGE, sent
from test_session_dialogues import (
    ACCEPTED,
    BAD_ARGUMENTS,
    BAD_SEQUENCE,
    DATA,
    MAIL,
    NOBODY,
    OK,
    RCPT,
)

from twisted_smtpguard.testing import Turn, dialogue

ENVELOPE = (MAIL, RCPT)
NOOP: Turn = ("NOOP", OK)
MALFORMED = f"{BAD_ARGUMENTS}\n421 4.7.0 Protocol error: malformed BDAT"


def chunk(octets: bytes, reply: str = "", *, last: bool = False) -> Turn:
    """A BDAT with its octets; without a reply it is the usual one."""
    command = b"BDAT %d%s\r\n" % (len(octets), b" LAST" if last else b"")
    return command + octets, reply or (ACCEPTED if last else f"250 2.0.0 {len(octets)} octets received")


def test_a_message_in_chunks_is_what_all_of_them_hold() -> None:
    client = dialogue(*ENVELOPE, chunk(b"a\r\n"), NOOP, chunk(b""), chunk(b".\r\nb\r\n", last=True), MAIL)
    assert sent(client) == [b"a\r\n.\r\nb\r\n"]


@pytest.mark.parametrize("octets", [b".\r\n", b"\r\n.\r\n", b"..\r\n", b"x\r\n.\r\nQUIT\r\n"])
def test_dots_in_a_chunk_are_data(octets: bytes) -> None:
    assert sent(dialogue(*ENVELOPE, chunk(octets, last=True), NOOP)) == [octets]


def test_a_crlf_may_stand_in_two_chunks() -> None:
    client = dialogue(*ENVELOPE, chunk(b"a\r"), chunk(b"\nb\r\n"), chunk(b"", last=True))
    assert sent(client) == [b"a\r\nb\r\n"]


def test_an_empty_message_is_valid() -> None:
    assert sent(dialogue(*ENVELOPE, ("BDAT 0 LAST", ACCEPTED), NOOP)) == [b""]


@pytest.mark.parametrize(
    "command", ["BDAT 0 last", "bdat 0 LaSt", "BDAT  0  LAST ", "BDAT 00000000000000000000 LAST"]
)
def test_a_chunk_is_announced_without_regard_to_case_and_blanks(command: str) -> None:
    dialogue(*ENVELOPE, (command, ACCEPTED))


@pytest.mark.parametrize("digits", range(1, 21))
def test_a_size_has_up_to_twenty_digits(digits: int) -> None:
    size = "0" * (digits - 1) + "3"
    dialogue(*ENVELOPE, (f"BDAT {size} LAST".encode() + b"\r\na\r\n", ACCEPTED), NOOP)


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "x",
        "-1",
        "+1",
        "1.0",
        "0x10",
        "1 LAST LAST",
        "1 FIRST",
        "LAST",
        "1LAST",
        "1 2",
        "1,0",
        "9" * 21,
        "٣",
    ],
)
@pytest.mark.parametrize(
    "turns", [(), ENVELOPE, (*ENVELOPE, chunk(b"x"))], ids=["ready", "envelope", "chunks"]
)
def test_a_bdat_that_does_not_parse_ends_the_session(argument: str, turns: tuple[Turn, ...]) -> None:
    client = dialogue(*turns, (f"BDAT {argument}", MALFORMED), ("QUIT", ""), closed=True)
    assert sent(client) == []


def test_nothing_is_allocated_by_the_declared_size() -> None:
    client = Guard(max_message_size=0).greeted()
    client.say("MAIL FROM:<>", "RCPT TO:<c@d.example>")
    tracemalloc.start()
    try:
        client.send(b"BDAT 99999999999999999999 LAST\r\n" + b"x" * 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024
    assert not client.closed
    client.disconnect()
    assert sent(client) == []


def test_of_an_absurd_chunk_no_more_is_swallowed_than_the_drain_bound() -> None:
    announced: Turn = (b"BDAT 99999999999999999999\r\n", "")
    turns = (*ENVELOPE, announced, (b"x" * 200, ""), (b"x", NEVER_ENDS))
    client = dialogue(*turns, max_message_size=100, oversize_drain=100, closed=True)
    assert client.guard.delivery.calls[-1] == "sink.abort"


# Refused chunks.


def test_a_refused_chunk_is_swallowed_and_further_ones_get_the_same_reply() -> None:
    refused = chunk(b"NOOP\r\n" * 20, TOO_LARGE)
    turns = (*ENVELOPE, chunk(b"x"), refused, chunk(b"QUIT\r\n", TOO_LARGE), chunk(b"", TOO_LARGE), NOOP)
    client = dialogue(*turns, chunk(b"", TOO_LARGE, last=True), *ENVELOPE, chunk(b"y\r\n", last=True),
                      max_message_size=100, max_invalid_commands=1)  # fmt: skip
    assert sent(client) == [b"y\r\n"]


def test_a_refusal_of_chunks_stays_the_same_whatever_comes_then() -> None:
    refused = [chunk(octets, BARE_NEWLINE) for octets in (b"a\nb", b"x" * 200, b"Received: x\r\n" * 3)]
    dialogue(*ENVELOPE, *refused, max_message_size=100, max_received_fields=2)


@pytest.mark.parametrize("reset", [("RSET", OK), ("HELO x", "250 guard.example")])
def test_a_refusal_of_chunks_lasts_until_the_reset(reset: Turn) -> None:
    refused = chunk(b"a\nb\r\n", BARE_NEWLINE)
    client = dialogue(*ENVELOPE, refused, chunk(b"c", BARE_NEWLINE), reset, *ENVELOPE, chunk(b"c", last=True))
    assert sent(client) == [b"c"]


def test_a_refusal_by_the_delivery_s_sink_holds_for_all_chunks() -> None:
    guard = Guard()
    guard.delivery.answers["data"] = lambda: (_ for _ in ()).throw(ValueError)
    client = guard.greeted()
    client.say("MAIL FROM:<>", "RCPT TO:<c@d.example>")
    client.heard()
    assert codes(client.send(b"BDAT 6\r\nQUIT\r\nBDAT 6\r\nQUIT\r\nRSET\r\nBDAT 6 LAST\r\nQUIT\r\n")) == [
        451,
        451,
        250,
        503,
    ]
    assert guard.delivery.calls == ["begin", "recipient", "data", "transaction.abort"]


@pytest.mark.parametrize("turns", [(), (MAIL,)], ids=["ready", "sender"])
def test_a_bdat_out_of_sequence_is_swallowed_and_counts_once(turns: tuple[Turn, ...]) -> None:
    misplaced = [chunk(b"QUIT\r\n", BAD_SEQUENCE)] * 5
    dialogue(*turns, *misplaced, chunk(b"QUIT\r\n", BAD_SEQUENCE, last=True), NOOP, max_invalid_commands=2)


def test_after_a_bdat_out_of_sequence_a_message_may_come_in_chunks() -> None:
    client = dialogue(chunk(b"junk", BAD_SEQUENCE), *ENVELOPE, chunk(b"a\r\n"), chunk(b"b\r\n", last=True))
    assert sent(client) == [b"a\r\nb\r\n"]


def test_messages_out_of_sequence_count_each() -> None:
    misplaced = chunk(b"QUIT\r\n", BAD_SEQUENCE, last=True)
    last: Turn = (misplaced[0], f"{BAD_SEQUENCE}\n421 4.4.0 Too many errors, closing connection")
    dialogue(misplaced, last, max_invalid_commands=2, closed=True)


def test_when_every_recipient_was_refused_the_chunk_is_swallowed() -> None:
    refused = "554 5.5.1 No valid recipients"
    turns = (MAIL, NOBODY, chunk(b"QUIT\r\n", refused), chunk(b"QUIT\r\n", refused, last=True), *ENVELOPE)
    client = dialogue(
        *turns, chunk(b"x", last=True), delivery=delivery_without_nobody, max_invalid_commands=1
    )
    assert sent(client) == [b"x"]
    assert client.guard.delivery.calls.count("transaction.abort") == 1


@pytest.mark.parametrize("command", [*(turn[0] for turn in (MAIL, RCPT, DATA))])
def test_between_chunks_there_is_no_mail_rcpt_or_data(command: str) -> None:
    client = dialogue(*ENVELOPE, chunk(b"x"), (command, BAD_SEQUENCE), chunk(b"y", last=True))
    assert sent(client) == [b"xy"]


def test_a_message_may_have_any_number_of_chunks() -> None:
    client = dialogue(*ENVELOPE, *[chunk(b"xy")] * 500, *[chunk(b"")] * 500, chunk(b"", last=True))
    assert sent(client) == [b"xy" * 500]


# BODY=BINARYMIME.

BINARY: Turn = ("MAIL FROM:<a@b.example> BODY=BINARYMIME", "250 2.1.0 Sender OK")


def test_a_binary_message_may_hold_any_octets() -> None:
    octets = bytes(range(256)) + b"\r\n.\r\n\n\r\r\n\n"
    for policy in ("reject", "normalize"):
        client = dialogue(
            BINARY, RCPT, chunk(octets[:100]), chunk(octets[100:], last=True), bare_newline=policy
        )
        assert sent(client) == [octets]


def test_a_binary_message_does_not_come_by_data() -> None:
    turns = (BINARY, RCPT, ("DATA", BAD_SEQUENCE), chunk(b"\0", last=True), MAIL, RCPT, DATA)
    assert sent(dialogue(*turns)) == [b"\0"]
    last: Turn = ("DATA", f"{BAD_SEQUENCE}\n421 4.4.0 Too many errors, closing connection")
    dialogue(BINARY, RCPT, last, max_invalid_commands=1, closed=True)


def test_the_rule_on_bare_newlines_is_back_with_the_next_message() -> None:
    dialogue(BINARY, RCPT, chunk(b"\n", last=True), *ENVELOPE, chunk(b"\n", BARE_NEWLINE, last=True))
