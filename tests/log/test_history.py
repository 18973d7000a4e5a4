"""The history: the latest refusals and sessions of each client, however much is logged, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from fakes import Guard, refusal
from twisted.internet.task import Clock
from twisted.logger import LogLevel

from twisted_smtpguard import replies
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.history import MAX_CHARACTERS, MAX_CLIENTS, MAX_ROWS, History, LatestRows
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.replies import Reply


def events_of(level: Any = LogLevel.info, **limits: Any) -> tuple[Events, Clock]:
    clock = Clock()
    return Events(Statistics(), clock, Limits(**limits), level), clock


def test_a_refusal_is_kept_with_what_the_log_says_of_it() -> None:
    events, clock = events_of()
    clock.advance(7)
    reply = replies.TOO_MANY_RECIPIENTS
    events.reject("192.0.2.1", "max_recipients", session="s1", reply=reply, limit=1, value=2, command="RCPT")
    assert events.history.refusals.of("192.0.2.1") == [
        {
            "time": 7,
            "address": "192.0.2.1",
            "session": "s1",
            "reason": "max_recipients",
            "command": "RCPT",
            "limit": 1,
            "value": 2,
            "reply": "452 5.5.3 Too many recipients",
            "dry_run": False,
        }
    ]


@pytest.mark.parametrize("level", [LogLevel.warn, LogLevel.critical])
def test_what_the_log_level_leaves_out_is_kept(level: Any) -> None:
    events, _ = events_of(level)
    events.reject("192.0.2.1", "not_smtp", session="s1")
    events.disconnect("s1", "192.0.2.1", "quit", 3, 2)
    assert len(events.history.refusals.of("192.0.2.1")) == 1
    assert len(events.history.sessions.of("192.0.2.1")) == 1


def test_what_the_budget_of_lines_suppresses_is_kept() -> None:
    events, _ = events_of(max_log_lines=1)
    for number in range(3):
        events.reject("192.0.2.1", "max_connections", value=number)
    assert [row["value"] for row in events.history.refusals.of("192.0.2.1")] == [2, 1, 0]


def test_a_session_is_kept_when_it_has_ended() -> None:
    guard = Guard()
    client = guard.greeted()
    guard.clock.advance(2)
    name = client.protocol.engine.name
    assert guard.factory.context.events.history.sessions.of("192.0.2.1") == []
    client.say("QUIT")
    (row,) = guard.factory.context.events.history.sessions.of("192.0.2.1")
    assert row == {
        "ended": 2,
        "seconds": 2,
        "address": "192.0.2.1",
        "session": name,
        "reason": "quit",
        "messages": 0,
        "helo": "client.example",
    }


def test_a_health_check_of_a_proxy_is_no_session() -> None:
    guard = Guard(proxy_protocol_from=["192.0.2.1"])
    client = guard.connect()
    client.send(b"PROXY UNKNOWN\r\n")
    client.disconnect()
    assert guard.factory.statistics.sessions_ended == 1
    assert guard.factory.context.events.history.sessions.of("192.0.2.1") == []


def test_the_oldest_rows_of_a_client_are_forgotten_first() -> None:
    rows = LatestRows("time")
    for number in range(MAX_ROWS + 2):
        rows.add("192.0.2.1", (number,))
    assert [row["time"] for row in rows.of("192.0.2.1")] == list(range(MAX_ROWS + 1, 1, -1))


def test_the_client_with_no_news_for_longest_is_forgotten_first() -> None:
    rows = LatestRows("time")
    for number in range(MAX_CLIENTS):
        rows.add(f"10.0.{number // 256}.{number % 256}", (number,))
    rows.add("10.0.0.0", (MAX_CLIENTS,))
    rows.add("192.0.2.1", (MAX_CLIENTS + 1,))
    assert len(rows) == MAX_CLIENTS
    assert len(rows.of("10.0.0.0")) == 2
    assert rows.of("10.0.0.1") == []


def test_an_ipv6_client_is_its_64_so_that_one_host_drives_nobody_out() -> None:
    rows = LatestRows("time", "address")
    for number in range(100):
        rows.add(f"2001:db8::{number:x}", (number, f"2001:db8::{number:x}"))
    rows.add("2001:db8:0:1::1", (100, "2001:db8:0:1::1"))
    assert len(rows) == 2
    assert rows.of("2001:db8::ffff")[0]["address"] == "2001:db8::63"
    assert len(rows.of("fe80::1%eth0")) == 0


def test_the_latest_of_all_clients_are_found() -> None:
    rows = LatestRows("time", "address")
    for number in range(10):
        rows.add(f"192.0.2.{number % 3}", (number, f"192.0.2.{number % 3}"))
    assert [row["time"] for row in rows.latest(4)] == [9, 8, 7, 6]
    assert [row["time"] for row in rows.latest(100)] == list(range(9, -1, -1))


def test_words_of_others_are_shown_escaped_and_cut() -> None:
    events, _ = events_of()
    evil = "\x1b[2J<script>\r\n\u202e" + "x" * 1000
    said = Reply(450, "4.7.1", ("Try later",), said=f"450 {evil}")
    events.reject("192.0.2.1", "upstream_refused", session="s1", reply=said)
    events.reject("192.0.2.1", "delivery_refused", session="s1", reply=refusal(550, evil))
    events.disconnect("s1", "192.0.2.1", "quit", 1, 0, helo="h" * 255, user=evil)
    history = events.history
    own, upstream = history.refusals.of("192.0.2.1")
    assert str(upstream["reply"]).startswith("450 \\x1b[2J<script>\\x0d\\x0a\\u202exxx")
    assert str(own["reply"]).startswith("550 5.1.1 \\x1b[2J<script>\\x0d\\x0a\\u202exxx")
    (session,) = history.sessions.of("192.0.2.1")
    for text in (own["reply"], upstream["reply"], session["user"], session["helo"]):
        assert len(str(text)) == MAX_CHARACTERS
        assert str(text).endswith("x..." if text != session["helo"] else "h...")
        assert str(text).isascii()
        assert str(text).isprintable()


def test_a_reply_of_several_lines_is_shown_in_one() -> None:
    events, _ = events_of()
    events.reject("192.0.2.1", "delivery_refused", session="s1", reply=Reply(550, "5.7.1", ("No", "Never")))
    assert events.history.refusals.of("192.0.2.1")[0]["reply"] == "550-5.7.1 No 550 5.7.1 Never"


def test_the_rows_can_be_sent_as_json() -> None:
    events, _ = events_of()
    events.reject("192.0.2.1", "connection_rate", limit="60/60", value=61, dry_run=True)
    events.disconnect("s1", "192.0.2.1", "quit", 1.5, 0, user="us\xe9r")
    history = events.history
    for rows in (history.refusals, history.sessions):
        assert json.loads(json.dumps(rows.of("192.0.2.1"))) == rows.of("192.0.2.1") != []


def _memory(row_of: Any) -> float:
    """The octets that full tables take, for each client."""
    history = History()
    tracemalloc.start()
    try:
        for number in range(MAX_CLIENTS * MAX_ROWS):
            client = number % MAX_CLIENTS
            peer = f"10.0.{client // 256}.{client % 256}"
            refused, ended = row_of(number, peer)
            history.refusals.add(peer, refused)
            history.sessions.add(peer, ended)
        octets, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return octets / MAX_CLIENTS


def _ordinary(number: int, peer: str) -> tuple[Any, Any]:
    reply = replies.TOO_MANY_RECIPIENTS.wire
    refused = (
        float(number),
        peer,
        f"7f3a01-{number:x}",
        "max_recipients",
        "RCPT",
        100,
        101,
        "",
        "",
        reply,
        False,
    )
    return refused, (float(number), number / 7, peer, refused[2], "quit", 1, f"mx{number}.example", "", "")


def _longest(number: int, peer: str) -> tuple[Any, Any]:
    text = f"{number:0203}"
    refused = (
        float(number),
        peer,
        f"7f3a01-{number:x}",
        "delivery_refused",
        f"C{number:030}",
        f"{number}/60",
        number / 3,
        "f",
        text,
        f"{number:0203}".encode(),
        False,
    )
    helo, user = f"{number:0255}", f"{number:0203}"
    return refused, (float(number), number / 7, peer, refused[2], "quit", number, helo, user, "TLSv1.3 X")


@pytest.mark.parametrize(("row_of", "most"), [(_ordinary, 3_500), (_longest, 9_500)])
def test_full_tables_take_no_more_than_is_documented(row_of: Any, most: int) -> None:
    """With five rows of each kind for every client, first of ordinary clients, then of those that mean harm."""
    octets = _memory(row_of)
    print(f"{octets:.0f} octets a client, {octets * MAX_CLIENTS / 1e6:.0f} MB for {MAX_CLIENTS} clients")
    assert octets < most
