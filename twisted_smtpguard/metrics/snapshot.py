"""What the status page shows: the answers of an operator at one moment, and the last hour in samples.

The operator is that of one guard or of several workers, which answer the same verbs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from twisted_smtpguard.log.eventlog import utc

ASKED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "status": ("status", {}),
    "recent": ("recent", {}),
    "top": ("top", {}),
    "top_refused": ("top", {"by": "refusals"}),
    "hooks": ("hooks", {}),
    "limits": ("limits", {}),
}
"""What is shown, and the verbs, with their arguments, whose answers it is. None of them holds up the reactor, however
many connections there are."""

FRESH_SECONDS = 1.0
"""How long a snapshot is shown to others who ask, so that no crowd of readers makes more work."""

SAMPLES, SAMPLE_SECONDS = 60, 60
"""How many samples there are, the one that is being taken included, and how long one takes."""

LOOK_SECONDS = 5.0
"""How often the status is looked at for them."""

_COUNTS = {
    "accepted": "connections_accepted",
    "refused": "connections_refused",
    "messages": "messages_accepted",
    "refusals": "refusals",
}
"""What a sample counts, and the statistics that it comes from."""


class Operator(Protocol):
    """Whom the page asks. It is the `operator` of a guard, or that of its workers."""

    def carry_out(self, verb: str, arguments: Mapping[str, object]) -> Any:
        """The answer: a dict, an iterator of dicts, or a Deferred of one of these. ValueError: refused."""


class Hour:
    """The last hour of a guard, as a ring of samples of one minute each. It is kept from `start` to `stop`."""

    def __init__(self, operator: Operator, clock: IReactorTime) -> None:
        self._operator = operator
        self._clock = clock
        self._samples: deque[dict[str, Any]] = deque(maxlen=SAMPLES - 1)
        self._current: dict[str, Any] | None = None
        self._began_at = 0.0
        self._before: dict[str, int] | None = None
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock

    def start(self) -> None:
        """Begin to look at the status."""
        self._loop.start(LOOK_SECONDS)

    def stop(self) -> None:
        """Look no more. What is there stays."""
        if self._loop.running:
            self._loop.stop()

    def samples(self) -> list[dict[str, Any]]:
        """The samples, the oldest first; the last is that of the minute that is not over."""
        return [*self._samples, *([dict(self._current)] if self._current else [])]

    def _look(self) -> Deferred[None]:
        looked = maybeDeferred(self._operator.carry_out, "status", {})
        # Several workers that all start have no status. There is another look soon.
        return looked.addCallbacks(self.seen, lambda _: None)

    def seen(self, status: Mapping[str, Any]) -> None:
        """Take the status of this moment into the samples."""
        statistics = status["statistics"]
        counts = {name: _number(statistics.get(source, 0)) for name, source in _COUNTS.items()}
        before, self._before = self._before or counts, counts
        now = self._clock.seconds()
        if self._current is None or now - self._began_at >= SAMPLE_SECONDS:
            if self._current is not None:
                self._samples.append(self._current)
            self._began_at = now
            self._current = {"time": utc(now), "connections": 0, **dict.fromkeys(_COUNTS, 0)}
        sample = self._current
        sample["connections"] = max(sample["connections"], status["connections"])
        for name, count in counts.items():
            sample[name] += max(0, count - before[name])


class Snapshots:
    """Asks the operator for all that is shown. `hour` is kept by somebody else; None: nobody keeps it."""

    def __init__(self, operator: Operator, clock: IReactorTime, hour: Hour | None = None) -> None:
        self._operator = operator
        self._clock = clock
        self._hour = hour
        self._last: dict[str, Any] = {}
        self._taken_at = 0.0
        self._waiting: list[Deferred[dict[str, Any]]] | None = None

    def take(self) -> Deferred[dict[str, Any]]:
        """A snapshot that is at most a second old, of what JSON has: the `time`, what is ASKED by its name, the
        samples of the last `hour`, and `problems`, which says of what has no answer why."""
        asked: Deferred[dict[str, Any]] = Deferred()
        if self._waiting is not None:
            self._waiting.append(asked)
        elif self._last and 0 <= self._clock.seconds() - self._taken_at < FRESH_SECONDS:
            asked.callback(self._last)
        else:
            self._waiting = [asked]
            Deferred.fromCoroutine(self._taken()).addBoth(self._tell)
        return asked

    def _tell(self, outcome: Any) -> None:
        waiting, self._waiting = self._waiting or [], None
        for asked in waiting:
            asked.callback(outcome)

    async def _taken(self) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        problems = {}
        for name, (verb, arguments) in ASKED.items():
            try:
                answer = await maybeDeferred(self._operator.carry_out, verb, arguments)
                answers[name] = list(answer) if isinstance(answer, Iterator) else answer
            except ValueError as error:
                problems[name] = str(error)
        self._taken_at = self._clock.seconds()
        hour = []
        if self._hour is not None:
            if "status" in answers:
                self._hour.seen(answers["status"])
            hour = self._hour.samples()
        self._last = {"time": utc(self._taken_at), **answers, "hour": hour, "problems": problems}
        return self._last


def _number(value: int | Mapping[str, int]) -> int:
    return value if isinstance(value, int) else sum(value.values())
