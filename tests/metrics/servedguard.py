"""A guard as a service in memory, and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client.samples import Sample
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from twisted_smtpguard import SMTPGuardService
from twisted_smtpguard.metrics.collector import GuardCollector
from twisted_smtpguard.testing import Clients, Conversation, FakeDelivery, FakeTransport


class ServedGuard(Clients):
    """The clients of the first endpoint of a service that was not started."""

    def __init__(self, service: SMTPGuardService, clock: Clock) -> None:
        super().__init__(service.factory, clock)
        self.service = service

    def connect(self, host: str = "192.0.2.1") -> Conversation:
        transport = FakeTransport(host)
        listener: Any = self.service._listeners[0][1]
        protocol = listener.buildProtocol(transport.getPeer())
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return Conversation(self, protocol, transport)


def service_with(
    delivery: Any = None, *, clock: Any = None, names: Sequence[str] = ("smtp",), **options: Any
) -> ServedGuard:
    """A guard with one endpoint. `options` are those of SMTPGuardService."""
    clock = clock or Clock()
    endpoint = TCP4ServerEndpoint(MemoryReactorClock(), 25)
    service = SMTPGuardService(
        clock, [endpoint], delivery or FakeDelivery(), hostname="guard.example", names=names, **options
    )
    return ServedGuard(service, clock)


def collector_of(guard: ServedGuard) -> GuardCollector:
    return GuardCollector(guard.service)


def shown(sample: Sample) -> str:
    """The name and the labels, sorted, of one series, without the prefix."""
    labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
    return sample.name.removeprefix("smtpguard_") + (f"{{{labels}}}" if labels else "")


def samples(guard: ServedGuard) -> dict[str, float]:
    """Every series and its value."""
    return {shown(each): each.value for family in collector_of(guard).collect() for each in family.samples}
