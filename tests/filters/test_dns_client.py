"""The client of name servers, with real sockets and a name server that does what it should not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import Any

import pytest
import pytest_twisted
from nameserver import NOTHING, NXDOMAIN, REFUSED, SERVFAIL, NameServer, Said, lists
from shell import free_port
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from twisted_smtpguard.filters.dnsbl import DnsblFilter
from twisted_smtpguard.filters.dnsbldecision import ERROR, TIMEOUT, Answer
from twisted_smtpguard.filters.dnsblsettings import parse_dnsbl
from twisted_smtpguard.filters.dnsclient import DNSClient
from twisted_smtpguard.testing import check_filter

NAME = "1.2.0.192.bl.example"
LISTED = Said(["127.0.0.2"])
FOUND = Answer((int(IPv4Address("127.0.0.2")),), 300)


@pytest.fixture
def server() -> Iterator[NameServer]:
    with NameServer(lambda _: LISTED) as running:
        yield running


def client_of(*servers: tuple[str, int]) -> DNSClient:
    from twisted.internet import reactor

    client = DNSClient(reactor)
    client.servers = servers
    return client


def asked(client: DNSClient, name: str = NAME, seconds: float = 20) -> Deferred[Answer]:
    answer: Deferred[Answer] = Deferred()
    client.ask(name, seconds, answer.callback)
    return answer


def readers() -> set[Any]:
    from twisted.internet import reactor

    return {each for each in reactor.getReaders() if type(each).__name__ == "Exchange"}  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_name_is_asked_for_from_a_new_port_each_time_and_nothing_stays_open(host: str) -> None:
    with NameServer(lambda _: LISTED, host) as server:
        client = client_of((server.host, server.port))
        assert [await asked(client) for _ in range(3)] == [FOUND] * 3
        assert server.questions == [NAME] * 3
        assert readers() == set()


STRANGE = {
    "garbage": Said(["127.0.0.2"], before=[b"", b"x", b"ID", b"ID\x81\x80" + b"\xff" * 400]),
    "another_question": Said(
        ["127.0.0.2"],
        before=[b"ID\x81\x80\0\1\0\0\0\0\0\0\x01x\x07example\0\0\1\0\1", b"ID\x83\x80\0\0\0\0\0\0\0\0"],
    ),
    "its_own_question": Said(["127.0.0.2"], before=[b"ID\x01\0\0\0\0\0\0\0\0\0"]),
    "cname": Said(["127.0.0.2"], cname="somewhere.else.example"),
    "a_little_late": Said(["127.0.0.2"], late=0.02),
}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("how", STRANGE)
async def test_what_comes_before_the_answer_is_ignored(server: NameServer, how: str) -> None:
    server.answering = lambda _: STRANGE[how]
    assert await asked(client_of((server.host, server.port))) == FOUND


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "said",
    [
        NOTHING,
        Said(["127.0.0.2"], other_question="2.2.0.192.bl.example"),
        Said(["127.0.0.2"], other_number=True),
    ],
    ids=["silence", "another question", "another number"],
)
async def test_without_an_answer_the_question_ends_in_time(server: NameServer, said: Said) -> None:
    server.answering = lambda _: said
    answer = await asked(client_of((server.host, server.port)), seconds=0.4)
    assert answer.outcome == TIMEOUT
    # It was sent again, since datagrams are lost.
    assert len(server.questions) == 3
    assert readers() == set()


@pytest_twisted.ensureDeferred
async def test_what_comes_from_elsewhere_is_dropped_by_the_kernel(server: NameServer) -> None:
    server.answering = lambda _: NOTHING
    answer = asked(client_of((server.host, server.port)), seconds=0.6)
    (exchange,) = readers()
    port = exchange._socket.getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        from nameserver import message

        stranger.sendto(message(LISTED, exchange.question, NAME), ("127.0.0.1", port))
    assert (await answer).outcome == TIMEOUT


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("code", "problem"), [(SERVFAIL, "SERVFAIL"), (REFUSED, "REFUSED"), (4, "NOTIMP"), (1, "FORMERR")]
)
async def test_a_server_that_fails_is_told_and_another_is_asked(
    server: NameServer, code: int, problem: str
) -> None:
    with NameServer(lambda _: Said(code=code)) as failing:
        own = (failing.host, failing.port)
        assert await asked(client_of(own)) == Answer(problem=f"the resolver answers {problem}", outcome=ERROR)
        assert await asked(client_of(own, (server.host, server.port))) == FOUND


@pytest_twisted.ensureDeferred
async def test_a_name_that_does_not_exist_is_an_answer(server: NameServer) -> None:
    server.answering = lambda _: Said(code=NXDOMAIN, minimum=90)
    assert await asked(client_of((server.host, server.port))) == Answer((), 90)


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_run_is_told_at_once_and_another_is_asked(server: NameServer) -> None:
    dead = ("127.0.0.1", int(free_port()))
    answer = await asked(client_of(dead))
    assert answer.outcome == ERROR
    assert answer.problem.startswith("the resolver ")
    assert await asked(client_of(dead, (server.host, server.port))) == FOUND
    assert (await asked(client_of())).problem == "no resolver is known"


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_silent_is_not_waited_for_until_the_end(server: NameServer) -> None:
    with NameServer(lambda _: NOTHING) as silent:
        answer = await asked(client_of((silent.host, silent.port), (server.host, server.port)), seconds=1.2)
        assert (answer, len(silent.questions)) == (FOUND, 1)


# Over TCP.

HUNDRED = Said([f"127.0.1.{i}" for i in range(100)])


@pytest_twisted.ensureDeferred
async def test_an_answer_that_does_not_fit_is_asked_for_by_tcp(server: NameServer) -> None:
    server.answering = lambda _: HUNDRED
    answer = await asked(client_of((server.host, server.port)))
    assert len(answer.addresses) == 100
    assert server.by_tcp == [NAME]


@pytest_twisted.ensureDeferred
async def test_a_tcp_connection_ends_with_its_answer(server: NameServer) -> None:
    from twisted.internet import reactor

    server.answering = lambda _: HUNDRED
    server.keeps_open = True
    client = client_of((server.host, server.port))
    for _ in range(2):
        assert len((await asked(client)).addresses) == 100
    while server.left < 2:
        await deferLater(reactor, 0.01, lambda: None)  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_an_answer_that_is_far_too_long_is_none(server: NameServer) -> None:
    server.answering = lambda _: Said([f"127.0.{i >> 8}.{i & 255}" for i in range(1000)])
    assert (await asked(client_of((server.host, server.port)))).outcome == ERROR


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "strange", [Said(HUNDRED.addresses, other_number=True), Said(other_question="x.example"), None]
)
async def test_tcp_that_fails_is_no_answer(server: NameServer, strange: Said | None) -> None:
    server.answering = lambda _: HUNDRED
    server.tcp = strange is not None
    server.by_tcp_says = lambda _: strange or HUNDRED
    answer = await asked(client_of((server.host, server.port)))
    assert (answer.outcome, answer.addresses) == (ERROR, ())


@pytest_twisted.ensureDeferred
async def test_a_question_that_is_cancelled_is_never_answered_and_leaves_nothing(server: NameServer) -> None:
    server.answering = lambda _: HUNDRED
    client, told = client_of((server.host, server.port)), []
    for _ in range(20):
        client.ask(NAME, 20, told.append).cancel()
    assert readers() == set()
    await asked(client)
    assert told == []


@pytest_twisted.ensureDeferred
async def test_without_file_descriptors_there_is_no_answer(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", full)
    answer = await asked(client_of((server.host, server.port)))
    assert answer == Answer(problem="the resolver cannot be asked: Too many open files", outcome=ERROR)


# The whole filter.


async def started(stack: ExitStack, argument: str, server: NameServer) -> DnsblFilter:
    from twisted.internet import reactor

    ip_filter = DnsblFilter(parse_dnsbl(f"{argument};resolver={server.address}"), reactor)
    ip_filter.startService()
    stack.callback(ip_filter.stopService)
    return ip_filter


@pytest_twisted.ensureDeferred
async def test_it_keeps_the_contract_of_filters() -> None:
    entries = {"bl.example": {"192.0.2.1": ["127.0.0.2"]}, "silent.example": {"*": NOTHING}}
    with NameServer(lists(entries)) as server, ExitStack() as stack:
        assert await check_filter(await started(stack, "bl.example;timeout=1", server)) > 0


@pytest_twisted.ensureDeferred
async def test_a_crowd_at_one_address_is_one_question() -> None:
    from test_dnsbl import peer

    with NameServer(lists({"bl.example": {"192.0.2.1": ["127.0.0.2"]}})) as server, ExitStack() as stack:
        ip_filter = await started(stack, "bl.example", server)
        verdicts = [ip_filter.check(peer("192.0.2.1")).deferred() for _ in range(1000)]  # type: ignore[union-attr]
        assert {each.rule for each in await gatherResults(verdicts)} == {"bl.example:127.0.0.2"}
        assert server.questions.count(NAME) == 1
