"""One worker, as its supervisor sees it: it is started, becomes ready, is asked, retires or stops, and ends."""

# ruff: noqa: N802 - Twisted's own names

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from twisted_smtpguard.records.recordtables import RecordTables
from twisted_smtpguard.workers.channel import Channel, Message, open_channel
from twisted_smtpguard.workers.inheritance import Inheritance
from twisted_smtpguard.workers.recordlink import RECORDS, RecordLink, changes_in

ASK_SECONDS = 1
"""How often a worker is asked for its status."""

HUNG_SECONDS = 30
"""A worker that is ready and answers nothing for so long is killed."""

START_SECONDS = 120
"""A worker that is not ready so long after its start is killed."""

HOLDING_LOOKS = 5
"""A worker is killed that answers nothing while so many looks, one a second, find it with the lock of the counters: all
others wait for it."""

STARTING, READY, RETIRING, STOPPING = "starting", "ready", "retiring", "stopping"
HANGING = "hanging"
"""What operators see of one that is ready or retires, and answers nothing."""

NAME = "supervisor"
"""Who asks for the status."""


class WorkerGoneError(ValueError):
    """The worker has ended before it has answered. The text is a sentence for an operator."""


class Owner(Protocol):
    """What a worker tells its supervisor."""

    def worker_ready(self, worker: WorkerProcess) -> None: ...
    def worker_ended(self, worker: WorkerProcess, how: str) -> None: ...
    def worker_alone(self, worker: WorkerProcess, problem: str | None) -> None: ...
    def worker_stressed(self, worker: WorkerProcess, connections: int, cap: int, *, begins: bool) -> None: ...
    def holds_lock(self, worker: WorkerProcess) -> bool: ...


class _Question:
    """A question whose answer has not ended."""

    def __init__(self, row: Callable[..., object] | None) -> None:
        self.answer: Deferred[Message] = Deferred()
        self.rows: list[dict[str, Any]] = []
        self.row: Callable[..., object] = row or self.rows.append


