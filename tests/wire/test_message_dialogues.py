"""What a session answers to message data, each limit at its octet."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Conversation, FakeDelivery, Guard, refusal
from test_session_dialogues import ACCEPTED, DATA, MAIL, OK, RCPT, START_DATA
from twisted.internet.defer import Deferred

from twisted_smtpguard.engine import receiving
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.testing import Turn, dialogue

TOO_LARGE = "552 5.3.4 Message size exceeds fixed maximum message size"
NEVER_ENDS = "421 4.3.0 Message too large, closing connection"
BARE_NEWLINE = "550 5.5.2 Bare <CR> or <LF> received"
HEADER_TOO_LARGE = "552 5.3.4 Message header too large"
ROUTING_LOOP = "554 5.4.6 Routing loop detected"
ENVELOPE = (MAIL, RCPT)
NOOP: Turn = ("NOOP", OK)


def message(octets: bytes, reply: str, **settings: Any) -> Conversation:
    """Send these octets by DATA, then in one chunk and in chunks of seven by BDAT; the answer is the same."""
    stuffed = (b"\r\n" + octets).replace(b"\r\n.", b"\r\n..")[2:]
    client = dialogue(*ENVELOPE, DATA, (stuffed + b".\r\n", reply), NOOP, **settings)
    whole = b"BDAT %d LAST\r\n%s" % (len(octets), octets)
    dialogue(*ENVELOPE, (whole, reply), NOOP, **settings)
    return client


def sent(client: Conversation) -> list[bytes]:
    """The messages that the delivery was to make safe."""
    return [each.octets for each in client.guard.delivery.messages]


def test_a_message_reaches_the_delivery_octet_for_octet() -> None:
    octets = b"Subject: \xff\0x\r\n\r\n.\r\n..\r\n" + b"x" * 5000 + b"\r\n"
    assert sent(message(octets, ACCEPTED)) == [octets]


def test_the_first_line_may_be_the_final_dot() -> None:
    assert sent(dialogue(*ENVELOPE, DATA, (".", ACCEPTED), NOOP)) == [b""]


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r\n.\r"]
)
def test_nothing_but_crlf_dot_crlf_ends_the_data(end: bytes) -> None:
    reply = ACCEPTED if b"\0" in end else BARE_NEWLINE
    client = dialogue(*ENVELOPE, DATA, (b"x" + end + b"QUIT\r\n", ""), (b"\r\n.\r\n", reply), NOOP)
    assert len(sent(client)) == (reply == ACCEPTED)


# Size.


@pytest.mark.parametrize(("ours", "theirs"), [(100, 0), (100, 1000), (1000, 100), (0, 100)])
def test_a_declared_size_above_the_maximum_is_refused_at_mail(ours: int, theirs: int) -> None:
    def delivery() -> FakeDelivery:
        made = FakeDelivery()
        made.max_message_octets = theirs
        return made

    turns = (
        ("MAIL FROM:<> SIZE=100", "250 2.1.0 Sender OK"),
        ("RSET", OK),
        ("MAIL FROM:<> SIZE=101", TOO_LARGE),
        ("MAIL FROM:<> SIZE=99999999999999999999", TOO_LARGE),
        *ENVELOPE,
        DATA,
        (b"x" * 98 + b"\r\n.\r\n", ACCEPTED),
        *ENVELOPE,
        DATA,
        (b"x" * 99 + b"\r\n.\r\n", TOO_LARGE),
    )
    client = dialogue(*turns, max_message_size=ours, delivery=delivery)
    assert len(sent(client)) == 1


def test_a_message_may_have_as_many_octets_as_the_limit_and_not_one_more() -> None:
    assert len(sent(message(b"x" * 998 + b"\r\n", ACCEPTED, max_message_size=1000))) == 1
    assert sent(message(b"x" * 999 + b"\r\n", TOO_LARGE, max_message_size=1000)) == []


def test_dots_that_were_stuffed_do_not_count() -> None:
    message(b".x\r\n" * 250, ACCEPTED, max_message_size=1000)


def test_without_a_limit_a_message_may_have_any_size() -> None:
    client = dialogue(
        ("MAIL FROM:<> SIZE=99999999999999999999", "250 2.1.0 Sender OK"), RCPT, DATA,
        (b"x" * 11_000_000 + b"\r\n.\r\n", ACCEPTED), max_message_size=0, bytewise=False,
    )  # fmt: skip
    assert len(sent(client)[0]) == 11_000_002


def test_the_size_wins_over_every_other_reason_to_refuse() -> None:
    message(b"a: b\n" * 100 + b"\r\n", TOO_LARGE, max_message_size=400, max_header_size=20)


def test_an_oversize_message_is_aborted_at_once() -> None:
    client = Guard(max_message_size=100).greeted()
    client.say("MAIL FROM:<>", "RCPT TO:<c@d.example>", "DATA")
    client.send(b"x" * 101)
    assert client.guard.delivery.calls[-1] == "sink.abort"


@pytest.mark.parametrize("command", [b"DATA\r\n", b"BDAT 99999\r\n"])
@pytest.mark.parametrize(("drain", "swallowed"), [(100, 1000), (5000, 5000)])
def test_draining_ends_at_its_octet(command: bytes, drain: int, swallowed: int) -> None:
    before: Turn = (command, START_DATA if command == b"DATA\r\n" else "")
    limits = {"max_message_size": 1000, "oversize_drain": drain}
    dialogue(*ENVELOPE, before, (b"x" * (1000 + swallowed), ""), **limits)
    dialogue(*ENVELOPE, before, (b"x" * (1000 + swallowed), ""), (b"x", NEVER_ENDS), closed=True, **limits)


def test_by_default_at_least_a_mebibyte_is_drained() -> None:
    assert Limits().oversize_drain == 1024 * 1024
    octets = b"x" * (1000 + 1024 * 1024)
    dialogue(
        *ENVELOPE, DATA, (octets, ""), (b"x", NEVER_ENDS), max_message_size=1000, bytewise=False, closed=True
    )


def test_the_drain_bound_may_be_off() -> None:
    limits = {"max_message_size": 10, "oversize_drain": 0}
    dialogue(*ENVELOPE, DATA, (b"x" * 5_000_000, ""), (b"\r\n.\r\n", TOO_LARGE), bytewise=False, **limits)


# Bare newlines.

BARE = [b"a\nb\r\n", b"a\rb\r\n", b"\n\r\n", b"a\r\r\n", b"\r\n\ra\r\n", b"a: b\r\n\r\nc\nd\r\n"]


@pytest.mark.parametrize("octets", BARE)
def test_a_bare_newline_is_refused_after_the_end_of_the_data(octets: bytes) -> None:
    assert sent(message(octets, BARE_NEWLINE)) == []


@pytest.mark.parametrize("octets", BARE)
def test_a_bare_newline_may_be_made_a_crlf(octets: bytes) -> None:
    normal = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    assert sent(message(octets, ACCEPTED, bare_newline="normalize")) == [normal]


def test_a_chunk_may_end_with_a_bare_cr_only_if_an_lf_begins_the_next() -> None:
    first: Turn = (b"BDAT 2\r\na\r", "250 2.0.0 2 octets received")
    assert sent(dialogue(*ENVELOPE, first, (b"BDAT 1 LAST\r\n\n", ACCEPTED), NOOP)) == [b"a\r\n"]
    dialogue(*ENVELOPE, first, (b"BDAT 1 LAST\r\nb", BARE_NEWLINE), NOOP)
    dialogue(*ENVELOPE, first, ("BDAT 0 LAST", BARE_NEWLINE), NOOP)


# The header.


def test_the_header_may_have_as_many_octets_as_its_limit() -> None:
    def header(octets: int) -> bytes:
        return b"a: " + b"x" * (octets - 5) + b"\r\n" + b"\r\nbody\r\n"

    assert len(sent(message(header(254), ACCEPTED, max_header_size=256))) == 1
    assert sent(message(header(257), HEADER_TOO_LARGE, max_header_size=256)) == []
    message(header(5000), ACCEPTED, max_header_size=0)
    message(b"\r\n" + b"a: b\r\n" * 100, ACCEPTED, max_header_size=256)


@pytest.mark.parametrize("limit", [100, 3])
def test_more_received_fields_than_the_limit_are_a_loop(limit: int) -> None:
    field = b"Received: from x\r\n by y\r\n"
    message(field * limit + b"\r\n" + field, ACCEPTED, max_received_fields=limit)
    assert sent(message(field * (limit + 1) + b"\r\n", ROUTING_LOOP, max_received_fields=limit)) == []
    message(field * (limit + 1) + b"\r\n", ACCEPTED, max_received_fields=0)


# The verdict.


@pytest.mark.parametrize("code", [450, 452, 550, 554])
def test_a_verdict_of_the_delivery_is_passed_on_and_the_session_lives_on(code: int) -> None:
    def delivery() -> FakeDelivery:
        made = FakeDelivery()
        made.answers["finish"] = lambda: refusal(code, "No")
        return made

    client = message(b"x\r\n", f"{code} {code // 100}.1.1 No", delivery=delivery)
    assert client.guard.factory.statistics.messages_accepted == 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (421, "421 4.1.1 Go away\r\n"),
        (521, "521 5.1.1 Go away\r\n421 4.7.0 Session refused, closing connection\r\n"),
    ],
)
def test_a_verdict_that_closes_ends_the_session_and_the_last_line_is_a_421(code: int, said: str) -> None:
    delivery = FakeDelivery()
    delivery.answers["finish"] = lambda: refusal(code, "Go away")
    client = Guard(delivery).greeted()
    client.say("MAIL FROM:<>", "RCPT TO:<c@d.example>", "DATA")
    client.heard()
    writes = len(client.transport.writes)
    assert client.say(".", "NOOP") == said
    assert client.closed
    assert len(client.transport.writes) == writes + 1


@pytest.mark.parametrize("octets", [b"", b"x", b"x\r\n.", b"x\r\n.\r"])
@pytest.mark.parametrize("leave", ["half_close", "disconnect"])
def test_a_body_without_its_end_is_never_delivered(octets: bytes, leave: str) -> None:
    client = Guard().greeted()
    client.say("MAIL FROM:<>", "RCPT TO:<c@d.example>", "DATA")
    client.send(octets)
    getattr(client, leave)()
    assert sent(client) == []
    assert client.guard.delivery.calls[-1] == "sink.abort"


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_after_a_fault_of_ours_in_message_data_nothing_of_it_is_a_command(verb: str) -> None:
    guard = Guard()

    def fault(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    guard.factory.context.events.accept = fault  # type: ignore[method-assign]
    client = guard.greeted()
    client.heard()
    client.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
    body = b"MAIL FROM:<smuggled@evil.example>\r\nRCPT TO:<c@d.example>\r\n"
    if verb == "DATA":
        client.say("DATA")
        heard = client.send(body + b".\r\nNOOP\r\n")
    else:
        heard = client.send(b"BDAT %d LAST\r\n%sNOOP\r\n" % (len(body), body))
    assert heard == "421 4.3.0 Internal error, try again later\r\n"
    assert client.closed
    assert guard.delivery.calls.count("begin") == 1


@pytest.mark.parametrize("start", [b"DATA\r\n", b"BDAT 1000 LAST\r\n"])
def test_after_a_fault_of_ours_while_the_delivery_takes_its_time_the_rest_of_the_data_is_no_command(
    start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard()
    taking: Deferred[None] = Deferred()
    guard.delivery.answers["write"] = lambda _: taking
    client = guard.greeted()
    client.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
    client.send(start)
    client.send(b"text\r\n")
    client.heard()

    def fault(_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(receiving, "_received", fault)
    client.send(b"RSET\r\nMAIL FROM:<smuggled@evil.example>\r\n")
    taking.callback(None)
    assert client.heard() == "421 4.3.0 Internal error, try again later\r\n"
    assert client.closed
    assert guard.delivery.calls.count("begin") == 1


def test_a_delivery_may_change_the_largest_message_and_what_was_before_is_forgotten() -> None:
    client = Guard().greeted()
    site, delivery = client.guard.factory.context, client.guard.delivery
    for octets in range(100, 200):
        delivery.max_message_octets = octets
        client.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
        client.heard()
        assert client.send(b"BDAT %d LAST\r\n%s" % (octets, b"x" * octets)).startswith("250 ")
        client.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
        client.heard()
        assert client.send(b"BDAT %d LAST\r\n%s" % (octets + 1, b"x" * (octets + 1))).startswith("552 ")
    assert site._rules.cache_info().currsize == 2  # type: ignore[attr-defined]
