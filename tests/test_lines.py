"""Command lines out of octets: every split gives the same, nothing smuggled is executed, nothing endless is kept."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Guard, codes, splits
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.wire.lines import LineRules, LineSplitter

Result = bytes | Reply

# Few letters and many line ends, so that every order of CR and LF comes up.
OCTETS = st.lists(st.sampled_from([b"a", b"b\r\n", b"\r", b"\n", b"\r\n", b"\x00"]), max_size=12).map(
    b"".join
)


def split_lines(
    pieces: list[bytes], max_line: int, max_endless: int, kept: list[int] | None = None
) -> tuple[list[Result], bool]:
    """What the protocol gets of pieces that arrive one after another, and whether it ends the session."""
    splitter = LineSplitter(LineRules(max_line, max_endless))
    results: list[Result] = []
    buffer = b""
    for piece in pieces:
        buffer += piece
        offset = 0
        while True:
            line, offset = splitter.next_line(buffer, offset)
            if line is not None:
                results.append(line)
            if splitter.endless:
                return results, True
            if line is None:
                break
        buffer = buffer[offset:]
        if kept is not None:
            kept.append(len(buffer))
    return results, False


def an_octet_at_a_time(octets: bytes, max_line: int, max_endless: int) -> tuple[list[Result], bool]:
    """The rules once more, as slow and as plain as they can be said."""
    results: list[Result] = []
    line, refused = b"", None
    # A line of any length still has to end.
    max_line = max_line or max_endless
    for value in octets:
        line += bytes([value])
        lf, crlf = line.endswith(b"\n"), line.endswith(b"\r\n")
        endless = 0 < max_endless < len(line) - line.endswith(b"\r")
        if refused is None and crlf and b"\r" not in line[:-2]:
            results.append(line[:-2])
            line = b""
            continue
        if refused is None:
            if lf or b"\r" in line[:-1]:
                refused = replies.BAD_LINE_END
                results.append(refused)
            elif len(line) == max_line:
                refused = replies.LINE_TOO_LONG
        elif refused is replies.BAD_LINE_END and lf and not (crlf or endless):
            results.append(refused)
        if refused is replies.LINE_TOO_LONG and (lf or endless):
            results.append(refused)
            refused = replies.BAD_LINE_END
        if refused is None:
            continue
        if endless:
            return results, True
        if crlf:
            line, refused = b"", None
    return results, False


@given(st.lists(OCTETS, max_size=5), st.integers(0, 12), st.integers(0, 20))
def test_any_octets_split_in_any_way_give_what_the_rules_say(
    pieces: list[bytes], max_line: int, max_endless: int
) -> None:
    octets = b"".join(pieces)
    expected = an_octet_at_a_time(octets, max_line, max_endless)
    assert split_lines(pieces, max_line, max_endless) == expected
    assert split_lines([octets], max_line, max_endless) == expected
    assert split_lines([octets[i : i + 1] for i in range(len(octets))], max_line, max_endless) == expected


@pytest.mark.parametrize(
    ("octets", "results"),
    [
        (b"NOOP\r\n", [b"NOOP"]),
        (b"\r\n", [b""]),
        (b"NOOP\r\nQUIT\r\n", [b"NOOP", b"QUIT"]),
        (b"NOOP", []),
        (b"NOOP\r", []),
        (b"NOOP\n", [replies.BAD_LINE_END]),
        (b"\n", [replies.BAD_LINE_END]),
        (b"\nQUIT\r\n", [replies.BAD_LINE_END]),
        (b"NOOP\rX", [replies.BAD_LINE_END]),
        (b"NOOP\rQUIT\r\n", [replies.BAD_LINE_END]),
        (b"NOOP\r\r\nQUIT\r\n", [replies.BAD_LINE_END, b"QUIT"]),
        (b"\r\r\r\nQUIT\r\n", [replies.BAD_LINE_END, b"QUIT"]),
        (b"NOOP\n\r\nQUIT\r\n", [replies.BAD_LINE_END, b"QUIT"]),
        (b"NOOP\n\nRSET\nQUIT\r\nNOOP\r\n", [replies.BAD_LINE_END] * 3 + [b"NOOP"]),
        (b"NOOP\n\n\r\nQUIT\r\n", [replies.BAD_LINE_END] * 2 + [b"QUIT"]),
        (b"NOOP\nRSET\r\nQUIT\r\n", [replies.BAD_LINE_END, b"QUIT"]),
        (b"NOOP\rRSET\rHELP\r\nQUIT\r\n", [replies.BAD_LINE_END, b"QUIT"]),
        (b"NOOP\rRSET\nHELP\r\nQUIT\r\n", [replies.BAD_LINE_END] * 2 + [b"QUIT"]),
        (b"NO\x00OP\r\n", [b"NO\x00OP"]),
    ],
)
def test_only_crlf_ends_a_command_and_a_bad_end_takes_all_up_to_the_next_crlf_with_it(
    octets: bytes, results: list[Result]
) -> None:
    assert split_lines([octets], 2048, 65536) == (results, False)
    for pieces in splits(octets):
        assert split_lines(list(pieces), 2048, 65536) == (results, False)


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(
    ("smuggled", "expected"),
    [
        (b"NOOP\nRSET\r\nQUIT\r\n", [500, 221]),
        (b"NOOP\rRSET\r\nQUIT\r\n", [500, 221]),
        (b"NOOP\n\rRSET\r\nQUIT\r\n", [500, 221]),
        (b"NOOP\r\rQUIT\r\nQUIT\r\n", [500, 221]),
        (b"NOOP\r\n\nQUIT\r\nNOOP\r\n", [250, 500, 250]),
        (b"NOOP\r\x00\nQUIT\r\nNOOP\r\n", [500, 500, 250]),
    ],
)
def test_of_smuggled_commands_none_is_executed(smuggled: bytes, expected: list[int], bytewise: bool) -> None:
    client = Guard().greeted()
    client.heard()
    assert codes(client.send(smuggled, bytewise=bytewise)) == expected


def test_a_line_ended_by_lf_alone_is_answered_at_once() -> None:
    client = Guard().greeted()
    client.heard()
    assert client.send(b"NOOP\n") == "500 5.5.2 Line must end with <CR><LF>\r\n"


def test_a_bare_cr_is_answered_as_soon_as_it_is_known_to_be_bare() -> None:
    client = Guard().greeted()
    client.heard()
    assert client.send(b"NOOP\r") == ""
    assert client.send(b"X") == "500 5.5.2 Line must end with <CR><LF>\r\n"


@pytest.mark.parametrize("bytewise", [False, True])
def test_a_line_of_2048_octets_is_a_command_and_one_of_2049_is_not(bytewise: bool) -> None:
    client = Guard().greeted()
    client.heard()
    longest = b"NOOP " + b"x" * (2048 - 7) + b"\r\n"
    assert len(longest) == 2048
    assert codes(client.send(longest, bytewise=bytewise)) == [250]
    too_long = longest[:-2] + b"x\r\n"
    assert client.send(too_long, bytewise=bytewise) == "500 5.5.2 Line too long\r\n"
    assert client.codes("NOOP") == [250]


@pytest.mark.parametrize("bytewise", [False, True])
def test_the_session_ends_past_64_kib_of_one_line_and_not_before(bytewise: bool) -> None:
    client = Guard().greeted()
    client.heard()
    assert client.send(b"x" * 65536, bytewise=bytewise) == ""
    assert client.send(b"x") == "500 5.5.2 Line too long\r\n421 4.4.0 Too many errors, closing connection\r\n"
    assert client.closed


def test_a_line_of_64_kib_with_its_crlf_is_only_too_long() -> None:
    client = Guard().greeted()
    client.heard()
    assert codes(client.send(b"x" * 65534 + b"\r\nNOOP\r\n")) == [500, 250]


def test_a_malformed_line_that_does_not_end_ends_the_session_too() -> None:
    client = Guard().greeted()
    client.send(b"NOOP\n")
    assert client.send(b"x" * 65536) == "421 4.4.0 Too many errors, closing connection\r\n"
    assert client.guard.factory.statistics.refusals["max_endless_line"] == 1


@pytest.mark.parametrize("piece", [1000, 65536])
def test_of_ten_megabytes_without_crlf_no_more_than_the_limit_is_kept(piece: int) -> None:
    client = Guard(max_endless_line=0).greeted()
    client.heard()
    for _ in range(10_000_000 // piece):
        client.send(b"x" * piece)
        assert len(client.protocol._buffer) <= 2048
    assert codes(client.send(b"\r\nNOOP\r\n")) == [500, 250]


def test_what_is_skipped_is_not_kept() -> None:
    kept: list[int] = []
    split_lines([b"x" * 100 + b"\r"] * 100, 50, 0, kept)
    assert max(kept) <= 1


# Clients that send LF alone.

BAD_END = "500 5.5.2 Line must end with <CR><LF>\r\n"


@pytest.mark.parametrize("bytewise", [False, True])
def test_each_lf_of_a_client_that_sends_no_cr_is_told(bytewise: bool) -> None:
    client = Guard().connect()
    client.heard()
    assert client.send(b"EHLO x\nNOOP\nQUIT\n", bytewise=bytewise) == BAD_END * 3
    assert not client.closed
    assert client.send(b"\r\nNOOP\r\n", bytewise=bytewise) == "250 2.0.0 OK\r\n"
    assert client.guard.factory.statistics.refusals == {"bad_line_end": 3}


@pytest.mark.parametrize("bytewise", [False, True])
def test_a_client_that_sends_no_cr_is_ended_by_the_limit_on_invalid_commands(bytewise: bool) -> None:
    client = Guard().connect()
    client.heard()
    said = client.send(b"NOOP\n" * 30, bytewise=bytewise)
    assert said == BAD_END * 10 + "421 4.4.0 Too many errors, closing connection\r\n"
    assert client.closed


@pytest.mark.parametrize("step", [1, 7, 3001, 10000])
def test_an_over_long_line_that_ends_with_lf_alone_is_told_at_its_lf(step: int) -> None:
    client = Guard().connect()
    client.heard()
    octets = b"x" * 3000 + b"\nHost: y\n"
    said = "".join(client.send(octets[i : i + step]) for i in range(0, len(octets), step))
    assert said == "500 5.5.2 Line too long\r\n" + BAD_END
    assert client.codes("", "NOOP") == [250]


def test_lines_without_cr_are_no_more_than_the_limit_on_a_line_without_crlf_either() -> None:
    client = Guard(max_invalid_commands=0).greeted()
    client.heard()
    said = "".join(client.send(b"NOOP\n" * 100) for _ in range(200) if not client.closed)
    assert said.endswith(BAD_END + "421 4.4.0 Too many errors, closing connection\r\n")
    assert said.count(BAD_END) == 65536 // 5
    assert client.closed
    assert client.guard.factory.statistics.refusals["max_endless_line"] == 1


class Watched(bytes):
    """Counts the octets that are looked at for a line end."""

    looked_at = 0

    def find(self, sub: Any, start: Any = 0, stop: Any = None) -> int:
        stop = len(self) if stop is None else min(stop, len(self))
        found = super().find(sub, start, stop)
        self.looked_at += (stop if found < 0 else found + 1) - start
        return found


@pytest.mark.parametrize("burst", [b"\n", b"a\n", b"\r\n", b"\r", b"a\r", b"\r\r\n"], ids=repr)
def test_a_burst_of_line_ends_takes_linear_time(burst: bytes) -> None:
    buffer, offset = Watched(burst * 10_000), 0
    splitter = LineSplitter(LineRules(2048, 0))
    line: Result | None = b""
    while line is not None:
        line, offset = splitter.next_line(buffer, offset)
    assert offset >= len(buffer) - 1
    assert buffer.looked_at <= 4 * len(buffer)


HTTP = b"POST /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nQUIT\r\n"


@pytest.mark.parametrize("step", [1, 100, 2047, 2048, 2049, 10000])
def test_an_over_long_first_line_of_another_protocol_is_found_out_at_the_next_however_it_was_split(
    step: int,
) -> None:
    client = Guard().connect()
    client.heard()
    said = "".join(client.send(HTTP[i : i + step]) for i in range(0, len(HTTP), step) if not client.closed)
    assert said == "500 5.5.2 Line too long\r\n421 4.7.0 Not an SMTP client, closing connection\r\n"


def test_a_line_of_any_length_still_has_to_end() -> None:
    for pieces in ([b"x" * 101], [b"x"] * 101):
        assert split_lines(pieces, 0, 100) == ([replies.LINE_TOO_LONG], True)
    assert split_lines([b"x" * 98 + b"\r\n"], 0, 100) == ([b"x" * 98], False)
