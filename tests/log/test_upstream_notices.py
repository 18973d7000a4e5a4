"""What the log says of an upstream server: bounded, whatever the server says and however many sessions there are.

That each event is as its row says stands in test_events.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mailserver import MailServer
from test_events import EVERY_NOTICE, FORGERIES, PRINTABLE, Log
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, eventAsJSON, formatEvent

from twisted_smtpguard.delivery.smtp import SmtpDelivery
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.notices import MAX_LINES, MAX_VERDICTS_SHOWN, Notices

TOLD = Reply(554, "5.3.0", ("Told",))
SAVED = Reply(250, "2.0.0", ("Saved",))
FULL = Reply(552, "5.2.2", ("Full",))


@pytest.fixture
def log() -> Log:
    return Log()


# Mixed verdicts.


def test_a_mixed_verdict_tells_first_who_does_not_have_the_message(log: Log) -> None:
    log.notices.mixed("s1", TOLD, [("a@x", SAVED), ("b@x", FULL), ("c@x", SAVED)])
    assert log.line == (
        "mixed_verdicts upstream=smtp:tcp:mx.example:25 session=s1 code=554 recipients=3 refused=1 "
        "a message was accepted for some recipients and refused for others: "
        "<b@x> 552 5.2.2 Full; <a@x> 250 2.0.0 Saved; <c@x> 250 2.0.0 Saved"
    )


def test_a_hundred_verdicts_do_not_fill_the_line(log: Log) -> None:
    log.notices.mixed("s1", TOLD, [(f"{number}@x", FULL if number % 2 else SAVED) for number in range(100)])
    assert " recipients=100 refused=50 " in log.line
    assert log.line.count("<") == MAX_VERDICTS_SHOWN
    assert log.line.endswith("; and 95 more recipients")


@pytest.mark.parametrize("text", ["x", "\U0001f600", "\0", "\\", '"'])
def test_the_longest_verdicts_do_not_fill_the_line(log: Log, text: str) -> None:
    said = Reply(550, "5.1.1", (text * 1_000,) * 100)
    log.notices.mixed("s1", TOLD, [("a@x", SAVED), *[(text * 1_000, said)] * 10_000])
    assert len(log.line) < 1_500
    assert len(eventAsJSON(log.events[0])) < 10_000


def test_a_recipient_whose_name_looks_like_a_verdict_forges_none(log: Log) -> None:
    log.notices.mixed("s1", TOLD, [('"a> 250 2.0.0 Saved; <b"@x', FULL), ("c@x", SAVED)])
    assert r"others: <\"a>\x20250\x202.0.0\x20Saved;\x20<b\"@x> 552 5.2.2 Full; <c@x> 250" in log.line


# What the server chose.


def assert_one_short_line(event: LogEvent) -> None:
    assert set(formatEvent(event)) <= PRINTABLE
    assert len(formatEvent(event)) < 1_500
    record = json.loads(eventAsJSON(event))
    assert set(record["problem"]) <= PRINTABLE
    assert record["text"].endswith(record["problem"])


def assert_harmless(text: str) -> None:
    log = Log()
    log.notices.down(text)
    log.notices.full(2, text)
    log.notices.in_clear(text)
    log.notices.mixed("s1", Reply(554, "5.3.0", (text,)), [(text, Reply(552, "", (text,))), (text, SAVED)])
    names = [formatEvent(event).split(" ")[:2] for event in log.events]
    expected = ["upstream_down", "upstream_full", "upstream_in_clear", "mixed_verdicts"]
    assert names == [[name, "upstream=smtp:tcp:mx.example:25"] for name in expected]
    for event in log.events:
        if text or event["event"] == "mixed_verdicts":
            assert_one_short_line(event)


@pytest.mark.parametrize("text", [*FORGERIES, "\U0001f600" * 16_000, ""])
def test_a_server_can_forge_no_line_and_fill_none(text: str) -> None:
    assert_harmless(text)


@given(st.text(st.characters(codec=None), max_size=400))
def test_no_text_at_all_does(text: str) -> None:
    assert_harmless(text)


def test_a_problem_that_is_cut_says_so(log: Log) -> None:
    log.notices.down("x" * 3_000)
    assert log.line == f"upstream_down upstream=smtp:tcp:mx.example:25 {'x' * 1_000}..."


# A flood.


@pytest.mark.parametrize("name", [name for name in EVERY_NOTICE if name != "command_refused"])
def test_an_event_is_logged_ten_times_a_second_and_then_tells_what_was_left_out(log: Log, name: str) -> None:
    method, arguments = EVERY_NOTICE[name]
    for _ in range(1_000):
        method(log.notices, *arguments)
    assert len(log.events) == MAX_LINES == 10
    assert not any("suppressed" in event for event in log.events)
    log.clock.advance(1)
    method(log.notices, *arguments)
    method(log.notices, *arguments)
    assert [event.get("suppressed") for event in log.events[10:]] == [990, None]
    assert " suppressed=990" in log.lines[10]


def test_a_command_that_is_refused_is_told_of_once_an_hour_for_each_code(log: Log) -> None:
    told = [("XCLIENT", "501"), ("XCLIENT", "421"), ("EHLO", "501")]
    for _ in range(1_000):
        for command, code in told:
            log.notices.command_refused(command, code, f"it answers {command} with {code}")
    log.clock.advance(3599)
    log.notices.command_refused(*told[0], "again")
    assert [line.partition(" command=")[2] for line in log.lines] == [
        "XCLIENT it answers XCLIENT with 501",
        "XCLIENT it answers XCLIENT with 421",
        "EHLO it answers EHLO with 501",
    ]
    log.clock.advance(1)
    log.notices.command_refused(*told[0], "again")
    assert log.lines[-1].endswith(" command=XCLIENT again")


def test_a_command_whose_line_was_suppressed_is_told_of_the_next_time(log: Log) -> None:
    for code in range(500, 500 + MAX_LINES + 1):
        log.notices.command_refused("EHLO", str(code), "refused")
    assert len(log.lines) == MAX_LINES
    log.clock.advance(1)
    log.notices.command_refused("EHLO", str(500 + MAX_LINES), "refused again")
    assert log.lines[-1].endswith(" suppressed=1 refused again")


def test_a_clock_that_is_set_back_does_not_silence_a_refused_command(log: Log) -> None:
    log.clock.advance(100_000)
    log.notices.command_refused("EHLO", "550", "refused")
    log.clock.rightNow = 50_000
    log.notices.command_refused("EHLO", "550", "refused again")
    assert log.lines[-1].endswith(" refused again")


def test_a_flood_of_one_event_hides_no_other(log: Log) -> None:
    for number in range(1_000):
        log.notices.may_come_twice(str(number))
    log.notices.down("gone")
    assert log.lines[-1] == "upstream_down upstream=smtp:tcp:mx.example:25 gone"


class Unlookable(list[tuple[str, Reply]]):
    """Verdicts that show when they are looked at."""

    def __iter__(self) -> Iterator[tuple[str, Reply]]:
        raise AssertionError("an event that nobody sees was built")

    __getitem__ = __iter__  # type: ignore[assignment]


def test_what_is_left_out_is_not_built(log: Log) -> None:
    for _ in range(10):
        log.notices.mixed("s1", TOLD, [("a@x", SAVED), ("b@x", FULL)])
    log.notices.mixed("s1", TOLD, Unlookable())
    assert len(log.events) == 10


# Time.


def test_a_delivery_logs_as_the_guard_does_and_by_its_own_clock() -> None:
    clock = Clock()
    clock.advance(1_000)
    with capturedLogs() as events:
        SmtpDelivery(MailServer(), clock, hostname="guard.example").notices.up()
    (event,) = events
    assert (event["log_namespace"], event["log_time"]) == ("twisted_smtpguard", 1_000)
    assert formatEvent(event) == "upstream_up upstream=upstream it can be reached again"


def test_without_a_clock_the_time_is_the_system_s() -> None:
    before = time.time()
    with capturedLogs() as events:
        Notices("upstream").up()
    assert before <= events[0]["log_time"] <= time.time()
