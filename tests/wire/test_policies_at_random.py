"""Policies that answer anything at any time, and clients that do anything: what the delivery is promised holds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from strictdelivery import StrictDelivery
from twisted.internet.defer import Deferred

from twisted_smtpguard import Reply
from twisted_smtpguard.policies.policyentry import PolicyEntry
from twisted_smtpguard.policyvalues import POLICY_STAGES, PolicyUnavailable, PolicyVerdict
from twisted_smtpguard.testing import FakePolicy, Guard

MAIL = ("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "RCPT TO:<g@e.f>", "DATA", "Subject: x\r\n\r\ntext\r\n.")
CHUNKS = (*MAIL[:2], "BDAT 3\r\nabc", "BDAT 2 LAST\r\nxy")
OTHERS = (*MAIL, *CHUNKS, "EHLO x", "HELO x", ".", "RSET", "NOOP", "QUIT", "BREW")


def said(dice: random.Random) -> Iterator[str]:
    """Lines of a client: mostly those of whole mails."""
    yield "EHLO x"
    for _ in range(dice.randrange(12)):
        for line in dice.choice((MAIL, CHUNKS)):
            yield line
            if dice.random() < 0.15:
                yield dice.choice(OTHERS)


VERDICTS = (
    *[PolicyVerdict.dunno()] * 24,
    PolicyVerdict.ok(),
    PolicyVerdict.refuse(Reply(554, "5.7.1", ("No",))),
    PolicyVerdict.refuse(Reply(421, "4.7.1", ("Out",))),
    PolicyVerdict.defer_if_permit(Reply(450, "4.7.1", ("Later",))),
    PolicyVerdict.defer_if_reject(Reply(450, "4.7.1", ("Perhaps",))),
    PolicyVerdict.prepend("X: y"),
    PolicyVerdict.note("x"),
    None,
)


@pytest.mark.parametrize("seed", range(150))
def test_every_promise_to_the_delivery_is_kept(seed: int) -> None:
    dice = random.Random(seed)
    pending: list[Deferred[Any]] = []

    def answer(_: object) -> Any:
        verdict = dice.choice(VERDICTS)
        kind = dice.randrange(24)
        if kind == 0:
            raise PolicyUnavailable("x")
        if kind > 16:
            later: Deferred[Any] = Deferred()
            later.verdict = verdict  # type: ignore[attr-defined]
            pending.append(later)
            return later
        return verdict

    outcomes = ("now",) * 12 + ("late", "refused", "raised")
    delivery = StrictDelivery(lambda hook: "now" if hook == "begin" else dice.choice(outcomes))
    policies = [
        PolicyEntry(FakePolicy(answer, *POLICY_STAGES), f"p{number}", fail_open=number == 1, timeout=5)
        for number in range(2)
    ]
    guard = Guard(delivery, policies=policies, max_invalid_commands=0)

    def answer_some() -> None:
        while pending and dice.random() < 0.7:
            later = pending.pop(dice.randrange(len(pending)))
            if not later.called:
                later.callback(later.verdict)  # type: ignore[attr-defined]
        for each in list(delivery.pending):
            if dice.random() < 0.7:
                each.succeed()

    for _ in range(4):
        client = guard.connect()
        for line in said(dice):
            if client.closed:
                break
            client.send(f"{line}\r\n".encode(), bytewise=dice.random() < 0.2)
            answer_some()
            if dice.random() < 0.1:
                guard.clock.advance(6)
        client.disconnect()
        for each in list(delivery.pending):
            each.succeed()
    guard.clock.advance(400)
    assert delivery.broken == []
    assert guard.factory.connections == 0
    for transaction in delivery.transactions:
        assert len(transaction.ends) == transaction.handed_over
