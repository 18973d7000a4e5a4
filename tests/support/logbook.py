"""What the guard logged during a test, as its lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.logger import LogEvent, capturedLogs, globalLogPublisher


class Logbook:
    """Lines are taken out by the name of their event."""

    def __init__(self, events: list[LogEvent]) -> None:
        self._events = events

    def take(self, name: str) -> list[str]:
        """The lines of this event since it was last asked for."""
        taken = [event for event in self._events if event.get("event") == name]
        self._events[:] = [event for event in self._events if event not in taken]
        return [event["text"] for event in taken]


@contextmanager
def logbook() -> Iterator[Logbook]:
    """At its end no failure may be left in the log: a test that expects one takes it."""
    with capturedLogs() as events:
        book = Logbook(events)
        yield book
        assert [event for event in events if "log_failure" in event] == []


@contextmanager
def own_events() -> Iterator[list[LogEvent]]:
    """The guard's own events, as they are logged meanwhile."""
    events: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event["log_namespace"] == "twisted_smtpguard":
            events.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(observe)
