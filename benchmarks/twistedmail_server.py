"""twisted.mail as a server that takes every message and forgets it: `python twistedmail_server.py PORT [refusing]`.

Its protocol as it stands, with the least delivery that it asks for. It has no cap on connections: to refuse them
is left to the least protocol that Twisted can have, which says a 421 and closes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.mail.smtp import ESMTP, IMessage, IMessageDelivery, SMTPFactory
from zope.interface import implementer

reactor: Any = real_reactor
counts = {"messages": 0, "recipients": 0, "refused": 0}


@implementer(IMessage)
class Forgotten:
    """What twisted.mail makes for each recipient."""

    def lineReceived(self, line: bytes) -> None:  # noqa: N802 - Twisted's names
        pass

    def eomReceived(self) -> Deferred[None]:  # noqa: N802
        counts["recipients"] += 1
        return succeed(None)

    def connectionLost(self) -> None:  # noqa: N802
        pass


@implementer(IMessageDelivery)
class Discard:
    def receivedHeader(self, helo: Any, origin: Any, recipients: Any) -> bytes:  # noqa: N802
        return b""

    def validateFrom(self, helo: Any, origin: Any) -> Any:  # noqa: N802
        return origin

    def validateTo(self, user: Any) -> Any:  # noqa: N802
        return Forgotten


class Counting(ESMTP):
    noisy = False

    def do_DATA(self, rest: bytes) -> None:  # noqa: N802
        counts["messages"] += 1
        super().do_DATA(rest)


class Refusal(Protocol):
    def connectionMade(self) -> None:  # noqa: N802
        counts["refused"] += 1
        assert self.transport is not None
        self.transport.write(b"421 4.3.2 Too many connections\r\n")
        self.transport.loseConnection()


def make() -> Counting:
    protocol = Counting()
    protocol.delivery = Discard()
    return protocol


refusing = sys.argv[2:] == ["refusing"]
factory: Any = ServerFactory.forProtocol(Refusal) if refusing else SMTPFactory.forProtocol(make)
factory.noisy = False
reactor.listenTCP(int(sys.argv[1]), factory, 1024, "127.0.0.1")
reactor.addSystemEventTrigger("after", "shutdown", lambda: print(json.dumps(counts)))
reactor.run()
