"""A supervisor whose processes are in memory: no reactor, no fork, no clock but the test's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, Logger
from twisted.python.failure import Failure

from twisted_smtpguard import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.workers.supervisor import Supervisor


def status(**counts: int) -> dict[str, Any]:
    """The status of a worker."""
    counted = {**Statistics().snapshot(), **counts}
    numbers = dict.fromkeys(("connections", "sessions", "lingering", "tls_handshakes"), 0)
    return {"version": "1.0", "pid": 7, "state": "listening", **numbers, "statistics": counted}


class FakeProcess:
    """One worker: what it is told, and what it tells."""

    def __init__(self, protocol: Any, environment: dict[str, str]) -> None:
        self.protocol = protocol
        self.environment = environment
        self.signals: list[Any] = []
        self.pid = 0
        self.channel: Any = None

    def signalProcess(self, number: Any) -> None:
        self.signals.append(number)

    @property
    def told(self) -> list[Any]:
        """The messages that it has been sent since this was looked at, the first with what is in force left out."""
        text = self.channel.transport.value().decode()
        self.channel.transport.clear()
        return [json.loads(line) for line in text.splitlines()]

    def tells(self, **message: Any) -> None:
        self.channel.dataReceived(json.dumps(message).encode() + b"\n")

    def ready(self, **counts: int) -> None:
        self.tells(ready=status(**counts))

    def asked(self, verb: str) -> int:
        """The number of the one question for a verb."""
        (number,) = [message["ask"] for message in self.told if message.get("verb") == verb]
        return int(number)


class FakeReactor(Clock):
    """The reactor of a supervisor."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []

    def addSystemEventTrigger(self, *_: Any) -> None:
        pass

    def callWhenRunning(self, f: Callable[..., Any], *args: Any) -> None:
        f(*args)

    def spawnProcess(
        self, protocol: Any, executable: str, args: Any, env: dict[str, str], childFDs: Any
    ) -> None:
        process = FakeProcess(protocol, env)
        process.pid = 100 + len(self.processes)
        self.processes.append(process)
        protocol.transport = process
        protocol.connectionMade()

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:
        channel = factory.buildProtocol(None)
        channel.makeConnection(StringTransport())
        self.processes[-1].channel = channel


class Supervised:
    """A supervisor of `count` workers, which has started them."""

    def __init__(self, count: int) -> None:
        self.reactor = FakeReactor()
        self.events: list[LogEvent] = []
        logger = Logger("twisted_smtpguard", observer=self.events.append)  # type: ignore[arg-type]
        events = Events(Statistics(), self.reactor, Limits(), logger=logger)
        self.supervisor = Supervisor(self.reactor, count, [], ["guard"], max_clients=100, events=events)
        # The signals are those of the process of the tests.
        signals: Any = self.supervisor._signals
        signals.handle = signals.stopping = lambda: None
        signals.stopped = lambda outcome: outcome
        signals.tell_ready_soon = lambda: None
        self.supervisor.startService()

    @property
    def processes(self) -> list[FakeProcess]:
        return self.reactor.processes

    @property
    def names(self) -> list[str]:
        """The events so far."""
        return [event["event"] for event in self.events]

    def end(self, process: FakeProcess, how: int | None = 9) -> None:
        """Let a process end, by a signal or with a status."""
        value = ProcessTerminated(None, how) if how else ProcessTerminated(0)
        process.protocol.processEnded(Failure(value))
        self.reactor.advance(0)

    def close(self) -> None:
        self.supervisor._store.close()
        os.close(self.supervisor._table)
        os.close(self.supervisor._loads)


@contextmanager
def supervised(count: int = 2, *, ready: bool = True) -> Iterator[Supervised]:
    """A supervisor with its workers, which are ready."""
    made = Supervised(count)
    if ready:
        for process in made.processes:
            process.ready()
    try:
        yield made
    finally:
        made.close()