class WorkerProcess(ProcessProtocol):
    """The worker with the place `told.number` in the table of counters. It is started by `start`. It shares the records
    in `tables`."""

    transport: Any = None

    def __init__(self, reactor: Any, owner: Owner, told: Inheritance, tables: RecordTables) -> None:
        self._reactor = reactor
        self._owner = owner
        self.told = told
        self.number = told.number
        self.state = STARTING
        self.pid = 0
        self.began_at = 0.0
        self.status: dict[str, Any] = {}
        """Its latest status; empty before it is ready."""
        self.last_metrics: dict[str, Any] | None = None
        """Its metrics at its end, if it has told them."""
        self._channel = Channel(self._received, lambda: None)
        self._tables = tables
        self._records: RecordLink | None = None
        self.readied: Deferred[None] = Deferred()
        """Fires when it accepts connections. Fails with WorkerGoneError: it has ended before that, or was not ready in
        time."""
        self._questions: dict[int, _Question] = {}
        self._asked = 0
        self._is_asked = False
        """Whether it has been asked for its status, and has not answered."""
        self._heard_at = 0.0
        self._held = 0
        """How many looks have found it with the lock since it has answered."""
        self._timer: Any = None

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        memory: Sequence[int],
        listeners: Sequence[int],
        state: Any,
    ) -> None:
        """Start the process, with the changes of operators that are in force. OSError: it cannot be started."""
        self.began_at = self._reactor.seconds()
        ours, theirs = socket.socketpair()
        with theirs:
            self._reactor.spawnProcess(
                self,
                command[0],
                command,
                self.told.environment(environment),
                childFDs=self.told.descriptors(theirs.fileno(), memory, listeners),
            )
        open_channel(self._reactor, ours.detach(), self._channel)
        self._channel.send(state)
        self._records = RecordLink(self._reactor, self._channel, self._tables)
        self._records.send_all()
        self._watch()

    def connectionMade(self) -> None:
        self.pid = self.transport.pid

    @property
    def takes_changes(self) -> bool:
        """Whether it has sessions, or will have, to which changes of operators apply."""
        return self.state in (STARTING, READY, RETIRING)

    @property
    def shown_state(self) -> str:
        """Its state as operators see it."""
        return HANGING if self.state in (READY, RETIRING) and self.is_silent else self.state

    @property
    def is_silent(self) -> bool:
        """Whether it has missed an answer, as one that hangs does."""
        silent: float = self._reactor.seconds() - self._heard_at
        return silent > 3 * ASK_SECONDS

    def ask(
        self,
        verb: str,
        arguments: Mapping[str, object],
        by: str,
        row: Callable[..., object] | None = None,
        *,
        quiet: bool = False,
    ) -> Deferred[Message]:
        """Have the worker carry out a verb; `quiet`: without logging its event. Fires with the end of its answer, whose
        `rows` are all of them; with `row` it is called with each as it comes, and with the number of rows that were
        left out before, if there are any. Fails with ValueError: it refuses, or is gone. Cancel it when nobody wants
        the answer any more."""
        self._asked += 1
        number = self._asked
        question = _Question(row)

        def cancelled(_: object) -> None:
            self._questions.pop(number, None)
            self._channel.send({"cancel": number})

        question.answer = Deferred(cancelled)
        self._questions[number] = question
        self._channel.send({"ask": number, "verb": verb, "args": arguments, "by": by, "quiet": quiet})
        return question.answer

    def retire(self) -> None:
        """Have it accept no more connections, and end when its sessions have ended."""
        self.state = RETIRING
        self._channel.send({"retire": True})

    def stop(self) -> None:
        """Have it stop as `twist` is stopped. If it hangs it is killed."""
        if self.state == STARTING:
            # It may not come to read the channel for long, and has no sessions.
            self.signal(signal.SIGTERM)
        self.state = STOPPING
        # A signal might be the second one that it gets, as where systemd signals all processes, and end the grace.
        self._channel.send({"stop": True})
        self._watch()

    def end_grace(self) -> None:
        """End the grace of its stop."""
        self._channel.send({"end": True})

    def signal(self, number: int) -> None:
        """Send a signal to its process, if there still is one."""
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(number)

    def processEnded(self, reason: Failure) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        questions, self._questions = self._questions, {}
        # What it has sent at its end is read before it is forgotten.
        self._reactor.callLater(0, self._gone, questions, reason.value)

    def _gone(self, questions: Mapping[int, _Question], value: Any) -> None:
        if self._records is not None:
            self._records.close()
        self._channel.close()
        number, status = value.signal, value.exitCode
        how = f"status:{status}" if number is None else f"signal:{signal.Signals(number).name}"
        self._owner.worker_ended(self, how)
        if not self.readied.called:
            self._fail_to_start(f"has ended before it was ready, by {how}")
        for question in questions.values():
            question.answer.errback(Failure(WorkerGoneError(f"worker {self.number} has ended, ask again")))

    def _fail_to_start(self, why: str) -> None:
        self.readied.addErrback(lambda _: None)
        self.readied.errback(WorkerGoneError(f"worker {self.number} {why}"))

    def _received(self, message: Message) -> None:
        self._heard_at, self._held = self._reactor.seconds(), 0
        if "answer" in message:
            self._answered(message)
        elif RECORDS in message:
            self._tables.make(changes_in(message))
        elif "alone" in message:
            self._owner.worker_alone(self, message["alone"])
        elif "stress" in message:
            begins, connections, cap = message["stress"]
            self._owner.worker_stressed(self, connections, cap, begins=begins)
        elif "last" in message:
            self.status = message["last"]
            self.last_metrics = message["metrics"]
        else:
            self.status = message["ready"]
            if self.state == STARTING and not self.readied.called:
                self.state = READY
                self._owner.worker_ready(self)
                self.readied.callback(None)
            self._watch()

    def _watch(self) -> None:
        """Look from now on whether it answers."""
        self._heard_at = self._reactor.seconds()
        if self._timer is None:
            self._timer = self._reactor.callLater(ASK_SECONDS, self._look)

    def _answered(self, message: Message) -> None:
        question = self._questions.get(message["answer"])
        if question is None:
            return
        # Only a stream leaves out rows.
        lost = (message["lost"],) if "lost" in message else ()
        for row in message.get("rows", ()):
            question.row(row, *lost)
        if "rows" in message:
            return
        del self._questions[message["answer"]]
        if "error" in message:
            question.answer.errback(Failure(ValueError(message["error"])))
        else:
            question.answer.callback({**message, "rows": question.rows})

    def _look(self) -> None:
        """Ask for its status, and kill it if it has answered nothing for too long, as where its reactor hangs."""
        self._timer = self._reactor.callLater(ASK_SECONDS, self._look)
        if self.state == STARTING:
            if self._reactor.seconds() - self.began_at > START_SECONDS and not self.readied.called:
                self._fail_to_start(f"was not ready in {START_SECONDS} seconds")
                self.signal(signal.SIGKILL)
            return
        self._held = self._held + 1 if self._owner.holds_lock(self) else 0
        if self._reactor.seconds() - self._heard_at > HUNG_SECONDS or self._held >= HOLDING_LOOKS:
            self.signal(signal.SIGKILL)
        elif not self._is_asked:
            self._is_asked = True
            self.ask("status", {}, NAME).addCallbacks(self._tell_status, lambda _: None)

    def _tell_status(self, answer: Message) -> None:
        self._is_asked = False
        self.status = answer["done"]
