"""The page about /status.json has every field, and no other."""

from __future__ import annotations

import re
from typing import Any

from reference_pages import REFERENCE
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from twisted_smtpguard import SMTPGuardService
from twisted_smtpguard.log.measurements import Measurements
from twisted_smtpguard.metrics.snapshot import Hour, Snapshots
from twisted_smtpguard.testing import FakeDelivery, FakeTransport

TEXT = (REFERENCE / "status.md").read_text()


def written(heading: str) -> set[str]:
    """The fields in the table with this heading."""
    _, _, rest = TEXT.partition(f"| {heading} | What it is |\n|---|---|\n")
    assert rest, heading
    return set(re.findall(r"(?m)^\| `(\w+)`", rest.partition("\n\n")[0]))


def snapshot() -> dict[str, Any]:
    clock = Clock()
    endpoint = TCP4ServerEndpoint(MemoryReactorClock(), 25)
    service = SMTPGuardService(clock, [endpoint], FakeDelivery(), hostname="guard.example")
    measured: Measurements = service.factory.context.events.measured
    measured.filters["lists", "pass"].observe(1.0)
    protocol = service.factory.buildProtocol(FakeTransport("192.0.2.1").getPeer())
    protocol.makeConnection(FakeTransport("192.0.2.1"))
    found: list[dict[str, Any]] = []
    Snapshots(service.operator, clock, Hour(service.operator, clock)).take().addCallback(found.append)
    return found[0]


def test_the_page_has_every_field() -> None:
    told = snapshot()
    assert written("Field") == {*told}
    assert written("Field of `status`") == {*told["status"], "workers"}
    assert written("Field of a sample of `hour`") == {*told["hour"][0]}
    assert written("Field of a client of `top`") == {*told["top"][0]}
    assert written("Field of a row of `hooks`") == {*told["hooks"][0]}
    assert written("Field of a row of `limits`") == {*told["limits"][0]}
    assert {*told["recent"]} == {"refusals", "sessions"}
