"""What a worker inherits from its supervisor: listening sockets, the table of counters, a channel, and its number.

The sockets are shared, and not only their ports: a connection that waits to be accepted waits for all workers, and is
lost with none of them.
"""

# ruff: noqa: N802 - Twisted's own names

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

VARIABLE = "_SMTPGUARD_WORKER"
"""The environment variable in which a worker finds what it is told. It is no option."""

VERSION = 2
"""The version of all that a supervisor and a worker share: this, the channel, and the table of counters. It changes
whenever one of them does, since the code of a running guard may be replaced on the disk."""

CHANNEL, TABLE, LISTENERS = 3, 4, 5
"""The descriptors of a worker. Its listeners have the last of these and those that follow."""

_OF_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Inheritance(NamedTuple):
    """What a worker is told."""

    number: int
    """Its number, which no other worker has at the same time; 1 is the first."""
    part: int
    """Which part it has, of `parts`, of what the workers divide between them. The first is 0."""
    parts: int
    families: tuple[int, ...]
    """The address family of each listener."""

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment of the worker, made of that of the supervisor."""
        kept = {name: value for name, value in base.items() if name not in _OF_SYSTEMD}
        return {**kept, VARIABLE: json.dumps([VERSION, *self])}

    def descriptors(self, channel: int, table: int, listeners: Sequence[int]) -> dict[int, int]:
        """For each descriptor of the worker that of the supervisor, as spawnProcess takes it."""
        standard = {0: 0, 1: 1, 2: 2}
        return {**standard, CHANNEL: channel, TABLE: table, **dict(enumerate(listeners, LISTENERS))}


def inherited(environment: MutableMapping[str, str]) -> Inheritance | None:
    """What this process is told as a worker, and no process that it starts; None: it is none.

    SystemExit: its supervisor has another version.
    """
    text = environment.pop(VARIABLE, "")
    if not text:
        return None
    version, *told = json.loads(text)
    if version != VERSION:
        raise SystemExit(
            "the supervisor of the workers runs another version, with which this one cannot work: restart the whole "
            "guard"
        )
    number, part, parts, families = told
    for descriptor in (CHANNEL, TABLE, *range(LISTENERS, LISTENERS + len(families))):
        os.set_inheritable(descriptor, False)
    return Inheritance(number, part, parts, tuple(families))


@implementer(IStreamServerEndpoint)
class InheritedEndpoint:
    """An endpoint on an inherited socket. It may listen any number of times, since it leaves the socket open."""

    def __init__(self, reactor: Any, descriptor: int, family: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._family = family

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Accept connections from now on."""
        # The reactor would wait in accept() for a connection that another worker has taken.
        os.set_blocking(self._descriptor, False)
        if self._family == socket.AF_UNIX:
            port = _UnixPort._fromListeningDescriptor(self._reactor, self._descriptor, factory)
            port.startListening()
        else:
            port = self._reactor.adoptStreamPort(self._descriptor, self._family, factory)
        # The socket has the backlog that the supervisor has given it.
        port.backlog = 0
        return succeed(port)


class _UnixPort(unix.Port):
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
        self.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        tcp.Port.connectionLost(self, reason)
