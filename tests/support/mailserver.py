"""An upstream server of the guard, in memory: polite by default, and as bad as a test says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
from manual_threads import ManualThreads
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.delivery.lmtp import LmtpDelivery
from twisted_smtpguard.delivery.smtp import SmtpDelivery
from twisted_smtpguard.testing import Conversation, Guard
from twisted_smtpguard.upstream.parameters import UpstreamOptions

Answer = str | Callable[["Link", str], object]

KEYWORDS = ("PIPELINING", "SIZE 5000000", "8BITMIME", "SMTPUTF8", "CHUNKING", "DSN", "ENHANCEDSTATUSCODES")


def silence(link: Link, line: str) -> None:
    """Says nothing, and never will."""


def hangs_up(link: Link, line: str) -> None:
    """Closes the connection instead of an answer."""
    link.close()


@attrs.define
class Taken:
    """A message that the server has said 250 to, or what its `answers["."]` said."""

    envelope: list[str]
    octets: bytes


@implementer(IStreamClientEndpoint)
class MailServer:
    """`answers` has what it says to a command, by its verb: text, or what to call with the link and the line.
    "greeting" and "." are verbs too."""

    make_link: type[Link]

    def __init__(self, *keywords: str) -> None:
        self.keywords = keywords or KEYWORDS
        self.answers: dict[str, Answer] = {}
        self.clock: Any = None
        """The guard's."""
        self.links: list[Link] = []
        self.taken: list[Taken] = []
        self.reachable = True
        self.answers_connects = True
        self.cancelled_connects = 0
        self.handshakes_fail = False
        self.tls_options: list[Any] = []
        self.verdicts: list[str] = []
        """LMTP: what is said of each recipient at the end of a message."""

    def connect(self, factory: Any) -> Deferred[Any]:
        if not self.answers_connects:
            return Deferred(self._connect_cancelled)
        if not self.reachable:
            return fail(ConnectError("refused"))
        protocol = factory.buildProtocol(None)
        link = self.make_link(self, protocol)
        self.links.append(link)
        protocol.makeConnection(link)
        link.answer("greeting", "")
        return succeed(protocol)

    def _connect_cancelled(self, connecting: Deferred[Any]) -> None:
        # As Twisted's endpoints do.
        self.cancelled_connects += 1
        connecting.errback(ConnectingCancelledError(None))

    @property
    def open_links(self) -> list[Link]:
        return [link for link in self.links if not link.closed]

    @property
    def commands(self) -> list[str]:
        """All lines that were heard, on all connections."""
        return [line for link in self.links for line in link.heard]


