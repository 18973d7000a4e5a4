"""One operator for all workers: what is asked of one, of all, and what becomes of a change that one refuses."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from supervised import FakeProcess, Supervised, status, supervised
from twisted.internet.defer import Deferred

from twisted_smtpguard.operations.verbs import VERBS
from twisted_smtpguard.workers.operatorofworkers import OperatorOfWorkers

STATE = {"set": {"max-errors": ["7", "set by uid:0"]}, "rules": [], "defer": None}


@pytest.fixture
def it() -> Iterator[Supervised]:
    with supervised(2) as made:
        for process in made.processes:
            assert process.told
        yield made


def ask(it: Supervised, verb: str, **arguments: str) -> Any:
    return OperatorOfWorkers(it.supervisor).carry_out(verb, arguments, "uid:0")


def outcome_of(answer: Deferred[Any]) -> list[Any]:
    """Gets the answer, or the failure, when it is there."""
    found: list[Any] = []
    answer.addCallbacks(found.append, lambda failure: found.append(failure.value))
    return found


def questions(process: FakeProcess) -> list[dict[str, Any]]:
    return [message for message in process.told if "ask" in message]


def test_each_verb_is_carried_out_somehow(it: Supervised) -> None:
    required = {"sessions": {}, "trace": {"network": "192.0.2.1"}}
    for verb in VERBS.values():
        arguments = {each.name: (each.choices or ("x",))[0] for each in verb.arguments if each.required}
        arguments |= required.get(verb.name, {})
        if verb.name in ("status", "trace", "restart", "drain", "resume"):
            continue
        answer = ask(it, verb.name, **arguments)
        answer.addErrback(lambda _: None)
        assert [each["verb"] for each in questions(it.processes[0])] == [verb.name]
        questions(it.processes[1])


def test_what_is_no_request_is_refused_before_a_worker_is_asked(it: Supervised) -> None:
    with pytest.raises(ValueError, match="there is no verb 'fnord'"):
        ask(it, "fnord")
    with pytest.raises(ValueError, match="deny needs NETWORK"):
        ask(it, "deny")
    assert not questions(it.processes[0])


def test_the_status_has_the_sums_and_each_worker(it: Supervised) -> None:
    first = {"connections": 3, "problem": "", "upstream": {"idle": 1, "opening": 1}}
    second = {"connections": 4, "problem": "it is down", "upstream": {"idle": 2}}
    it.processes[0].tells(metrics=None, last={**status(messages_accepted=2), **first})
    it.processes[1].tells(metrics=None, last={**status(messages_accepted=5), **second})
    told = ask(it, "status")
    assert (told["problem"], told["upstream"]) == ("it is down", {"idle": 3, "opening": 1})
    assert (told["connections"], told["statistics"]["messages_accepted"]) == (7, 7)
    assert told["state"] == "listening"
    assert told["workers"] == [
        {"worker": 1, "pid": 100, "state": "ready", "version": "1.0", "connections": 3},
        {"worker": 2, "pid": 101, "state": "ready", "version": "1.0", "connections": 4},
    ]


def test_a_guard_without_workers_has_a_status_and_refuses_the_rest() -> None:
    with supervised(1, ready=False) as it:
        assert ask(it, "status")["state"] == "starting"
        with pytest.raises(ValueError, match="no worker is ready, the guard is starting"):
            ask(it, "limits")


def test_sessions_of_all_are_told_with_their_worker(it: Supervised) -> None:
    found = outcome_of(ask(it, "sessions"))
    for process, name in zip(it.processes, "ab", strict=True):
        number = process.asked("sessions")
        process.tells(answer=number, rows=[{"id": name}])
        assert not found or process is it.processes[1]
        process.tells(answer=number, done={})
    assert list(found[0]) == [{"id": "a", "worker": 1}, {"id": "b", "worker": 2}]


def test_one_that_ends_meanwhile_has_no_rows(it: Supervised) -> None:
    found = outcome_of(ask(it, "sessions"))
    it.processes[0].tells(answer=it.processes[0].asked("sessions"), done={})
    it.end(it.processes[1])
    assert list(found[0]) == []


def test_the_busiest_clients_are_those_of_all_together(it: Supervised) -> None:
    found = outcome_of(ask(it, "top", by="messages"))
    rows = [
        [{"client": "a", "connections": 1, "messages": 4}, {"client": "b", "connections": 1, "messages": 3}],
        [{"client": "b", "connections": 2, "messages": 3}],
    ]
    for process, each in zip(it.processes, rows, strict=True):
        number = process.asked("top")
        process.tells(answer=number, rows=each)
        process.tells(answer=number, done={})
    assert list(found[0]) == [
        {"client": "b", "connections": 3, "messages": 6},
        {"client": "a", "connections": 1, "messages": 4},
    ]


def test_why_has_the_decision_of_one_and_the_latest_of_all(it: Supervised) -> None:
    found = outcome_of(ask(it, "why", address="192.0.2.1"))
    for process, hour in zip(it.processes, (1, 2), strict=True):
        refusals = [{"time": f"2026-01-31T0{hour}:0{minute}:00Z"} for minute in range(4)]
        answer = {"outcome": "refused", "recent_refusals": refusals, "recent_sessions": []}
        process.tells(answer=process.asked("why"), done=answer)
    times = [row["time"][11:16] for row in found[0]["recent_refusals"]]
    assert found[0]["outcome"] == "refused"
    assert times == ["02:03", "02:02", "02:01", "02:00", "01:03"]


def test_what_was_refused_lately_is_told_of_all(it: Supervised) -> None:
    found = outcome_of(ask(it, "recent"))
    for process, hour in zip(it.processes, (1, 2), strict=True):
        refusals = [{"time": f"2026-01-31T0{hour}:{minute:02}:00Z"} for minute in range(15, 0, -1)]
        answer = {"refusals": refusals, "sessions": [{"ended": f"2026-01-31T0{hour}:00:00Z"}]}
        process.tells(answer=process.asked("recent"), done=answer)
    times = [row["time"][11:16] for row in found[0]["refusals"]]
    assert (len(times), times[0], times[14:16]) == (20, "02:15", ["02:01", "01:15"])
    assert [row["ended"][11:13] for row in found[0]["sessions"]] == ["02", "01"]


def test_how_fast_a_hook_answers_is_told_of_all_together(it: Supervised) -> None:
    found = outcome_of(ask(it, "hooks"))

    def row(name: str, answers: int, seconds: float, within: float | None) -> dict[str, Any]:
        times = {"seconds": seconds, "mean_seconds": seconds / answers, "within_seconds": within}
        return {"part": "delivery", "name": name, "outcome": "ok", "answers": answers, **times}

    rows = [
        [row("begin", 1, 1.0, 1.0), row("finish", 2, 9.0, None)],
        [row("begin", 3, 1.0, 0.5), row("finish", 1, 3.0, 5.0), row("data", 1, 0.0, 0.005)],
    ]
    for process, each in zip(it.processes, rows, strict=True):
        number = process.asked("hooks")
        process.tells(answer=number, rows=each)
        process.tells(answer=number, done={})
    assert list(found[0]) == [
        row("begin", 4, 2.0, 1.0),
        row("finish", 3, 12.0, None),
        row("data", 1, 0.0, 0.005),
    ]


def test_a_change_is_made_in_one_then_in_all_and_one_event_is_logged(it: Supervised) -> None:
    found = outcome_of(ask(it, "set", limit="max-errors", value="7"))
    first, second = it.processes
    (asked,) = questions(first)
    assert not asked["quiet"]
    assert not questions(second)
    first.tells(answer=asked["ask"], done={"limit": "max-errors"}, state=STATE)
    (asked,) = questions(second)
    assert asked["quiet"]
    assert not found
    second.tells(answer=asked["ask"], done={}, state=STATE)
    assert found == [{"limit": "max-errors"}]
    # A worker that starts later begins with it.
    it.end(second)
    assert it.processes[-1].told[0] == STATE


def test_a_change_that_one_refuses_is_made_in_none(it: Supervised) -> None:
    found = outcome_of(ask(it, "set", limit="max-errors", value="x"))
    it.processes[0].tells(answer=it.processes[0].asked("set"), error="a whole number is expected")
    assert str(found[0]) == "a whole number is expected"
    assert not questions(it.processes[1])


def test_one_that_refuses_what_another_has_accepted_is_replaced(it: Supervised) -> None:
    found = outcome_of(ask(it, "deny", network="192.0.2.1"))
    it.processes[0].tells(answer=it.processes[0].asked("deny"), done={}, state=STATE)
    it.processes[1].tells(answer=it.processes[1].asked("deny"), error="there are 10000 rules already")
    assert found == [{}]
    assert it.processes[1].signals == [signal.SIGTERM]
    it.end(it.processes[1], 15)
    assert it.processes[-1].told[0] == STATE


def test_one_that_starts_gets_a_change_too_and_nobody_waits_for_it(it: Supervised) -> None:
    it.end(it.processes[1])
    found = outcome_of(ask(it, "deny", network="192.0.2.1"))
    it.processes[0].tells(answer=it.processes[0].asked("deny"), done={}, state=STATE)
    assert found == [{}]
    assert [each["verb"] for each in questions(it.processes[2])] == ["deny"]


def test_a_session_is_ended_by_the_worker_that_has_it(it: Supervised) -> None:
    found = outcome_of(ask(it, "end", session="a-1"))
    it.processes[0].tells(answer=it.processes[0].asked("end"), error="there is no session 'a-1'")
    it.processes[1].tells(answer=it.processes[1].asked("end"), done={"ended": "a-1"}, state=STATE)
    assert found == [{"ended": "a-1"}]
    found = outcome_of(ask(it, "end", session="a-2"))
    for process in it.processes:
        process.tells(answer=process.asked("end"), error="there is no session 'a-2'")
    assert str(found[0]) == "there is no session 'a-2'"


def test_a_reload_that_fails_in_one_is_refused(it: Supervised) -> None:
    found = outcome_of(ask(it, "reload"))
    it.processes[0].tells(answer=it.processes[0].asked("reload"), done={"reloaded": True}, state=STATE)
    it.processes[1].tells(answer=it.processes[1].asked("reload"), error="what follows could not be read")
    assert str(found[0]) == "what follows could not be read"


def test_a_trace_has_the_lines_of_all_until_it_is_stopped(it: Supervised) -> None:
    trace = ask(it, "trace", network="192.0.2.1")
    rows: list[Any] = []
    ends: list[bool] = []
    trace.begin(rows.append, lambda: ends.append(True))
    numbers = [process.asked("trace") for process in it.processes]
    for process, number in zip(it.processes, numbers, strict=True):
        process.tells(answer=number, rows=[{"text": number}])
    assert len(rows) == 2
    it.processes[0].tells(answer=numbers[0], done={})
    assert not ends
    trace.stop()
    assert {"cancel": numbers[1]} in it.processes[1].told


def test_one_that_hangs_is_not_asked_first(it: Supervised) -> None:
    hung, alive = it.processes
    for _ in range(4):
        it.reactor.advance(1)
        for message in questions(alive):
            alive.tells(answer=message["ask"], done=status())
    ask(it, "limits")
    answer = ask(it, "set", limit="max-errors", value="7")
    assert [each["verb"] for each in questions(alive)] == ["limits", "set"]
    assert [each["verb"] for each in questions(hung)] == ["status"]
    answer.cancel()


def test_lines_that_a_worker_has_left_out_are_counted(it: Supervised) -> None:
    trace = ask(it, "trace", network="192.0.2.1")
    rows: list[tuple[Any, ...]] = []
    trace.begin(lambda *told: rows.append(told), lambda: None)
    number = it.processes[0].asked("trace")
    it.processes[0].tells(answer=number, rows=[{"text": "a"}], lost=3)
    it.processes[0].tells(answer=number, rows=[{"text": "b"}])
    assert rows == [({"text": "a"}, 3), ({"text": "b"},)]


def test_a_restart_replaces_one_after_the_other(it: Supervised) -> None:
    found = outcome_of(ask(it, "restart"))
    old, third = it.processes[:2], it.processes[2]
    assert third.protocol.told[:2] == (3, 0)
    with pytest.raises(ValueError, match="a restart is under way already"):
        ask(it, "restart")
    third.ready()
    assert {"retire": True} in old[0].told
    assert {"retire": True} not in old[1].told
    fourth = it.processes[3]
    assert fourth.protocol.told[:2] == (4, 1)
    fourth.ready()
    assert {"retire": True} in old[1].told
    assert found == [{"state": "listening", "workers": 2, "version": "1.0"}]
    with pytest.raises(ValueError, match="still have sessions"):
        ask(it, "restart")
    for process in old:
        it.end(process, 15)
    assert it.names[-2:] == ["worker_retired", "worker_retired"]
    # Nobody takes the place of one that has retired.
    it.reactor.advance(0)
    assert len(it.processes) == 4
    ask(it, "restart").addErrback(lambda _: None)
    assert it.processes[4].protocol.told[:2] == (1, 0)


def test_a_restart_whose_worker_does_not_come_up_leaves_the_others(it: Supervised) -> None:
    found = outcome_of(ask(it, "restart"))
    it.end(it.processes[2], 0)
    assert "ended before it was ready" in str(found[0])
    assert not any({"retire": True} in process.told for process in it.processes[:2])
    it.reactor.advance(20)
    assert len(it.processes) == 3
    ask(it, "restart").addErrback(lambda _: None)


def test_a_worker_that_is_not_ready_in_time_is_killed(it: Supervised) -> None:
    found = outcome_of(ask(it, "restart"))
    for _ in range(121):
        it.reactor.advance(1)
        for process in it.processes[:2]:
            for message in questions(process):
                process.tells(answer=message["ask"], done=status())
    assert "was not ready in 120 seconds" in str(found[0])
    assert it.processes[2].signals == [signal.SIGKILL]


def test_a_drain_ends_all_and_a_resume_starts_them_again(it: Supervised) -> None:
    assert ask(it, "drain") == {"state": "draining", "sessions": 0}
    with pytest.raises(ValueError, match="it is draining"):
        ask(it, "resume")
    for process in it.processes[:2]:
        it.end(process, 15)
    assert ask(it, "status")["state"] == "drained"
    with pytest.raises(ValueError, match="it is drained"):
        ask(it, "drain")
    found = outcome_of(ask(it, "resume"))
    assert len(it.processes) == 4
    for process in it.processes[2:]:
        assert not found
        process.ready()
    assert found == [{"state": "listening"}]
