"""The time limits of hooks, and that of the client while a hook is waited for: one timer of each kind a session."""

from __future__ import annotations

import pytest
from purehost import FIN, PureDelivery, PureGuard

HELLO = b"EHLO c\r\n"
MAIL, RCPT = b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n"


def all_later() -> PureDelivery:
    return PureDelivery(lambda hook: "later")


def test_a_hook_has_its_whole_time_though_the_timer_is_one_of_an_earlier_hook() -> None:
    guard = PureGuard(all_later(), delivery_timeout=100, read_timeout=0)
    client = guard.connect()
    client.send(HELLO + MAIL)
    guard.advance(90)
    guard.answer_all()
    client.codes()
    client.send(RCPT)
    guard.advance(99)
    assert client.codes() == []
    guard.advance(1)
    assert client.codes() == [451]
    client.lose()
    guard.check_all_given_back()


def test_a_hook_has_no_longer_than_its_time_though_the_clock_was_set_back_since_the_timer_was_set() -> None:
    guard = PureGuard(all_later(), delivery_timeout=100, read_timeout=0)
    client = guard.connect()
    client.send(HELLO + MAIL)
    guard.answer_all()
    client.codes()
    guard.clock.now -= 900
    client.send(RCPT)
    guard.advance(99)
    assert client.codes() == []
    guard.advance(1)
    assert client.codes() == [451]
    client.lose()
    guard.check_all_given_back()


def test_hooks_that_answer_in_time_leave_one_timer_and_it_has_no_effect() -> None:
    guard = PureGuard(all_later(), delivery_timeout=100, read_timeout=0)
    client = guard.connect()
    before = len(guard.clock.timers)
    client.send(HELLO + MAIL)
    guard.answer_all()
    for _ in range(20):
        client.send(RCPT)
        guard.answer_all()
        assert len(guard.clock.timers) == before + 1
    client.codes()
    guard.advance(1000)
    assert client.codes() == []
    assert len(guard.clock.timers) == before
    client.lose()
    guard.check_all_given_back()


def test_a_message_whose_client_has_left_keeps_its_time_limit() -> None:
    guard = PureGuard(PureDelivery(lambda hook: "later" if hook == "finish" else "now"), delivery_timeout=100)
    client = guard.connect()
    client.send(HELLO + MAIL + RCPT + b"DATA\r\nx\r\n.\r\n")
    client.lose()
    assert guard.context.pending_deliveries == 1
    guard.advance(100)
    assert guard.context.pending_deliveries == 0
    guard.check_all_given_back()


def test_no_client_is_timed_out_while_a_hook_is_waited_for_and_each_is_afterwards() -> None:
    guard = PureGuard(all_later(), delivery_timeout=0, read_timeout=10)
    client = guard.connect()
    client.send(HELLO + MAIL)
    client.codes()
    for _ in range(5):
        guard.advance(9)
    assert client.codes() == []
    guard.answer_all()
    assert client.codes() == [250]
    guard.advance(9)
    assert client.codes() == []
    guard.advance(1)
    assert client.codes() == [421]


@pytest.mark.parametrize("before", [False, True])
def test_a_client_that_half_closes_while_a_hook_is_waited_for_still_hears_its_reply(before: bool) -> None:
    guard = PureGuard(all_later(), read_timeout=10)
    client = guard.connect()
    client.send(HELLO + MAIL)
    client.codes()
    client.send(FIN)
    if not before:
        guard.advance(11)
    guard.answer_all()
    assert client.codes() == [250]
    client.lose()
    guard.check_all_given_back()
