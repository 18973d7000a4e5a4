"""What the pages of a supervisor are made of: it asks its workers, and remembers what those had that have ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from twisted_smtpguard.hooks.later import within
from twisted_smtpguard.metrics.ofworkers import Families, Told, merged, read, rising
from twisted_smtpguard.workers.channel import METRICS, Message
from twisted_smtpguard.workers.supervisor import SIGNAL, Supervisor
from twisted_smtpguard.workers.workerprocess import WorkerProcess

_ANSWER_SECONDS = 2.0
"""How long a worker is waited for. Of one that does not answer the page has what it told last."""


class MetricsOfWorkers:
    """The metrics of the workers of `supervisor`, which tells it of each that ends."""

    def __init__(self, supervisor: Supervisor, reactor: Any) -> None:
        self._supervisor = supervisor
        self._reactor = reactor
        self._told: dict[WorkerProcess, Told] = {}
        self._ended: Families = {}
        supervisor.on_worker_ended = self._worker_ended

    def ask(self) -> Deferred[tuple[Mapping[int, Told], Families]]:
        """What each worker tells, by its number, and the metrics of those that have ended."""
        workers = [*self._supervisor.ready_workers, *self._supervisor.retiring_workers]
        return gatherResults([self._ask(worker) for worker in workers]).addCallback(self._all)

    def _ask(self, worker: WorkerProcess) -> Deferred[None]:
        answer = within(_ANSWER_SECONDS, self._reactor.callLater, worker.ask(METRICS, {}, SIGNAL))
        # It hangs, or has ended.
        return answer.addCallbacks(self._keep, lambda _: None, callbackArgs=(worker,))

    def _keep(self, answer: Message, worker: WorkerProcess) -> None:
        self._told[worker] = answer["done"]

    def _all(self, _: object) -> tuple[Mapping[int, Told], Families]:
        return {worker.number: told for worker, told in self._told.items()}, self._ended

    def _worker_ended(self, worker: WorkerProcess) -> None:
        told = worker.last_metrics or self._told.get(worker)
        self._told.pop(worker, None)
        if told is not None:
            self._ended = merged([self._ended, rising(read(told))])
