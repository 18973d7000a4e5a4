"""The network of a client in memory ends a connection when TCP would."""

from __future__ import annotations

import pytest
from twisted.internet.protocol import Protocol

from twisted_smtpguard.testing import FakeTransport


class Server(Protocol):
    def __init__(self) -> None:
        self.resumed = 0

    def resumeProducing(self) -> None:
        self.resumed += 1

    def pauseProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass


@pytest.fixture
def transport() -> FakeTransport:
    transport = FakeTransport()
    transport.protocol = Server()
    transport.protocol.makeConnection(transport)
    return transport


@pytest.mark.parametrize("at_once", [True, False])
def test_a_close_waits_until_the_client_has_read_everything(transport: FakeTransport, at_once: bool) -> None:
    transport.reads = False
    transport.write(b"221 Bye\r\n")
    transport.loseConnection()
    assert not transport.lost
    if at_once:
        transport.reads = True
        transport.drain()
    else:
        transport.take(5)
        assert not transport.lost
        transport.take(5)
    assert transport.value() == b"221 Bye\r\n"
    assert transport.lost


def test_a_close_waits_for_a_producer(transport: FakeTransport) -> None:
    transport.registerProducer(transport.protocol, True)
    transport.loseConnection()
    transport.drain()
    assert not transport.lost
    transport.unregisterProducer()
    assert transport.lost