class Link:
    """One connection: the transport that the guard has, and the server's side of it."""

    def __init__(self, server: MailServer, protocol: Any) -> None:
        self.server = server
        self.protocol = protocol
        self.heard: list[str] = []
        self.octets = b""
        """All that came."""
        self.closed = False
        self.secure = False
        self.reads = True
        self.lingers = False
        """Does not close its side when the guard closes, as may be under TLS."""
        self.producer: Any = None
        self._buffer = b""
        self._data: bytes | None = None
        self._chunk = -1
        self._last = False
        self._message = b""
        self._envelope: list[str] = []
        self._owes_answer = False
        """Whether it has not answered what it has read last, and so reads no further command."""

    # The guard's transport.

    def write(self, octets: bytes) -> None:
        if self.closed:
            return
        self.octets += octets
        self._buffer += octets
        if self.reads:
            self._read()
        elif self.producer is not None and len(self._buffer) > 16384:
            self.producer.pauseProducing()

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "10.0.0.1", 40000)

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "10.0.0.5", 25)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def startTLS(self, options: Any) -> None:
        self.server.tls_options.append(options)
        if self.server.handshakes_fail:
            self.close()
        else:
            self.secure = True
            self.protocol.handshakeCompleted()

    def loseConnection(self) -> None:
        assert self.producer is None, "it would wait for its producer indefinitely"
        if not self.lingers:
            self._end(ConnectionDone())

    def abortConnection(self) -> None:
        self._end(ConnectionAborted())

    def _end(self, reason: BaseException) -> None:
        if not self.closed:
            self.closed = True
            self.protocol.connectionLost(Failure(reason))

    # The server.

    def close(self) -> None:
        """The server ends the connection."""
        self._end(ConnectionLost())

    def says(self, text: str) -> None:
        owed, self._owes_answer = self._owes_answer, False
        if not self.closed:
            self.protocol.dataReceived(text.encode() + b"\r\n")
        if owed and self.reads:
            self._read()

    def reads_on(self) -> None:
        self.reads = True
        self._read()
        if self.producer is not None:
            self.producer.resumeProducing()

    def answer(self, verb: str, line: str) -> None:
        said = self.server.answers.get(verb, _POLITE.get(verb, "250 2.0.0 Ok"))
        # A PROXY header is no command, and what stands for the greeting may be its answer.
        self._owes_answer = said is silence and verb not in ("PROXY", "greeting")
        text = said(self, line) if callable(said) else said
        if isinstance(text, str):
            self.says(text)

    def begin_data(self) -> None:
        """What comes now is a message."""
        self._data = b"\r\n"

    def _read(self) -> None:
        while not (self.closed or self._owes_answer) and self._step():
            pass

    def _step(self) -> bool:
        if self._data is not None:
            return self._read_data()
        if self._chunk >= 0:
            return self._read_chunk()
        if self._buffer.startswith(b"\r\n\r\n\x00\r\nQUIT\n"):
            # A PROXY header, version 2.
            self._buffer = self._buffer[16 + int.from_bytes(self._buffer[14:16], "big") :]
        line, crlf, rest = self._buffer.partition(b"\r\n")
        if not crlf:
            return False
        self._buffer = rest
        self._command(line.decode("utf-8"))
        return True

    def _read_data(self) -> bool:
        assert self._data is not None
        self._data, self._buffer = self._data + self._buffer, b""
        if b"\r\n.\r\n" not in self._data:
            return False
        body, _, self._buffer = self._data.partition(b"\r\n.\r\n")
        self._data = None
        self._take((body + b"\r\n").removeprefix(b"\r\n").replace(b"\r\n..", b"\r\n."))
        return True

    def _read_chunk(self) -> bool:
        if len(self._buffer) < self._chunk:
            return False
        self._message += self._buffer[: self._chunk]
        self._buffer = self._buffer[self._chunk :]
        self._chunk = -1
        message = self._message
        if self._last:
            self._message = b""
            self._take(message)
        else:
            self.answer("BDAT", "")
        return True

    def _take(self, message: bytes) -> None:
        recipients = sum(line.startswith("RCPT") for line in self._envelope)
        self.server.taken.append(Taken(self._envelope, message))
        self._envelope = []
        if self.server.verdicts:
            for verdict in self.server.verdicts[:recipients]:
                if verdict == "close":
                    self.close()
                    return
                self.says(verdict)
        else:
            lmtp = any(line.startswith("LHLO") for line in self.heard)
            for _ in range(recipients if lmtp else 1):
                self.answer(".", "")

    def _command(self, line: str) -> None:
        self.heard.append(line)
        verb = line.split(maxsplit=1)[0].upper()
        if verb == "BDAT":
            self._chunk, self._last = int(line.split()[1]), line.endswith("LAST")
            return
        if verb in ("EHLO", "LHLO") and verb not in self.server.answers:
            lines = ["mx.example", *self.server.keywords]
            self.says("\r\n".join(f"250{' ' if line is lines[-1] else '-'}{line}" for line in lines))
            return
        if verb == "DATA" and verb not in self.server.answers:
            self.begin_data()
        elif verb in ("MAIL", "RCPT"):
            self._envelope.append(line)
        elif verb == "RSET":
            self._envelope = []
        self.answer(verb, line)
        if verb == "QUIT" and not self.lingers:
            self.close()


MailServer.make_link = Link

_POLITE = {
    "greeting": "220 mx.example ESMTP",
    "MAIL": "250 2.1.0 Sender noted",
    "RCPT": "250 2.1.5 Recipient noted",
    "DATA": "354 Go ahead",
    ".": "250 2.0.0 Queued as 4711",
    "QUIT": "221 2.0.0 Bye",
    "XCLIENT": "220 mx.example ESMTP",
}


class Behind(Guard):
    """A guard whose upstream server is `server`, started. `options` are fields of UpstreamOptions."""

    def __init__(self, server: MailServer, *, lmtp: bool = False, limits: Any = None, **options: Any) -> None:
        self.server = server
        clock = ManualThreads()
        self.threads = clock
        server.clock = clock
        kind = LmtpDelivery if lmtp else SmtpDelivery
        self.proxy = kind(server, clock, hostname="guard.example", options=UpstreamOptions(**options))
        super().__init__(self.proxy, clock, **(limits or {}))
        self.proxy.startService()

    def sends(
        self, client: Conversation, body: str = "Subject: x\r\n\r\ntext\r\n", to: str = "b@example.org"
    ) -> str:
        """The last line that a client hears of a message."""
        said = client.say("MAIL FROM:<a@example.com>")
        said += client.say(f"RCPT TO:<{to}>")
        said += client.say("DATA")
        if re.search("^354 ", said, re.MULTILINE):
            said += client.send(f"{body}.\r\n".encode())
        return said.splitlines()[-1]

    def assert_nothing_is_left(self) -> None:
        """No place of the pool is taken, and nothing is to happen when the service has stopped."""
        places = self.proxy._pool.places
        assert places.in_use == len(places.idle) + len(places.parked)
        stopped: list[object] = []
        self.proxy.stopService().addBoth(stopped.append)
        self.clock.advance(0)
        assert len(stopped) == 1
        assert not isinstance(stopped[0], Failure)
        assert self.server.open_links == []
        assert places.in_use == 0
        assert not places.closing
