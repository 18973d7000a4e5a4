"""What a guard tells of itself: why it takes no mail, and how fast its filters and its delivery answer."""

from __future__ import annotations

from typing import ClassVar

import pytest_twisted
from fakes import FakeDelivery
from loopback import Loopback
from zope.interface import implementer

from twisted_smtpguard import FilterEntry
from twisted_smtpguard.interfaces import IReportsHealth
from twisted_smtpguard.policies.policyentry import PolicyEntry
from twisted_smtpguard.testing import FakeFilter, FakePolicy

ENVELOPE = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@guard.example>\r\n"


@pytest_twisted.ensureDeferred
async def test_each_hook_and_filter_tells_how_fast_it_answers() -> None:
    filters = [FilterEntry(FakeFilter(), name="slow")]
    policies = [PolicyEntry(FakePolicy(), "grey")]
    guard = Loopback(options={"ip_filters": filters, "policies": policies})
    guard.start()
    client = await guard.greeted()
    await client.says(ENVELOPE)
    await client.hears(b"250 2.1.5")
    measured = guard.factory.context.events.measured
    for seconds in (0.02, *[0.004] * 18, 20.0):
        measured.filters["slow", "refuse"].observe(seconds)
    measured.filters["slow", "timeout"].observe(99.0)
    rows = {(row["part"], row["name"], row["outcome"]): row for row in guard.service.operator.hooks()}
    assert [key for key in rows if key[0] == "filter"] == [
        ("filter", "slow", "pass"),
        ("filter", "slow", "refuse"),
        ("filter", "slow", "timeout"),
    ]
    assert rows["filter", "slow", "refuse"] == {
        "part": "filter",
        "name": "slow",
        "outcome": "refuse",
        "answers": 20,
        "seconds": 20.092,
        "mean_seconds": 1.0046,
        "within_seconds": 0.025,
    }
    assert rows["filter", "slow", "timeout"]["within_seconds"] is None
    assert rows["policy", "grey (rcpt)", "dunno"]["answers"] == 1
    assert rows["delivery", "recipient", "ok"]["answers"] == 1
    assert ("delivery", "finish", "ok") not in rows
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_the_status_tells_why_no_mail_is_taken_and_what_the_delivery_does() -> None:
    @implementer(IReportsHealth)
    class Reporting(FakeDelivery):
        problem = ""
        connections_by_state: ClassVar = {"idle": 2}

    guard = Loopback(delivery=Reporting())
    operator = guard.service.operator
    assert operator.status()["problem"] == "the guard does not listen, it is stopped"
    guard.start()
    assert (operator.status()["problem"], operator.status()["upstream"]) == ("", {"idle": 2})
    guard.delivery.problem = "451 it is away"
    assert operator.status()["problem"] == "the delivery is down: 451 it is away"
    await guard.close()
