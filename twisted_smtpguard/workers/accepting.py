"""How workers take connections from the sockets that all of them have inherited.

A connection waits for all workers, and is lost with none of them. For each one the kernel wakes one of the workers that
have nothing to do, on Twisted's own reactor for Linux; on others it wakes all. A worker that has taken some goes to the
end of the queue, since the same one would always be woken first otherwise. One that has more connections than another
takes none for a moment, so that those that stay for long are shared too: the kernel wakes another one beside it.
"""

# ruff: noqa: N802, N803, N815 - Twisted's own names

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, succeed
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.reactors.quicktcp import QuickPort

LEAD = 2
"""A worker takes no more connections when it has so many more than another, and an eighth of what that one has."""

LOOK_SECONDS = 0.25
"""How often a worker tells how many connections it has, and looks whether any wait: the one that was woken for them may
have died, or hang."""

FRESH_SECONDS = 1.0
"""Whoever has told nothing for so long is not waited for."""

STAND_BACK_SECONDS = 0.002
"""How long a worker that has more than its share leaves the connections that wait to others."""

_ROW = struct.Struct("=dQ")
_ALL = 1 << 30
_EXCLUSIVE = select.EPOLLIN | select.EPOLLEXCLUSIVE


def create_loads(processes: int) -> int:
    """Make the memory of the Loads of so many processes, and return its descriptor."""
    descriptor = os.memfd_create("smtpguard-loads")
    os.ftruncate(descriptor, processes * _ROW.size)
    return descriptor


class Loads:
    """How many connections each worker has, in the memory at `descriptor`. A worker changes nothing but its own row,
    so that there is no lock. `process` is the row of this one, and `seconds` a clock that all of them share."""

    def __init__(self, descriptor: int, process: int, seconds: Callable[[], float] = time.monotonic) -> None:
        self._memory = mmap.mmap(descriptor, 0)
        self._process = process
        self._seconds = seconds
        self.connections: Callable[[], int] = lambda: 0
        """How many connections this worker has. Set before it listens."""

    def tell(self) -> None:
        """Tell the others how many connections this one has, and that it takes more."""
        _ROW.pack_into(self._memory, self._process * _ROW.size, self._seconds(), self.connections())

    def withdraw(self) -> None:
        """Tell the others that this one takes no more connections."""
        _ROW.pack_into(self._memory, self._process * _ROW.size, 0.0, 0)

    def room(self) -> int:
        """How many connections this worker may take before another one should; 0 or below: it has more than its
        share."""
        told_since = self._seconds() - FRESH_SECONDS
        least = min(
            (
                connections
                for process, (told_at, connections) in enumerate(_ROW.iter_unpack(self._memory))
                if process != self._process and told_at > told_since
            ),
            default=_ALL,
        )
        return least + least // 8 + LEAD - self.connections()

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()


class _SharedPort(tcp.Port):
    """A port on a socket on which other processes listen too, for which it goes on. It is stopped for good."""

    reactor: Any
    loads: Loads
    """Set before it listens."""
    most_admitted = 1
    _looking: Any = None
    _standing_back: Any = None

    def startListening(self) -> None:
        super().startListening()
        # The socket has the backlog that the supervisor has given it.
        self.backlog = 0
        self._look()

    def startReading(self) -> None:
        super().startReading()
        self._go_last()

    def _go_last(self) -> None:
        """Be the last of those that wait to be woken."""
        # Another reactor of Twisted knows no such queue, and one that polls this one's epoll would wake all.
        if type(self.reactor) is EPollReactor:
            poller, descriptor = self.reactor._poller, self.fileno()
            poller.unregister(descriptor)
            # The kernel wakes all that are not exclusive, and one that is.
            poller.register(descriptor, _EXCLUSIVE if self.loads.room() > 0 else select.EPOLLIN)

    def doRead(self) -> None:
        """Called when connections wait. Some of them are taken, unless others have fewer connections."""
        room = self.loads.room()
        if room < 1:
            self.stopReading()
            self._standing_back = self.reactor.callLater(STAND_BACK_SECONDS, self._come_back)
        else:
            self._take(room)

    def _come_back(self) -> None:
        self._standing_back = None
        self.startReading()
        # If nobody has taken those that wait, one is taken at least.
        self._take(max(1, self.loads.room()))

    def _take(self, most: int) -> None:
        self._accept(most)
        if not self.disconnecting:
            self._go_last()

    def _accept(self, most: int) -> None:
        self.most_admitted = self.numberAccepts = min(most, QuickPort.most_admitted)
        super().doRead()
        self.loads.tell()

    def _look(self) -> None:
        self._looking = self.reactor.callLater(LOOK_SECONDS, self._look)
        self.loads.tell()
        if self._standing_back is None:
            self.doRead()

    def loseConnection(self, connDone: Any = connectionDone) -> Any:
        """Take what waits, since no other worker may have been woken for it, and stop listening."""
        if not self.connected or self.disconnecting:
            return super().loseConnection(connDone)
        for timer in (self._looking, self._standing_back):
            if timer is not None:
                timer.cancel()
        self._accept(_ALL)
        self.loads.withdraw()
        return super().loseConnection(connDone)

    stopListening = loseConnection


class _TCPPort(_SharedPort, QuickPort):
    pass


class _SharedUnixPort(unix.Port):
    """Twisted's would set the mode of the file anew, and remove it at its end, when others still listen."""

    def startListening(self) -> None:
        tcp._reservedFD.reserve()
        factory: Any = self.factory
        factory.doStart()
        listening: Any = self._preexistingSocket
        self.socket, self._preexistingSocket = listening, None
        # The others listen on the same socket.
        self._shouldShutdown = False
        self.connected = True
        self.fileno = listening.fileno  # type: ignore[method-assign]
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        tcp.Port.connectionLost(self, reason)


class _UnixPort(_SharedPort, _SharedUnixPort):
    pass


@implementer(IStreamServerEndpoint)
class InheritedEndpoint:
    """An endpoint on an inherited socket. It listens once, and closes `descriptor`: where all workers and their
    supervisor have stopped listening, nobody has the socket any more, and clients are refused."""

    def __init__(self, reactor: Any, descriptor: int, family: int, loads: Loads) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._family = family
        self._loads = loads

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Accept connections from now on."""
        # The reactor would wait in accept() for a connection that another worker has taken.
        os.set_blocking(self._descriptor, False)
        port: Any
        if self._family == socket.AF_UNIX:
            port = _UnixPort._fromListeningDescriptor(self._reactor, self._descriptor, factory)
        else:
            port = _TCPPort._fromListeningDescriptor(self._reactor, self._descriptor, self._family, factory)
        # The port has its own. If this one stayed open, clients would wait at a guard that stops.
        os.close(self._descriptor)
        port.loads = self._loads
        port.startListening()
        return succeed(port)
