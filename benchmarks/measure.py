"""Interleaved rounds: what each took of each server, with every count compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import attrs

from .load import Load, Sent
from .servers import Kind, Server, Wrong, running


@attrs.frozen
class Entry:
    """What takes part in each round, under a name of its own: a server and what is sent to it."""

    name: str
    kind: Kind
    load: Load


@attrs.frozen
class Took:
    """One round of one entry, in the unit."""

    cost: float
    load: float
    """What the load itself took."""
    busy: float
    """The share of the round in which the server was running."""
    per_second: float
    """Units."""


@attrs.frozen
class Measured:
    """All rounds, by entry: the n-th of one was beside the n-th of another."""

    rounds: dict[str, list[Took]]

    def median(self, name: str, of: Callable[[Took], float] = lambda took: took.cost) -> float:
        return statistics.median(map(of, self.rounds[name]))

    def ratio(self, name: str, to: str) -> float:
        """The median of the ratios of the rounds: what slows the machine for a while is in both."""
        return self._paired(name, to, lambda a, b: a / b)

    def difference(self, name: str, to: str) -> float:
        return self._paired(name, to, lambda a, b: a - b)

    def details(self, name: str) -> dict[str, object]:
        """What tells whether the load kept the server busy, and how the rounds differ."""
        return {
            "rounds": [took.cost for took in self.rounds[name]],
            "load": self.median(name, lambda took: took.load),
            "busy": self.median(name, lambda took: took.busy),
            "per_second": self.median(name, lambda took: took.per_second),
        }

    def _paired(self, name: str, to: str, of: Callable[[float, float], float]) -> float:
        pairs = zip(self.rounds[name], self.rounds[to], strict=True)
        return statistics.median(of(a.cost, b.cost) for a, b in pairs)


def measure(
    entries: Sequence[Entry], rounds: int, factor: float, *, refusing: bool = False, count: bool = True
) -> Measured:
    """A round that is not measured, then `rounds`, in turn. `factor`: from seconds to the unit. `count`: what does not
    count while it is measured is made to count a round of its own."""
    took: dict[str, list[Took]] = {entry.name: [] for entry in entries}
    with ExitStack() as stack:
        servers = [stack.enter_context(running(entry.kind, refusing=refusing)) for entry in entries]
        with ExitStack() as loads:
            sends = [
                loads.enter_context(entry.load(server))
                for entry, server in zip(entries, servers, strict=True)
            ]
            sent = [[send()] for send in sends]
            for first in range(rounds):
                # Nobody is always the one behind the same other.
                for number in range(first, first + len(entries)):
                    which = number % len(entries)
                    round_took, round_sent = _round(servers[which], sends[which], factor)
                    took[entries[which].name].append(round_took)
                    sent[which].append(round_sent)
        for server, each in zip(servers, sent, strict=True):
            server.stop()
            compare_counts(server, each)
    for entry in entries if count else ():
        if entry.kind.counted_as is not None:
            _count_a_round(entry, entry.kind.counted_as, refusing=refusing)
    return Measured(took)


def _round(server: Server, send: Callable[[], Sent], factor: float) -> tuple[Took, Sent]:
    # The time that passes lies around the processor's: a share of it is at most one.
    began, before = time.monotonic(), server.vitals.seconds
    sent = send()
    spent, lasted = server.vitals.seconds - before, time.monotonic() - began
    scale = factor / sent.units
    return Took(spent * scale, sent.load_seconds * scale, spent / lasted, sent.units / lasted), sent


def _count_a_round(entry: Entry, twin: Kind, *, refusing: bool) -> None:
    with running(twin, refusing=refusing) as server:
        with entry.load(server) as send:
            sent = send()
        server.stop()
        compare_counts(server, [sent])


def compare_counts(server: Server, rounds: Sequence[Sent]) -> None:
    """What the server has counted must be what was sent to it."""
    expected = {
        "messages": sum(sent.messages for sent in rounds),
        "recipients": sum(sent.recipients for sent in rounds),
        "refused": sum(sent.refused for sent in rounds) + server.refused_before,
    }
    for what, number in server.counts().items():
        if number != expected[what]:
            raise Wrong(f"{server.name} has counted {number} {what} where {expected[what]} were sent")
