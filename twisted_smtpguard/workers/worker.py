"""This process as a worker: what it makes of its inheritance, and its end of the channel.

It carries out what the supervisor asks, and ends when the supervisor is gone.
"""

# ruff: noqa: N802 - Twisted's own names

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_smtpguard.counters.sharedmemory import SharedCounterStore
from twisted_smtpguard.hooks.later import shielded
from twisted_smtpguard.log.eventlog import in_every_event
from twisted_smtpguard.operations.changes import changes_of, make_changes
from twisted_smtpguard.operations.verbs import VERBS
from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.workers.accepting import InheritedEndpoint, Loads
from twisted_smtpguard.workers.channel import METRICS, Channel, Message, first_message, open_channel
from twisted_smtpguard.workers.inheritance import CHANNEL, LISTENERS, LOADS, TABLE, Inheritance
from twisted_smtpguard.workers.recordlink import RECORDS, RecordLink, take_all

_ROWS_A_TURN = 100
"""How many rows are made in one turn of the reactor."""

_LOOK_SECONDS = 0.2
"""How often a worker that retires looks whether its last session has ended."""

_log = Logger()


def end_process() -> None:
    """End this process as a stop by the supervisor does."""
    os.kill(os.getpid(), signal.SIGTERM)


class Worker:
    """This process, which is the worker that `told` describes. Made before its guard."""

    def __init__(self, reactor: Any, told: Inheritance) -> None:
        # A key that is pressed in a terminal is meant for the supervisor.
        os.setpgid(0, 0)
        in_every_event(worker=told.number)
        self._reactor = reactor
        self._told = told
        self.share = (told.part, told.parts)
        """Which part it has, and of how many, of what the workers divide between them."""
        self.counters = SharedCounterStore(TABLE, told.number - 1)
        """The counters, which all workers share."""
        self._loads = Loads(LOADS, told.number - 1)

    def endpoints(self, plain: int) -> tuple[list[InheritedEndpoint], list[InheritedEndpoint]]:
        """The endpoints, of which the first `plain` are those of --listen, and the rest those of --listen-tls."""
        made = [
            InheritedEndpoint(self._reactor, descriptor, family, self._loads)
            for descriptor, family in enumerate(self._told.families, LISTENERS)
        ]
        return made[:plain], made[plain:]

    def join(self, guard: SMTPGuardService, metrics: Callable[[], dict[str, Any]] | None = None) -> None:
        """Let the supervisor speak to the guard of this process, and bring into force in it what operators have
        changed. `metrics` returns its metrics. SystemExit: the supervisor is gone, or the changes are unknown here."""
        try:
            make_changes(guard.operator, first_message(CHANNEL))
            take_all(guard.factory.records, partial(first_message, CHANNEL))
        except EOFError:
            raise SystemExit("the supervisor of this worker is gone") from None
        except ValueError as error:
            raise SystemExit(f"this worker cannot begin with what operators have changed: {error}") from error
        self._loads.connections = lambda: guard.factory.connections
        service = WorkerService(self._reactor, guard, CHANNEL, metrics)
        guard.factory.counting.outages = service
        guard.factory.seating.tell_stress = service.stress
        service.setServiceParent(guard)


