"""Objects for twisted.mail.smtp that write down what they see, and the two guards to show it to them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from fakes import Conversation, FakeTransport, Guard
from twisted.cred.checkers import AllowAnonymousAccess, InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, succeed
from twisted.mail import smtp
from twisted.mail.imap4 import PLAINCredentials
from zope.interface import implementer

from twisted_smtpguard import TwistedMailDelivery

HOST = "guard.example"
KINDS = ("delivery", "factory", "portal of deliveries", "portal of factories")


class Notebook:
    """What the objects saw, and how they answer.

    `answers[hook]` is called with the hook's arguments where it is set, and its result is the hook's answer.
    """

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.answers = answers
        self.numbers = count(1)
        self.protocols: set[Any] = set()

    def ask(self, hook: str, default: Any, *args: Any) -> Any:
        """What the hook is to answer, which may be to raise."""
        answer = self.answers.get(hook)
        return default if answer is None else answer(*args)

    def calls(self) -> list[str]:
        """What was called, without the arguments."""
        return [entry[0] for entry in self.seen]


def octets(address: Any) -> object:
    """All there is in an address. A delivery may answer with another kind."""
    if not isinstance(address, smtp.Address):
        return address
    return bytes(address), address.local, address.domain, address.addrstr


def written(user: smtp.User) -> tuple[Any, ...]:
    """All there is in a User."""
    transport = user.protocol.transport
    ends = transport.getPeer(), transport.getHost()
    return octets(user.dest), user.helo, octets(user.orig), user.protocol.host, ends


@implementer(smtp.IMessageDelivery)
class Delivery:
    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook

    def validateFrom(self, helo: Any, origin: Any) -> Any:
        self.notebook.seen.append(("validateFrom", helo, octets(origin)))
        return self.notebook.ask("validateFrom", origin, helo, origin)

    def validateTo(self, user: Any) -> Any:
        self.notebook.seen.append(("validateTo", *written(user)))
        self.notebook.protocols.add(user.protocol)
        return self.notebook.ask("validateTo", lambda: self.make_message(user), user)

    def make_message(self, user: Any) -> Any:
        self.notebook.seen.append(("make_message", bytes(user)))
        return self.notebook.ask("make_message", Message(self.notebook), user)

    def receivedHeader(self, helo: Any, origin: Any, recipients: list[Any]) -> Any:
        self.notebook.seen.append(("receivedHeader", helo, octets(origin), [written(u) for u in recipients]))
        return self.notebook.ask("receivedHeader", b"Received: from x\n\tby y", recipients)


@implementer(smtp.IMessage)
class Message:
    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.number = next(notebook.numbers)

    def lineReceived(self, line: Any) -> None:
        self.notebook.seen.append(("line", self.number, line))
        self.notebook.ask("lineReceived", None, self.number, line)

    def eomReceived(self) -> Any:
        self.notebook.seen.append(("eom", self.number))
        return self.notebook.ask("eomReceived", succeed(None), self.number)

    def connectionLost(self) -> Any:
        self.notebook.seen.append(("lost", self.number))
        return self.notebook.ask("connectionLost", None, self.number)


@implementer(smtp.IMessageDeliveryFactory)
class DeliveryFactory:
    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook

    def getMessageDelivery(self) -> Any:
        self.notebook.seen.append(("getMessageDelivery",))
        return self.notebook.ask("getMessageDelivery", Delivery(self.notebook))


@implementer(IRealm)
class Realm:
    def __init__(self, notebook: Notebook, *, factories: bool) -> None:
        self.notebook = notebook
        self.factories = factories

    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: Any) -> Any:
        self.notebook.seen.append(("login", avatarId, mind, interfaces))
        interface: Any = smtp.IMessageDeliveryFactory if self.factories else smtp.IMessageDelivery
        avatar = DeliveryFactory(self.notebook) if self.factories else Delivery(self.notebook)
        return self.notebook.ask("login", (interface, avatar, self.logout))

    def logout(self) -> Any:
        self.notebook.seen.append(("logout",))
        return self.notebook.ask("logout", None)


def users() -> Any:
    """A checker that knows bob."""
    checker = InMemoryUsernamePasswordDatabaseDontUse()
    checker.addUser(b"bob", b"secret")
    return checker


def auth(password: str) -> str:
    """The command with which bob logs in, or somebody who does not know his password."""
    return "AUTH PLAIN " + b64encode(f"\0bob\0{password}".encode()).decode()


def deliverer(kind: str, notebook: Notebook) -> Any:
    """One of KINDS."""
    if kind.startswith("portal"):
        realm = Realm(notebook, factories=kind.endswith("factories"))
        return Portal(realm, [AllowAnonymousAccess(), users()])
    return Delivery(notebook) if kind == "delivery" else DeliveryFactory(notebook)


class Stock:
    """twisted.mail's own protocol, as a client meets it."""

    def __init__(self, kind: str, notebook: Notebook) -> None:
        thing = deliverer(kind, notebook)
        factory = smtp.SMTPFactory(thing if kind.startswith("portal") else None)
        factory.protocol = lambda: smtp.ESMTP({b"PLAIN": PLAINCredentials})
        factory.domain = HOST.encode()
        self.transport = FakeTransport()
        protocol: Any = factory.buildProtocol(None)
        if kind == "delivery":
            protocol.delivery = thing
        elif kind == "factory":
            protocol.deliveryFactory = thing
        protocol.timeout = None
        protocol.noisy = False
        self.transport.protocol = self.protocol = protocol
        protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> str:
        """What it says to these octets."""
        self.transport.clear()
        if not self.transport.lost:
            self.protocol.dataReceived(data)
        return self.transport.value().decode("ascii")

    def disconnect(self) -> None:
        """The client is gone."""
        self.transport.lose()


def guarded(notebook: Notebook, kind: str = "portal of factories", **limits: Any) -> Conversation:
    """A client of a guard whose messages go to the objects of `notebook`; it has been greeted."""
    delivery = TwistedMailDelivery(deliverer(kind, notebook), HOST)
    client = Guard(delivery, checkers=[users()], **limits).connect()
    client.heard()
    return client


def pieces(octets: bytes, size: int) -> Iterator[bytes]:
    """The octets, `size` at a time."""
    return (octets[start : start + size] for start in range(0, len(octets), size))


class Late:
    """Answers that do not come by themselves. Called, it makes one; `fire` lets all come that are pending."""

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.pending: list[tuple[Deferred[Any], Any]] = []
        self.cancelled = 0

    def __call__(self, value: Any) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred(self._cancelled)
        self.pending.append((deferred, value))
        return deferred

    def _cancelled(self, _: object) -> None:
        self.cancelled += 1

    def fire(self) -> None:
        """Also those that are asked for meanwhile."""
        while self.pending:
            deferred, value = self.pending.pop(0)
            if not deferred.called:
                if isinstance(value, Exception):
                    deferred.errback(value)
                else:
                    deferred.callback(value)
