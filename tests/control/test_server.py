"""The control socket: each request gets its answer, and nothing that a client of it does holds up the guard."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from loopback import Client, Loopback, reactor
from twisted.internet.defer import Deferred

from twisted_smtpguard.control import answering, server
from twisted_smtpguard.control.requests import MAX_REQUEST_OCTETS, request_line
from twisted_smtpguard.control.server import ControlService
from twisted_smtpguard.control.socketfile import ControlSocketError

STATUS = request_line("status", {})


class Timed:
    """The reactor, with the time of a clock."""

    def __init__(self, clock: Any) -> None:
        self.callLater = clock.callLater
        self.seconds = clock.seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class Rows:
    """A stream of rows, as many as a test sends."""

    def __init__(self) -> None:
        self.stopped = 0
        self.row: Callable[[dict[str, Any]], object]
        self.end: Callable[[], object]

    def begin(self, row: Callable[[dict[str, Any]], object], end: Callable[[], object]) -> None:
        self.row, self.end = row, end

    def stop(self) -> None:
        self.stopped += 1


class Answers:
    """An operator who answers what a test sets, and writes down who has asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, object], str]] = []
        self.answer: Callable[[], Any] = lambda: {"state": "listening"}

    def carry_out(self, verb: str, arguments: dict[str, object], by: str) -> Any:
        self.asked.append((verb, arguments, by))
        return self.answer()


