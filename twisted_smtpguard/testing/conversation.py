"""SMTP conversations with a guard in a test, without sockets and without a reactor: its time is a Clock.

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
from twisted_smtpguard.interfaces import ICounterStore, IDelivery, IIPFilter, ISessionPolicy
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.policies.policyentry import PolicyEntry
from twisted_smtpguard.testing.fakes import FakeDelivery
from twisted_smtpguard.testing.transport import FakeTransport
from twisted_smtpguard.transport.factory import SMTPGuardFactory


class Clients:
    """Makes clients of an application's own `factory`, which uses `clock`. For a service that is `service.factory`.

    Nothing happens between two calls of the test. Timers run when the test advances the clock.
    """

    @checked
    def __init__(self, factory: SMTPGuardFactory, clock: Clock) -> None:
        self.factory = factory
        self.clock = clock
        self.delivery: Any = factory.context.delivery

    @checked
    def connect(self, host: str = "192.0.2.1") -> Conversation:
        """Connect a client from the address `host`. If the greeting comes at once, it is the first thing that `heard`
        returns."""
        transport = FakeTransport(host)
        protocol = self.factory.buildProtocol(transport.getPeer())
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return Conversation(self, protocol, transport)

    @checked
    def greeted(self, host: str = "192.0.2.1") -> Conversation:
        """Connect a client that has sent EHLO. The greeting and the answer are already read, if they come at once."""
        client = self.connect(host)
        client.say("EHLO client.example")
        return client


class Guard(Clients):
    """A guard for a test, and its clients. Its hostname is guard.example.

    `delivery` is by default a FakeDelivery, and `clock` a new one. `limits` are fields of Limits. The other arguments
    are those of SMTPGuardFactory, except that AUTH is offered without TLS, since there is no TLS here. The test has to
    start a delivery, filter or policy that is a service.
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
        policies: Sequence[ISessionPolicy | PolicyEntry] = (),
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
            policies=policies,
        )
        super().__init__(factory, clock)


class Conversation:
    """The client's side of one connection."""

    @checked
    def __init__(self, guard: Clients, protocol: Any, transport: FakeTransport) -> None:
        self.guard = guard
        self.protocol = protocol
        self.transport = transport

    @checked
    def send(self, octets: bytes, *, bytewise: bool = False) -> str:
        """Send octets as they are, all at once or a byte at a time. Returns the guard's answer, as `heard` does."""
        for piece in (octets[i : i + 1] for i in range(len(octets))) if bytewise else (octets,):
            if self.transport.lost:
                break
            self.protocol.dataReceived(piece)
            # For a long burst the guard needs several turns of the reactor.
            self.guard.clock.advance(0)
        return self.heard()

    @checked
    def say(self, *lines: str, bytewise: bool = False) -> str:
        """Send lines in one piece; a CRLF is added to each. Returns the guard's answer, as `heard` does."""
        return self.send("".join(f"{line}\r\n" for line in lines).encode(), bytewise=bytewise)

    def heard(self) -> str:
        """Everything that the guard has sent since the last call, each line with its CRLF."""
        said: str = self.transport.value().decode("ascii")
        self.transport.clear()
        return said

    @checked
    def codes(self, *lines: str) -> list[int]:
        """Send lines as `say` does. Returns the codes of the replies."""
        return codes(self.say(*lines))

    def half_close(self) -> str:
        """Close the client's sending side; the client goes on reading. Returns the guard's answer."""
        self.protocol.readConnectionLost()
        return self.heard()

    def disconnect(self) -> None:
        """Close the connection from the client's side."""
        self.transport.lose()

    @property
    def closed(self) -> bool:
        """Whether the guard has closed its side of the connection."""
        return self.transport.half_closed or self.transport.lost


@checked
def codes(said: str) -> list[int]:
    """The code of each reply in `said`. A reply of several lines has one code."""
    return [int(line[:3]) for line in said.split("\r\n") if line[3:4] == " "]
