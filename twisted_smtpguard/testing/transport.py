"""A TCP connection in memory, whose client reads as much as the test says."""

# ruff: noqa: N802 - Twisted's own method names

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from twisted_smtpguard.inputs.arguments import checked

_FULL_OCTETS = 64 * 1024
"""The buffer size above which Twisted pauses a streaming producer."""


class FakeTransport(StringTransport):
    """A transport that behaves as Twisted's TCP transport, with a client that reads everything at once unless `reads`
    is False.

    `host` and `port` are the client's; it is connected to 198.51.100.1, port 25. Set its `protocol`, then call the
    protocol's `makeConnection` with it. `value()` is what the client has read since the last `clear()`.
    """

    @checked
    def __init__(self, host: str = "192.0.2.1", port: int = 4711) -> None:
        kind = IPv6Address if ":" in host else IPv4Address
        super().__init__(IPv4Address("TCP", "198.51.100.1", 25), kind("TCP", host, port), lenient=True)
        self.protocol: Any = None
        self.reads = True
        """Whether the client reads. After a change from False to True it reads at the next `drain()`."""
        self.writes: list[bytes] = []
        """The data of each call of write()."""
        self.half_closed = False
        """Whether the guard has closed its sending side."""
        self.aborted = False
        """Whether the guard has aborted the connection, without sending what still waited."""
        self.lost = False
        """Whether the connection has ended."""
        self._unread = b""
        """What was written and the client has not read."""

    # Called by the guard.

    def write(self, data: bytes) -> None:
        if self.half_closed or self.lost:
            return
        self.writes.append(data)
        if self.reads:
            super().write(data)
        else:
            self._unread += data
            if self.streaming and self.producer is not None and len(self._unread) > _FULL_OCTETS:
                self.producer.pauseProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        if not streaming:
            producer.resumeProducing()
            self.drain()

    def unregisterProducer(self) -> None:
        super().unregisterProducer()
        self._close_if_done()

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There is no kernel that would delay anything."""

    def loseWriteConnection(self) -> None:
        self.half_closed = True
        self.protocol.writeConnectionLost()

    def loseConnection(self) -> None:
        self.disconnecting = True
        self._close_if_done()

    def abortConnection(self) -> None:
        self.aborted = True
        self.lose(ConnectionAborted())

    # Called by the test, for the client and the network.

    def drain(self) -> None:
        """Make the client read everything that was written, and what the guard writes because of that. With `reads`
        False this does nothing."""
        while self.reads and self.producer is not None and not (self.streaming or self.lost):
            self.io.write(self._unread)
            self._unread = b""
            self.producer.resumeProducing()
        if self.reads:
            self.io.write(self._unread)
            self._unread = b""
            if self.streaming and self.producer is not None:
                self.producer.resumeProducing()
            self._close_if_done()

    def take(self, octets: int) -> None:
        """Make the client read `octets` octets of what was written."""
        self.io.write(self._unread[:octets])
        self._unread = self._unread[octets:]
        if not self._unread and self.producer is not None:
            self.producer.resumeProducing()
        self._close_if_done()

    def lose(self, reason: BaseException | None = None) -> None:
        """End the connection, by default as the network or the client would. A second call does nothing."""
        if not self.lost:
            self.lost = True
            self.connected = False
            self.protocol.connectionLost(Failure(reason or ConnectionLost()))

    def _close_if_done(self) -> None:
        """End a connection that is closing, once there is no producer and the client has read everything."""
        if self.disconnecting and self.producer is None and not self._unread:
            self.lose(ConnectionDone())
