"""A policy server in memory, which says what a test lets it say."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.policies.policyentry import PolicyEntry
from twisted_smtpguard.policies.policyserver import PolicyServer
from twisted_smtpguard.testing import Guard


class Link:
    """One connection: the transport that the guard writes to. `asked` has the requests that have come whole."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.asked: list[dict[str, str]] = []
        self.open = True
        self._octets = b""

    def write(self, octets: bytes) -> None:
        assert self.open
        self._octets += octets
        *whole, self._octets = self._octets.split(b"\n\n")
        self.asked += [dict(line.split("=", 1) for line in each.decode().split("\n")) for each in whole]

    def abortConnection(self) -> None:
        self._end(ConnectionAborted())

    def say(self, octets: bytes, *, bytewise: bool = False) -> None:
        for piece in (octets[i : i + 1] for i in range(len(octets))) if bytewise else (octets,):
            if self.open:
                self.protocol.dataReceived(piece)

    def answer(self, action: str = "DUNNO") -> None:
        self.say(f"action={action}\n\n".encode())

    def close(self) -> None:
        self._end(ConnectionDone())

    def _end(self, why: Exception) -> None:
        if self.open:
            self.open = False
            self.protocol.connectionLost(Failure(why))


@implementer(IStreamClientEndpoint)
class ScriptedServer:
    """`links` has its connections, the oldest first."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.reachable = True
        self.answers_connects = True
        self.connects_cancelled = 0

    def connect(self, factory: Any) -> Deferred[Any]:
        if not self.reachable:
            return fail(ConnectError("refused"))
        if not self.answers_connects:
            return Deferred(self._cancelled)
        protocol = factory.buildProtocol(None)
        link = Link(protocol)
        self.links.append(link)
        protocol.makeConnection(link)
        return succeed(protocol)

    def _cancelled(self, _: object) -> None:
        self.connects_cancelled += 1

    @property
    def open(self) -> list[Link]:
        return [link for link in self.links if link.open]


class Policed:
    """A guard that asks a ScriptedServer about each recipient, or at other `stages`."""

    def __init__(
        self,
        *stages: str,
        fail_open: bool = False,
        timeout: float | None = None,
        connections: int = 50,
        **limits: Any,
    ) -> None:
        self.clock = Clock()
        self.server = ScriptedServer()
        self.policy = PolicyServer(
            self.server, self.clock, max_connections=connections, stages=frozenset(stages or ("rcpt",))
        )
        entry = PolicyEntry(self.policy, "scripted", fail_open=fail_open, timeout=timeout)
        self.guard = Guard(clock=self.clock, policies=[entry], **limits)
        self.delivery = self.guard.delivery

    def at_recipient(self) -> Any:
        """A client that has sent MAIL and RCPT. `at_once` has what it was told before the server said anything."""
        client = self.guard.greeted()
        client.say("MAIL FROM:<a@example.org>")
        self.at_once = client.say("RCPT TO:<b@example.org>")
        return client
