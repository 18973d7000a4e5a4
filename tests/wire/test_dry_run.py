"""Limits that are only tried: each is decided, counted and logged, and the conversation goes on as without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from fakes import Conversation, FakeFilter, Guard, delivery_without_nobody
from logbook import Logbook, logbook
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse

from twisted_smtpguard.interfaces import refuse
from twisted_smtpguard.limits.limits import dry_runnable
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.policyvalues import PolicyVerdict
from twisted_smtpguard.replies import POLICY_REFUSED
from twisted_smtpguard.testing import FakePolicy

MAIL, RCPT, NOBODY = "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "RCPT TO:<nobody@d>"
ENVELOPE = (MAIL, RCPT)


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


@attrs.frozen
class Trial:
    """A limit, and a client that goes one over it."""

    on: dict[str, Any]
    off: dict[str, Any]
    act: Callable[[Guard], str]
    """What the client hears."""
    reply: str
    """What it hears where the limit is enforced."""
    fields: str = ""
    """The limit and the value in the log."""


def visit_twice(guard: Guard) -> str:
    guard.connect()
    return visit(guard)


def visit(guard: Guard) -> str:
    return talk(guard.connect(), *ENVELOPE, "DATA", "text", ".")


def err_and_return(guard: Guard) -> str:
    return talk(guard.connect(), "XYZZY") + visit(guard)


def talk(client: Conversation, *lines: str) -> str:
    """All that a client hears from its greeting to the end of these lines, each sent when the last was answered."""
    heard = client.heard()
    for line in ("EHLO x", *lines):
        heard += client.say(line)
    return heard + ("" if client.closed else client.say("QUIT"))


def says(*lines: str) -> Callable[[Guard], str]:
    return lambda guard: talk(guard.connect(), *lines)


def speak_early(guard: Guard) -> str:
    client = guard.connect()
    heard = client.send(b"EHLO x\r\n")
    guard.clock.advance(5)
    return heard + client.heard()


def speak_ahead(guard: Guard) -> str:
    client = guard.connect()
    return client.heard() + client.say("EHLO x", *ENVELOPE, "QUIT")


def drip(guard: Guard) -> str:
    client = guard.connect()
    heard = client.heard() + client.say("EHLO x", *ENVELOPE, "DATA")
    for _ in range(500):
        heard += client.send(b"x\r\n")
        guard.clock.advance(1)
    return heard + client.heard() + client.say(".", "QUIT")


def stay(guard: Guard) -> str:
    client = guard.connect()
    heard = client.heard()
    for _ in range(10):
        heard += client.say("NOOP")
        guard.clock.advance(1.1)
        heard += client.heard()
    return heard + client.say("QUIT")


def guess_thrice(guard: Guard) -> str:
    return guard.greeted().say(*["AUTH PLAIN AGFubgBndWVzcw=="] * 3)


TRIALS = {
    "max_connections": Trial(
        {"max_connections": 1},
        {},
        visit_twice,
        "421 4.7.0 Too many connections, try again later",
        "limit=1 value=2",
    ),
    "reserved_connections": Trial(
        {"max_connections": 5, "reserved_connections": 4},
        {"max_connections": 5},
        visit_twice,
        "421 4.7.0 Too many connections, try again later",
        "limit=4 value=2",
    ),
    "ip_filter": Trial(
        {"ip_filters": [FakeFilter(refuse())]},
        {},
        visit,
        "421 4.7.0 Connection refused",
        "filter=FakeFilter",
    ),
    "policy": Trial(
        {"policies": [FakePolicy(PolicyVerdict.refuse(POLICY_REFUSED, "REJECT"))]},
        {},
        visit,
        "554 5.7.1 Access denied",
        "policy=FakePolicy rule=REJECT",
    ),
    "max_auth_failures": Trial(
        {"checkers": [InMemoryUsernamePasswordDatabaseDontUse()], "max_auth_failures": 2},
        {"checkers": [InMemoryUsernamePasswordDatabaseDontUse()], "max_auth_failures": 0},
        guess_thrice,
        "421 4.7.0 Too many authentication failures, closing connection",
        "limit=2 value=2",
    ),
    **{
        name: Trial(
            {
                "checkers": [InMemoryUsernamePasswordDatabaseDontUse()],
                "max_auth_failures": 0,
                name: Rate(2, 60),
            },
            {"checkers": [InMemoryUsernamePasswordDatabaseDontUse()], "max_auth_failures": 0},
            guess_thrice,
            "454 4.7.0 Temporary authentication failure",
            "limit=2/60 value=3",
        )
        for name in ("auth_failure_rate", "auth_failure_rate_per_user")
    },
    "max_connections_per_client": Trial(
        {"max_connections_per_client": 1},
        {},
        visit_twice,
        "421 4.7.0 Too many connections from your address, try again later",
        "limit=1 value=2",
    ),
    "connection_rate": Trial(
        {"connection_rate": Rate(1, 60)},
        {},
        visit_twice,
        "421 4.7.0 Connection rate exceeded, try again later",
        "limit=1/60 value=2",
    ),
    "ban_after": Trial(
        {"ban_after": 1},
        {},
        err_and_return,
        "421 4.7.0 Too many offences, try again later",
        "limit=1 value=1",
    ),
    "message_rate": Trial(
        {"message_rate": Rate(1, 60)},
        {},
        says(MAIL, "RSET", *ENVELOPE, "DATA", "."),
        "450 4.7.1 Message rate exceeded, try again later",
        "limit=1/60 value=2",
    ),
    "recipient_rate": Trial(
        {"recipient_rate": Rate(1, 60)},
        {},
        says(*ENVELOPE, RCPT, "DATA", "."),
        "450 4.7.1 Recipient rate exceeded, try again later",
        "limit=1/60 value=2",
    ),
    "early_talker": Trial(
        {"early_talker": "refuse", "greet_delay": 2},
        {"early_talker": "log", "greet_delay": 2},
        speak_early,
        "421 4.7.0 Protocol error: client spoke before the greeting",
        "limit=refuse",
    ),
    "max_invalid_commands": Trial(
        {"max_invalid_commands": 2},
        {"max_invalid_commands": 0},
        says("BREW", "BREW", "BREW", "BREW", *ENVELOPE),
        "421 4.4.0 Too many errors, closing connection",
        "limit=2 value=2",
    ),
    "max_errors": Trial(
        {"max_errors": 2},
        {},
        says("EXPN x", "EXPN x", "EXPN x", *ENVELOPE),
        "421 4.7.0 Too many errors, closing connection",
        "limit=2 value=2",
    ),
    "max_junk_commands": Trial(
        {"max_junk_commands": 2, "max_errors": 2},
        {"max_errors": 2},
        says(*["NOOP"] * 10, *ENVELOPE),
        "421 4.7.0 Too many errors, closing connection",
        "limit=2 value=3",
    ),
    "max_recipients": Trial(
        {"max_recipients": 2},
        {"max_recipients": 0},
        says(*ENVELOPE, RCPT, RCPT, "DATA", "."),
        "452 5.5.3 Too many recipients",
        "limit=2 value=3",
    ),
    "max_rejected_recipients": Trial(
        {"max_rejected_recipients": 2},
        {},
        says(MAIL, NOBODY, NOBODY, NOBODY, RCPT, "DATA", "."),
        "421 4.7.0 Too many unknown recipients, closing connection",
        "limit=2 value=2",
    ),
    "max_messages": Trial(
        {"max_messages": 1},
        {},
        says(MAIL, "RSET", *ENVELOPE, "DATA", "."),
        "421 4.7.0 Too many messages, please reconnect",
        "limit=1 value=2",
    ),
    "unexpected_pipelining": Trial(
        {"unexpected_pipelining": "refuse"},
        {},
        speak_ahead,
        "421 4.7.0 Protocol error: unexpected pipelined input",
        "limit=refuse",
    ),
    "max_message_size": Trial(
        {"max_message_size": 9},
        {"max_message_size": 0},
        says(f"{MAIL} SIZE=10", RCPT, "DATA", "12345678", "."),
        "552 5.3.4 Message size exceeds fixed maximum message size",
        "limit=9 value=10",
    ),
    "bare_newline": Trial(
        {},
        {"bare_newline": "normalize"},
        says(*ENVELOPE, "DATA", "one\ntwo\rthree", "."),
        "550 5.5.2 Bare <CR> or <LF> received",
        "limit=reject",
    ),
    "max_header_size": Trial(
        {"max_header_size": 9},
        {"max_header_size": 0},
        says(*ENVELOPE, "DATA", "a: bcdefgh", "", "."),
        "552 5.3.4 Message header too large",
        "limit=9",
    ),
    "max_received_fields": Trial(
        {"max_received_fields": 1},
        {"max_received_fields": 0},
        says(*ENVELOPE, "DATA", "Received: x", "Received: y", "", "."),
        "554 5.4.6 Routing loop detected",
        "limit=1",
    ),
    "min_data_rate": Trial(
        {"min_data_rate": 500},
        {},
        drip,
        "421 4.4.2 Data transfer too slow, closing connection",
        "limit=500",
    ),
    "max_session_time": Trial(
        {"max_session_time": 5},
        {},
        stay,
        "421 4.4.2 Session time limit reached, closing connection",
        "limit=5",
    ),
}
each_limit = pytest.mark.parametrize("name", TRIALS)


def test_every_limit_that_can_be_in_dry_run_has_a_trial_here() -> None:
    assert set(TRIALS) == dry_runnable()


def delivered(guard: Guard) -> list[object]:
    return [
        ([path.address for path in message.recipients], message.octets) for message in guard.delivery.messages
    ]


@each_limit
def test_an_enforced_limit_refuses(name: str) -> None:
    trial = TRIALS[name]
    guard = Guard(delivery_without_nobody(), **trial.on)
    assert f"{trial.reply}\r\n" in trial.act(guard)
    assert guard.factory.statistics.dry_run_refusals == {}


@each_limit
def test_a_limit_in_dry_run_changes_nothing_that_a_client_or_a_delivery_sees(name: str) -> None:
    trial = TRIALS[name]
    tried = Guard(delivery_without_nobody(), **trial.on, dry_run=[name])
    without = Guard(delivery_without_nobody(), **trial.off)
    heard = trial.act(tried)
    assert heard == trial.act(without)
    assert trial.reply not in heard
    assert delivered(tried) == delivered(without)
    assert tried.delivery.calls == without.delivery.calls


@each_limit
def test_a_limit_in_dry_run_is_logged_once_and_counted_apart_from_refusals(name: str, log: Logbook) -> None:
    trial = TRIALS[name]
    guard = Guard(delivery_without_nobody(), **trial.on, dry_run=[name])
    trial.act(guard)
    [line] = [line for line in log.take("reject") if "dry_run" in line]
    assert line.startswith(f"reject peer=192.0.2.1 reason={name} dry_run=true ")
    assert f" {trial.fields} " in f"{line} "
    statistics = guard.factory.statistics
    assert statistics.dry_run_refusals == {name: 1}
    assert name not in statistics.refusals
    assert statistics.connections_refused == 0
