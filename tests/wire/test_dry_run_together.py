"""Limits that are only tried beside others: what is enforced stays enforced, and the log does not repeat itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakes import FakeDelivery, Guard, codes, delivery_without_nobody, splits
from logbook import Logbook, logbook

from twisted_smtpguard.engine.message import MessageCheck, message_rules
from twisted_smtpguard.limits.limits import Limits, dry_runnable
from twisted_smtpguard.limits.units import Rate

MAIL, RCPT, NOBODY = "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "RCPT TO:<nobody@d>"
ENVELOPE = (MAIL, RCPT)


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def sent(octets: bytes, **limits: Any) -> tuple[Guard, int]:
    """A guard after a message of these octets by DATA, and the code of its verdict."""
    client = Guard(**limits).greeted()
    client.say(*ENVELOPE, "DATA")
    return client.guard, codes(client.send(octets + b"\r\n.\r\n"))[-1]


def tried(guard: Guard) -> dict[str, int]:
    return guard.factory.statistics.dry_run_refusals


def refused(guard: Guard) -> dict[str, int]:
    return guard.factory.statistics.refusals


# Logged once, or each time.


def test_a_limit_that_would_have_ended_the_session_is_logged_once_in_it(log: Logbook) -> None:
    guard = Guard(max_invalid_commands=3, dry_run=["max_invalid_commands"])
    client = guard.greeted()
    assert client.codes(*["BREW"] * 50) == [500] * 50
    assert tried(guard) == {"max_invalid_commands": 1}
    guard.greeted().say(*["BREW"] * 3)
    assert tried(guard) == {"max_invalid_commands": 2}
    lines = [line for line in log.take("reject") if "dry_run" in line]
    assert all("limit=3 value=3" in line for line in lines)


def test_a_limit_that_would_have_refused_a_command_is_logged_each_time(log: Logbook) -> None:
    guard = Guard(max_recipients=2, dry_run=["max_recipients"])
    assert guard.greeted().codes(MAIL, *[RCPT] * 5)[-6:] == [250] * 6
    lines = [line.partition(" value=")[2][:1] for line in log.take("reject")]
    assert lines == ["3", "4", "5"]


def test_a_message_that_stays_too_slow_is_logged_once() -> None:
    guard = Guard(min_data_rate=500, dry_run=["min_data_rate"])
    client = guard.greeted()
    client.say(*ENVELOPE, "DATA")
    for _ in range(1000):
        client.send(b"x\r\n")
        guard.clock.advance(1)
    assert client.codes(".") == [250]
    assert tried(guard) == {"min_data_rate": 1}


def test_connections_above_a_cap_in_dry_run_hold_their_places(log: Logbook) -> None:
    guard = Guard(max_connections_per_client=1, dry_run=["max_connections_per_client"])
    clients = [guard.connect() for _ in range(3)]
    for client in clients:
        client.disconnect()
    guard.connect()
    assert [line.partition(" value=")[2] for line in log.take("reject")] == ["2 port=4711", "3 port=4711"]


@pytest.mark.parametrize("limit", ["refuse", "log"])
def test_an_early_talker_is_logged_once_both_in_dry_run_and_when_enforced(limit: str, log: Logbook) -> None:
    guard = Guard(early_talker=limit, dry_run=["early_talker"] if limit == "refuse" else [], greet_delay=2)
    client = guard.connect()
    client.send(b"EHLO x\r\nNOOP\r\n", bytewise=True)
    guard.clock.advance(2.1)
    assert codes(client.heard()) == [220, 250, 250]
    assert log.take("reject") == [
        f"reject peer=192.0.2.1 reason=early_talker dry_run=true limit={limit} port=4711"
    ]


def test_a_limit_in_dry_run_is_not_named_in_another_refusal(log: Logbook) -> None:
    guard = Guard(delivery_without_nobody(), max_recipients=1, dry_run=["max_recipients"])
    guard.greeted().say(MAIL, RCPT, NOBODY)
    told, refusal = log.take("reject")
    assert " limit=1 value=2 " in told
    assert " reason=delivery_refused " in refusal
    assert " value=" not in refusal


# Several at once.


def test_with_every_limit_in_dry_run_nothing_is_refused_and_everything_is_counted() -> None:
    limits = {spec.name: spec.edge for spec in Limits.specs()} | {
        "connection_rate": Rate(1, 60),
        "greet_delay": 0,
    }
    guard = Guard(delivery_without_nobody(), **limits, dry_run=dry_runnable())
    for _ in range(30):
        client = guard.connect()
        assert client.codes("EHLO x", *["NOOP"] * 21, *["BREW"] * 20)[1:] == [250] * 22 + [500] * 20
        assert client.codes(MAIL, *[NOBODY] * 10)[1:] == [550] * 10
        assert not client.closed
    assert tried(guard) == {
        "max_connections_per_client": 10,
        "connection_rate": 29,
        "unexpected_pipelining": 30,
        "max_junk_commands": 30,
        "max_invalid_commands": 30,
        "max_errors": 30,
        "max_rejected_recipients": 30,
        # By its unknown commands, which are refused, each session but the first comes from a banned client.
        "ban_after": 29,
    }
    assert set(refused(guard)) == {"unrecognized_command", "delivery_refused"}


def test_a_limit_in_dry_run_leaves_the_one_after_it_enforced() -> None:
    client = Guard(max_invalid_commands=2, max_errors=4, dry_run=["max_invalid_commands"]).greeted()
    client.heard()
    assert client.codes(*["BREW"] * 9) == [500, 500, 500, 500, 421]
    assert client.closed


def test_a_limit_in_dry_run_is_not_announced() -> None:
    limits = {"max_recipients": 5, "max_messages": 7, "max_message_size": 1000}
    enforced, dry = (
        Guard(**limits, dry_run=names).connect().say("EHLO x")
        for names in ([], ["max_recipients", "max_message_size"])
    )
    assert "LIMITS RCPTMAX=5 MAILMAX=7" in enforced
    assert "SIZE 1000" in enforced
    assert "LIMITS MAILMAX=7\r\n" in dry
    assert "SIZE\r\n" in dry


# Messages.


BARE = b"Subject: x\n\none\rtwo\r\n..\n.\nthree"
CLEAN = b"Subject: x\r\n\r\none\r\ntwo\r\n.\r\n.\r\nthree\r\n"


def test_bare_newlines_that_are_let_through_are_crlf_however_they_arrive() -> None:
    wire = BARE + b"\r\n.\r\n"
    for first, second in splits(wire):
        client = Guard(dry_run=["bare_newline"]).greeted()
        client.say(*ENVELOPE, "DATA")
        assert codes(client.send(first) + client.send(second)) == [250]
        assert client.guard.delivery.messages[0].octets == CLEAN
        assert tried(client.guard) == {"bare_newline": 1}


def test_bare_newlines_in_chunks_are_crlf_and_logged_once() -> None:
    client = Guard(dry_run=["bare_newline"]).greeted()
    client.say(*ENVELOPE)
    client.send(b"BDAT 6\r\none\r\n\nBDAT 4\r\ntwo\r")
    assert tried(client.guard) == {}
    assert codes(client.send(b"BDAT 8 LAST\r\nthree\nx\n")) == [250]
    assert client.guard.delivery.messages[0].octets == b"one\r\n\r\ntwo\r\nthree\r\nx\r\n"
    assert tried(client.guard) == {"bare_newline": 1}


def test_in_a_binary_message_bare_newlines_are_content_and_no_dry_run_counts_them() -> None:
    client = Guard(dry_run=["bare_newline"]).greeted()
    client.say(f"{MAIL} BODY=BINARYMIME", RCPT)
    assert codes(client.send(b"BDAT 4 LAST\r\na\nb\r")) == [250]
    assert client.guard.delivery.messages[0].octets == b"a\nb\r"
    assert tried(client.guard) == {}


def test_a_message_without_one_proper_line_end_is_still_logged_by_a_rule_in_dry_run() -> None:
    # Where only CRLF ends a line, all of this would be its header.
    guard, verdict = sent(b"Subject: x\n\n" + b"text\n" * 100, max_header_size=50, dry_run=["bare_newline"])
    assert verdict == 250
    assert tried(guard) == {"bare_newline": 1}


@pytest.mark.parametrize(
    ("name", "limits", "octets", "verdict"),
    [
        ("bare_newline", {"max_message_size": 9}, b"one\ntwo\nthree", 552),
        ("max_header_size", {"max_header_size": 9}, b"a: bcdefgh\r\n\r\none\ntwo", 550),
        ("max_message_size", {"max_message_size": 9, "max_received_fields": 1}, b"Received: x\r\n" * 2, 554),
        (
            "max_received_fields",
            {"max_received_fields": 1, "max_header_size": 20},
            b"Received: x\r\n" * 2,
            552,
        ),
    ],
)
def test_a_message_that_an_enforced_limit_refuses_is_refused_for_that_alone(
    name: str, limits: dict[str, Any], octets: bytes, verdict: int
) -> None:
    guard, code = sent(octets, **limits, dry_run=[name])
    assert code == verdict
    assert tried(guard) == {}
    assert guard.delivery.messages == []


def test_a_message_is_counted_for_each_limit_in_dry_run_that_it_breaks() -> None:
    limits = {"max_message_size": 9, "max_header_size": 9, "max_received_fields": 1}
    guard, code = sent(b"Received: a\r\nReceived: b\r\n\r\none\ntwo", **limits, dry_run=dry_runnable())
    assert code == 250
    assert tried(guard) == dict.fromkeys([*limits, "bare_newline"], 1)


def test_the_deliverys_own_limit_is_enforced_even_if_the_guards_is_in_dry_run() -> None:
    delivery = FakeDelivery()
    delivery.max_message_octets = 20
    client = Guard(delivery, max_message_size=9, dry_run=["max_message_size"]).greeted()
    assert client.codes(f"{MAIL} SIZE=21")[-1] == 552
    assert client.codes(*ENVELOPE, "DATA", "x" * 30, ".")[-1] == 552
    assert client.codes(*ENVELOPE, "DATA", "x" * 10, ".")[-1] == 250
    assert tried(client.guard) == {"max_message_size": 1}


def test_a_size_limit_in_dry_run_is_counted_at_the_end_of_the_last_chunk(log: Logbook) -> None:
    client = Guard(max_message_size=9, dry_run=["max_message_size"]).greeted()
    client.say(*ENVELOPE)
    assert codes(client.send(b"BDAT 8\r\n12345678BDAT 8\r\n12345678")) == [250, 250]
    assert tried(client.guard) == {}
    assert codes(client.send(b"BDAT 0 LAST\r\n")) == [250]
    [line] = log.take("reject")
    assert " limit=9 value=16 command=BDAT sender=a@b" in line
    assert len(client.guard.delivery.messages[0].octets) == 16


def test_a_header_whose_limits_are_in_dry_run_takes_as_long_to_read_as_any_other() -> None:
    check = MessageCheck(
        message_rules(Limits(dry_run=["max_header_size", "max_received_fields"]), 0, binary=False)
    )
    assert check.slow_to_read
    check.take(b"Subject: x\r\n\r\n" + b"text\r\n" * 1000)
    assert not check.slow_to_read