class WorkerService(Service):
    """Serves the channel at `descriptor` for `guard`, of which it is a child. `metrics` returns its metrics, and `end`
    ends the process."""

    def __init__(
        self,
        reactor: Any,
        guard: SMTPGuardService,
        descriptor: int,
        metrics: Callable[[], dict[str, Any]] | None = None,
        end: Callable[[], object] = end_process,
    ) -> None:
        self._metrics = metrics or (lambda: {})
        self._reactor = reactor
        self._guard = guard
        self._descriptor = descriptor
        self._end = end
        self._channel = Channel(self._received, self._lost)
        self._records = RecordLink(reactor, self._channel, guard.factory.records)
        self._streams: dict[int, Any] = {}
        self._lost_rows: Counter[int] = Counter()
        """How many rows of each stream were left out since its last row."""
        self._stops = False
        self._told = False
        self._closed: Deferred[None] = Deferred()
        """Fires when the channel is closed."""
        guard.on_listening = partial(reactor.callWhenRunning, self._tell_ready)

    def startService(self) -> None:
        """Called before the guard listens."""
        super().startService()
        open_channel(self._reactor, self._descriptor, self._channel)

    def stopService(self) -> Deferred[None]:
        """Called when the last session has ended. Fires when the supervisor has been told what was counted."""
        super().stopService()
        self._stops = True
        if not self._closed.called:
            self._records.flush()
            self._channel.send({"last": self._guard.operator.status(), "metrics": self._metrics() or None})
            self._channel.close()
        self._records.close()
        return shielded(self._closed)

    def counters_away(self, problem: str) -> None:
        """Called when the counter store is lost. The supervisor logs it once for all workers."""
        self._channel.send({"alone": problem})

    def counters_back(self, seconds: float) -> None:
        """Called when the counter store is back."""
        self._channel.send({"alone": None})

    def stress(self, connections: float, cap: int, *, begins: bool) -> None:
        """Called when stress begins or ends here. The supervisor logs it once for all workers."""
        self._channel.send({"stress": [begins, connections, cap]})

    def _tell_ready(self) -> None:
        if self._guard.ready and not self._told:
            self._told = True
            self._channel.send({"ready": self._guard.operator.status()})

    def _lost(self) -> None:
        """The supervisor is gone. Nobody could stop this process, or replace it when it dies."""
        for answer in self._streams.values():
            answer.stop()
        self._closed.callback(None)
        self._stop()

    def _stop(self) -> None:
        if not self._stops and self._guard.state != "draining":
            self._stops = True
            self._end()

    def _received(self, message: Message) -> None:
        if "ask" in message:
            self._carry_out(message)
        elif RECORDS in message:
            self._records.learn(message)
        elif "cancel" in message:
            answer = self._streams.pop(message["cancel"], None)
            self._lost_rows.pop(message["cancel"], None)
            if answer is not None:
                answer.stop()
        elif "stop" in message:
            self._stop()
        elif "end" in message:
            self._guard.end_grace()
        else:
            self._guard.close_listeners()
            grace = self._guard.factory.limits.shutdown_grace
            self._retire(self._reactor.seconds() + grace if grace else None)

    def _retire(self, until: float | None) -> None:
        """End the process when the last session has ended, or at a time."""
        factory = self._guard.factory
        over = until is not None and self._reactor.seconds() >= until
        if over or not (factory.connections or factory.lingering or factory.pending_verdicts):
            self._stop()
        else:
            self._reactor.callLater(_LOOK_SECONDS, self._retire, until)

    def _carry_out(self, message: Message) -> None:
        number, verb, operator = message["ask"], message["verb"], self._guard.operator
        if verb == METRICS:
            self._channel.send({"answer": number, "done": self._metrics()})
            return
        operator.told_elsewhere = message["quiet"]
        answer: Deferred[Any] = maybeDeferred(operator.carry_out, verb, message["args"], message["by"])
        operator.told_elsewhere = False
        answer.addCallback(self._answered, number, VERBS[verb].changes).addErrback(self._failed, number)

    def _answered(self, answer: Any, number: int, changed: bool) -> None:
        if isinstance(answer, dict):
            state = {"state": changes_of(self._guard.operator)} if changed else {}
            self._channel.send({"answer": number, "done": answer, **state})
        elif isinstance(answer, Iterator):
            self._send_rows(number, answer)
        else:
            self._streams[number] = answer
            answer.begin(partial(self._row, number), partial(self._stream_ended, number))

    def _send_rows(self, number: int, rows: Iterator[dict[str, Any]]) -> None:
        some = list(islice(rows, _ROWS_A_TURN))
        if some:
            self._channel.send({"answer": number, "rows": some})
            self._reactor.callLater(0, self._send_rows, number, rows)
        else:
            self._channel.send({"answer": number, "done": {}})

    def _row(self, number: int, row: dict[str, Any]) -> None:
        """A row of a stream. It is left out if the supervisor does not keep up: no connection waits for that."""
        if self._channel.full:
            self._lost_rows[number] += 1
            return
        lost = self._lost_rows.pop(number, 0)
        self._channel.send({"answer": number, "rows": [row], **({"lost": lost} if lost else {})})

    def _stream_ended(self, number: int) -> None:
        self._streams.pop(number, None)
        self._lost_rows.pop(number, None)
        self._channel.send({"answer": number, "done": {}})

    def _failed(self, failure: Failure, number: int) -> None:
        problem = failure.getErrorMessage()
        if not failure.check(ValueError):
            _log.failure("a request of an operator failed", failure)
            problem = "the guard has a fault, which its log shows"
        self._channel.send({"answer": number, "error": problem})
