"""The channel between the supervisor and one worker: a line of JSON for each message, on a socket that both inherit.

The supervisor asks, and the worker answers. Any number of questions may be open at once; each has a number.

    {"ask": 7, "verb": "why", "args": {…}, "by": "uid:0", "quiet": false}
                                                              carry out a verb of the operator; quiet: log no event
    {"cancel": 7}                                             nobody wants the rows of this answer any more
    {"retire": true}                                          close the listeners, and end when the sessions have ended
    {"stop": true}                                            stop, as by SIGTERM
    {"end": true}                                             end the grace of the stop

    {"ready": {…}}                                            the worker listens; with its status
    {"answer": 7, "rows": […]}                                some rows of the answer
    {"answer": 7, "rows": […], "lost": 3}                     so many rows before these were left out
    {"answer": 7, "done": {…}, "state": …}                    the end of the answer; after a change what is in force
    {"answer": 7, "error": "…"}                               refused, by this sentence
    {"alone": "…"}                                            its counter store is away, for this reason; null: is back
    {"stress": [true, 400, 500]}                              stress begins or ends, with the connections and the cap
    {"last": {…}, "metrics": {…}}                             the status at the end, and the metrics if there are any

In both directions, without an answer:

    {"records": [["ban", "192.0.2.1", "…", 1800000000.5], …]} records that have been put, with value and end
    {"records": [["ban", "192.0.2.1"]]}                       one that has been removed

The first line of all, which the worker reads before it does anything else, is the state that it begins with. All
records that there are follow, some in each message, and a message without any.
"""

# ruff: noqa: N802 - Twisted's own names

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

METRICS = "metrics"
"""A verb that no operator has: what the worker's part of the metrics is."""

_PIECE = 64 * 1024

Message = dict[str, Any]


@implementer(IPushProducer)
class Channel(LineOnlyReceiver):
    """One end of a channel. `received` is called with each message, and `lost` when the other end is gone."""

    transport: Any = None
    full = False
    """Whether the other end has to read before it should be sent what can wait, or what it can do without."""
    delimiter = b"\n"
    # Both ends are the guard itself.
    MAX_LENGTH = 1 << 40

    def __init__(self, received: Callable[[Message], object], lost: Callable[[], object]) -> None:
        self._received = received
        self._lost = lost
        self.on_room: Callable[[], object] = lambda: None
        """Called when it is not full any more."""

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)

    # IPushProducer: the transport holds more than it wants to, and holds nothing.

    def pauseProducing(self) -> None:
        self.full = True

    def resumeProducing(self) -> None:
        self.full = False
        self.on_room()

    def stopProducing(self) -> None:
        pass

    def lineReceived(self, line: bytes) -> None:
        self._received(json.loads(line))

    def send(self, message: Message) -> None:
        """Send a message. If the other end is gone it is dropped."""
        if self.transport is not None:
            self.transport.write(json.dumps(message, separators=(",", ":")).encode("ascii") + self.delimiter)

    def close(self) -> None:
        """Close this end, when all that was sent has left."""
        if self.transport is not None:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost()


class _Opening(Factory):
    noisy = False

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def buildProtocol(self, addr: IAddress | None) -> Channel:
        return self._channel


def open_channel(reactor: Any, descriptor: int, channel: Channel) -> None:
    """Connect an end with its socket. The descriptor is closed, since the reactor has its own."""
    os.set_blocking(descriptor, False)
    reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, _Opening(channel))
    os.close(descriptor)


def first_message(descriptor: int) -> Any:
    """Wait for the first line of a channel, and return what it says. EOFError: the other end is gone."""
    line = b""
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        connection.setblocking(True)
        while not line.endswith(b"\n"):
            waiting = connection.recv(_PIECE, socket.MSG_PEEK)
            if not waiting:
                raise EOFError
            end = waiting.find(b"\n") + 1
            line += connection.recv(end or len(waiting))
    return json.loads(line)
