"""Command lines out of octets: every split gives the same, nothing smuggled is executed, nothing endless is kept."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Guard, codes, splits
from hypothesis import given
from hypothesis import strategies as st
from purehost import PureGuard, PureHost

from twisted_smtpguard import replies
from twisted_smtpguard.engine.commands import COMMANDS
from twisted_smtpguard.replies import Reply

Result = bytes | Reply

# Few letters and many line ends, so that every order of CR and LF comes up, and a command that is read in one step.
OCTETS = st.lists(
    st.sampled_from([b"a", b"b\r\n", b"\r", b"\n", b"\r\n", b"\x00", b"RSET\r\n", b"RSET"]), max_size=12
).map(b"".join)

FIRST = b"NOOP\r\n"
"""Before which a session may yet turn out not to be SMTP."""

ENDLESS = replies.TOO_MANY_INVALID_COMMANDS


class Lines:
    """What a session makes of octets as they come."""

    def __init__(self, max_line: int, max_endless: int) -> None:
        self.guard = PureGuard(max_command_line=max_line, max_endless_line=max_endless)
        self.host: PureHost = self.guard.connect()
        self.host.send(FIRST)
        self.said_before = len(self.host.written)

    def take(self, pieces: list[bytes]) -> tuple[bytes, list[str]]:
        """What is said to them, and the verbs of the lines that are no commands, as the log has them."""
        for piece in pieces:
            if not self.host.gone and piece:
                self.host.send(piece)
        assert self.guard.events.failures == []
        rejected = [fields for name, fields in self.guard.events.seen if name == "reject"]
        return self.host.written[self.said_before :], [fields["command"] for fields in rejected]

    @property
    def kept(self) -> int:
        """Octets that wait in the engine."""
        return len(self.host.engine.buffer) - self.host.engine.offset


def expected_of(results: list[Result], ends: bool) -> tuple[bytes, list[str]]:
    """What is to be said to such lines, and logged."""
    said, verbs = b"", []
    for result in [*results, ENDLESS] if ends else results:
        reply, verb = result if isinstance(result, Reply) else replies.UNRECOGNIZED_COMMAND, ""
        if isinstance(result, bytes):
            verb = result.decode().upper()
            if not result or b"\0" in result:
                reply, verb = replies.SYNTAX_ERROR, ""
            elif result == b"RSET":
                reply = replies.OK
            elif verb.encode() in COMMANDS:
                raise AssertionError(f"{result!r} is not foreseen here")
        said += reply.wire
        if reply is not replies.OK:
            verbs.append(verb)
    return said, verbs


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


def bytewise(octets: bytes) -> list[bytes]:
    """Each octet alone."""
    return [octets[i : i + 1] for i in range(len(octets))]


@given(
    st.lists(OCTETS, max_size=5),
    st.one_of(st.just(0), st.integers(len(FIRST), 18), st.just(600)),
    st.one_of(st.just(0), st.integers(len(FIRST), 26)),
)
def test_any_octets_split_in_any_way_give_what_the_rules_say(
    pieces: list[bytes], max_line: int, max_endless: int
) -> None:
    octets = b"".join(pieces)
    expected = expected_of(*an_octet_at_a_time(octets, max_line, max_endless))
    for split in (pieces, [octets], bytewise(octets)):
        assert Lines(max_line, max_endless).take(split) == expected


# RSET is refused as little as NOOP, and is read in one step.


@pytest.mark.parametrize(
    ("octets", "results"),
    [
        (b"RSET\r\n", [b"RSET"]),
        (b"\r\n", [b""]),
        (b"RSET\r\nB\r\n", [b"RSET", b"B"]),
        (b"RSET", []),
        (b"RSET\r", []),
        (b"RSET\n", [replies.BAD_LINE_END]),
        (b"\n", [replies.BAD_LINE_END]),
        (b"\nB\r\n", [replies.BAD_LINE_END]),
        (b"RSET\rX", [replies.BAD_LINE_END]),
        (b"RSET\rB\r\n", [replies.BAD_LINE_END]),
        (b"RSET\r\r\nB\r\n", [replies.BAD_LINE_END, b"B"]),
        (b"\r\r\r\nB\r\n", [replies.BAD_LINE_END, b"B"]),
        (b"RSET\n\r\nB\r\n", [replies.BAD_LINE_END, b"B"]),
        (b"RSET\n\nA\nB\r\nRSET\r\n", [replies.BAD_LINE_END] * 3 + [b"RSET"]),
        (b"RSET\n\n\r\nB\r\n", [replies.BAD_LINE_END] * 2 + [b"B"]),
        (b"RSET\nA\r\nB\r\n", [replies.BAD_LINE_END, b"B"]),
        (b"RSET\rA\rC\r\nB\r\n", [replies.BAD_LINE_END, b"B"]),
        (b"RSET\rA\nC\r\nB\r\n", [replies.BAD_LINE_END] * 2 + [b"B"]),
        (b"RS\x00ET\r\n", [b"RS\x00ET"]),
    ],
)
def test_only_crlf_ends_a_command_and_a_bad_end_takes_all_up_to_the_next_crlf_with_it(
    octets: bytes, results: list[Result]
) -> None:
    expected = expected_of(results, ends=False)
    for pieces in ([octets], bytewise(octets), *map(list, splits(octets))):
        assert Lines(2048, 65536).take(pieces) == expected


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
    lines = Lines(2048, 0)
    for _ in range(10_000_000 // piece):
        lines.take([b"x" * piece])
        assert lines.kept <= 2048
    said = replies.LINE_TOO_LONG.wire + replies.OK.wire
    assert lines.take([b"\r\nNOOP\r\n"])[0] == said


def test_what_is_skipped_is_not_kept() -> None:
    lines = Lines(50, 0)
    for _ in range(100):
        lines.take([b"x" * 100 + b"\r"])
        assert lines.kept <= 1


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
    """Counts the octets that are looked at for a line end, in it and in what is cut off of it."""

    looked_at = 0

    def find(self, sub: Any, start: Any = 0, stop: Any = None) -> int:
        stop = len(self) if stop is None else min(stop, len(self))
        found = super().find(sub, start, stop)
        Watched.looked_at += (stop if found < 0 else found + 1) - start
        return found

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        return Watched(part) if isinstance(part, bytes) else part


@pytest.mark.parametrize("burst", [b"\n", b"a\n", b"\r\n", b"\r", b"a\r", b"\r\r\n"], ids=repr)
def test_a_burst_of_line_ends_takes_linear_time(burst: bytes) -> None:
    octets = Watched(burst * 10_000)
    lines = Lines(2048, 0)
    Watched.looked_at = 0
    lines.host.engine.received(octets)
    lines.host.settle()
    assert lines.kept <= 1
    assert 0 < Watched.looked_at <= 4 * len(octets)


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
        assert Lines(0, 100).take(pieces) == expected_of([replies.LINE_TOO_LONG], ends=True)
    assert Lines(0, 100).take([b"x" * 98 + b"\r\n"]) == expected_of([b"x" * 98], ends=False)
