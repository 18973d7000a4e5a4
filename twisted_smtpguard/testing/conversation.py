"""Conversations with a guard without sockets and reactor: its time is a Clock, and its clients do what a test says.

guard = Guard(MyDelivery())
client = guard.greeted()
assert client.codes("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>") == [250, 250]
guard.clock.advance(300)
assert client.closed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.task import Clock

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.interfaces import ICounterStore, IDelivery, IIPFilter
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.testing.fakes import FakeDelivery
from twisted_smtpguard.testing.transport import FakeTransport
from twisted_smtpguard.transport.factory import SMTPGuardFactory


class Clients:
    """Clients of an application's own `factory`, which was made on `clock`: for a service `service.factory`.

    Nothing happens between two calls of the test. What is to happen later happens when it advances the clock.
    """

    @checked
    def __init__(self, factory: SMTPGuardFactory, clock: Clock) -> None:
        self.factory = factory
        self.clock = clock
        self.delivery: Any = factory.context.delivery

    @checked
    def connect(self, host: str = "192.0.2.1") -> Conversation:
        """A client connects from the address `host`. What it is greeted with, if at once, is the first thing it
        hears."""
        transport = FakeTransport(host)
        protocol = self.factory.buildProtocol(transport.getPeer())
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return Conversation(self, protocol, transport)

    @checked
    def greeted(self, host: str = "192.0.2.1") -> Conversation:
        """A client that has heard its greeting and the answer to its EHLO, where those come at once."""
        client = self.connect(host)
        client.say("EHLO client.example")
        return client


class Guard(Clients):
    """A guard of a test's own, with clients. It calls itself guard.example.

    `delivery` is by default a FakeDelivery, and `clock` a new one; `limits` are fields of Limits, the rest is as for
    SMTPGuardFactory, but that AUTH is offered in clear: no TLS is spoken here. A delivery or filter that is a service
    has to be started by the test.
    """

    @checked
    def __init__(
        self,
        delivery: IDelivery | None = None,
        clock: Clock | None = None,
        *,
        ip_filters: Sequence[IIPFilter | FilterEntry] = (),
        counters: ICounterStore | None = None,
        proxy_protocol_from: Sequence[str] = (),
        proxy_protocol_tls: bool = False,
        checkers: Sequence[object] = (),
        auth_without_tls: bool = True,
        require_auth: bool = False,
        **limits: Any,
    ) -> None:
        clock = clock or Clock()
        factory = SMTPGuardFactory(
            clock,
            FakeDelivery() if delivery is None else delivery,
            limits=Limits(**limits),
            hostname="guard.example",
            ip_filters=ip_filters,
            counters=counters,
            proxy_protocol_from=proxy_protocol_from,
            proxy_protocol_tls=proxy_protocol_tls,
            checkers=checkers,
            auth_without_tls=auth_without_tls,
            require_auth=require_auth,
        )
        super().__init__(factory, clock)


class Conversation:
    """One client's side of a connection."""

    @checked
    def __init__(self, guard: Clients, protocol: Any, transport: FakeTransport) -> None:
        self.guard = guard
        self.protocol = protocol
        self.transport = transport

    @checked
    def send(self, octets: bytes, *, bytewise: bool = False) -> str:
        """Send octets as they are, all at once or a byte at a time. What is said to them, as `heard` tells it."""
        for piece in (octets[i : i + 1] for i in range(len(octets))) if bytewise else (octets,):
            if self.transport.lost:
                break
            self.protocol.dataReceived(piece)
            # A long burst takes several turns of the reactor.
            self.guard.clock.advance(0)
        return self.heard()

    @checked
    def say(self, *lines: str, bytewise: bool = False) -> str:
        """Send lines in one piece: each gets its CRLF here, so none has to be written. What the guard says to them, as
        `heard` tells it."""
        return self.send("".join(f"{line}\r\n" for line in lines).encode(), bytewise=bytewise)

    def heard(self) -> str:
        """All that the guard has said since this was last asked, each line with its CRLF."""
        said: str = self.transport.value().decode("ascii")
        self.transport.clear()
        return said

    @checked
    def codes(self, *lines: str) -> list[int]:
        """Send lines as `say` does; the codes of the replies to them."""
        return codes(self.say(*lines))

    def half_close(self) -> str:
        """The client says no more, and goes on reading; what the guard says to that."""
        self.protocol.readConnectionLost()
        return self.heard()

    def disconnect(self) -> None:
        """The client is gone."""
        self.transport.lose()

    @property
    def closed(self) -> bool:
        """The guard says no more."""
        return self.transport.half_closed or self.transport.lost


@checked
def codes(said: str) -> list[int]:
    """The code of each reply in what the guard said. A reply of several lines is one."""
    return [int(line[:3]) for line in said.split("\r\n") if line[3:4] == " "]
