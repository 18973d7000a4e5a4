"""The supervisor in memory: when a worker is started again, what is summed, and when it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from logbook import logbook
from supervised import FakeProcess, Supervised, status, supervised

from twisted_smtpguard.counters.sharedmemory import SharedCounterStore
from twisted_smtpguard.values import Wanted
from twisted_smtpguard.workers.commonstate import SETTLE_SECONDS
from twisted_smtpguard.workers.operatorofworkers import OperatorOfWorkers
from twisted_smtpguard.workers.workerprocess import START_SECONDS


def test_each_worker_has_its_number_and_its_part() -> None:
    with supervised(3) as it:
        assert [process.protocol.told[:3] for process in it.processes] == [(1, 0, 3), (2, 1, 3), (3, 2, 3)]
        assert it.supervisor.ready
        assert it.names == ["worker_started"] * 3


def test_the_guard_is_ready_when_all_workers_are() -> None:
    with supervised(2, ready=False) as it:
        told = []
        it.supervisor.on_listening = lambda: told.append(it.supervisor.ready)
        for process in it.processes:
            process.ready()
        assert told == [False, True]


def test_one_that_dies_soon_is_replaced_later_and_later_and_after_a_long_life_at_once() -> None:
    with supervised(1) as it:
        waits = []
        for _ in range(8):
            began, count = it.reactor.seconds(), len(it.processes)
            it.end(it.processes[-1])
            while len(it.processes) == count and it.reactor.seconds() < began + 60:
                it.reactor.advance(0.125)
            waits.append(it.reactor.seconds() - began)
        assert waits == [0, 0.25, 0.5, 1, 2, 4, 5, 5]
        it.processes[-1].ready()
        for _ in range(11):
            it.reactor.advance(1)
            it.processes[-1].tells(answer=0, done={})
        count = len(it.processes)
        it.end(it.processes[-1])
        assert len(it.processes) == count + 1


def test_the_places_of_one_that_dies_are_free_at_once() -> None:
    wanted = [Wanted("max_connections", "", 1)]
    with supervised(2) as it:
        of_second = SharedCounterStore(it.supervisor._table, 1)
        assert of_second.take("", wanted) == [1]
        it.end(it.processes[1])
        assert it.supervisor._store.look(wanted) == [(0, 0.0)]
        of_second.close()


def test_one_that_answers_nothing_for_long_is_killed_and_one_that_answers_is_not() -> None:
    with supervised(2) as it:
        hung, alive = it.processes
        for _ in range(40):
            it.reactor.advance(1)
            asked = [message["ask"] for message in alive.told if "ask" in message]
            for number in asked:
                alive.tells(answer=number, done=status())
        assert hung.signals[:1] == [signal.SIGKILL]
        assert alive.signals == []


def test_one_that_hangs_is_shown_as_hanging_until_it_answers() -> None:
    with supervised(2) as it:
        operator = OperatorOfWorkers(it.supervisor)

        def states() -> list[str]:
            return [row["state"] for row in operator.carry_out("status", {})["workers"]]

        hung, alive = it.processes
        asked: list[int] = []
        for _ in range(5):
            it.reactor.advance(1)
            asked += [message["ask"] for message in hung.told if "ask" in message]
            for number in [message["ask"] for message in alive.told if "ask" in message]:
                alive.tells(answer=number, done=status())
        assert states() == ["hanging", "ready"]
        hung.tells(answer=asked[0], done=status())
        assert states() == ["ready", "ready"]


def test_one_that_is_not_ready_long_after_its_start_is_killed() -> None:
    with supervised(2, ready=False) as it:
        late, ready = it.processes
        ready.ready()
        for _ in range(START_SECONDS + 1):
            assert late.signals == []
            it.reactor.advance(1)
            for number in [message["ask"] for message in ready.told if "ask" in message]:
                ready.tells(answer=number, done=status())
        assert late.signals == [signal.SIGKILL]
        assert ready.signals == []


def test_an_outage_of_the_counter_store_is_one_event_each_way_for_all_workers() -> None:
    with supervised(3) as it:
        first, second, third = it.processes
        for process in (second, first, third):
            process.tells(alone="no answer in 50 ms")
            it.reactor.advance(1)
        second.tells(alone=None)
        first.tells(alone=None)
        assert it.names[3:] == ["counters_away"]
        it.end(third)
        assert [name for name in it.names if name.startswith("counters")] == [
            "counters_away",
            "counters_back",
        ]
        (back,) = [event for event in it.events if event["event"] == "counters_back"]
        assert back["seconds"] == 3
        # One that has not lost it.
        first.tells(alone=None)
        assert it.names.count("counters_back") == 1


def told_of(it: Supervised, *names: str) -> list[str]:
    return [name for name in it.names if name in names]


def test_the_end_of_the_only_worker_that_lost_the_store_does_not_say_that_the_store_is_back() -> None:
    with supervised(2) as it:
        it.processes[0].tells(alone="no answer in 50 ms")
        it.end(it.processes[0])
        it.reactor.advance(1)
        it.processes[2].ready()
        # The one in its place loses it too.
        it.processes[2].tells(alone="no answer in 50 ms")
        it.reactor.advance(100)
        assert told_of(it, "counters_away", "counters_back") == ["counters_away"]
        it.processes[2].tells(alone=None)
        assert told_of(it, "counters_away", "counters_back") == ["counters_away", "counters_back"]
        (back,) = [event for event in it.events if event["event"] == "counters_back"]
        assert back["seconds"] == 101


def test_if_no_other_worker_tells_of_the_outage_for_some_time_it_is_over() -> None:
    with supervised(1) as it:
        it.processes[0].tells(alone="no answer in 50 ms")
        it.end(it.processes[0])
        it.reactor.advance(SETTLE_SECONDS + 1)
        # Nobody could tell.
        assert told_of(it, "counters_back") == []
        it.processes[1].ready()
        it.reactor.advance(SETTLE_SECONDS)
        assert told_of(it, "counters_back") == ["counters_back"]
        it.reactor.advance(100)
        assert told_of(it, "counters_back") == ["counters_back"]


def test_a_stop_waits_for_no_end_of_an_outage() -> None:
    with supervised(2) as it:
        for process in it.processes:
            process.tells(alone="no answer in 50 ms")
        stopped = it.supervisor.stopService()
        for process in it.processes:
            it.end(process, 0)
        assert stopped.called
        assert it.reactor.getDelayedCalls() == []


def test_stress_is_one_event_each_way_for_all_workers() -> None:
    with supervised(3) as it:
        first, second, third = it.processes
        for process, connections in ((second, 400), (first, 401), (third, 402)):
            process.tells(stress=[True, connections, 500])
        second.tells(stress=[False, 299, 500])
        first.tells(stress=[False, 298, 500])
        assert told_of(it, "stress") == ["stress"]
        third.tells(stress=[False, 297, 500])
        found = [each for each in it.events if each["event"] == "stress"]
        assert [(each["state"], each["connections"], each["cap"]) for each in found] == [
            ("begins", 400, 500),
            ("ends", 297, 500),
        ]


def test_counts_are_summed_also_of_those_that_have_ended() -> None:
    with supervised(2, ready=False) as it:
        it.processes[0].ready(messages_accepted=3, live_connections=2)
        it.processes[1].ready(messages_accepted=4, live_connections=1)
        it.end(it.processes[0])
        it.supervisor.log_statistics()
        assert it.names[-1] == "statistics"
        assert (it.events[-1]["messages_accepted"], it.events[-1]["live_connections"]) == (7, 1)


def test_a_stop_waits_for_all_and_starts_none() -> None:
    with supervised(2) as it:
        it.end(it.processes[0])
        stopped = it.supervisor.stopService()
        assert {"stop": True} in it.processes[1].told
        assert not stopped.called
        it.processes[1].tells(metrics=None, last=status(messages_accepted=5))
        it.end(it.processes[1])
        # The one in place of the first.
        assert not stopped.called
        it.end(it.processes[2])
        assert stopped.called
        assert it.names[-1] == "stopped"
        assert it.events[-1]["messages_accepted"] == 5
        it.reactor.advance(60)
        assert len(it.processes) == 3


def test_one_that_has_not_come_up_is_ended_by_a_signal() -> None:
    with supervised(1, ready=False) as it:
        it.supervisor.stopService()
        assert it.processes[0].signals == [signal.SIGTERM]


def holds_the_lock(it: Supervised, process: FakeProcess) -> subprocess.Popen[str]:
    """A process that has the lock of the table, and the number of which `process` has from now on."""
    code = f"import fcntl; fcntl.lockf({it.supervisor._table}, fcntl.LOCK_EX); print(); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=[it.supervisor._table],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "\n"
    process.protocol.pid = holder.pid
    return holder


@pytest.mark.parametrize("answers", [False, True])
def test_one_that_hangs_with_the_lock_of_all_is_killed_soon(answers: bool) -> None:
    with supervised(2) as it:
        stopped, waits = it.processes
        with holds_the_lock(it, stopped) as holder:
            for _ in range(6):
                it.reactor.advance(1)
                if answers:
                    for number in [message["ask"] for message in stopped.told if "ask" in message]:
                        stopped.tells(answer=number, done=status())
            # The process that watches does not wait for the lock.
            it.end(waits)
            holder.kill()
        assert (signal.SIGKILL in stopped.signals) is not answers
        assert signal.SIGKILL not in waits.signals


def test_a_restart_that_cannot_start_a_worker_does_not_start_one_more_later() -> None:
    with supervised(1) as it, logbook():
        spawn = it.reactor.spawnProcess

        def fails(*_: object, **__: object) -> None:
            raise OSError("no memory")

        it.reactor.spawnProcess = fails  # type: ignore[method-assign]
        refused: list[str] = []
        it.supervisor.restart("uid:7").addErrback(lambda failure: refused.append(failure.getErrorMessage()))
        it.reactor.spawnProcess = spawn  # type: ignore[method-assign]
        assert refused == ["no worker can be started, which the log explains; the others go on"]
        it.reactor.advance(60)
        assert len(it.processes) == 1
