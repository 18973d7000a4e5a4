"""How a worker takes connections from a socket that others have too: not all of them, and none is forgotten."""

from __future__ import annotations

import os
import re
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.internet.task import Clock

from twisted_smtpguard.workers.accepting import (
    FRESH_SECONDS,
    LEAD,
    LOOK_SECONDS,
    STAND_BACK_SECONDS,
    InheritedEndpoint,
    Loads,
    create_loads,
)


class Reactor(Clock):
    """It is told what to wait for, and waits for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.advance(1000)
        self.readers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def removeWriter(self, writer: Any) -> None:
        pass


class Greeted(Protocol):
    def connectionMade(self) -> None:
        factory: Any = self.factory
        factory.held += 1


class Held(ServerFactory):
    """Counts the connections that it has, which stay; or refuses all."""

    protocol = Greeted
    noisy = False
    held = asked = 0
    refuses = False

    def buildProtocol(self, addr: IAddress | None) -> Any:
        self.asked += 1
        return None if self.refuses else super().buildProtocol(addr)  # type: ignore[arg-type]


class Shared:
    """A socket on which one worker listens, and another that has told how many connections it has."""

    def __init__(self, family: int, path: Path, reactor: Any) -> None:
        self.reactor = reactor
        self.listening = socket.socket(family)
        self.listening.bind(str(path) if family == socket.AF_UNIX else ("127.0.0.1", 0))
        self.listening.listen(100)
        self.address = self.listening.getsockname()
        memory = create_loads(2)
        self.own, self.other = (Loads(memory, each, self.reactor.seconds) for each in range(2))
        os.close(memory)
        self.factory = Held()
        self.own.connections = lambda: self.factory.held
        self.port: Any = None
        self._family = family
        self._clients: list[socket.socket] = []

    def listen(self) -> None:
        endpoint = InheritedEndpoint(self.reactor, os.dup(self.listening.fileno()), self._family, self.own)
        endpoint.listen(self.factory).addCallback(lambda port: setattr(self, "port", port))

    def come(self, number: int) -> None:
        """So many clients connect, which then wait to be accepted."""
        for _ in range(number):
            client = socket.socket(self._family)
            self._clients.append(client)
            client.connect(self.address)

    def other_has(self, connections: int) -> None:
        self.other.connections = lambda: connections
        self.other.tell()

    @property
    def waits(self) -> bool:
        """Whether the worker waits for connections."""
        return self.port in self.reactor.readers

    def close(self) -> None:
        for each in (*self._clients, self.listening, self.own, self.other):
            each.close()


@pytest.fixture(params=[socket.AF_INET, socket.AF_UNIX], ids=["TCP", "UNIX"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shared]:
    made = Shared(request.param, tmp_path / "s", Reactor())
    yield made
    made.close()


def test_a_worker_that_is_alone_takes_all_that_wait(shared: Shared) -> None:
    shared.come(20)
    shared.listen()
    assert shared.factory.held == 20
    assert shared.waits


def test_it_stands_back_when_it_has_more_than_another_which_leaves_the_next_to_that_one(
    shared: Shared,
) -> None:
    shared.other_has(0)
    shared.come(20)
    shared.listen()
    assert shared.factory.held == LEAD
    shared.port.doRead()
    assert shared.factory.held == LEAD
    assert not shared.waits
    shared.other_has(8)
    shared.reactor.advance(STAND_BACK_SECONDS)
    assert shared.waits
    # An eighth of eight more.
    assert shared.factory.held == 8 + 1 + LEAD


def test_what_nobody_else_takes_it_takes_one_by_one(shared: Shared) -> None:
    shared.other_has(0)
    shared.come(20)
    shared.listen()
    for taken in range(3):
        assert shared.factory.held == LEAD + taken
        shared.port.doRead()
        shared.reactor.advance(STAND_BACK_SECONDS)
    assert shared.waits


def test_it_stands_back_each_time_also_where_another_has_taken_what_it_left(shared: Shared) -> None:
    shared.other_has(0)
    shared.come(LEAD)
    shared.listen()
    for _ in range(3):
        # Another is quicker.
        shared.port.doRead()
        shared.reactor.advance(STAND_BACK_SECONDS)
        shared.come(1)
        shared.port.doRead()
        assert shared.factory.held == LEAD
        shared.listening.accept()[0].close()
        shared.reactor.advance(STAND_BACK_SECONDS)
    assert shared.factory.held == LEAD


@pytest.mark.parametrize("gone", [False, True])
def test_one_that_has_told_nothing_for_long_or_listens_no_more_is_not_waited_for(
    shared: Shared, gone: bool
) -> None:
    shared.other_has(0)
    if gone:
        shared.other.withdraw()
    else:
        shared.reactor.advance(FRESH_SECONDS)
    shared.come(20)
    shared.listen()
    assert shared.factory.held == 20


def test_it_looks_by_itself_from_time_to_time_since_another_may_have_been_woken_and_died(
    shared: Shared,
) -> None:
    shared.listen()
    shared.come(1)
    shared.reactor.advance(LOOK_SECONDS - 0.01)
    assert shared.factory.held == 0
    shared.reactor.advance(0.01)
    assert shared.factory.held == 1


def test_others_are_told_what_it_has_and_that_it_goes_on(shared: Shared) -> None:
    shared.listen()
    shared.come(3)
    shared.port.doRead()
    for _ in range(20):
        assert shared.other.room() == 3 + LEAD
        shared.reactor.advance(LOOK_SECONDS)


def test_before_it_closes_it_takes_what_waits_since_it_alone_may_have_been_woken_for_it(
    shared: Shared,
) -> None:
    shared.other_has(0)
    shared.listen()
    shared.come(10)
    shared.port.doRead()
    # It stands back.
    shared.port.doRead()
    stopped = shared.port.stopListening()
    assert shared.factory.held == 10
    assert shared.other.room() > 1000
    shared.reactor.advance(0)
    assert shared.reactor.getDelayedCalls() == []
    assert stopped.called


def test_those_that_are_refused_are_nobodys_share(tmp_path: Path) -> None:
    shared = Shared(socket.AF_INET, tmp_path / "s", Reactor())
    shared.factory.refuses = True
    shared.other_has(0)
    shared.come(20)
    shared.listen()
    assert shared.factory.asked == 20
    shared.close()


def test_the_socket_goes_on_for_others_and_is_gone_when_all_have_stopped(shared: Shared) -> None:
    shared.listen()
    shared.port.stopListening()
    shared.reactor.advance(0)
    shared.come(1)
    shared.listening.close()
    with pytest.raises(OSError, match="refused"):
        shared.come(1)


def flags_of(poller: select.epoll, descriptor: int) -> int:
    """The events for which an epoll waits on a descriptor, as the kernel tells."""
    told = Path(f"/proc/self/fdinfo/{poller.fileno()}").read_text()
    (events,) = re.findall(rf"tfd:\s+{descriptor} events:\s+([0-9a-f]+)", told)
    return int(events, 16)


def test_on_twisteds_reactor_the_kernel_wakes_one_worker_for_a_connection(tmp_path: Path) -> None:
    reactor = EPollReactor()
    shared = Shared(socket.AF_INET, tmp_path / "s", reactor)
    shared.listen()
    for times in (0, 1):
        assert flags_of(reactor._poller, shared.port.fileno()) & select.EPOLLEXCLUSIVE
        shared.come(times)
        shared.port.doRead()
        assert shared.factory.held == times
    # It waits as before, since the reactor is asked to.
    shared.come(1)
    reactor.doIteration(1)
    assert shared.factory.held == 2
    # It has more than its share, so that another one is woken too.
    shared.other_has(0)
    shared.port.doRead()
    assert shared.port not in reactor.getReaders()
    shared.port._standing_back.reset(0)
    reactor.runUntilCurrent()
    assert not flags_of(reactor._poller, shared.port.fileno()) & select.EPOLLEXCLUSIVE
    shared.port.stopListening()
    reactor.doIteration(0.1)
    reactor.runUntilCurrent()
    for each in reactor.removeAll():
        each.connectionLost(connectionDone)
    shared.close()