class Control(Loopback):
    """A guard with a control socket, whose operator a test answers for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.operator = Answers()
        self.path = str(folder / "control.sock")
        self.control = ControlService(Timed(self.clock), self.operator, self.path)
        self.control.setServiceParent(self.service)

    def asks(self) -> Client:
        """A new client of the socket."""
        client = Client(self, self.path)
        self.clients.append(client)
        return client

    @property
    def connections(self) -> Any:
        assert self.control._connections is not None
        return self.control._connections.open


@pytest_twisted.async_yield_fixture
async def guard(tmp_path: Path) -> Any:
    control = Control(tmp_path)
    control.start()
    yield control
    await control.close()
    assert list(tmp_path.iterdir()) == []


def answers(client: Client) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.heard.splitlines()]


async def answered(client: Client, number: int = 1) -> list[dict[str, Any]]:
    """What has been answered when there are `number` last lines."""

    def heard() -> bool:
        client.read()
        lines = client.heard.split(b"\n")[:-1]
        return sum(b'"done":' in line or b'"error":' in line for line in lines) >= number

    await client.guard.until(heard)
    return answers(client)


# The file.


@pytest_twisted.ensureDeferred
async def test_the_socket_is_for_its_user_and_its_group_whatever_the_umask(tmp_path: Path) -> None:
    modes: list[int] = []

    class Watched(Control):
        def start(self) -> None:
            made = server._Port.createInternetSocket

            def watched(port: Any) -> socket.socket:
                # The mode of the file at its first moment is that of the socket.
                opened = made(port)
                modes.append(stat.S_IMODE(os.fstat(opened.fileno()).st_mode))
                return opened

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(server._Port, "createInternetSocket", watched)
                super().start()

    before = os.umask(0)
    try:
        guard = Watched(tmp_path)
        guard.start()
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE(Path(guard.path).stat().st_mode) == 0o660
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_guard_whose_socket_cannot_be_made_does_not_listen(guard: Control, tmp_path: Path) -> None:
    second = Control(tmp_path)
    with pytest.raises(ControlSocketError, match="another process has this socket"):
        second.start()
    assert not second.service.running
    await second.close()
    assert (await _status(guard))[-1]["done"] == {"state": "listening"}


@pytest_twisted.ensureDeferred
async def test_the_socket_outlives_a_drain_and_comes_again_with_a_second_start(guard: Control) -> None:
    guard.service.drain()
    await guard.until(lambda: guard.service.state == "drained")
    await _status(guard)
    stopped: list[object] = []
    guard.service.stopService().addBoth(stopped.append)
    await guard.until(lambda: stopped)
    assert not Path(guard.path).exists()
    guard.start()
    await _status(guard)


async def _status(guard: Control) -> list[dict[str, Any]]:
    client = guard.asks()
    await client.says(STATUS)
    return await answered(client)


# Answers.


@pytest_twisted.ensureDeferred
async def test_a_request_is_carried_out_for_the_user_whom_the_kernel_knows(guard: Control) -> None:
    client = guard.asks()
    await client.says(b'{"version": 1, "id": 5, "verb": "end", "args": {"session": "a"}}\n')
    assert await answered(client) == [{"id": 5, "done": {"state": "listening"}}]
    assert guard.operator.asked == [("end", {"session": "a"}, f"uid:{os.getuid()}")]


@pytest_twisted.ensureDeferred
async def test_requests_are_answered_in_their_order_byte_by_byte_and_all_at_once(guard: Control) -> None:
    lines = b"".join(b'{"version":1,"id":%d,"verb":"status"}\n' % number for number in range(5))
    client = guard.asks()
    for octet in lines:
        await client.says(bytes([octet]))
        await guard.turn()
    assert [each["id"] for each in await answered(client, 5)] == [0, 1, 2, 3, 4]
    client = guard.asks()
    await client.says(lines)
    assert [each["id"] for each in await answered(client, 5)] == [0, 1, 2, 3, 4]


@pytest_twisted.ensureDeferred
async def test_a_client_that_asks_and_half_closes_is_answered_and_then_closed(guard: Control) -> None:
    client = guard.asks()
    await client.says(STATUS * 2)
    client.half_close()
    assert len(await answered(client, 2)) == 2
    assert await client.hears_the_end() == "FIN"


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_told_and_the_next_request_is_carried_out(guard: Control) -> None:
    def refuse() -> None:
        raise ValueError("there is no session 'a'")

    guard.operator.answer = refuse
    client = guard.asks()
    await client.says(b"garbage\n" + STATUS)
    heard = await answered(client, 2)
    assert "a line of JSON such as" in heard[0]["error"]
    assert heard[1] == {"id": None, "error": "there is no session 'a'"}


@pytest_twisted.ensureDeferred
async def test_a_fault_of_the_guard_is_answered_as_one(guard: Control) -> None:
    from twisted.logger import globalLogPublisher

    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)
    guard.operator.answer = lambda: 1 // 0
    assert (await _status(guard))[0]["error"] == "the guard has a fault, which its log shows"
    globalLogPublisher.removeObserver(logged.append)
    assert [event for event in logged if "log_failure" in event]


@pytest_twisted.ensureDeferred
async def test_an_answer_may_come_later_or_after_its_client_has_left(guard: Control) -> None:
    waiting: list[Deferred[Any]] = []

    def later() -> Deferred[Any]:
        waiting.append(Deferred())
        return waiting[-1]

    guard.operator.answer = later
    stays, leaves = guard.asks(), guard.asks()
    await stays.says(STATUS)
    await leaves.says(STATUS)
    await guard.until(lambda: len(waiting) == 2)
    leaves.close()
    await guard.turn()
    for each in waiting:
        each.callback({"reloaded": True})
    await guard.until(lambda: len(guard.connections) == 1)
    assert await answered(stays) == [{"id": None, "done": {"reloaded": True}}]


@pytest_twisted.ensureDeferred
async def test_many_rows_are_sent_in_parts_and_followed_by_an_end(guard: Control) -> None:
    guard.operator.answer = lambda: iter([{"row": number} for number in range(250)])
    heard = await _status(guard)
    assert [len(each.get("rows", ())) for each in heard] == [100, 100, 50, 0]
    assert [row["row"] for each in heard[:-1] for row in each["rows"]] == list(range(250))
    assert heard[-1] == {"id": None, "done": {}}


@pytest_twisted.ensureDeferred
async def test_a_stream_is_sent_as_it_happens_and_stopped_when_its_client_leaves(guard: Control) -> None:
    stream = Rows()
    guard.operator.answer = lambda: stream
    client = guard.asks()
    await client.says(STATUS)
    await guard.until(lambda: hasattr(stream, "row"))
    stream.row({"line": "EHLO"})
    await client.hears(b"EHLO")
    stream.end()
    assert await answered(client) == [{"id": None, "rows": [{"line": "EHLO"}]}, {"id": None, "done": {}}]
    stream.row({"line": "late"})
    await client.says(STATUS)
    await guard.until(lambda: guard.connections and next(iter(guard.connections))._streams)
    client.close()
    await guard.until(lambda: stream.stopped)
    assert stream.stopped == 1


# What a client may not do to the guard.


@pytest_twisted.ensureDeferred
async def test_a_line_without_an_end_is_told_its_limit(guard: Control) -> None:
    for octets in (b"a" * MAX_REQUEST_OCTETS, b"a" * MAX_REQUEST_OCTETS + b"\n"):
        client = guard.asks()
        await client.says(octets)
        assert (await answered(client))[0]["error"] == "the line is longer than 65536 octets"
    assert guard.operator.asked == []


@pytest_twisted.ensureDeferred
async def test_a_line_that_the_client_does_not_end_is_not_carried_out(guard: Control) -> None:
    client = guard.asks()
    await client.says(STATUS[:-1])
    client.half_close()
    assert (await answered(client))[0]["error"] == "the line has no end"
    await client.hears_the_end()
    assert guard.operator.asked == []


@pytest_twisted.ensureDeferred
async def test_a_client_that_asks_nothing_is_closed(guard: Control) -> None:
    client = guard.asks()
    await client.says(STATUS[:5])
    await guard.until(lambda: guard.connections)
    guard.clock.advance(answering.IDLE_SECONDS)
    await client.hears_the_end()


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_costs_no_more_memory_and_is_dropped(guard: Control) -> None:
    made: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(100_000):
            made.append(number)
            yield {"row": number, "text": "a" * 200}

    guard.operator.answer = rows
    client = guard.asks()
    await client.says(STATUS * 100)
    await guard.until(lambda: guard.connections and next(iter(guard.connections)).full)
    for _ in range(100):
        await guard.turn()
    (connection,) = guard.connections
    # What is in the socket's own buffer, 64 KiB in the transport, and one part more.
    assert len(made) < 5_000
    assert len(connection._buffer) < 2 * MAX_REQUEST_OCTETS
    guard.clock.advance(answering.READ_SECONDS)
    await guard.until(lambda: not guard.connections)


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_late_gets_all_rows(guard: Control) -> None:
    guard.operator.answer = lambda: ({"row": number, "text": "a" * 200} for number in range(5_000))
    client = guard.asks()
    await client.says(STATUS)
    await guard.until(lambda: guard.connections and next(iter(guard.connections)).full)
    heard = await answered(client)
    assert sum(len(each.get("rows", ())) for each in heard) == 5_000


@pytest_twisted.ensureDeferred
async def test_a_stream_that_is_not_read_loses_rows_and_tells_how_many(guard: Control) -> None:
    stream = Rows()
    guard.operator.answer = lambda: stream
    client = guard.asks()
    await client.says(STATUS)
    await guard.until(lambda: hasattr(stream, "row"))
    (connection,) = guard.connections
    sent = 0
    while not connection.full:
        stream.row({"text": "a" * 1000})
        sent += 1
    for _ in range(50):
        stream.row({"text": "lost"})
    guard.clock.advance(answering.READ_SECONDS + answering.IDLE_SECONDS)
    await guard.until(lambda: client.read() or not connection.full)
    stream.row({"text": "kept"})
    stream.end()
    heard = await answered(client)
    assert sum(len(each.get("rows", ())) for each in heard) == sent + 1
    assert [each["lost"] for each in heard if "lost" in each] == [50]


@pytest_twisted.ensureDeferred
async def test_one_connection_too_many_takes_the_seat_of_the_one_that_is_idle_longest(guard: Control) -> None:
    clients = []
    for number in range(server.MAX_CONNECTIONS):
        clients.append(guard.asks())
        await guard.until(lambda: len(guard.connections) == number + 1)  # noqa: B023 - called in this round
    await clients[0].says(STATUS)
    await answered(clients[0])
    await _status(guard)
    await clients[1].hears_the_end()
    assert len(guard.connections) == server.MAX_CONNECTIONS
    await clients[0].says(STATUS)
    await answered(clients[0], 2)


@pytest_twisted.ensureDeferred
async def test_where_all_are_at_work_one_more_is_told_so(guard: Control) -> None:
    waiting: list[Deferred[Any]] = []

    def later() -> Deferred[Any]:
        waiting.append(Deferred())
        return waiting[-1]

    guard.operator.answer = later
    for _ in range(server.MAX_CONNECTIONS):
        await guard.asks().says(STATUS)
    await guard.until(lambda: len(waiting) == server.MAX_CONNECTIONS)
    client = guard.asks()
    assert (await answered(client))[0]["error"] == "there are 32 connections, and all of them are at work"
    await client.hears_the_end()
    for each in waiting:
        each.callback({})
