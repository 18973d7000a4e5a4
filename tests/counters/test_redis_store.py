"""The store in Redis before a server in memory, which answers what a test wants: wrong, late, too much, or never.

What a real server makes of it is in tests/clients.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError  # noqa: A004
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection
from twisted.python.failure import Failure

from twisted_smtpguard.counters.redisstore import (
    RedisCounterStore,
    redis_counter_store,
)
from twisted_smtpguard.counters.redisurl import redis_servers
from twisted_smtpguard.values import CounterStoreUnavailable, Wanted

PLACE = Wanted("max_connections", "", 5)


class Transport(StringTransportWithDisconnection):
    """A transport whose abort is noticed at once, as that of a real one is in the next turn."""

    def abortConnection(self) -> None:
        self.aborting = True
        if self.connected:
            self.loseConnection()


class Server:
    """What the store says to the last connection that it has opened, and what it is answered."""

    def __init__(self, url: str = "redis+unix:///s", accept: bool = True) -> None:
        self.reactor = MemoryReactorClock()
        self.store = RedisCounterStore(redis_servers(url), self.reactor)
        self.store.startService()
        self.attempts = 0
        if accept:
            self.accept()
            self.greet()

    def dialled(self) -> bool:
        return len(self.reactor.unixClients) > self.attempts

    def accept(self) -> None:
        assert self.dialled(), "the store has not tried to connect"
        _, factory, _, _ = self.reactor.unixClients[self.attempts]
        self.attempts += 1
        self.protocol: Any = factory.buildProtocol(None)
        self.transport = Transport()
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)

    def refuse(self) -> None:
        assert self.dialled(), "the store has not tried to connect"
        factory = self.reactor.unixClients[self.attempts][1]
        self.attempts += 1
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))

    def greet(self) -> None:
        """Answer what a store asks before it is connected."""
        self.commands()
        self.say("$3\r\nabc\r\n")
        assert [command[4].split("\n")[0] for command in self.commands()] == [
            "take",
            "renew",
            "look",
            "give_back",
            "renew",
            "purge",
            "put_records",
            "put_records",
            "records_since",
        ]
        self.say("*2\r\n:1\r\n:1\r\n:0\r\n*4\r\n:1\r\n:0\r\n:1\r\n:1000\r\n:0\r\n:1\r\n:0\r\n")
        self.say(":0\r\n:0\r\n*3\r\n:0\r\n:0\r\n:0\r\n")
        assert self.store.connected

    def say(self, text: str | bytes) -> None:
        self.protocol.dataReceived(text if isinstance(text, bytes) else text.encode())

    def commands(self) -> list[list[str]]:
        """What the store has asked since this was called last."""
        parts = self.transport.value().decode().split("\r\n")
        self.transport.clear()
        found: list[list[str]] = []
        while parts[0]:
            number = int(parts[0].removeprefix("*"))
            found.append(parts[2 : 2 * number + 1 : 2])
            del parts[: 2 * number + 1]
        return found

    def take(self) -> list[Any]:
        """The outcome of a take(), when it comes."""
        outcome: list[Any] = []
        self.store.take("me", [PLACE]).addBoth(outcome.append)
        return outcome


def problem_of(outcome: list[Any]) -> str:
    (failure,) = outcome
    assert failure.check(CounterStoreUnavailable), failure
    return str(failure.value)


def test_an_answer_is_taken_a_byte_at_a_time_and_with_the_next_one() -> None:
    server = Server()
    first, second = server.take(), server.take()
    for octet in b"*1\r\n:4\r\n*1\r\n:":
        server.say(bytes([octet]))
    assert (first, second) == ([[4]], [])
    server.say("5\r\n")
    assert second == [[5]]
    assert server.store.connected


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"\xff\xfe\r\n", "it does not speak the protocol of Redis"),
        (b"*-5\r\n:1\r\n", "its answer to take makes no sense"),
        (b"*x\r\n", "Cannot convert multi-response header 'x' to integer"),
        (b"*2\r\n$1\r\n1\r\n\xff\r\n", "it does not speak the protocol of Redis"),
        (b"$1\r\n1\r\n\xff\r\n", "its answer to take makes no sense"),
        (b"x" * 70_000, "it does not speak the protocol of Redis"),
        (b"*1000000000\r\n" + b":1\r\n" * 20_000, "an answer of it has more than 65536 octets"),
        (b"$1000000000\r\n" + b"x" * 70_000, "an answer of it has more than 65536 octets"),
        (b"*1\r\n" * 20_000, "an answer of it has more than 65536 octets"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4000, "an answer of it has more than 65536 octets"),
        (b":4\r\n", "its answer to take makes no sense"),
        (b"+4\r\n", "its answer to take makes no sense"),
        (b"*1\r\n$1\r\n4\r\n", "its answer to take makes no sense"),
        (b"*1\r\n-ERR x\r\n", "its answer to take makes no sense"),
        (b"*1\r\n:x\r\n", "its answer to take makes no sense"),
        (b"*2\r\n:1\r\n:1\r\n", "its answer to take makes no sense"),
        (b"*0\r\n", "its answer to take makes no sense"),
        (b"*-1\r\n", "its answer to take makes no sense"),
        (b"$-1\r\n", "its answer to take makes no sense"),
        (b"-OOM command not allowed\x1b[31m\r\n", r"OOM command not allowed\x1b[31m"),
        (b"-READONLY You can't write against a read only replica.\r\n", "READONLY You can't write"),
        (b"-\r\n", "it answered with an error without a text"),
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in pieces"])
def test_an_answer_that_makes_no_sense_ends_the_connection(answer: bytes, problem: str, whole: bool) -> None:
    server = Server()
    outcome, waiting = server.take(), server.take()
    step = len(answer) if whole else 700
    for start in range(0, len(answer), step):
        if server.transport.connected:
            server.say(answer[start : start + step])
    assert problem in problem_of(outcome)
    assert problem in problem_of(waiting)
    assert server.transport.aborting
    assert not server.store.connected
    assert problem in server.store.problem
    assert server.store.problem.startswith("redis+unix:///s?db=0: ")
    # It is tried again.
    server.reactor.advance(0.1)
    server.accept()
    server.greet()


def test_an_answer_to_nothing_ends_the_connection() -> None:
    server = Server()
    server.say("*1\r\n:1\r\n")
    assert server.store.problem.endswith("it answered what it was not asked")


def test_a_server_that_never_answers_is_left_after_a_second() -> None:
    server = Server()
    server.reactor.advance(100)
    outcome = server.take()
    server.reactor.pump([0.5, 0.49])
    assert server.store.connected
    server.reactor.advance(0.01)
    assert problem_of(outcome).endswith("it did not answer within 1 s")
    assert not server.store.connected


def test_a_server_is_kept_if_this_process_was_held_up_or_the_clock_was_set() -> None:
    server = Server()
    outcome = server.take()
    # Twisted looks at the clock before it reads.
    server.reactor.advance(3600)
    server.say("*1\r\n:1\r\n")
    assert outcome == [[1]]
    server.reactor.pump([0.5] * 10)
    assert server.store.connected


def test_a_server_that_answers_slowly_is_kept() -> None:
    server = Server()
    outcomes = [server.take() for _ in range(10)]
    for outcome in outcomes:
        server.reactor.advance(0.9)
        server.say("*1\r\n:1\r\n")
        assert outcome == [[1]]
    server.reactor.advance(100)
    assert server.store.connected


def test_what_is_kept_for_a_server_that_does_not_answer_is_bounded() -> None:
    server = Server()
    outcomes = [server.take() for _ in range(10_001)]
    assert [len(outcome) for outcome in outcomes] == [0] * 10_000 + [1]
    assert problem_of(outcomes[-1]).endswith("10000 commands are unanswered")


def test_while_it_is_not_connected_a_call_fails_at_once() -> None:
    server = Server(accept=False)
    assert problem_of(server.take()) == "it has not connected yet"
    server.refuse()
    assert "Connection was refused" in problem_of(server.take())
    for answer in (
        server.store.give_back("me", [PLACE]),
        server.store.look([PLACE]),
        server.store.renew("me", {("c", str(number)): 1 for number in range(1000)}),
    ):
        outcome: list[Any] = []
        answer.addBoth(outcome.append)
        assert "Connection was refused" in problem_of(outcome)


def test_it_tries_again_ever_more_slowly_up_to_five_seconds() -> None:
    server = Server(accept=False)
    for longest in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5):
        server.refuse()
        server.reactor.advance(longest * 0.49)
        assert not server.dialled()
        server.reactor.advance(longest * 0.52)
        assert server.dialled()


def test_a_server_that_loses_every_connection_is_not_asked_ever_again_at_once() -> None:
    server = Server()
    for longest in (0.1, 0.2, 0.4):
        server.transport.loseConnection()
        server.reactor.advance(longest * 0.49)
        assert not server.dialled()
        server.reactor.advance(longest * 0.52)
        server.accept()
        server.greet()
    # One that lasted begins anew.
    server.reactor.advance(60)
    server.transport.loseConnection()
    server.reactor.advance(0.1)
    assert server.dialled()


def test_a_server_that_does_not_accept_or_does_not_greet_is_left() -> None:
    server = Server("redis+unix:///a,redis+unix:///b", accept=False)
    server.reactor.advance(3)
    assert server.reactor.unixClients[1][0] == "/b"
    server.attempts = 1
    server.accept()
    server.reactor.pump([0.5, 0.5])
    assert server.store.problem == (
        "redis+unix:///a?db=0: no connection within 3 s; redis+unix:///b?db=0: it did not answer within 1 s"
    )


def test_the_first_server_that_can_be_used_is_used_and_the_others_anew_at_the_next_time() -> None:
    server = Server("redis+unix:///a,redis+unix:///b", accept=False)
    server.accept()
    server.say("-LOADING Redis is loading the dataset in memory\r\n")
    server.accept()
    server.greet()
    assert server.store.server == "redis+unix:///b?db=0"
    server.transport.loseConnection()
    server.reactor.advance(0.1)
    server.accept()
    server.greet()
    assert server.store.server == "redis+unix:///a?db=0"


def test_a_replica_cannot_be_used() -> None:
    server = Server(accept=False)
    server.accept()
    server.say("$3\r\nabc\r\n-READONLY You can't write against a read only replica.\r\n")
    assert server.store.problem == (
        "redis+unix:///s?db=0: READONLY You can't write against a read only replica."
    )
    assert server.transport.aborting


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("WRONGPASS invalid username-password pair.", "it refuses the user or the password"),
        ("ERR unknown command 'AUTH' with args: 'me' 'secret'", "it refuses the user or the password"),
        ("ERR AUTH <password> called without any password", "it asks for no password, and the URL has one"),
        ("secret", "it refuses the user or the password"),
    ],
)
def test_a_password_is_never_shown(answer: str, problem: str) -> None:
    server = Server("redis+unix://me:secret@/s?db=3", accept=False)
    server.accept()
    assert server.commands() == [["AUTH", "me", "secret"]]
    server.say(f"-{answer}\r\n")
    assert server.store.problem == f"redis+unix:///s?db=3: {problem}"
    assert "secret" not in repr(vars(server.store))


def test_it_logs_in_and_chooses_the_database() -> None:
    server = Server("redis+unix://:secret@/s?db=3", accept=False)
    server.accept()
    assert server.commands() == [["AUTH", "secret"]]
    server.say("+OK\r\n")
    assert server.commands() == [["SELECT", "3"]]
    server.say("+OK\r\n")
    assert server.commands()[0][:2] == ["SCRIPT", "LOAD"]
    server.greet()


def test_a_mistake_that_the_file_has_got_is_told_and_the_file_is_read_again(tmp_path: Any) -> None:
    path = tmp_path / "url"
    path.write_text("redis+unix:///s")
    path.chmod(0o600)
    server = Server(f"redis+file:{path}")
    path.write_text("redis+unix:///s?db=x")
    server.transport.loseConnection()
    server.reactor.advance(0.1)
    assert server.store.problem.startswith(f"{path}: the database is a number")
    path.write_text("redis+unix:///s")
    server.reactor.advance(0.2)
    server.accept()
    server.greet()


def test_when_the_connection_is_lost_what_is_unanswered_fails() -> None:
    server = Server()
    outcome = server.take()
    server.protocol.connectionLost(Failure(ConnectionDone()))
    assert "the connection was lost: Connection was closed cleanly" in problem_of(outcome)


def test_who_waits_for_a_connection_is_called_each_time_before_anybody_else_asks() -> None:
    server = Server()
    calls: list[Any] = []

    def broken() -> None:
        raise RuntimeError("a listener is broken")

    server.store.on_connected(broken)
    server.store.on_connected(lambda: server.store.renew("me", {}))
    server.store.on_connected(lambda: calls.append(server.store.connected))
    for number in (1, 2):
        server.transport.loseConnection()
        server.reactor.advance(0.2)
        server.accept()
        server.greet()
        server.take()
        assert [command[4].split("\n")[0] for command in server.commands()] == ["renew", "take"]
        assert calls == [True] * number


def test_a_server_that_has_forgotten_the_script_gets_it_once_and_the_order_stays() -> None:
    server = Server()
    takes = [server.take() for _ in range(3)]
    server.store.give_back("me", [PLACE])
    server.commands()
    server.say("-NOSCRIPT No matching script. Please use EVAL.\r\n")
    takes.append(server.take())
    assert server.commands() == []
    # Another guard has loaded it meanwhile.
    server.say("-NOSCRIPT No matching script.\r\n*1\r\n:1\r\n")
    assert server.commands() == []
    server.say("-NOSCRIPT No matching script.\r\n")
    commands = server.commands()
    assert [command[0] for command in commands] == ["SCRIPT", *["EVALSHA"] * 4]
    assert [command[4].split("\n")[0] for command in commands[1:]] == ["take", "take", "give_back", "take"]
    server.say("$3\r\nabc\r\n*1\r\n:2\r\n*1\r\n:3\r\n:0\r\n*1\r\n:4\r\n")
    assert takes == [[[2]], [[3]], [[1]], [[4]]]


def test_a_server_that_forgets_the_script_again_and_again_is_left() -> None:
    server = Server()
    outcome = server.take()
    server.say("-NOSCRIPT No matching script.\r\n")
    held = server.take()
    server.say("$3\r\nabc\r\n-NOSCRIPT No matching script.\r\n")
    assert "NOSCRIPT" in problem_of(outcome)
    assert "NOSCRIPT" in problem_of(held)


def test_the_connection_may_be_lost_while_the_script_is_loaded() -> None:
    server = Server()
    refused, unanswered = server.take(), server.take()
    server.say("-NOSCRIPT No matching script.\r\n")
    held = server.take()
    server.transport.loseConnection()
    assert [len(outcome) for outcome in (refused, unanswered, held)] == [1, 1, 1]


def renewals(server: Server) -> list[tuple[list[str], list[str]]]:
    """The marks, and the places, of each renewal that was asked for."""
    words = [command[4].split("\n") for command in server.commands()]
    return [(each[3:6], each[6:]) for each in words if each[0] == "renew"]


def test_many_places_are_renewed_in_parts_between_which_decisions_go_on() -> None:
    server = Server()
    outcome: list[Any] = []
    server.store.renew("me", {("c", str(number)): 2 for number in range(600)}).addBoth(outcome.append)
    parts = renewals(server)
    taken = server.store.take("me", [Wanted("c", "599"), Wanted("c", "new")])
    server.store.take("other", [Wanted("c", "598")])
    server.store.give_back("me", [Wanted("c", "597")])
    former = parts[0][0][0]
    assert [command[4].split("\n")[3] for command in server.commands()] == ["p:c:599", "p:c:598", former]
    server.say(":0\r\n*2\r\n:3\r\n:1\r\n*1\r\n:1\r\n:0\r\n")
    assert taken.called
    parts += renewals(server)
    server.say(":0\r\n")
    parts += renewals(server)
    assert outcome == []
    server.say(":0\r\n")
    assert outcome == [None]
    assert [marks[1:] for marks, _ in parts] == [["1", "0"], ["0", "0"], ["0", "1"]]
    assert [len(places) // 3 for _, places in parts] == [250, 250, 100]
    assert {marks[0] for marks, _ in parts} == {former}
    # What was changed meanwhile may have been done or not.
    assert " ".join(parts[2][1][-9:]) == "p:c:597 1 2 p:c:598 2 2 p:c:599 2 3"


def test_renewals_of_an_owner_do_not_overlap() -> None:
    server = Server()
    places = {("c", str(number)): 1 for number in range(300)}
    outcomes: list[Any] = []
    server.store.renew("me", places).addBoth(outcomes.append)
    server.store.renew("me", {("c", "1"): 1}).addBoth(outcomes.append)
    server.store.renew("other", {("c", "1"): 1}).addBoth(outcomes.append)
    server.store.take("me", [Wanted("c", "2")])
    first, _ = renewals(server)
    server.say(":0\r\n:0\r\n*1\r\n:1\r\n")
    assert len(outcomes) == 1
    ((marks, _),) = renewals(server)
    assert marks == [first[0][0], "0", "1"]
    server.say(":0\r\n")
    ((marks, words),) = renewals(server)
    assert marks[0] != first[0][0]
    assert words == ["p:c:1", "1", "1", "p:c:2", "0", "1"]
    server.say(":0\r\n")
    assert outcomes == [None] * 3


def test_a_renewal_that_was_interrupted_goes_on_before_the_next() -> None:
    server = Server()
    outcome: list[Any] = []
    places = {("c", str(number)): 1 for number in range(300)}
    server.store.renew("me", places).addBoth(outcome.append)
    ((former, *_), _), *_ = renewals(server)
    server.say(":0\r\n")
    server.transport.loseConnection()
    problem_of(outcome)
    server.reactor.advance(0.2)
    server.accept()
    server.greet()
    server.store.renew("me", places)
    marks = []
    for _ in range(4):
        marks += [marks for marks, _ in renewals(server)]
        server.say(":0\r\n")
    assert [each[1:] for each in marks] == [["0", "0"], ["0", "1"], ["1", "0"], ["0", "1"]]
    assert [each[0] == former for each in marks] == [True, True, False, False]
    server.store.renew("me", places)
    assert [marks[1:] for marks, _ in renewals(server)] == [["1", "0"]]


def test_a_place_that_is_being_taken_may_be_among_those_that_are_renewed_or_not() -> None:
    server = Server()
    server.store.take("me", [PLACE, Wanted("rate", "a", 0, 60), Wanted("c", "new", events=2)])
    server.store.take("other", [Wanted("c", "other")])
    server.store.renew("me", {("max_connections", ""): 3, ("c", "a"): 1})
    ((_, places),) = renewals(server)
    assert " ".join(places) == "p:max_connections: 2 4 p:c:a 1 1 p:c:new 0 2"
    server.say("*3\r\n:4\r\n:1\r\n:2\r\n*1\r\n:1\r\n:0\r\n")
    server.store.renew("me", {("max_connections", ""): 4})
    ((_, places),) = renewals(server)
    assert " ".join(places) == "p:max_connections: 4 4"


def test_leases_that_have_ended_are_given_back_a_part_at_a_time_and_nobody_waits() -> None:
    server = Server()
    outcome: list[Any] = []
    server.store.renew("me", {}).addBoth(outcome.append)
    server.commands()
    for _ in range(3):
        server.say(":1\r\n")
        assert outcome == [None]
        assert [command[4].split("\n")[0] for command in server.commands()] == ["purge"]
    server.say(":0\r\n")
    assert server.commands() == []


def stopping(server: Server) -> list[Any]:
    stopped: list[Any] = []
    server.store.stopService().addBoth(stopped.append)
    return stopped


def test_at_a_stop_what_was_asked_is_answered_first() -> None:
    server = Server()
    outcome = server.take()
    stopped = stopping(server)
    assert stopped == []
    server.say("*1\r\n:1\r\n")
    assert (outcome, stopped) == ([[1]], [None])
    server.reactor.advance(100)
    assert not server.dialled()
    assert server.reactor.getDelayedCalls() == []


def test_a_stop_takes_a_second_at_most() -> None:
    server = Server()
    outcome = server.take()
    stopped = stopping(server)
    server.reactor.pump([0.5, 0.5])
    assert stopped == [None]
    problem_of(outcome)
    assert server.reactor.getDelayedCalls() == []


def test_it_can_be_stopped_while_it_connects_greets_or_waits_and_be_started_again() -> None:
    server = Server(accept=False)
    for step in ("connects", "greets", "tries", "waits"):
        if step in ("greets", "tries"):
            server.accept()
        if step == "tries":
            server.say("$3\r\nabc\r\n")
        if step == "waits":
            server.refuse()
        assert stopping(server) == [None], step
        assert server.reactor.getDelayedCalls() == [], step
        server.attempts = len(server.reactor.unixClients)
        server.store.startService()
    server.accept()
    server.greet()


def test_sentinels_are_asked_in_their_order_and_may_answer_anything() -> None:
    reactor = MemoryReactorClock()
    store = RedisCounterStore(redis_servers("redis+sentinel://127.0.0.1:1,127.0.0.1:2/mx"), reactor)
    store.startService()
    transports = []

    def answer(number: int, text: str) -> None:
        factory: Any = reactor.tcpClients[number][2]
        protocol = factory.buildProtocol(None)
        transports.append(transport := Transport())
        transport.protocol = protocol
        protocol.makeConnection(transport)
        if text:
            protocol.dataReceived(text.encode())

    answer(0, "*2\r\n$1\r\nx\r\n$5\r\n99999\r\n")
    answer(1, "*-1\r\n")
    assert store.problem == ("redis+sentinel://127.0.0.1:1,127.0.0.1:2/mx/0: Sentinel knows no master mx"), (
        store.problem
    )
    reactor.advance(0.1)
    answer(2, "-ERR x\r\n")
    answer(3, "*2\r\n$9\r\n127.0.0.1\r\n$4\r\n7000\r\n")
    assert b"get-master-addr-by-name\r\n$2\r\nmx" in transports[-1].value()
    assert all(transport.aborting for transport in transports)
    assert [client[1] for client in reactor.tcpClients] == [1, 2, 1, 2, 7000]
    store.stopService()


def test_without_txredisapi_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted_smtpguard.counters.redisstore.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install twisted_smtpguard\[redis\]"):
        redis_counter_store("redis://127.0.0.1", MemoryReactorClock())


def test_a_late_answer_still_fires() -> None:
    server = Server()
    answer: Deferred[list[int]] = server.store.take("me", [PLACE])
    server.reactor.advance(0.5)
    outcome: list[Any] = []
    answer.addBoth(outcome.append)
    server.say("*1\r\n:3\r\n")
    assert outcome == [[3]]
