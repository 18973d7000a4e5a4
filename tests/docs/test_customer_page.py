"""The page about a customer who cannot send shows what smtpguardctl shows."""

from __future__ import annotations

from typing import Any

from documents import DOCS, blocks
from twisted.internet.task import Clock

from twisted_smtpguard import Limits, SMTPGuardService
from twisted_smtpguard.control.tables import as_line, shown
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.operations.verbs import VERBS
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.testing import Clients, FakeDelivery
from twisted_smtpguard.values import Refused

PAGE = DOCS / "how-to" / "answer-a-customer-who-cannot-send.md"
ADDRESS = "192.0.2.7"
NOW = 1_796_040_000


def _later(*_: object) -> None:
    raise Refused(Reply(450, "4.7.1", ("Later",), said="450 4.7.1 Greylisted, see mx.example"))


def _operated() -> tuple[Clients, Any]:
    """A guard in memory, and its operator."""
    clock = Clock()
    clock.advance(NOW)
    service = SMTPGuardService(
        clock,
        [],
        FakeDelivery(),
        limits=Limits(max_connections_per_client=20, message_rate=Rate(100, 60)),
        hostname="mx.example",
    )
    service.factory._session_prefix = "7f3a01"
    return Clients(service.factory, clock), service.operator


def _why() -> dict[str, Any]:
    """A customer whose server opens too many connections, and whom the upstream server has put off before."""
    guard, operator = _operated()
    guard.delivery.answers["recipient"] = _later
    guard.greeted(ADDRESS).say("MAIL FROM:<ann@client.example>", "RCPT TO:<info@mx.example>", "QUIT")
    guard.clock.advance(60)
    assert [guard.connect(ADDRESS).closed for _ in range(21)] == [False] * 20 + [True]
    answers: list[dict[str, Any]] = []
    operator.carry_out("why", {"address": ADDRESS}).addCallback(answers.append)
    return answers[0]


def test_the_page_shows_what_why_shows() -> None:
    answer = _why()
    wanted = "\n".join([f"$ smtpguardctl why {ADDRESS}", *shown(answer, [], 0)]) + "\n"
    assert wanted in blocks(PAGE, "text"), wanted


def test_the_page_shows_what_trace_shows() -> None:
    rows: list[Any] = []
    guard, operator = _operated()
    operator.carry_out("trace", {"network": ADDRESS, "for": "10m"}).begin(rows.append, lambda: None)
    guard.delivery.answers["recipient"] = _later
    client = guard.connect(ADDRESS)
    client.say("HELO client.example")
    client.say("MAIL FROM:<ann@client.example>", "RCPT TO:<info@mx.example>")
    client.say("QUIT")
    client.disconnect()
    wanted = "\n".join([f"$ smtpguardctl trace {ADDRESS} --for 10m", *map(as_line, rows)]) + "\n"
    assert wanted in blocks(PAGE, "text"), wanted


def test_every_verb_on_the_page_exists() -> None:
    text = PAGE.read_text()
    used = {word.split()[0] for word in text.split("smtpguardctl ")[1:]}
    assert {word.strip("`.,;:)") for word in used} <= {*VERBS, "in"}
