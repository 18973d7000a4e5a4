"""One crowd against one server, which honest senders come to as well: who of them was served, and how long it took."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs
from honestsenders import Sender, Visit, known, send_for, strangers
from hostileprocess import KINDS, HostileProcess
from processes import eventually

_OF_CROWD, _OF_KNOWN, _OF_STRANGERS = "127.1", "127.2", "127.3"
"""The beginnings of their addresses. Some strangers are in the networks of the crowd."""

HEADLINE = (
    f"{'server':52} {'known served':>14} | {'smtplib quiet':>13} {'median':>7} {'99 %':>7} {'longest':>7} | "
    f"{'swaks quiet':>11} {'median':>7} {'99 %':>7} {'longest':>7} | {'strangers':>14} {'in its networks':>15} | "
    f"{'crowd/s':>7} {'greeted':>7} held: {', '.join(KINDS)}"
)


@attrs.frozen(kw_only=True)
class Scale:
    """How many there are, and for how long."""

    cap: int
    """Of the server, on connections."""
    hostile: int
    addresses: int
    networks: int
    """The addresses of the hostile connections, and the networks in which these are."""
    known_of_file: int
    known_by_mail: int
    swaks: int
    """So many of the known senders, of either kind, send with swaks."""
    strangers: int
    interval: float
    """Seconds between two mails of an honest sender, or tries."""
    seconds: float
    part: float
    """Every known sender is to be served in each such part of the time, in seconds."""


def name_of(number: int) -> str:
    """The address of a known sender, in a network of its own. Those of the file are the first."""
    return f"{_OF_KNOWN}.{number}.1"


@attrs.frozen
class Outcome:
    """What the honest senders met. `counts` are those of the crowd, each second."""

    name: str
    scale: Scale
    quiet: list[Visit]
    crowded: list[Visit]
    began_at: float
    counts: list[dict[str, Any]]

    def of(self, network: str) -> list[Visit]:
        """The sessions of the senders with such an address."""
        return [visit for visit in self.crowded if visit.address.startswith(f"{network}.")]

    @property
    def unserved(self) -> list[Visit]:
        """The sessions of known senders in which no mail was accepted."""
        return [visit for visit in self.of(_OF_KNOWN) if visit.problem]

    @property
    def served_in_parts(self) -> list[int]:
        """How many known senders were served in each part of the time."""
        parts: list[set[str]] = [set() for _ in range(math.ceil(self.scale.seconds / self.scale.part))]
        for visit in self.of(_OF_KNOWN):
            if not visit.problem:
                number = int((visit.began_at - self.began_at) / self.scale.part)
                parts[min(number, len(parts) - 1)].add(visit.address)
        return [len(part) for part in parts]

    def seconds_more(self, program: str, part: float) -> float:
        """By how many seconds this part of the sessions of known senders was at most longer than the median of the
        quiet time. One that was not served is infinitely long."""
        return _percentile(self.of(_OF_KNOWN), program, part) - _percentile(self.quiet, program, 0.5)

    def __str__(self) -> str:
        told = f"{self.name:52} {', '.join(map(str, self.served_in_parts)):>14}"
        for program, width in (("smtplib", 13), ("swaks", 11)):
            if any(visit.program == program for visit in self.quiet):
                more = [f"{self.seconds_more(program, part):+7.3f}" for part in (0.5, 0.99, 1)]
                told += f" | {_percentile(self.quiet, program, 0.5):{width}.3f} {' '.join(more)}"
            else:
                told += f" | {'':{width}} {'':23}"
        told += f" | {_share(self.of(_OF_STRANGERS)):>14} {_share(self.of(_OF_CROWD)):>15}"
        first, last, seconds = self.counts[0], self.counts[-1], max(1, len(self.counts) - 1)
        came, greeted = (round((last[name] - first[name]) / seconds) for name in ("connected", "greeted"))
        held = (round(sum(each["held"][kind] for each in self.counts) / len(self.counts)) for kind in KINDS)
        told += f" | {came:7} {greeted:7} {', '.join(map(str, held))}"
        for whose, visits in (
            ("known senders", self.unserved),
            ("strangers", self.of(_OF_STRANGERS) + self.of(_OF_CROWD)),
        ):
            problems = Counter(visit.problem[:90] for visit in visits if visit.problem)
            for problem, number in problems.most_common(3):
                told += f"\n    {number} sessions of {whose}: {problem}"
        return told


def _share(visits: list[Visit]) -> str:
    served = sum(not visit.problem for visit in visits)
    return f"{served}/{len(visits)} {served / max(1, len(visits)):4.0%}"


def _percentile(visits: Iterable[Visit], program: str, part: float) -> float:
    """How long this part of the sessions was not exceeded."""
    of_program = [visit for visit in visits if visit.program == program]
    seconds = sorted(math.inf if visit.problem else visit.seconds for visit in of_program)
    return seconds[math.ceil(part * len(seconds)) - 1]


def _known_senders(scale: Scale) -> list[Sender]:
    """Those of the file first. As many of them as of the others send with swaks."""
    halves = range(scale.known_of_file), range(scale.known_by_mail)
    programs = ["swaks" if number < scale.swaks else "smtplib" for half in halves for number in half]
    return [known(program, name_of(number), scale.interval) for number, program in enumerate(programs)]


def _strangers(scale: Scale) -> list[Sender]:
    """Every other one is in a network of the crowd."""
    own = [f"{_OF_STRANGERS}.{number}" for number in range(0, scale.strangers, 2)]
    shared = [f"{_OF_CROWD}.{number % scale.networks}" for number in range(1, scale.strangers, 2)]
    return [strangers(network, scale.interval, first=100) for network in (*own, *shared)]


def besiege_senders(name: str, port: int, scale: Scale) -> Outcome:
    """Let the senders send in quiet, while the crowd only waits in its process, and then with it."""
    senders = _known_senders(scale)
    # As many at a time as there will be with the strangers.
    often = [sender._replace(interval=scale.interval / 2) for sender in senders]
    with HostileProcess(port, scale.hostile, scale.addresses, scale.networks) as crowd:
        # With the first mail a server learns whom it knows. Some want to be tried twice.
        send_for(port, scale.interval, often)
        quiet = send_for(port, scale.interval, often)
        assert not [visit for visit in quiet if visit.problem], quiet
        crowd.come()
        eventually(
            lambda: crowd.counts and crowd.counts[-1]["refused"] > scale.hostile / 2,
            "the crowd does not fill the server",
        )
        before, began_at = len(crowd.counts), time.monotonic()
        crowded = send_for(port, scale.seconds, [*senders, *_strangers(scale)])
        return Outcome(name, scale, quiet, crowded, began_at, crowd.counts[before - 1 :])
