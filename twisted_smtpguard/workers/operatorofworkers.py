"""`OperatorOfWorkers`: what an operator asks of a guard of several workers, and changes in all of them.

It answers what the operator of one guard answers. Some questions are put to all workers, others to one, since all of
them have the same limits and rules.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.python.failure import Failure

from twisted_smtpguard.operations.operator import APPLICATION, when_kept
from twisted_smtpguard.operations.verbs import VERBS
from twisted_smtpguard.workers import merging
from twisted_smtpguard.workers.channel import Message
from twisted_smtpguard.workers.supervisor import Supervisor
from twisted_smtpguard.workers.workerprocess import STARTING, WorkerGoneError, WorkerProcess

_OF_ONE = frozenset({"limits", "rules", "known", "bans"})
_BY_ONE = frozenset({"forget"})
"""What one worker does, and all others know within a turn, since it is a record."""
_CHANGES = frozenset({"set", "unset", "deny", "trust", "allow", "remove", "unban", "defer"})
"""What all workers do in the same way. One of them is asked first: where it refuses nothing has changed."""

_CHANGES_RECORDS = frozenset({"forget"})
"""What changes records alone, which one worker tells to all others."""

Arguments = Mapping[str, object]


class OperatorOfWorkers:
    """The operator of the workers of `supervisor`. Its only method is that of an Operator, which a control socket
    calls."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def carry_out(self, verb: str, arguments: Arguments, by: str = APPLICATION) -> Any:
        """Carry out a verb with the arguments of a request, which are texts. ValueError, or a Deferred that fails with
        it: refused, by its text."""
        row = VERBS.get(verb)
        if row is None:
            raise ValueError(f"there is no verb {verb[:40]!r}; there are {', '.join(sorted(VERBS))}")
        row.parameters(arguments)
        if verb == "status":
            return self._status()
        if verb in ("drain", "resume", "restart"):
            return getattr(self._supervisor, verb)(by)
        if verb == "trace":
            return _Traces(self._first_and_others(), arguments, by)
        if verb in _BY_ONE:
            return self._ask_first(verb, arguments, by).addCallback(lambda answer: answer["done"])
        if verb in _OF_ONE:
            return self._ask_first(verb, arguments, by).addCallback(lambda answer: iter(answer["rows"]))
        return Deferred.fromCoroutine(self._carried_out(verb, arguments, by))

    async def _carried_out(self, verb: str, arguments: Arguments, by: str) -> Any:
        if verb in _CHANGES_RECORDS:
            return (await self._ask_first(verb, arguments, by))["done"]
        if verb in _CHANGES:
            return await self._change(verb, arguments, by)
        if verb in merging.MERGED:
            answers = await self._ask_all(verb, arguments, by)
            return merging.MERGED[verb](answers, arguments)
        return await self._do_in_all(verb, arguments, by)

    def _status(self) -> dict[str, Any]:
        """The sums of what the workers have told last, at most a second ago, and a row for each of them."""
        supervisor = self._supervisor
        workers = [supervisor.workers[number] for number in sorted(supervisor.workers)]
        told = [worker.status for worker in workers if worker.status]
        rows = [
            {
                "worker": worker.number,
                "pid": worker.pid,
                "state": worker.shown_state,
                "version": worker.status.get("version", ""),
                "connections": worker.status.get("connections", 0),
            }
            for worker in workers
        ]
        return {
            **merging.status_of(told),
            **supervisor.own_status(),
            "statistics": supervisor.statistics,
            "workers": rows,
        }

    def _first_and_others(self) -> list[WorkerProcess]:
        """The workers that can be asked, those last that seem to hang. ValueError: there is none."""
        workers = sorted(self._supervisor.ready_workers, key=lambda worker: worker.is_silent)
        if not workers:
            raise ValueError(f"no worker is ready, the guard is {self._supervisor.state}")
        return workers

    def _ask_first(self, verb: str, arguments: Arguments, by: str) -> Deferred[Message]:
        return self._first_and_others()[0].ask(verb, arguments, by)

    async def _ask_all(self, verb: str, arguments: Arguments, by: str) -> list[tuple[int, Message]]:
        """The answers, each with the number of its worker, those that retire too. One that ends meanwhile has none."""
        workers = [*self._first_and_others(), *self._supervisor.retiring_workers]
        asked = [worker.ask(verb, arguments, by) for worker in workers]
        outcomes: Any = await DeferredList(asked, consumeErrors=True)
        answers = [
            (worker.number, outcome)
            for worker, (succeeded, outcome) in zip(workers, outcomes, strict=True)
            if succeeded
        ]
        if not answers:
            outcomes[0][1].raiseException()
        return answers

    async def _change(self, verb: str, arguments: Arguments, by: str) -> dict[str, Any]:
        first = self._first_and_others()[0]
        answer = await first.ask(verb, arguments, by)
        self._supervisor.changes = answer["state"]
        asked = []
        for worker in list(self._supervisor.workers.values()):
            if worker is not first and worker.takes_changes:
                done = worker.ask(verb, arguments, by, quiet=True).addErrback(
                    partial(self._disagrees, worker)
                )
                # One that starts makes the change before anything else, whenever that is.
                asked += [done] * (worker.state != STARTING)
        await gatherResults(asked)
        row: dict[str, Any] = answer["done"]
        kept = None if self._supervisor.keep is None else self._supervisor.keep()
        return row if kept is None else await when_kept(kept, row)

    def _disagrees(self, worker: WorkerProcess, failure: Failure) -> None:
        """A worker has refused what another has accepted. It ends its sessions, and the one in its place begins with
        what is in force."""
        if not failure.check(WorkerGoneError):
            worker.signal(signal.SIGTERM)

    async def _do_in_all(self, verb: str, arguments: Arguments, by: str) -> dict[str, Any]:
        """Have all workers do something, such as end a session, which one of them has, or reload."""
        workers = [*self._first_and_others(), *self._supervisor.retiring_workers]
        asked = [
            worker.ask(verb, arguments, by, quiet=bool(number) and verb != "end")
            for number, worker in enumerate(workers)
        ]
        outcomes: Any = await DeferredList(asked, consumeErrors=True)
        refused = [outcome for succeeded, outcome in outcomes if not succeeded]
        done = [outcome["done"] for succeeded, outcome in outcomes if succeeded]
        if not done or (verb != "end" and refused):
            refused[0].raiseException()
        result: dict[str, Any] = done[0]
        return result


class _Traces:
    """The traces of all workers as one. It ends when the last of them has ended."""

    def __init__(self, workers: list[WorkerProcess], arguments: Arguments, by: str) -> None:
        self._workers = workers
        self._arguments = arguments
        self._by = by
        self._asked: list[Deferred[Any]] = []

    def begin(self, row: Any, end: Any) -> None:
        """As that of a Trace."""
        self._asked = [
            worker.ask("trace", self._arguments, self._by, row).addErrback(lambda _: None)
            for worker in self._workers
        ]
        DeferredList(self._asked).addCallback(lambda _: end())

    def stop(self) -> None:
        """As that of a Trace."""
        for asked in self._asked:
            asked.cancel()
