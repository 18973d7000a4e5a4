"""Whatever raises while a guard starts, stops or reads its data anew, every part of it is closed and stopped."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeDelivery, codes
from test_faults_on_the_way_out import ENVELOPE, Fault, faulty, guard, pending
from twisted.application.service import IService, Service
from twisted.cred.checkers import AllowAnonymousAccess
from twisted.cred.portal import Portal
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.mail.interfaces import IMessageDelivery
from zope.interface import implementer

from twisted_smtpguard import SMTPGuardService, TwistedMailDelivery
from twisted_smtpguard.interfaces import IReloadable
from twisted_smtpguard.testing import Clients


class Port:
    """One that cannot be closed."""

    stopListening = faulty

    def getHost(self) -> UNIXAddress:
        return UNIXAddress("faulty")


@implementer(IStreamServerEndpoint)
class Endpoint:
    def __init__(self, port: object) -> None:
        self.port = port

    def listen(self, factory: object) -> Deferred[Any]:
        return succeed(self.port)


class GoodPort(Port):
    closed = False

    def stopListening(self) -> None:
        self.closed = True


@implementer(IStreamServerEndpoint)
class Busy:
    def listen(self, factory: object) -> Deferred[Any]:
        raise CannotListenError(None, 25, OSError())


@implementer(IService)
class Part(FakeDelivery, Service):
    stopped = 0

    def stopService(self) -> None:
        self.stopped += 1
        raise Fault


def test_a_listener_that_cannot_be_closed_does_not_prevent_a_proper_stop() -> None:
    clock, good, part = Clock(), GoodPort(), Part()
    service = SMTPGuardService(clock, [Endpoint(Port()), Endpoint(good)], part)
    service.startService()
    client = Clients(service.factory, clock).greeted()
    stopped: list[object] = []
    with capturedLogs() as logged:
        service.stopService().addBoth(stopped.append)
        clock.advance(0)
        assert good.closed
        assert codes(client.heard())[-1] == 421
        client.disconnect()
    assert stopped == [None]
    assert part.stopped == 1
    texts = [event["text"] for event in logged if event.get("event") == "failure"]
    assert sum("stopping a filter or the delivery" in text for text in texts) == 1
    # And it can be started again.
    service._listeners = []
    service.startService()


def test_a_start_that_fails_closes_every_listener_though_one_cannot_be_closed() -> None:
    clock, good, part = Clock(), GoodPort(), Part()
    service = SMTPGuardService(clock, [Endpoint(Port()), Endpoint(good), Busy()], part)
    with capturedLogs() as logged, pytest.raises(CannotListenError):
        service.startService()
    assert sum("stopping a filter or the delivery" in event.get("text", "") for event in logged) == 1
    assert good.closed
    assert part.stopped == 1
    assert service.ports == ()


@implementer(IReloadable)
class Reloading(Part):
    def reload(self) -> Deferred[None]:
        return pending()


def test_a_reload_that_cannot_be_cancelled_keeps_nothing_from_stopping() -> None:
    clock, delivery = Clock(), Reloading()
    service = SMTPGuardService(clock, [Endpoint(GoodPort())], delivery)
    service.startService()
    outcomes: list[object] = []
    service.reload().addBoth(outcomes.append)
    service.stopService().addBoth(outcomes.append)
    assert outcomes == [None, None]
    assert delivery.stopped == 1


# The bridge to twisted.mail.


def test_a_logout_that_raises_is_the_last_that_is_heard_of_a_session() -> None:
    class Realm:
        def requestAvatar(self, avatar_id: object, mind: object, *interfaces: Any) -> Any:
            return IMessageDelivery, Deliverer(), faulty

    @implementer(IMessageDelivery)
    class Deliverer:
        def validateFrom(self, helo: object, origin: object) -> object:
            return origin

        def validateTo(self, user: object) -> Any:
            return Message

        def receivedHeader(self, *_: object) -> bytes:
            return b""

    class Message:
        lineReceived = eomReceived = connectionLost = faulty

        def __init__(self) -> None:
            self.lineReceived = lambda line: None

    portal = Portal(Realm(), [AllowAnonymousAccess()])  # type: ignore[arg-type]
    clients = guard(TwistedMailDelivery(portal, "guard.example"))  # type: ignore[arg-type]
    client = clients.greeted()
    client.heard()
    assert client.codes(*ENVELOPE, "DATA", "text") == [250, 250, 354]
    client.disconnect()
    assert clients.factory.connections == 0
    stopped: list[None] = []
    clients.factory.drain().addCallback(stopped.append)
    assert stopped == [None]
