"""Which session has to make room for a newcomer: one that is idle, of the network that holds most.

The index is made anew at most once a second, and only while newcomers ask. Between that each question takes a time that
grows with the logarithm of the number of sessions, and a command costs nothing: an index that is a second old has every
session that can have been idle for 5 seconds, and what it says of one is checked when its turn comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Protocol

IDLE_SECONDS = 5
"""For how long a session has to be idle, so that no flood of newcomers ends those of honest clients between their
commands."""

_FRESH_SECONDS = 1


class Session(Protocol):
    """A session of a stranger. It is an engine."""

    @property
    def widest_network(self) -> str:
        """The key of the widest network in which its client is, or of the client."""

    @property
    def idle_since(self) -> float | None:
        """When its client sent its last whole command; None if the session cannot be ended for another now, such as in
        a mail transaction."""


_Candidate = tuple[float, int, Session]


class IdleSessions:
    """The sessions of strangers. `sessions` returns those that there are now, and `seconds` the time."""

    def __init__(self, sessions: Callable[[], Iterable[Session]], seconds: Callable[[], float]) -> None:
        self._sessions = sessions
        self._seconds = seconds
        self._outdated_at = 0.0
        self._held: dict[str, int] = {}
        """How many sessions each network holds."""
        self._idle: dict[str, list[_Candidate]] = {}
        """For each network a heap of its sessions that were idle when the index was made, the longest idle first."""
        self._largest: list[tuple[int, str]] = []
        """A heap of the networks that may have a session that is idle long enough, with what each holds as a negative
        number: the one that holds most first."""
        self._later: list[tuple[float, str]] = []
        """A heap of the other networks that have idle sessions, with the time from which on one is idle long enough."""
        self._nobody_before = 0.0
        """No session at all is idle long enough before this time."""

    def clear(self) -> None:
        """Drop the index, and make it anew for the next newcomer."""
        self._outdated_at = self._nobody_before = 0.0
        self._held, self._idle, self._largest, self._later = {}, {}, [], []

    @property
    def may_have_any(self) -> bool:
        """Whether a session might be idle long enough. It costs next to nothing, for a flood of newcomers."""
        return self._seconds() >= self._nobody_before

    def to_end(self, newcomer: str, *, take: bool = True) -> Session | None:
        """The session to end for a client of the network `newcomer`; None: there is none. With `take` it is not
        returned again, and the newcomer counts in its place.

        It is the one that has been idle longest, of the network that holds most and has one. If no network holds more
        than the newcomer's own, that network gets no seat more: one of its own sessions has to go. "" is a newcomer
        against whom no network counts.
        """
        now = self._seconds()
        if now >= self._outdated_at:
            self._make(now)
        while self._later and self._later[0][0] <= now:
            _, network = heappop(self._later)
            heappush(self._largest, (-self._held[network], network))
        own = self._held.get(newcomer, 0)
        while self._largest:
            held, network = self._largest[0]
            if self._held[network] != -held:
                heapreplace(self._largest, (-self._held[network], network))
            elif (ready_at := self._ready_at(network)) > now:
                heappop(self._largest)
                if ready_at < self._outdated_at:
                    heappush(self._later, (ready_at, network))
            elif -held > own or network == newcomer:
                return self._taken(network, newcomer) if take else self._idle[network][0][2]
            else:
                break
        else:
            soonest = self._later[0][0] if self._later else self._outdated_at
            self._nobody_before = min(soonest, self._outdated_at)
            return None
        if newcomer in self._idle and self._ready_at(newcomer) <= now:
            return self._taken(newcomer, newcomer) if take else self._idle[newcomer][0][2]
        return None

    def _make(self, now: float) -> None:
        self._outdated_at = now + _FRESH_SECONDS
        held: dict[str, int] = {}
        idle: dict[str, list[_Candidate]] = {}
        for number, session in enumerate(self._sessions()):
            network, since = session.widest_network, session.idle_since
            held[network] = held.get(network, 0) + 1
            if since is not None:
                idle.setdefault(network, []).append((since, number, session))
        for each in idle.values():
            heapify(each)
        self._held, self._idle, self._largest = held, idle, []
        self._later = [(each[0][0] + IDLE_SECONDS, network) for network, each in idle.items()]
        heapify(self._later)

    def _ready_at(self, network: str) -> float:
        """From when on the first session of a network is idle long enough; infinity: it has no idle session."""
        candidates = self._idle[network]
        while candidates:
            since, number, session = candidates[0]
            idle_since = session.idle_since
            if idle_since is None:
                heappop(candidates)
            elif idle_since != since:
                heapreplace(candidates, (idle_since, number, session))
            else:
                return since + IDLE_SECONDS
        return math.inf

    def _taken(self, network: str, newcomer: str) -> Session:
        _, _, session = heappop(self._idle[network])
        self._held[network] -= 1
        if newcomer:
            self._held[newcomer] = self._held.get(newcomer, 0) + 1
        return session
