"""However many connections wait to be accepted, a port takes few of them in one turn of the reactor, so that the
sessions that there are go on."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from loopback import Loopback, reactor
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.protocol import Protocol, ServerFactory

from twisted_smtpguard.replies import TOO_MANY_CONNECTIONS
from twisted_smtpguard.transport.turnaway import SilentTurnAway, TurnAway

MOST_IN_A_TURN = 100
"""What Twisted's own port takes in its first turn. In each further one it would take 20 more."""

FLOOD = 5 * MOST_IN_A_TURN


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def flood(stack: ExitStack, port: Any) -> None:
    """Connections that the kernel has made, and that nobody has accepted."""
    for _ in range(FLOOD):
        client = stack.enter_context(socket.socket(port.addressFamily))
        client.connect(port.socket.getsockname())


def accepted_in_turns(port: Any) -> list[int]:
    """How many connections of the flood the port accepts in each turn."""
    begun = 0
    build = port.factory.buildProtocol

    def built(address: object) -> object:
        nonlocal begun
        begun += 1
        return build(address)

    port.factory.buildProtocol = built
    turns = []
    while sum(turns) < FLOOD:
        before = begun
        port.doRead()
        turns.append(begun - before)
        assert turns[-1], "the flood has not come"
    return turns


def adopted() -> AdoptedStreamServerEndpoint:
    """As a socket of systemd is listened on."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=FLOOD)
    return AdoptedStreamServerEndpoint(reactor, listening.detach(), socket.AF_INET)


@pytest.mark.parametrize(
    "endpoint",
    [
        lambda path: TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"),
        lambda path: adopted(),
        lambda path: UNIXServerEndpoint(reactor, str(path / "socket"), backlog=FLOOD),
    ],
    ids=["tcp", "adopted", "unix"],
)
@pytest_twisted.ensureDeferred
async def test_a_service_refuses_a_flood_in_turns(
    endpoint: Callable[[Path], Any], stack: ExitStack, tmp_path: Path
) -> None:
    guard = Loopback(endpoints=[endpoint(tmp_path)], max_connections=1)
    guard.start()
    port: Any = guard.service.ports[0]
    first = stack.enter_context(socket.socket(port.addressFamily))
    first.connect(port.socket.getsockname())
    await guard.until(lambda: guard.factory.connections)
    flood(stack, port)
    assert max(accepted_in_turns(port)) <= MOST_IN_A_TURN
    first.close()
    await guard.close()


@pytest.mark.parametrize(
    "protocol", [TurnAway(TOO_MANY_CONNECTIONS), SilentTurnAway()], ids=["with a reply", "silently"]
)
@pytest_twisted.ensureDeferred
async def test_a_port_that_an_application_made_refuses_a_flood_in_turns(
    protocol: Protocol, stack: ExitStack
) -> None:
    port = reactor.listenTCP(0, ServerFactory.forProtocol(lambda: protocol), FLOOD, "127.0.0.1")
    flood(stack, port)
    assert max(accepted_in_turns(port)) <= MOST_IN_A_TURN
    await port.stopListening()
