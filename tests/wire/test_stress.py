"""Stress: from 80 % of the cap on strangers have less time and fewer errors, until less than 60 % are taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from fakes import Conversation, FakeFilter, Guard, codes
from logbook import Logbook, logbook

from twisted_smtpguard import NetworksFilter
from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.interfaces import PASS

TIMEOUT = "421 4.4.2 Timeout waiting for client, closing connection\r\n"
TOO_LONG = "421 4.4.2 Session time limit reached, closing connection\r\n"
ERRORS = "421 4.7.0 Too many errors, closing connection\r\n"
MAIL, RCPT = "MAIL FROM:<a@b>", "RCPT TO:<c@d>"
KNOWN, TRUSTED = "198.51.100.1", "198.51.100.2"


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


class Crowd(Guard):
    """A guard with 10 seats. The client at KNOWN is known, and that at TRUSTED trusted."""

    def __init__(self, **arguments: Any) -> None:
        arguments.setdefault("ip_filters", [NetworksFilter(trust=[TRUSTED])])
        super().__init__(**{"max_connections": 10, **arguments})
        self.factory.known.accepted(KNOWN)
        self.crowd: list[Conversation] = []

    def comes(self, number: int) -> None:
        """So many more strangers come, each from a network of its own."""
        for _ in range(number):
            self.crowd.append(self.greeted(f"192.0.{len(self.crowd)}.1"))

    def leaves(self, number: int) -> None:
        for _ in range(number):
            self.crowd.pop().disconnect()

    def full_of_known(self) -> list[Conversation]:
        """6 sessions of the known client, which keep the guard in stress."""
        return [self.greeted(KNOWN) for _ in range(6)]

    @property
    def stressed(self) -> bool:
        found: bool = self.factory.context.stressed
        return found

    def passes(self, seconds: float) -> None:
        # In steps, so that what is due is done at its time.
        self.clock.pump([0.5] * int(seconds * 2))


def test_each_change_is_one_event(log: Logbook) -> None:
    guard = Crowd()
    guard.comes(7)
    assert (guard.stressed, log.take("stress")) == (False, [])
    guard.comes(3)
    assert guard.stressed
    (line,) = log.take("stress")
    assert line.startswith("stress state=begins connections=8 cap=10")
    guard.leaves(4)
    guard.comes(1)
    assert (guard.stressed, log.take("stress")) == (True, [])
    guard.leaves(2)
    assert not guard.stressed
    (line,) = log.take("stress")
    assert line.startswith("stress state=ends connections=5 cap=10")


@pytest.mark.parametrize("limits", [{"max_connections": 0}, {"dry_run": ["max_connections"]}])
def test_without_a_cap_that_holds_it_is_never_stress(limits: dict[str, Any]) -> None:
    guard = Crowd(**limits)
    guard.comes(30)
    assert not guard.stressed


def test_idle_strangers_go_after_the_shorter_time_and_others_stay() -> None:
    guard = Crowd()
    known, trusted = guard.full_of_known(), guard.greeted(TRUSTED)
    guard.passes(100)
    guard.comes(3)
    busy = guard.crowd[-1]
    assert guard.stressed
    guard.passes(28)
    busy.say(MAIL)
    guard.passes(2.5)
    assert [each.heard() for each in guard.crowd] == [TIMEOUT, TIMEOUT, ""]
    guard.passes(29)
    assert busy.heard() == TIMEOUT
    assert not any(each.closed for each in (*known, trusted))


def test_those_whose_time_is_over_when_stress_begins_end_one_after_the_other() -> None:
    guard = Crowd(max_connections=100)
    guard.comes(79)
    guard.passes(60)
    guard.comes(1)
    ended = []
    for _ in range(12):
        guard.clock.advance(0.5)
        ended.append(sum(each.closed for each in guard.crowd))
        if not guard.stressed:
            break
    assert max(late - early for early, late in zip([0, *ended], ended, strict=False)) <= 12
    assert not guard.stressed


def test_none_whose_time_is_over_when_stress_begins_is_left_without_a_deadline() -> None:
    store = LocalCounterStore(0)
    one = Crowd(counters=store, max_connections=100)
    other = Crowd(counters=store, max_connections=100, clock=one.clock)
    for _ in range(3):
        other.full_of_known()
    one.comes(8)
    for each in one.crowd:
        each.say(MAIL)
    one.passes(60)
    one.factory.set_limits(attrs.evolve(one.factory.limits, max_connections=26))
    one.passes(6)
    # The connections of the other keep it in stress.
    assert one.stressed
    assert [each.closed for each in one.crowd] == [True] * 8


def test_a_session_that_runs_already_has_the_shorter_time_from_its_last_command_on() -> None:
    guard = Crowd()
    guard.comes(1)
    guard.full_of_known()
    guard.passes(20)
    guard.comes(1)
    first, late = guard.crowd
    guard.passes(9)
    assert not first.closed
    guard.passes(1.5)
    assert first.heard() == TIMEOUT
    guard.passes(18)
    assert not late.closed
    guard.passes(2)
    assert late.heard() == TIMEOUT


def test_a_stranger_in_a_mail_transaction_is_ended_by_the_shorter_time_too() -> None:
    guard = Crowd()
    guard.full_of_known()
    guard.comes(2)
    stuck = guard.crowd[0]
    stuck.say(MAIL)
    guard.passes(31)
    assert stuck.heard().endswith(TIMEOUT)


def test_a_byte_a_second_gains_no_time() -> None:
    guard = Crowd()
    guard.full_of_known()
    guard.comes(2)
    drips = guard.crowd[0]
    for _ in range(31):
        drips.send(b"N")
        guard.passes(1)
    assert drips.closed
    assert guard.factory.statistics.refusals == {"read_timeout": 2}


def test_when_stress_ends_each_has_its_whole_time_again() -> None:
    guard = Crowd()
    guard.comes(8)
    guard.passes(10)
    guard.leaves(4)
    assert not guard.stressed
    first = guard.crowd[0]
    guard.passes(285)
    assert not first.closed
    guard.passes(6)
    assert first.heard().endswith(TIMEOUT)


def test_in_stress_the_first_error_of_a_stranger_is_its_last(log: Logbook) -> None:
    guard = Crowd(max_errors=20)
    known, trusted = guard.greeted(KNOWN), guard.greeted(TRUSTED)
    guard.comes(6)
    assert guard.crowd[0].say("MAIL FROM:x") == "501 5.1.7 Bad sender address syntax\r\n" + ERRORS
    lines = log.take("reject")
    assert " reason=max_errors " in lines[-1]
    assert " limit=1 value=1 " in lines[-1]
    for each in (known, trusted):
        assert codes(each.say("MAIL FROM:x")) == [501]


def test_in_stress_the_second_junk_command_of_a_stranger_is_an_error() -> None:
    guard = Crowd()
    known = guard.greeted(KNOWN)
    guard.comes(7)
    assert codes(guard.crowd[0].say("NOOP")) == [250]
    assert guard.crowd[0].say("NOOP") == "250 2.0.0 OK\r\n" + ERRORS
    assert codes(known.say("NOOP", "NOOP", "NOOP")) == [250] * 3


def test_a_limit_in_dry_run_stays_there(log: Logbook) -> None:
    guard = Crowd(dry_run=["max_errors"])
    guard.comes(8)
    assert codes(guard.crowd[0].say("MAIL FROM:x")) == [501]
    assert "dry_run=true" in log.take("reject")[-1]


def test_in_stress_a_session_of_a_stranger_has_60_seconds() -> None:
    guard = Crowd()
    known = guard.full_of_known()
    guard.comes(3)
    idle, begins, ends = guard.crowd
    idle.say("VRFY x")
    for line in (MAIL, RCPT, RCPT):
        guard.passes(14)
        begins.say(line)
        ends.say(line)
    guard.passes(14)
    begins.say(RCPT)
    assert ends.say("DATA", "x", ".").endswith("250 2.0.0 Message accepted\r\n")
    guard.passes(5)
    # Both are strangers, one in a mail transaction, and one whose mail makes it known.
    assert begins.say("RSET").endswith("250 2.0.0 OK\r\n" + TOO_LONG)
    assert idle.closed
    assert not any(each.closed for each in (*known, ends))


def test_those_that_are_older_when_stress_begins_end_between_their_transactions() -> None:
    guard = Crowd(read_timeout=0, stress_read_timeout=0)
    known = guard.full_of_known()
    guard.comes(1)
    (busy,) = guard.crowd
    guard.passes(100)
    busy.say(MAIL)
    guard.comes(2)
    idle = guard.crowd[1:]
    guard.passes(59)
    assert not any(each.closed for each in guard.crowd)
    guard.passes(1.5)
    assert [each.heard() for each in idle] == [TOO_LONG] * 2
    assert busy.say("RSET").endswith("250 2.0.0 OK\r\n" + TOO_LONG)
    assert not any(each.closed for each in known)


def test_the_shorter_time_of_a_session_ends_with_stress() -> None:
    guard = Crowd(read_timeout=0, stress_read_timeout=0)
    guard.full_of_known()
    guard.comes(2)
    first, second = guard.crowd
    first.say(MAIL)
    guard.passes(61)
    assert second.heard() == TOO_LONG
    for each in guard.factory.sessions()[:3]:
        if each.is_known:
            each.host.transport.loseConnection()
            each.lost()
    guard.factory.seating.see()
    if guard.stressed:
        guard.factory.set_limits(type(guard.factory.limits)(max_connections=100))
    assert not guard.stressed
    assert codes(first.say("RSET", "NOOP"))[-2:] == [250, 250]
    assert not first.closed


def test_a_stranger_whose_mail_is_accepted_is_no_stranger_any_more() -> None:
    guard = Crowd()
    guard.comes(8)
    first = guard.crowd[0]
    assert codes(first.say(MAIL, RCPT, "DATA", "x", "."))[-1] == 250
    assert codes(first.say("MAIL FROM:x", "NOOP", "NOOP", "NOOP")) == [501, 250, 250, 250]
    assert not first.closed


def test_a_client_that_becomes_known_has_its_usual_time_at_once_in_all_its_sessions() -> None:
    guard = Crowd()
    guard.full_of_known()
    guard.comes(1)
    first, second = guard.crowd[0], guard.greeted("192.0.0.1")
    second.say(MAIL)
    guard.passes(20)
    assert codes(first.say(MAIL, RCPT, "DATA", "x", "."))[-1] == 250
    guard.passes(279)
    assert not second.closed
    guard.passes(2)
    assert (second.heard(), first.closed) == (TIMEOUT, False)
    guard.passes(20)
    assert first.heard() == TIMEOUT


def test_in_stress_there_is_no_greet_delay() -> None:
    guard = Crowd(greet_delay=2)
    for number in range(8):
        guard.connect(f"192.0.{number}.1")
    assert guard.stressed
    guard.clock.advance(2)
    assert codes(guard.connect("192.0.9.1").heard()) == [220]


def test_others_that_count_in_the_same_store_bring_stress_and_end_it() -> None:
    guard = Crowd(ip_filters=[FakeFilter(PASS)])
    store = LocalCounterStore(0, guard.clock.seconds)
    one, other = (Crowd(clock=guard.clock, counters=store) for _ in range(2))
    one.comes(1)
    other.comes(6)
    assert (one.stressed, other.stressed) == (False, False)
    other.comes(1)
    assert (one.stressed, other.stressed) == (False, True)
    guard.clock.advance(1.1)
    assert one.stressed
    other.leaves(3)
    guard.clock.advance(1.1)
    assert (one.stressed, other.stressed) == (False, False)
    one.leaves(1)
    other.leaves(4)
    for each in (one, other):
        each.factory.drain()
    assert guard.clock.getDelayedCalls() == []


def test_who_has_no_connection_any_more_looks_at_those_of_others_until_stress_ends() -> None:
    store = LocalCounterStore(0)
    one = Crowd(counters=store)
    other = Crowd(counters=store, clock=one.clock)
    one.comes(1)
    other.comes(8)
    one.passes(2)
    one.leaves(1)
    assert one.stressed
    other.leaves(8)
    one.passes(2)
    assert not one.stressed
    assert one.clock.getDelayedCalls() == []


def test_a_stop_in_stress_leaves_nothing_behind() -> None:
    guard = Crowd(counters=LocalCounterStore(0))
    guard.comes(9)
    assert guard.stressed
    guard.factory.drain()
    guard.clock.pump([1] * 40)
    assert guard.clock.getDelayedCalls() == []
    assert not guard.stressed


def test_a_cap_that_is_changed_changes_stress_at_once() -> None:
    guard = Crowd()
    guard.comes(6)
    guard.factory.set_limits(type(guard.factory.limits)(max_connections=6))
    assert guard.stressed
    guard.factory.set_limits(type(guard.factory.limits)(max_connections=60))
    assert not guard.stressed


def test_the_one_error_that_a_stranger_has_in_stress_is_no_offence() -> None:
    guard = Crowd(max_errors=20, ban_after=20)
    guard.comes(8)
    for _ in range(3):
        client = guard.greeted("192.0.99.1")
        assert client.say("EXPN x").endswith(ERRORS)
    assert codes(guard.connect("192.0.99.1").heard()) == [220]
