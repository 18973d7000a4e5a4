"""Message data: bulk decoders against models that go an octet and a line at a time, at every split."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twisted_smtpguard import replies
from twisted_smtpguard.engine.message import ChunkDecoder, DataDecoder, MessageCheck, MessageRules
from twisted_smtpguard.replies import Reply

UNLIMITED: dict[str, Any] = {
    "max_octets": 0,
    "drain_octets": 0,
    "max_header_octets": 0,
    "max_received": 0,
    "normalize": False,
    "binary": False,
}
BINARY = UNLIMITED | {"binary": True}


class Result(NamedTuple):
    """What must not depend on how the octets were split."""

    ended: bool
    message: bytes | None
    """None: refused."""
    consumed: int
    octets: int
    problem: Reply | None
    exhausted: bool


def decode(pieces: Iterable[bytes], **rules: Any) -> Result:
    check = decoder = DataDecoder(MessageRules(**UNLIMITED | rules))
    message, consumed = bytearray(), 0
    for piece in pieces:
        assert not decoder.ended
        octets, taken = decoder.feed(piece)
        message += octets
        consumed += taken
        assert taken == len(piece) or decoder.ended
        if decoder.ended:
            break
    return result(check, decoder.ended, bytes(message), consumed)


def result(check: MessageCheck, ended: bool, message: bytes, consumed: int) -> Result:
    kept = message if check.problem is None else None
    return Result(ended, kept, consumed, check.octets, check.problem, check.exhausted)


def split(octets: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """`octets` in pieces; several cuts at one place make empty pieces."""
    start = 0
    for cut in sorted(cut % (len(octets) + 1) for cut in cuts):
        yield octets[start:cut]
        start = cut
    yield octets[start:]


def single(octets: bytes) -> Iterator[bytes]:
    return split(octets, range(len(octets) + 1))


# The models: slow, and right at a glance.


def model_decode(octets: bytes) -> tuple[bytes | None, int]:
    """The message in DATA, an octet at a time (RFC 5321 4.5.2), and how many octets it took. None: no end."""
    message = bytearray()
    line = bytearray()
    for number, octet in enumerate(octets, 1):
        line.append(octet)
        if line.endswith(b"\r\n"):
            if line == b".\r\n":
                return bytes(message), number
            message += line[1:] if line.startswith(b".") else line
            line.clear()
    return None, len(octets)


def model_stuff(message: bytes) -> bytes:
    """What a client sends (RFC 5321 4.5.2); `message` ends with CRLF or is empty."""
    lines = message.split(b"\r\n")[:-1]
    return b"".join((b"." if line[:1] == b"." else b"") + line + b"\r\n" for line in lines) + b".\r\n"


def model_normalize(message: bytes) -> bytes:
    normalized = b""
    for number, octet in enumerate(message):
        if octet == 0x0D or (octet == 0x0A and message[number - 1 : number] != b"\r"):
            normalized += b"\r\n"
        elif octet != 0x0A:
            normalized += bytes([octet])
    return normalized


def model_header_problem(message: bytes, max_octets: int, max_received: int) -> Reply | None:
    received = size = 0
    lines = message.split(b"\r\n")
    for number, line in enumerate(lines):
        name, colon, _ = line.partition(b":")
        word = name.rstrip(b" \t")
        is_field = colon and word and all(33 <= octet <= 126 for octet in word)
        if not is_field and not line.startswith((b" ", b"\t")):
            return None
        inside = not max_octets or size + len(name) + 1 <= max_octets
        if is_field and word.lower() == b"received" and inside:
            received += 1
            if max_received and received > max_received:
                return replies.ROUTING_LOOP
        size += len(line) + (2 if number < len(lines) - 1 else 0)
        if max_octets and size > max_octets:
            return replies.HEADER_TOO_LARGE
    return None


def model_check(message: bytes, rules: dict[str, Any]) -> Result:
    """What a whole message is worth."""
    bare = b"\r" in message.replace(b"\r\n", b"") or b"\n" in message.replace(b"\r\n", b"")
    if rules["normalize"] and not rules["binary"]:
        message, bare = model_normalize(message), False
    problem = model_header_problem(message, rules["max_header_octets"], rules["max_received"])
    if problem is None and bare and not rules["binary"]:
        problem = replies.BARE_NEWLINE
    maximum, drain = rules["max_octets"], rules["drain_octets"]
    if maximum and len(message) > maximum:
        problem = replies.MESSAGE_TOO_LARGE
    exhausted = maximum and drain and len(message) > maximum + max(maximum, drain)
    return Result(True, None if problem else message, 0, len(message), problem, bool(exhausted))


HOSTILE_WORDS = [b"\r", b"\n", b"\r\n", b".", b"\0", b"\xff", b"a", b":", b" ", b"a:b\r\n", b"Received:"]
HOSTILE_WORDS += [b"rEceived \t: x\r\n", b"\r\n.\r\n", b"\r\n..", b"\n.\r\n", b"\r.\r"]
HOSTILE = st.lists(st.sampled_from(HOSTILE_WORDS), max_size=30).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=12)
LIMIT = st.integers(0, 40)
RULES = st.fixed_dictionaries(
    {
        "max_octets": LIMIT,
        "drain_octets": LIMIT,
        "max_header_octets": LIMIT,
        "max_received": st.integers(0, 3),
        "normalize": st.booleans(),
        "binary": st.booleans(),
    }
)


@given(HOSTILE, RULES)
def test_data_is_decoded_as_an_octet_at_a_time_model_does(octets: bytes, rules: dict[str, Any]) -> None:
    message, consumed = model_decode(octets)
    decoded = decode([octets], **rules)
    assert (decoded.ended, decoded.consumed) == (message is not None, consumed)
    if message is not None:
        assert decoded == model_check(message, rules)._replace(consumed=consumed)


@given(HOSTILE, CUTS, RULES)
@example(b"\r\n.\r\n", [2, 3], UNLIMITED)
@example(b"a\r\n\r\n.\r\nb", [1, 2, 3, 4, 5, 6, 7], UNLIMITED)
def test_how_the_data_was_split_makes_no_difference(
    octets: bytes, cuts: list[int], rules: dict[str, Any]
) -> None:
    whole = decode([octets], **rules)
    assert decode(split(octets, cuts), **rules) == whole
    assert decode(single(octets), **rules) == whole


@given(st.lists(HOSTILE.map(lambda octets: octets + b"\r\n"), max_size=3).map(b"".join), CUTS)
def test_a_body_survives_stuffing_and_unstuffing_octet_for_octet(message: bytes, cuts: list[int]) -> None:
    sent = model_stuff(message)
    decoded = decode(split(sent + b"QUIT\r\n", cuts), **BINARY)
    assert (decoded.ended, decoded.message, decoded.consumed) == (True, message, len(sent))


NOT_AN_END = [
    b"\n.\n",
    b"\r.\r",
    b"\n.\r\n",
    b"\r.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\n.\r\r\n",
    b"\r\r.\r\n",
    b"\n\r.\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n.\r\0\n",
    b"\r\0\n.\r\n",
    b"\r\n..\r\n",
    b"\r\n. \r\n",
    b"\r\n .\r\n",
    b"\r\n.\x85",
]


@pytest.mark.parametrize("octets", NOT_AN_END)
@pytest.mark.parametrize("before", [b"", b"a", b"a\r\n"])
def test_nothing_but_crlf_dot_crlf_ends_the_data(before: bytes, octets: bytes) -> None:
    sent = before + b"x" + octets + b"MAIL FROM:<smuggled@example.org>\r\n"
    for pieces in ([sent], list(single(sent))):
        assert not decode(pieces).ended
        assert decode([*pieces, b"\r\n.\r\n"]).ended


@pytest.mark.parametrize(
    "octets",
    [b".\n", b".\r", b"\n.\r\n", b"\0.\r\n", b" .\r\n", b"..\r\n", b".\r\r\n", b"\r.\r\n", b".\r\0\n"],
)
def test_nothing_but_a_dot_line_ends_the_data_at_once(octets: bytes) -> None:
    assert not decode([octets]).ended
    assert not decode(single(octets)).ended


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"\r\n\r\n.\r\n", b"\r\n\r\n"),
        (b"a\r\n.\r\n", b"a\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b".a\r\n..b\r\n...\r\n.\r\n", b"a\r\n.b\r\n..\r\n"),
        (b"a.\r\n.\r\n", b"a.\r\n"),
        (b"\0\xff\r\n.\r\n", b"\0\xff\r\n"),
    ],
)
def test_data_ends_with_a_dot_line_and_loses_the_dots_of_transparency(sent: bytes, message: bytes) -> None:
    expected = Result(True, message, len(sent), len(message), None, False)
    assert decode([sent]) == decode(single(sent)) == expected
    assert decode([sent + b".\r\nQUIT\r\n"]) == expected


def test_no_more_than_four_octets_are_held_back() -> None:
    sent = b"a\r\n.b\r\n..\r\n\r\n.\rc\r\n.\r"
    decoder = DataDecoder(MessageRules(**BINARY))
    came = 0
    for fed, piece in enumerate(single(sent)):
        came += len(decoder.feed(piece)[0])
        dots = sent[:fed].count(b"\r\n.")
        assert fed - came <= dots + 4


@given(HOSTILE, CUTS)
def test_no_piece_for_the_sink_splits_a_line_end(octets: bytes, cuts: list[int]) -> None:
    decoders = [
        DataDecoder(MessageRules(**BINARY)),
        ChunkDecoder(MessageRules(**BINARY)),
    ]
    decoders[1].start(len(octets) + 1, False)
    for decoder in decoders:
        last = b""
        for piece in split(octets, cuts):
            if decoder.ended:
                break
            came = decoder.feed(piece)[0]
            assert not (last.endswith(b"\r") and came.startswith(b"\n"))
            last = came or last


# BDAT.


def decode_chunks(chunks: list[bytes], cuts: list[int], **rules: Any) -> Result:
    """Every chunk announced, the last as LAST, and each fed in pieces with something else after it."""
    check = decoder = ChunkDecoder(MessageRules(**UNLIMITED | rules))
    message, consumed = b"", 0
    for number, chunk in enumerate(chunks, 1):
        decoder.start(len(chunk), number == len(chunks))
        assert decoder.last == (number == len(chunks))
        assert decoder.ended == (not chunk)
        *pieces, final = split(chunk, cuts)
        for piece in [*pieces, final + b"QUIT\r\n"]:
            octets, taken = decoder.feed(piece)
            message += octets
            consumed += taken
        assert decoder.ended
    return result(check, decoder.last and decoder.ended, message, consumed)


@given(HOSTILE, CUTS, CUTS, RULES)
@example(b"a\r\n", [2], [], UNLIMITED)
@example(b"a\r", [2], [], UNLIMITED)
@example(b"a\r", [2], [], BINARY)
def test_chunks_are_the_message_at_every_split(
    octets: bytes, chunk_cuts: list[int], cuts: list[int], rules: dict[str, Any]
) -> None:
    expected = model_check(octets, rules)._replace(consumed=len(octets))
    assert decode_chunks([octets], cuts, **rules) == expected
    assert decode_chunks(list(split(octets, chunk_cuts)), cuts, **rules) == expected


@given(st.binary(), CUTS, CUTS)
def test_an_accepted_body_comes_out_of_its_chunks_octet_for_octet(
    octets: bytes, chunk_cuts: list[int], cuts: list[int]
) -> None:
    assert decode_chunks(list(split(octets, chunk_cuts)), cuts, **BINARY).message == octets


def test_a_chunk_announced_beyond_the_maximum_is_refused_before_it_comes() -> None:
    check = decoder = ChunkDecoder(MessageRules(**UNLIMITED | {"max_octets": 100}))
    decoder.start(60, False)
    decoder.feed(b"a" * 59 + b"\r")
    decoder.start(40, False)
    assert check.problem is None
    decoder.feed(b"\n" + b"b" * 38 + b"\r")
    decoder.start(0, False)
    assert check.problem is None
    decoder.start(1, True)
    assert check.problem is replies.MESSAGE_TOO_LARGE
    assert check.octets == 99, "of the chunk that was refused nothing has come"


@pytest.mark.parametrize("maximum", [0, 1000])
def test_an_absurd_chunk_takes_no_memory_and_ends_with_the_drain(maximum: int) -> None:
    check = decoder = ChunkDecoder(MessageRules(**UNLIMITED | {"max_octets": maximum, "drain_octets": 3000}))
    decoder.start(10**20 - 1, True)
    assert check.problem is (replies.MESSAGE_TOO_LARGE if maximum else None)
    for _ in range(4):
        assert not check.exhausted
        decoder.feed(b"x" * 1000)
    assert not check.exhausted
    decoder.feed(b"x")
    assert check.exhausted is bool(maximum)
    assert not decoder.ended


# The rules of a message.

SENT = b"Subject: x\r\n\r\n..dots\r\nbody\r\n"
MESSAGE_OCTETS = len(SENT) - 1


def test_the_maximum_counts_line_ends_but_neither_stuffed_dots_nor_the_end() -> None:
    assert decode([SENT + b".\r\n"], max_octets=MESSAGE_OCTETS).problem is None
    assert decode([SENT + b".\r\n"], max_octets=MESSAGE_OCTETS - 1).problem is replies.MESSAGE_TOO_LARGE


def test_the_maximum_counts_what_normalizing_adds() -> None:
    rules = {"max_octets": 6, "normalize": True}
    assert decode([b"a\nb\n\r\n.\r\n"], **rules).problem is replies.MESSAGE_TOO_LARGE
    assert decode([b"a\nb\r\n.\r\n"], **rules).message == b"a\r\nb\r\n"


@pytest.mark.parametrize(
    ("maximum", "drain", "last_octet"),
    [(10, 30, 40), (30, 10, 60), (10, 10, 20), (0, 10, None), (10, 0, None)],
)
def test_a_body_is_drained_for_once_more_the_maximum_or_the_drain(
    maximum: int, drain: int, last_octet: int | None
) -> None:
    rules = {"max_octets": maximum, "drain_octets": drain}
    assert not decode([b"x" * (last_octet or 10_000)], **rules).exhausted
    assert decode([b"x" * ((last_octet or 10_000) + 1)], **rules).exhausted is (last_octet is not None)


@pytest.mark.parametrize("bare", [b"\r", b"\n", b"\r\r\n", b"\n\r", b"\r\n\n", b"\0\r\0", b"\r.\r"])
def test_a_bare_newline_is_refused_or_normalized_or_content(bare: bytes) -> None:
    sent = b"\r\nx" + bare + b"y\r\n.\r\n"
    assert decode([sent]).problem is replies.BARE_NEWLINE
    assert decode([sent], normalize=True).message == model_normalize(sent[:-3])
    for normalize in (False, True):
        assert decode([sent], normalize=normalize, binary=True).message == sent[:-3]


def test_nothing_goes_to_the_sink_once_refused() -> None:
    decoder = DataDecoder(MessageRules(**UNLIMITED))
    assert decoder.feed(b"a: b\r\n\r\nx\ny") == (b"", 11)
    assert decoder.feed(b"more\r\n.\r\n") == (b"", 9)
    assert decoder.ended


def test_the_maximum_wins_over_every_other_problem_even_when_found_later() -> None:
    for start in (b"\r\n\n", b"Received:\r\nReceived:\r\n", b"A: aaaaaaaaaaaaaaaaaaaaaaa\r\n"):
        rules = {"max_octets": 60, "max_received": 1, "max_header_octets": 22}
        assert decode([start, b"\r\n.\r\n"], **rules).problem not in (None, replies.MESSAGE_TOO_LARGE)
        late = decode([start, b"x" * 60 + b"\r\n.\r\n"], **rules)
        assert late.problem is replies.MESSAGE_TOO_LARGE


def test_a_refusal_from_outside_stays_unless_the_maximum_is_exceeded() -> None:
    check = MessageCheck(MessageRules(**UNLIMITED | {"max_octets": 40, "max_received": 1}))
    check.refuse(replies.INSUFFICIENT_STORAGE)
    check.refuse(replies.LOCAL_ERROR)
    assert check.take(b"Received:\r\nReceived:\r\n\n") == b""
    assert check.problem is replies.INSUFFICIENT_STORAGE
    assert check.take(b"x" * 40) == b""
    assert check.problem is replies.MESSAGE_TOO_LARGE
    check.refuse(replies.LOCAL_ERROR)
    assert check.problem is replies.MESSAGE_TOO_LARGE


def test_a_refusal_from_outside_does_not_replace_an_earlier_problem() -> None:
    check = MessageCheck(MessageRules(**UNLIMITED))
    check.take(b"\n")
    check.refuse(replies.LOCAL_ERROR)
    assert check.problem is replies.BARE_NEWLINE


# The header section.


def fields(count: int, name: bytes = b"Received") -> bytes:
    return b"".join(b"%s: from a\r\n\tby b; %d\r\n" % (name, number) for number in range(count))


@pytest.mark.parametrize("name", [b"Received", b"RECEIVED", b"received \t", b"rEcEiVeD"])
def test_more_received_fields_than_the_maximum_are_a_routing_loop(name: bytes) -> None:
    for pieces in (lambda sent: [sent], single):
        assert decode(pieces(fields(100, name) + b"\r\nx\r\n.\r\n"), max_received=100).problem is None
        looped = decode(pieces(fields(101, name) + b"\r\nx\r\n.\r\n"), max_received=100)
        assert looped.problem is replies.ROUTING_LOOP


@pytest.mark.parametrize(
    "head",
    [
        fields(5, b"X-Received"),
        fields(5, b"Received-SPF"),
        b"A: b\r\n" + b" Received: folded\r\n" * 5,
        b"A: b Received:\r\n" * 5,
        b"A: b\r\n\r\n" + fields(5),
        b"\r\n" + fields(5),
        b"no field\r\n" + fields(5),
        b"From sender Mon Jan  1\r\n" + fields(5),
        b": x\r\n" + fields(5),
        b"\xff: x\r\n" + fields(5),
        b"a b: x\r\n" + fields(5),
        b"a\0: x\r\n" + fields(5),
    ],
)
def test_other_fields_and_the_body_hold_no_received_field(head: bytes) -> None:
    for pieces in (lambda sent: [sent], single):
        assert decode(pieces(head + b"\r\n.\r\n"), max_received=1).problem is None


@pytest.mark.parametrize(
    "field",
    [b"A: b\r\n", b"A:\r\n", b"A : b\r\n", b" first\r\n", b"A: b\r\n\tc\r\n \r\n", b"A" * 900 + b":\r\n"],
)
def test_a_header_as_long_as_the_maximum_is_taken_and_one_octet_more_is_refused(field: bytes) -> None:
    for pieces in (lambda sent: [sent], single):
        for body in (b"\r\nbody\r\n.\r\n", b"no field\r\n.\r\n", b".\r\n"):
            assert decode(pieces(field + body), max_header_octets=len(field)).problem is None
            long = decode(pieces(field + body), max_header_octets=len(field) - 1)
            assert long.problem is replies.HEADER_TOO_LARGE


@pytest.mark.parametrize(
    "line", [b"x" * 300_000, b"x" * 300_000 + b":", b"x" * 901 + b":", b"x" + b" " * 99 + b":"]
)
def test_a_line_without_a_colon_in_time_is_body(line: bytes) -> None:
    for octets in (1, 7, 1000, 65536, 10**6):
        sent = line + b"\r\n" + b".\r\n"
        pieces = [sent[at : at + octets] for at in range(0, len(sent), octets)]
        assert decode(pieces, max_header_octets=100).message == line + b"\r\n"


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (b"Received:\r\nReceived:\r\n.\r\n", replies.ROUTING_LOOP),
        (b"Received:\r\n A\r\nReceived:\r\n.\r\n", replies.HEADER_TOO_LARGE),
        (b"A:\n\r\nReceived:\r\nReceived:\r\n.\r\n", replies.HEADER_TOO_LARGE),
        (b"R:\n\r\nB: aaaaaaaaaaaaaaaaaaaaaa\r\n.\r\n", replies.HEADER_TOO_LARGE),
        (b"\n\r\nReceived:\r\nReceived:\r\n.\r\n", replies.BARE_NEWLINE),
        (b"A:\r\n\r\n\n\r\nReceived:\r\nReceived:\r\n.\r\n", replies.BARE_NEWLINE),
    ],
)
def test_the_header_s_first_problem_wins_over_a_bare_newline(sent: bytes, problem: Reply) -> None:
    for pieces in ([sent], single(sent)):
        assert decode(pieces, max_header_octets=20, max_received=1).problem is problem


def test_a_field_of_any_name_that_counts_is_seen_an_octet_at_a_time() -> None:
    sent = b"N" * 900 + b" " * 98 + b":\r\n" + fields(2) + b"\r\n.\r\n"
    assert decode(single(sent), max_received=1).problem is replies.ROUTING_LOOP


def test_an_endless_field_is_a_header_too_large_long_before_its_end() -> None:
    for line in (b"A:" + b"x" * 300, b"A:\r\n " + b"x" * 300, b"A:" + b"\r\n " * 100):
        assert decode([line], max_header_octets=299).problem is replies.HEADER_TOO_LARGE
        assert decode(single(line), max_header_octets=299).problem is replies.HEADER_TOO_LARGE


@given(
    st.integers(0, 3),
    st.integers(0, 120),
    st.lists(st.integers(0, 1100)),
    st.sampled_from([b"", b":", b" :", b"\r\n"]),
)
def test_long_lines_of_a_header_are_read_alike_at_every_split(
    received: int, octets: int, cuts: list[int], end: bytes
) -> None:
    sent = fields(received) + b"N" * (850 + octets) + end + b" \r\n" + fields(1) + b"\r\n.\r\n"
    rules = {"max_header_octets": 1000, "max_received": 2}
    assert decode(split(sent, cuts), **rules) == decode(single(sent), **rules) == decode([sent], **rules)


# Cost.


def _seconds(unit: bytes, octets: int, piece_octets: int, **rules: Any) -> float:
    """Processor time to decode `unit` over and over in pieces, at its best of three."""
    sent = unit * (octets // len(unit))
    pieces = [sent[at : at + piece_octets] for at in range(0, len(sent), piece_octets)]
    rounds = []
    for _ in range(3):
        decoder = DataDecoder(MessageRules(**UNLIMITED | rules))
        began = time.thread_time()
        for piece in pieces:
            decoder.feed(piece)
        rounds.append(time.thread_time() - began)
    return min(rounds)


@pytest.mark.parametrize("piece_octets", [1, 65536])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "unit",
    [
        b"a",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n..",
        b"\r\n.\r",
        b"a:\r\n",
        b"a:\r\n ",
        b"Received:",
        b"Received:\r\n",
        b" ",
        b"a \t",
    ],
)
def test_hostile_data_costs_time_in_proportion_to_its_length(
    unit: bytes, normalize: bool, piece_octets: int
) -> None:
    rules = {"normalize": normalize, "max_header_octets": 1 << 30, "max_received": 1 << 30}
    octets = 4096 if piece_octets == 1 else 65536
    short, long = (_seconds(unit, octets * factor, piece_octets, **rules) for factor in (1, 16))
    # 16 times as long; with squared cost it would be 256 times as dear.
    assert long < max(64 * short, 0.001)
