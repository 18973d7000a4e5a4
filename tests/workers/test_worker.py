"""The worker's end of the channel, in memory."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from fakes import FakeDelivery
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection

from twisted_smtpguard import SMTPGuardService
from twisted_smtpguard.operations.changes import NO_CHANGES
from twisted_smtpguard.workers import worker
from twisted_smtpguard.workers.worker import WorkerService


class Reactor(Clock):
    channel: Any

    def callWhenRunning(self, f: Any, *args: Any) -> None:
        f(*args)

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:
        self.channel = factory.buildProtocol(None)
        self.transport = StringTransportWithDisconnection()
        self.transport.protocol = self.channel
        self.channel.makeConnection(self.transport)


class Worker:
    def __init__(self) -> None:
        self.reactor = Reactor()
        self.guard = SMTPGuardService(self.reactor, [], FakeDelivery(), hostname="guard.example")
        self.ends = 0
        self.service = WorkerService(self.reactor, self.guard, os.dup(0), None, self._end)
        self.service.startService()

    def _end(self) -> None:
        self.ends += 1

    def hears(self, **message: Any) -> list[Any]:
        """What it says to a message."""
        self.reactor.transport.clear()
        self.reactor.channel.dataReceived(json.dumps(message).encode() + b"\n")
        return [json.loads(line) for line in self.reactor.transport.value().splitlines()]


def test_the_supervisor_is_told_when_the_counter_store_is_lost_and_when_it_is_back() -> None:
    worker = Worker()
    worker.reactor.transport.clear()
    worker.service.counters_away("no answer in 50 ms")
    worker.service.counters_back(2.5)
    told = [json.loads(line) for line in worker.reactor.transport.value().splitlines()]
    assert told == [{"alone": "no answer in 50 ms"}, {"alone": None}]


def test_the_supervisor_is_told_when_stress_begins_and_ends() -> None:
    worker = Worker()
    worker.reactor.transport.clear()
    worker.service.stress(400, 500, begins=True)
    worker.service.stress(299, 500, begins=False)
    told = [json.loads(line) for line in worker.reactor.transport.value().splitlines()]
    assert told == [{"stress": [True, 400, 500]}, {"stress": [False, 299, 500]}]


def test_a_change_is_answered_with_all_that_is_in_force() -> None:
    worker = Worker()
    (answer,) = worker.hears(
        ask=1, verb="set", args={"limit": "max-errors", "value": "7"}, by="uid:0", quiet=True
    )
    assert answer["done"]["value"] == "7"
    assert answer["state"]["set"]["max-errors"][0] == "7"
    (answer,) = worker.hears(
        ask=2, verb="set", args={"limit": "max-errors", "value": "x"}, by="uid:0", quiet=True
    )
    assert "a whole number" in answer["error"]


def test_rows_come_in_pieces_one_a_turn() -> None:
    worker = Worker()
    (first,) = worker.hears(ask=1, verb="limits", args={}, by="uid:0", quiet=False)
    assert first["rows"]
    worker.reactor.transport.clear()
    worker.reactor.advance(0)
    assert json.loads(worker.reactor.transport.value()) == {"answer": 1, "done": {}}


def test_a_worker_without_a_supervisor_ends_once() -> None:
    worker = Worker()
    worker.reactor.transport.loseConnection()
    assert worker.ends == 1


def test_a_stop_that_is_told_twice_is_one() -> None:
    worker = Worker()
    worker.hears(stop=True)
    worker.hears(stop=True)
    assert worker.ends == 1


def test_one_that_retires_without_sessions_ends_at_once() -> None:
    worker = Worker()
    worker.hears(retire=True)
    assert worker.ends == 1


def test_a_supervisor_that_does_not_read_loses_lines_of_a_trace_and_is_told_how_many() -> None:
    worker = Worker()
    worker.hears(ask=1, verb="trace", args={"network": "192.0.2.1"}, by="uid:0", quiet=False)
    transport, (trace,) = worker.reactor.transport, worker.service._streams.values()
    transport.producer.pauseProducing()
    for number in range(3):
        trace.row({"text": number})
    assert transport.value() == b""
    transport.producer.resumeProducing()
    for number in (3, 4):
        trace.row({"text": number})
    assert [json.loads(line) for line in transport.value().splitlines()] == [
        {"answer": 1, "rows": [{"text": 3}], "lost": 3},
        {"answer": 1, "rows": [{"text": 4}]},
    ]


def test_a_worker_that_does_not_know_what_was_changed_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = Worker().guard
    monkeypatch.setattr(worker, "first_message", lambda _: {**NO_CHANGES, "set": {"fnord": ["1", "x", None]}})
    this: Any = object.__new__(worker.Worker)
    with pytest.raises(SystemExit, match="what operators have changed: there is no limit 'fnord'"):
        this.join(guard)
