"""Records of several workers are one: what one puts all know within a turn, in pieces that hold nobody up."""

from __future__ import annotations

import json
from collections import deque
from random import Random
from typing import Any, cast

import pytest
from supervised import Supervised, supervised
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from twisted_smtpguard.records.records import Records
from twisted_smtpguard.records.recordtables import BAN, KNOWN, Change, RecordTables
from twisted_smtpguard.values import Record
from twisted_smtpguard.workers.channel import Channel
from twisted_smtpguard.workers.recordlink import MOST_IN_MESSAGE, RecordLink, changes_in, take_all

NOW = 1_800_000_000.0


class End:
    """One end of a channel with its tables, whose messages the test carries."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.tables = RecordTables(self.clock.seconds)
        self.channel = Channel(self.hears, lambda: None)
        self.transport = StringTransport()
        self.channel.makeConnection(self.transport)
        self.link = RecordLink(self.clock, self.channel, self.tables)

    def hears(self, message: dict[str, Any]) -> None:
        self.link.learn(message)

    def says(self) -> list[Any]:
        """The messages since this was looked at, of this turn."""
        self.clock.advance(0)
        text = self.transport.value().decode()
        self.transport.clear()
        return [json.loads(line) for line in text.splitlines()]

    def put(self, key: str, value: str = "") -> None:
        self.tables[BAN].put(key, value, NOW + 100)

    def held(self) -> dict[str, str]:
        return {key: record.value for key, record in self.tables[BAN].items()}


def test_what_is_put_in_a_turn_is_one_message_and_what_is_learnt_is_none() -> None:
    end = End()
    end.put("192.0.2.1", "a")
    end.put("192.0.2.2", "b")
    end.tables[KNOWN].put("192.0.2.3", "", NOW + 5)
    end.tables[BAN].remove("192.0.2.2")
    (message,) = end.says()
    assert sorted(message["records"]) == [
        ["ban", "192.0.2.1", "a", NOW + 100],
        ["ban", "192.0.2.2"],
        ["known", "192.0.2.3", "", NOW + 5],
    ]
    other = End()
    other.put("192.0.2.2", "older")
    other.says()
    other.hears(message)
    assert other.held() == {"192.0.2.1": "a"}
    assert other.tables[KNOWN].get("192.0.2.3") == Record("", NOW + 5)
    assert other.says() == []


def test_a_hundred_thousand_records_come_in_pieces_one_a_turn_and_then_their_end() -> None:
    end, number = End(), 100_000
    end.tables.learn(
        [Change(BAN, f"2001:db8:{each:x}::/64", Record("", NOW + 100)) for each in range(number)]
    )
    end.link.send_all()
    messages = []
    while not (messages and messages[-1] == {"records": []}):
        # The one call of this turn.
        (call,) = end.clock.getDelayedCalls()
        turn = cast(Any, call).func
        call.cancel()
        turn()
        octets = end.transport.value()
        assert len(octets) < 64 * 1024
        end.transport.clear()
        messages.append(json.loads(octets))
    assert len(messages) == number / MOST_IN_MESSAGE + 1
    assert end.says() == []
    worker = RecordTables(end.clock.seconds)
    take_all(worker, iter(messages).__next__)
    assert len(worker[BAN]) == number


def test_no_record_is_looked_at_before_its_turn_and_what_changes_meanwhile_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end, number, looked = End(), 10_000, []
    end.tables.learn([Change(BAN, f"{each}", Record("old", NOW + 100)) for each in range(number)])
    get = Records.get

    def counted(records: Records, key: str) -> Record | None:
        looked.append(key)
        return get(records, key)

    monkeypatch.setattr(Records, "get", counted)
    end.link.send_all()
    assert looked == []
    worker, random, turns = RecordTables(end.clock.seconds), Random(3), 0
    while True:
        (call,) = end.clock.getDelayedCalls()
        turn = cast(Any, call).func
        call.cancel()
        turn()
        (message,) = [json.loads(line) for line in end.transport.value().splitlines()]
        end.transport.clear()
        if not message["records"]:
            break
        worker.learn(changes_in(message))
        turns += 1
        assert len(looked) <= MOST_IN_MESSAGE * turns
        if turns < 20:
            # Some that were sent, and some that were not.
            end.put(f"{random.randrange(number)}", "new")
            end.put(f"later{turns}")
            end.tables[BAN].remove(f"{random.randrange(number)}")
    assert turns > number / MOST_IN_MESSAGE
    assert dict(worker[BAN].items()) == dict(end.tables[BAN].items())


def test_an_end_without_records_says_so_at_once() -> None:
    end = End()
    end.link.send_all()
    assert end.says() == [{"records": []}]


def test_an_end_that_does_not_read_is_sent_nothing_and_no_queue_grows_without_bound() -> None:
    end = End()
    end.channel.pauseProducing()
    end.tables[BAN].set_most(50)
    for number in range(1000):
        end.put(f"{number}", f"{number}")
        assert end.says() == []
    assert len(end.link._outbox) == 50
    assert end.clock.getDelayedCalls() == []
    end.channel.resumeProducing()
    (message,) = end.says()
    assert len(message["records"]) == 50


def test_an_end_that_is_closed_sends_nothing_more() -> None:
    end = End()
    end.put("a")
    end.link.close()
    end.put("b")
    assert (end.says(), end.clock.getDelayedCalls()) == ([], [])


class Whole:
    """A supervisor with some workers, and messages on the way between them."""

    def __init__(self, count: int) -> None:
        self.supervisor = RecordTables(lambda: NOW)
        self.workers = [End() for _ in range(count)]
        self.clock = Clock()
        self.links = []
        self.ways: list[deque[tuple[int, Any]]] = [deque() for _ in range(2 * count)]
        for _ in self.workers:
            channel = Channel(lambda _: None, lambda: None)
            channel.makeConnection(StringTransport())
            self.links.append((channel, RecordLink(self.clock, channel, self.supervisor)))

    def send(self) -> None:
        """A turn of all processes, in which nothing arrives."""
        self.clock.advance(0)
        for number, (worker, (channel, _)) in enumerate(zip(self.workers, self.links, strict=True)):
            self.ways[2 * number].extend((number, each) for each in worker.says())
            for line in channel.transport.value().splitlines():
                self.ways[2 * number + 1].append((number, json.loads(line)))
            channel.transport.clear()

    def arrive(self, way: int) -> None:
        if not self.ways[way]:
            return
        number, message = self.ways[way].popleft()
        if way % 2:
            self.workers[number].hears(message)
        else:
            self.supervisor.make(
                [
                    Change(kind, key, Record(*record) if record else None)
                    for kind, key, *record in message["records"]
                ]
            )


@pytest.mark.parametrize("seed", range(20))
def test_however_changes_cross_all_have_the_same_in_the_end(seed: int) -> None:
    random, whole = Random(seed), Whole(3)
    for step in range(200):
        worker = random.choice(whole.workers)
        key = random.choice("abc")
        if random.random() < 0.3:
            worker.tables[BAN].remove(key)
        elif random.random() < 0.5:
            worker.put(key, f"{step}")
        if random.random() < 0.7:
            whole.send()
        for _ in range(random.randrange(4)):
            whole.arrive(random.randrange(len(whole.ways)))
    for _ in range(10):
        whole.send()
        for way in range(len(whole.ways)):
            while whole.ways[way]:
                whole.arrive(way)
    held = [worker.held() for worker in whole.workers]
    assert held[0] == held[1] == held[2]
    assert held[0] == {key: record.value for key, record in whole.supervisor[BAN].items()}


# In a supervisor.


def records(it: Supervised, number: int) -> list[Any]:
    """What a worker is told of records, after a turn."""
    it.reactor.advance(0)
    return [row for message in it.processes[number].told for row in message.get("records", ())]


def test_what_one_worker_tells_all_are_told_and_a_new_one_begins_with_it() -> None:
    row = ["ban", "192.0.2.1", "x", NOW]
    with supervised(2) as it:
        it.processes[0].tells(records=[row])
        assert [records(it, number) for number in (0, 1)] == [[row], [row]]
        assert it.supervisor.records[BAN].get("192.0.2.1") == Record("x", NOW)
        it.end(it.processes[0])
        it.reactor.advance(1)
        assert records(it, 2) == [row]
        it.processes[1].tells(records=[row[:2]])
        assert records(it, 2) == [row[:2]]


def test_a_worker_that_is_gone_is_told_nothing_more() -> None:
    with supervised(1) as it:
        for number in range(5):
            it.end(it.processes[number])
            it.reactor.advance(10)
        assert len(it.processes) == 6
        assert len(it.supervisor.records[BAN]._on_change) == 1


def test_a_worker_that_cannot_be_started_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no more processes")

    with supervised(1) as it:
        before = len(it.supervisor.records[BAN]._on_change)
        monkeypatch.setattr(it.reactor, "spawnProcess", fails)
        assert it.supervisor.start_worker(0) is None
        assert len(it.supervisor.records[BAN]._on_change) == before
