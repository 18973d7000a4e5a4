"""What an operator asks and changes: each change holds from the moment at which its method returns."""

from __future__ import annotations

import inspect
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from logbook import own_events
from loopback import Loopback, reactor
from operated import Operated
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from twisted_smtpguard import NetworksFile
from twisted_smtpguard.log.history import MAX_CLIENTS, Tallies
from twisted_smtpguard.operations.operator import APPLICATION, RECENT, Operator
from twisted_smtpguard.operations.sessions import ITEMS_A_TURN, TOP_ROWS, Network, rows, top
from twisted_smtpguard.operations.verbs import VERBS

ENDED = b"421 4.3.2 Session ended by the operator, try again later\r\n"
ENVELOPE = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@guard.example>\r\n"


@pytest.fixture
def log() -> Iterator[list[LogEvent]]:
    with own_events() as events:
        yield events


@pytest_twisted.async_yield_fixture
async def guard() -> Any:
    loopback = Loopback()
    loopback.start()
    yield loopback
    await loopback.close()


def names(guard: Loopback) -> list[str]:
    """The ids of the sessions that are open."""
    return sorted(row["id"] for row in guard.service.operator.sessions())


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def changes(log: list[LogEvent]) -> list[str]:
    return [event["text"] for event in log if event.get("event") == "operator"]


# The table.


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_a_row_fits_the_method_that_it_names(verb: Any) -> None:
    parameters = inspect.signature(getattr(Operator, verb.method or verb.name)).parameters
    of_row = [argument.parameter or argument.name for argument in verb.arguments]
    assert [name for name in parameters if name not in ("self", "by")] == of_row
    assert ("by" in parameters) == verb.changes
    for argument in verb.arguments:
        needed = parameters[argument.parameter or argument.name].default is inspect.Parameter.empty
        assert needed == argument.required


def test_every_public_method_is_a_verb() -> None:
    methods = {name for name in vars(Operator) if not name.startswith("_")} - {"carry_out"}
    assert methods == {verb.method or verb.name for verb in VERBS.values()}


