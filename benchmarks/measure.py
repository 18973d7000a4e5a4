"""Interleaved rounds: what each took of each server, with every count compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import attrs

from .load import Sent
from .servers import Kind, Server, Wrong, running
from .workloads import Workload


@attrs.frozen
class Took:
    """One round of one server, in the unit of the workload."""

    cost: float
    load: float
    """What the load itself took."""
    busy: float
    """The share of the round in which the server was running."""


@attrs.frozen
class Measured:
    """All rounds of a workload, by server: the n-th of one was beside the n-th of another."""

    rounds: dict[str, list[Took]]

    def median(self, server: str) -> float:
        return statistics.median(took.cost for took in self.rounds[server])

    def load(self, server: str) -> float:
        return statistics.median(took.load for took in self.rounds[server])

    def busy(self, server: str) -> float:
        return statistics.median(took.busy for took in self.rounds[server])

    def ratio(self, server: str, to: str) -> float:
        """The median of the ratios of the rounds: what slows the machine for a while is in both."""
        return statistics.median(paired(self._costs(server), self._costs(to), lambda a, b: a / b))

    def difference(self, server: str, to: str) -> float:
        return statistics.median(paired(self._costs(server), self._costs(to), lambda a, b: a - b))

    def _costs(self, server: str) -> list[float]:
        return [took.cost for took in self.rounds[server]]


def measure(workload: Workload, kinds: Sequence[Kind], rounds: int) -> Measured:
    """A round that is not measured, then `rounds`, in turn."""
    took: dict[str, list[Took]] = {kind.name: [] for kind in kinds}
    sent: dict[str, list[Sent]] = {kind.name: [] for kind in kinds}
    with ExitStack() as stack:
        servers = [stack.enter_context(running(kind, refusing=workload.refusing)) for kind in kinds]
        for server in servers:
            sent[server.name].append(workload.send(server))
        for number in range(rounds):
            # Nobody is always the one behind the same other.
            first = number % len(servers)
            for server in servers[first:] + servers[:first]:
                round_took, round_sent = _round(workload, server)
                took[server.name].append(round_took)
                sent[server.name].append(round_sent)
        for server in servers:
            server.stop()
            _compare_counts(server, sent[server.name])
    for kind in kinds:
        if kind.counts is None:
            _count_a_round(workload, kind)
    return Measured(took)


def _round(workload: Workload, server: Server) -> tuple[Took, Sent]:
    before, began = server.vitals.seconds, time.monotonic()
    sent = workload.send(server)
    spent, lasted = server.vitals.seconds - before, time.monotonic() - began
    scale = workload.factor / sent.units
    return Took(spent * scale, sent.load_seconds * scale, spent / lasted), sent


def _count_a_round(workload: Workload, kind: Kind) -> None:
    """What is not made to count while it is measured shows by its twin that every unit was one."""
    if kind.counted_as is not None:
        with running(kind.counted_as, refusing=workload.refusing) as server:
            sent = workload.send(server)
            server.stop()
            _compare_counts(server, [sent])


def _compare_counts(server: Server, rounds: Sequence[Sent]) -> None:
    counts = server.counts()
    expected = {
        "messages": sum(sent.messages for sent in rounds),
        "recipients": sum(sent.recipients for sent in rounds),
        "refused": sum(sent.refused for sent in rounds) + server.refused_before,
    }
    for what, number in counts.items():
        if number != expected[what]:
            raise Wrong(f"{server.name} has counted {number} {what} where {expected[what]} were sent")


def paired(
    first: Sequence[float], second: Sequence[float], of: Callable[[float, float], float]
) -> list[float]:
    return [of(a, b) for a, b in zip(first, second, strict=True)]
