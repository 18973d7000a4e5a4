"""One crowd against one guard: what it cost, whether others were served meanwhile, and one line of a table of it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

import attrs
from crowd import Behaviour, Client, run_crowd
from probe import Waits, visits
from processes import ExecutedGuard, eventually
from vitals import Vitals

KiB, MiB = 1024, 1024 * 1024

HEADLINE = (
    f"{'crowd':44} {'clients':>7} {'s':>5} {'MiB before':>10} {'peak':>6} {'after':>6} {'KiB/client':>10} "
    f"{'CPU s':>6} {'log KiB/s':>9} {'visits':>6} {'median ms':>9} {'worst ms':>8}"
)


@attrs.define
class Siege:
    """What was measured of one crowd."""

    name: str
    clients: list[Client]
    seconds: float
    before: int
    peak: int
    after: int
    cpu_seconds: float
    log_octets: int
    connections: int
    """What it had open when all clients were through or their time was over, before the rest hung up."""
    waits: Waits

    @property
    def octets_a_client(self) -> float:
        """Of memory, at the peak."""
        return (self.peak - self.before) / len(self.clients)

    @property
    def log_octets_a_second(self) -> float:
        return self.log_octets / max(self.seconds, 1)

    def told(self, words: bytes) -> int:
        """How many clients heard it."""
        return sum(words in client.heard for client in self.clients)

    def __str__(self) -> str:
        return (
            f"{self.name:44} {len(self.clients):7} {self.seconds:5.1f} {self.before / MiB:10.1f} "
            f"{self.peak / MiB:6.1f} {self.after / MiB:6.1f} {self.octets_a_client / KiB:10.1f} "
            f"{self.cpu_seconds:6.2f} {self.log_octets_a_second / KiB:9.1f} {len(self.waits.seconds):6} "
            f"{self.waits.median * 1000:9.1f} {self.waits.worst * 1000:8.1f}"
        )


def besiege(
    guard: ExecutedGuard,
    name: str,
    behaviours: Iterable[Behaviour],
    *,
    seconds: float,
    at_once: int = 20_000,
    within: float = 0,
    receive_buffer: int = 0,
    anywhere: bool = False,
    probe_greeting: int = 220,
    lets_go: bool = False,
    crowd_port: int = 0,
    probe_tls: bool = False,
) -> Siege:
    """Let one client come for each behaviour, `at_once` at a time, for at most `seconds`; the rest then hang up. They
    come spread over the first `within` seconds.

    `lets_go`: before that, the guard must close every connection by itself. `crowd_port`: where the crowd comes, if it
    is another listener than that of honest clients. `probe_tls`: these come there too, and begin with TLS.
    """
    vitals, port = Vitals(guard.pid), crowd_port if probe_tls else guard.port
    with visits(port, greeting=probe_greeting, tls=probe_tls):
        pass  # What a first session brings into memory is not the crowd's.
    before, log_before, own_descriptors = vitals.resident, len(guard.log), vitals.descriptors

    connections = 0

    def settled() -> None:
        nonlocal connections
        connections = vitals.descriptors - own_descriptors
        if lets_go:
            # One may be the probe's.
            eventually(lambda: vitals.descriptors <= own_descriptors + 1, "it keeps connections open")

    vitals.forget_peak()
    cpu, began = vitals.seconds, time.monotonic()
    with visits(port, greeting=probe_greeting, tls=probe_tls) as waits:
        clients = run_crowd(
            behaviours,
            partial(Client, crowd_port or port, receive_buffer=receive_buffer, anywhere=anywhere),
            at_once=at_once,
            within=within,
            seconds=seconds,
            settled=settled,
        )
        took = time.monotonic() - began
    return Siege(
        name=name,
        clients=clients,
        seconds=took,
        before=before,
        peak=vitals.peak,
        after=vitals.resident,
        cpu_seconds=vitals.seconds - cpu,
        log_octets=len(guard.log) - log_before,
        connections=connections,
        waits=waits,
    )