@pytest.mark.parametrize(
    ("verb", "arguments", "problem"),
    [
        ("sing", {}, "there is no verb 'sing'"),
        ("end", {}, "end needs SESSION"),
        ("end", {"session": 7}, "end: session must be a text"),
        ("end", {"session": "a", "when": "now"}, "end has no argument 'when'"),
        ("end", {"session": "nobody"}, "there is no session 'nobody'"),
        ("end", {"session": ""}, "there is no session ''"),
        ("sessions", {"network": "192.0.2.1/24"}, "has bits set after its prefix"),
        ("sessions", {"network": "mx.example"}, "is not a network"),
        ("resume", {}, "the guard is not drained, it is listening"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_wrong_request_is_refused_with_a_sentence_and_changes_nothing(
    guard: Loopback, log: list[LogEvent], verb: str, arguments: dict[str, object], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        guard.service.operator.carry_out(verb, arguments)
    assert changes(log) == []


# Asking.


@pytest_twisted.ensureDeferred
async def test_the_status_has_the_connections_the_cap_and_the_statistics() -> None:
    guard = Loopback(max_connections=7)
    assert guard.service.operator.status()["state"] == "stopped"
    guard.start()
    await guard.greeted()
    status = guard.service.operator.carry_out("status", {})
    assert json.loads(json.dumps(status)) == status
    assert (status["state"], status["connections"], status["max_connections"]) == ("listening", 1, 7)
    assert list(status["listening"].values()) == [f"127.0.0.1:{guard.ports[0]}"]
    assert status["statistics"]["connections_accepted"] == 1
    await guard.close()
    assert guard.service.operator.status()["state"] == "stopped"


@pytest_twisted.ensureDeferred
async def test_a_session_is_shown_with_what_its_client_said_escaped(guard: Loopback) -> None:
    client = guard.client()
    await client.says("EHLO [x\u202e\x1b[31m]\r\n".encode())
    await client.hears(b"\r\n5")
    await client.says(b"HELO client.example\r\n" + ENVELOPE + b"DATA\r\n")
    await client.hears(b"354 ")
    (row,) = guard.service.operator.sessions("127.0.0.0/8")
    assert row["stage"] == "message data"
    assert row["helo"] == "client.example"
    assert row["client"] == "127.0.0.1"
    assert row["since"] == "1970-01-01T00:00:00Z"
    assert row["id"] == guard.protocols[0].engine.name
    assert json.loads(json.dumps(row)) == row
    assert list(guard.service.operator.sessions("192.0.2.0/24")) == []
    guard.protocols[0].engine.helo = "\u202e\x1b[31m"
    (row,) = guard.service.operator.sessions()
    assert row["helo"] == "\\u202e\\x1b[31m"


@pytest.mark.parametrize(
    ("network", "peer", "belongs"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.0/24", "192.0.2.255", True),
        ("192.0.2.0/24", "192.0.3.0", False),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("::ffff:192.0.2.0/120", "192.0.2.9", True),
        ("2001:db8::/32", "2001:db8:1::1", True),
        ("2001:db8::/32", "unix", False),
        ("unix", "unix", True),
        ("unix", "192.0.2.1", False),
    ],
)
def test_a_network_has_its_clients_and_no_others(network: str, peer: str, belongs: bool) -> None:
    assert (peer in Network(network)) == belongs


def test_a_wrong_network_is_refused_before_a_row_is_taken() -> None:
    with pytest.raises(ValueError, match="is not a network"):
        rows([], "here")


# Changing.


@pytest_twisted.ensureDeferred
async def test_a_session_that_is_ended_hears_a_421_and_carries_out_nothing_more(
    guard: Loopback, log: list[LogEvent]
) -> None:
    clients = [await guard.greeted() for _ in range(2)]
    name = names(guard)[0]
    assert guard.service.operator.carry_out("end", {"session": name}, "uid:7") == {"ended": name}
    assert len(names(guard)) == 1
    assert changes(log) == [f"operator by=uid:7 verb=end what={name}"]
    await guard.until(lambda: [each.read() for each in clients] and any(each.heard for each in clients))
    ended, other = sorted(clients, key=lambda each: not each.heard)
    assert ended.heard == ENDED
    assert other.heard == b""
    reasons = [event["reason"] for event in log if event.get("session") == name and "reason" in event]
    assert reasons == ["ended_by_operator"] * 2


@pytest_twisted.ensureDeferred
async def test_a_session_is_ended_in_the_middle_of_a_message_which_is_not_delivered(guard: Loopback) -> None:
    client = await guard.greeted()
    await client.says(ENVELOPE + b"DATA\r\n")
    await client.hears(b"354 ")
    await client.says(b"half a mess")
    guard.service.operator.end(names(guard)[0])
    assert names(guard) == []
    await client.says(b"age\r\n.\r\n")
    await client.hears(ENDED)
    assert not client.heard.rpartition(b"354 ")[2].count(b"250 ")
    assert "finish" not in guard.delivery.calls


@pytest_twisted.ensureDeferred
async def test_a_session_that_waits_for_a_verdict_hears_it_and_then_the_421(guard: Loopback) -> None:
    verdict: Deferred[None] = Deferred()
    guard.delivery.answers["finish"] = lambda: verdict
    client = await guard.greeted()
    await client.says(ENVELOPE + b"DATA\r\n")
    await client.hears(b"354 ")
    await client.says(b"a message\r\n.\r\nNOOP\r\n")
    await guard.until(lambda: guard.factory.pending_verdicts)
    client.heard = b""
    guard.service.operator.end(names(guard)[0])
    verdict.callback(None)
    await client.hears_the_end()
    assert client.heard == b"250 2.0.0 Message accepted\r\n" + ENDED


@pytest_twisted.ensureDeferred
async def test_a_drained_guard_refuses_everybody_until_it_listens_again(
    guard: Loopback, log: list[LogEvent]
) -> None:
    operator = guard.service.operator
    client = await guard.greeted()
    assert operator.drain()["state"] == "draining"
    assert operator.status()["state"] == "draining"
    with pytest.raises(ValueError, match="the drain is not over, connections are open"):
        operator.resume()
    await client.hears(b"421 4.3.2 Server shutting down\r\n")
    client.close()
    await guard.until(lambda: operator.status()["state"] == "drained")
    assert not listens(guard.ports[0])
    assert operator.status()["listening"] == {}
    with pytest.raises(ValueError, match="the guard does not listen, it is drained"):
        operator.drain()
    (address,) = operator.resume()["listening"].values()
    guard.ports = [int(address.rpartition(":")[2])]
    await guard.greeted()
    assert changes(log) == [f"operator by={APPLICATION} verb={verb}" for verb in ("drain", "resume")]


@pytest_twisted.ensureDeferred
async def test_a_guard_that_cannot_listen_again_stays_drained_with_its_parts(guard: Loopback) -> None:
    operator = guard.service.operator
    operator.drain()
    await guard.until(lambda: operator.status()["state"] == "drained")
    endpoint: Any = guard.service._listeners[0][0]
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        endpoint._port = busy.getsockname()[1]
        for _ in range(2):
            with pytest.raises(ValueError, match="the guard cannot listen: "):
                operator.resume()
            await guard.until(lambda: operator.status()["state"] == "drained")
            assert guard.service.running
    endpoint._port = 0
    assert operator.resume()["state"] == "listening"


@pytest_twisted.ensureDeferred
async def test_a_reload_is_answered_when_it_is_done(guard: Loopback, log: list[LogEvent]) -> None:
    answers: list[object] = []
    guard.service.operator.carry_out("reload", {}, "uid:0").addBoth(answers.append)
    await guard.until(lambda: answers)
    assert answers == [{"reloaded": True}]
    assert changes(log) == ["operator by=uid:0 verb=reload"]


@pytest_twisted.ensureDeferred
async def test_a_reload_of_a_file_with_a_mistake_is_refused_with_its_line(tmp_path: Path) -> None:
    networks = tmp_path / "networks"
    networks.write_text("deny 192.0.2.1\n")
    guard = Loopback(options={"ip_filters": [NetworksFile(str(networks), reactor)]})
    guard.start()
    networks.write_text("deny 192.0.2.1\nfnord\n")
    answers: list[Any] = []
    guard.service.operator.reload().addErrback(lambda failure: answers.append(failure.value))
    await guard.until(lambda: answers)
    assert re.fullmatch(
        rf"what follows could not be read, and keeps its old data: \S+ --ip-filter: {networks} line 2: .*",
        str(answers[0]),
    )
    networks.write_text("")
    guard.service.operator.reload().addBoth(answers.append)
    await guard.until(lambda: len(answers) == 2)
    assert answers[1] == {"reloaded": True}
    await guard.close()


# The busiest clients.


def counts_of(rows: Any) -> dict[str, list[int]]:
    return {row.pop("client"): list(row.values()) for row in rows}


@pytest_twisted.ensureDeferred
async def test_the_busiest_clients_are_those_of_open_sessions_and_of_ended_ones(guard: Loopback) -> None:
    operator = guard.service.operator
    assert list(await operator.top()) == []
    stays, leaves = await guard.greeted(), await guard.greeted()
    for client in (stays, leaves):
        await client.says(ENVELOPE + b"RCPT TO:<c@guard.example>\r\nDATA\r\n")
        await client.hears(b"354 ")
        await client.says(b"a message\r\n.\r\nRUBBISH\r\n")
        await client.hears(b"500 ")
    assert counts_of(await operator.top("messages")) == {"127.0.0.1": [2, 2, 4, 2]}
    await leaves.says(b"QUIT\r\n")
    await leaves.hears_the_end()
    await guard.until(lambda: len(names(guard)) == 1)
    assert counts_of(await operator.carry_out("top", {"by": "recipients"})) == {"127.0.0.1": [1, 2, 4, 2]}
    with pytest.raises(ValueError, match="must be one of connections, messages"):
        operator.carry_out("top", {"by": "size"})
    with pytest.raises(ValueError, match="one of connections, messages"):
        operator.top("size")


def listed(tallies: Tallies, by: str) -> list[dict[str, Any]]:
    """What `top` tells of clients that have no session."""
    clock = Clock()
    found: list[Any] = []
    Deferred.fromCoroutine(top([], tallies, by, clock)).addCallback(found.extend)
    clock.pump([0] * 9)
    return found


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        ({}, {"2001:db8::/48": [2, 0, 0, 1], "192.0.2.0/24": [1, 1, 1, 0]}),
        ({"ipv4_networks": (24, 16)}, {"2001:db8::/48": [2, 0, 0, 1], "192.0.0.0/16": [1, 1, 1, 0]}),
        ({"ipv6_networks": (56,)}, {"2001:db8::/56": [1, 0, 0, 1], "2001:db8:0:100::/56": [1, 0, 0, 0]}),
    ],
)
def test_top_can_list_the_networks_that_have_most(
    networks: dict[str, Any], expected: dict[str, list[int]]
) -> None:
    guard = Operated(**networks)
    client = guard.greeted("192.0.2.1")
    assert client.codes("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", "x", ".", "QUIT")[-2:] == [250, 221]
    client.disconnect()
    guard.connect("192.0.3.7" if "ipv4_networks" in networks else "192.0.2.2")
    guard.greeted("2001:db8:0:1::1").say("MAIL FROM:<a@b> FROB=1")
    guard.connect("2001:db8:0:100::1")
    found: list[Any] = []
    guard.operator.carry_out("top", {"of": "networks"}).addCallback(found.extend)
    guard.clock.advance(0)
    rows = {row["client"]: [*row.values()][1:] for row in found}
    assert {name: rows[name] for name in expected} == expected


def test_the_clients_that_have_most_come_first_and_those_that_have_none_not_at_all() -> None:
    tallies = Tallies()
    for number in range(30):
        tallies.add(f"192.0.2.{number}", number, 0, 0)
    tallies.add("2001:db8::1", 50, 60, 0)
    tallies.add("2001:db8::2", 1, 1, 1)
    rows = listed(tallies, "messages")
    assert [row["client"] for row in rows[:3]] == ["2001:db8::/64", "192.0.2.29", "192.0.2.28"]
    assert len(rows) == TOP_ROWS
    assert counts_of(listed(tallies, "refusals")) == {"2001:db8::/64": [0, 51, 61, 1]}
    assert listed(tallies, "connections") == []


def test_many_clients_are_looked_at_in_many_turns_of_the_reactor_while_others_come() -> None:
    tallies = Tallies()
    for number in range(ITEMS_A_TURN * 3):
        tallies.add(f"192.0.{number >> 8}.{number & 255}", 1, 0, 0)
    sessions = [SimpleNamespace(peer_name="192.0.2.9", messages=0, recipients_accepted=0)] * ITEMS_A_TURN
    turns: list[str] = []

    class Turns(Clock):
        def callLater(self, *call: Any, **arguments: Any) -> Any:
            tallies.add(f"198.51.100.{len(turns)}", 1, 0, 0)
            turns.append("later")
            return super().callLater(*call, **arguments)

    clock, found = Turns(), list[Any]()
    Deferred.fromCoroutine(top(sessions, tallies, "connections", clock)).addCallback(found.extend)
    assert (turns, found) == (["later"], [])
    clock.advance(0)
    assert len(turns) == 2
    assert found == [
        {"client": "192.0.2.9", "connections": 500, "messages": 1, "recipients": 0, "refusals": 0}
    ]


@pytest_twisted.ensureDeferred
async def test_the_latest_refusals_and_sessions_are_told_of_all_clients(guard: Loopback) -> None:
    for number in range(RECENT + 5):
        guard.service.factory.context.events.reject(f"192.0.2.{number}", "ip_filter", rule="<\x1b[31m\u202e>")
    client = await guard.greeted()
    await client.says(b"RUBBISH\r\nQUIT\r\n")
    await client.hears_the_end()
    await guard.until(lambda: guard.factory.connections == 0)
    recent = guard.service.operator.recent()
    rows = recent["refusals"]
    assert len(rows) == RECENT
    assert {row["address"] for row in rows} > {"127.0.0.1", "192.0.2.24", "192.0.2.20"}
    assert {row.get("rule", "") for row in rows} == {"", "<\\x1b[31m\\u202e>"}
    assert {row["time"] for row in rows} == {"1970-01-01T00:00:00Z"}
    (session,) = recent["sessions"]
    assert (session["helo"], session["reason"]) == ("client.example", "quit")
    assert json.loads(json.dumps(recent)) == recent


def test_no_number_of_clients_makes_the_counts_grow_without_bound() -> None:
    tallies = Tallies()
    for number in range(MAX_CLIENTS + 100):
        tallies.add("192.0.2.1", 1, 0, 0)
        tallies.add(f"198.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0, 0, 1)
    counts = dict(tallies)
    assert len(counts) == MAX_CLIENTS
    assert counts["192.0.2.1"][0] == MAX_CLIENTS + 100
