"""`Supervisor`, the service of a guard that consists of several processes.

It listens and accepts nothing; its workers inherit the sockets, each is a whole guard, and they count in one table. A
worker that dies is replaced, and its places are free at once.
"""

# ruff: noqa: N802 - Twisted's own names

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.python.failure import Failure

from twisted_smtpguard.counters.sharedmemory import SharedCounterStore, create_table
from twisted_smtpguard.hooks.later import shielded
from twisted_smtpguard.hooks.parts import stop_parts
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.operations.changes import NO_CHANGES
from twisted_smtpguard.records.recordtables import RecordTables
from twisted_smtpguard.service.process import ProcessSignals
from twisted_smtpguard.workers.accepting import create_loads
from twisted_smtpguard.workers.commonstate import CommonState
from twisted_smtpguard.workers.inheritance import Inheritance
from twisted_smtpguard.workers.listening import Listened, Listeners
from twisted_smtpguard.workers.merging import Counts, of_ended, summed
from twisted_smtpguard.workers.workerprocess import READY, RETIRING, STARTING, WorkerProcess

SOON_SECONDS = 10
"""A worker that dies so soon after its start is replaced later and later."""

SIGNAL = "signal"
"""Who asks, where a signal does."""

FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 0.25, 5.0


class Supervisor(MultiService):
    """A guard of `count` workers, each started by `command`, on the endpoints `listened`.

    `max_clients` is how many clients the table of counters holds. Its children, such as a control socket, are started
    before the workers and stopped after them.
    """

    def __init__(
        self,
        reactor: Any,
        count: int,
        listened: Sequence[Listened],
        command: Sequence[str],
        *,
        max_clients: int,
        events: Events,
    ) -> None:
        super().__init__()
        self.count = count
        self.events = events
        self.workers: dict[int, WorkerProcess] = {}
        """The workers whose processes run, by their numbers."""
        self.changes: Mapping[str, Any] = NO_CHANGES
        """What operators have changed, with which a worker begins."""
        self.records = RecordTables(reactor.seconds)
        """What the workers remember of clients, all of them together."""
        self.keep: Callable[[], Deferred[str]] | None = None
        """As that of an Operator."""
        self.on_listening: Callable[[], object] = lambda: None
        self.on_worker_ended: Callable[[WorkerProcess], object] = lambda _: None
        """Called with each worker that has ended."""
        self._reactor = reactor
        self._command = command
        self._listeners = Listeners(listened)
        self._table = create_table(max_clients, 2 * count)
        self._store = SharedCounterStore(self._table, 0)
        self._loads = create_loads(2 * count)
        self._ended: Counts = {}
        self._waits: dict[int, float] = {}
        """How long the latest worker of each part had to wait for its start."""
        self._starts: dict[int, Any] = {}
        """The starts to come, by part."""
        self._emptied: Deferred[None] | None = None
        """Fires when the last worker has ended; None: none is to end."""
        self._restarting = False
        self._outage = CommonState(
            reactor, lambda: self.ready_workers, events.counters_away, events.counters_back
        )
        """That the counter store of a worker is away."""
        self._stress = CommonState(
            reactor, lambda: self.ready_workers, self._stress_begins, lambda _: self._stress_ends()
        )
        self._crowd = (0, 0)
        """The connections and the cap of which a worker has told last in stress, or at its end."""
        self._waiting: list[Deferred[None]] = []
        """Who waits until all workers accept connections."""
        self._signals = ProcessSignals(reactor, [self], self._restart_by_signal)

    @property
    def ready(self) -> bool:
        """Whether all workers accept connections."""
        return self._emptied is None and len(self.ready_workers) >= self.count

    @property
    def ready_workers(self) -> list[WorkerProcess]:
        """The workers that accept connections, by their numbers."""
        return [
            self.workers[number] for number in sorted(self.workers) if self.workers[number].state == READY
        ]

    @property
    def retiring_workers(self) -> list[WorkerProcess]:
        """The workers that were replaced, and whose sessions have not ended."""
        return [worker for worker in self.workers.values() if worker.state == RETIRING]

    @property
    def state(self) -> str:
        """As that of an SMTPGuardService: it listens if one of the workers does."""
        if self._emptied is not None:
            return "draining" if not self._emptied.called else "drained" if self.running else "stopped"
        return "listening" if self.ready_workers else "starting" if self.running else "stopped"

    def own_status(self) -> dict[str, Any]:
        """What the status of the whole has from the supervisor."""
        return {"pid": os.getpid(), "state": self.state}

    @property
    def statistics(self) -> Counts:
        """The sums of the statistics of all workers, with those that have ended."""
        running = [worker.status["statistics"] for worker in self.workers.values() if worker.status]
        return summed([self._ended, *running])

    # Start and stop.

    def startService(self) -> None:
        """Listen, and start the workers once the reactor runs. SystemExit: an endpoint cannot listen."""
        self._signals.handle()
        super().startService()
        self._listeners.open()
        self._emptied = None
        # Before that the reactor would not notice the end of a process.
        self._reactor.callWhenRunning(self._start_all)

    def stopService(self) -> Deferred[Any]:
        """Close the listeners, stop all workers as `twist` is stopped, and wait until they have ended."""
        self._signals.stopping()
        stopping = self.stop_workers().addBoth(lambda _: stop_parts(self))
        return stopping.addBoth(self._stopped).addBoth(self._signals.stopped)

    def _stopped(self, outcome: Any) -> Any:
        self._fill_statistics()
        self.events.stopped()
        return outcome

    def stop_workers(self) -> Deferred[Any]:
        """Close the listeners and stop all workers. Fires when they have ended."""
        if self._emptied is None or self._emptied.called:
            self._emptied = Deferred()
        self._listeners.close().addErrback(self.events.failure, "closing a listener")
        for start in self._starts.values():
            start.cancel()
        self._starts = {}
        for worker in self.workers.values():
            worker.stop()
        self._see_whether_all_have_ended()
        return shielded(self._emptied)

    def _see_whether_all_have_ended(self) -> None:
        if not self.workers and self._emptied is not None and not self._emptied.called:
            self._outage.forget()
            self._stress.forget()
            self._emptied.callback(None)

    # The signals of the process.

    def reload(self) -> Deferred[Any]:
        """Make every worker reload its files. Fires when that is done, and never fails."""
        workers = [*self.ready_workers, *self.retiring_workers]
        asked = [worker.ask("reload", {}, SIGNAL, quiet=True) for worker in workers]
        return DeferredList(asked, consumeErrors=True)

    def end_grace(self) -> None:
        """End the grace of a stop in all workers."""
        for worker in self.workers.values():
            worker.end_grace()

    def log_statistics(self) -> None:
        """Log one line with the sums, which are at most a second old."""
        self._fill_statistics()
        self.events.statistics_now()

    def _fill_statistics(self) -> None:
        for name, value in self.statistics.items():
            setattr(self.events.statistics, name, value)

    # What an operator asks for. ValueError: it is refused, by its text.

    def drain(self, by: str) -> dict[str, Any]:
        """End the sessions and the workers, and close the listeners. The process goes on."""
        if self.state not in ("listening", "starting"):
            raise ValueError(f"the guard does not listen, it is {self.state}")
        self.events.operator(by, "drain")
        sessions = sum(worker.status.get("connections", 0) for worker in self.workers.values())
        self.stop_workers()
        return {"state": self.state, "sessions": sessions}

    def resume(self, by: str) -> Deferred[dict[str, Any]]:
        """Listen again, with new workers. Fires when all of them are ready."""
        if self.state != "drained":
            raise ValueError(f"the guard is not drained, it is {self.state}")
        try:
            self._listeners.open()
        except (Exception, SystemExit) as error:
            raise ValueError(f"the guard cannot listen: {error}") from error
        self.events.operator(by, "resume")
        self._emptied = None
        self._start_all()
        ready: Deferred[Any] = Deferred()
        self._waiting.append(ready)
        return ready.addCallback(lambda _: {"state": self.state})

    def restart(self, by: str) -> Deferred[dict[str, Any]]:
        """Replace the workers one by one by new ones, with the code that is on the disk. Fires when all new ones are
        ready, and those in whose place they came accept no more connections."""
        if self.state != "listening":
            raise ValueError(f"the guard does not listen, it is {self.state}")
        if self._restarting:
            raise ValueError("a restart is under way already")
        if self.retiring_workers:
            raise ValueError("workers that the last restart has replaced still have sessions")
        if by != SIGNAL:
            self.events.operator(by, "restart")
        return Deferred.fromCoroutine(self._restart_all())

    def _restart_by_signal(self) -> None:
        maybeDeferred(self.restart, SIGNAL).addErrback(self._restart_refused)

    def _restart_refused(self, failure: Failure) -> None:
        # Any other failure is logged where it comes from.
        if not self._restarting:
            self.events.restart_failed(failure.getErrorMessage())

    async def _restart_all(self) -> dict[str, Any]:
        self._restarting = True
        try:
            for part in range(self.count):
                await self._restart_part(part)
        finally:
            self._restarting = False
        return {
            "state": self.state,
            "workers": self.count,
            "version": self.ready_workers[0].status["version"],
        }

    async def _restart_part(self, part: int) -> None:
        start = self._starts.pop(part, None)
        if start is not None:
            start.cancel()
        new = self.start_worker(part)
        if new is None:
            raise ValueError("no worker can be started, which the log explains; the others go on")
        await new.readied
        for old in self._of_part(part):
            if old is not new:
                old.retire()

    # Workers.

    def _start_all(self) -> None:
        if self._emptied is None:
            for part in range(self.count):
                self.start_worker(part)

    def start_worker(self, part: int) -> WorkerProcess | None:
        """Start a worker with a free number. Returns None if that fails, which is tried again later unless the part has
        a worker."""
        self._starts.pop(part, None)
        number = next(each for each in range(1, 2 * self.count + 1) if each not in self.workers)
        told = Inheritance(number, part, self.count, self._listeners.families)
        worker = WorkerProcess(self._reactor, self, told, self.records)
        try:
            memory = (self._table, self._loads)
            worker.start(self._command, os.environ, memory, self._listeners.descriptors, self.changes)
        except OSError:
            self.events.failure(Failure(), "starting a worker")
            # In a restart the old one goes on.
            if not self._of_part(part):
                self._start_later(part, MOST_WAIT_SECONDS)
            return None
        self.workers[number] = worker
        return worker

    def worker_ready(self, worker: WorkerProcess) -> None:
        """Called when a worker accepts connections."""
        status = worker.status
        self.events.worker_started(worker.number, worker.pid, status["version"])
        if self._emptied is None:
            self.on_listening()
        if self.ready:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)

    def worker_ended(self, worker: WorkerProcess, how: str) -> None:
        """Called when the process of a worker has ended."""
        del self.workers[worker.number]
        self._outage.gone(worker)
        self._stress.gone(worker)
        self._store.forget(worker.number - 1)
        self.on_worker_ended(worker)
        if worker.status:
            self._ended = summed([self._ended, of_ended(worker.status["statistics"])])
        seconds, part = self._reactor.seconds() - worker.began_at, worker.told.part
        if worker.state in (STARTING, READY):
            self.events.worker_died(worker.number, worker.pid, how, seconds)
        elif worker.state == RETIRING:
            self.events.worker_retired(worker.number, worker.pid, seconds)
        if not self._of_part(part) and part not in self._starts:
            self._replace(part, seconds)
        self._see_whether_all_have_ended()

    def worker_alone(self, worker: WorkerProcess, problem: str | None) -> None:
        """Called when the counter store of a worker is away, for this reason; None: it is back."""
        if problem is None:
            self._outage.leave(worker)
        else:
            self._outage.enter(worker, problem)

    def worker_stressed(self, worker: WorkerProcess, connections: int, cap: int, *, begins: bool) -> None:
        """Called when stress begins or ends in a worker, with so many connections of all."""
        self._crowd = connections, cap
        if begins:
            self._stress.enter(worker, None)
        else:
            self._stress.leave(worker)

    def _stress_begins(self, _: object) -> None:
        self.events.stress(*self._crowd, begins=True)

    def _stress_ends(self) -> None:
        self.events.stress(*self._crowd, begins=False)

    def holds_lock(self, worker: WorkerProcess) -> bool:
        """Whether a worker has the lock of the table at this instant, for which the others wait."""
        return self._store.lock_holder() == worker.pid

    def _replace(self, part: int, seconds: float) -> None:
        """Start another worker for a part, whose last one died after so many seconds: at once, and later and later if
        they die soon."""
        before = self._waits.get(part, 0.0) if seconds < SOON_SECONDS else 0.0
        self._start_later(part, before)
        self._waits[part] = min(MOST_WAIT_SECONDS, max(FIRST_WAIT_SECONDS, 2 * before))

    def _of_part(self, part: int) -> list[WorkerProcess]:
        """The workers that have a part, or will have it: two of them in a restart."""
        workers = self.workers.values()
        return [each for each in workers if each.told.part == part and each.state in (STARTING, READY)]

    def _start_later(self, part: int, seconds: float) -> None:
        if self._emptied is None:
            self._starts[part] = self._reactor.callLater(seconds, self.start_worker, part)
