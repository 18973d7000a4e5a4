"""TCP ports and server transports with less work for each accepted connection than Twisted's, which they extend.

Every protocol can use them. What they leave out: the prefix for the log, which is made when it is asked for;
`shutdown(2)` before `close(2)`, which changes nothing for the only descriptor of a socket; and the transport, for a
protocol with a method `end_accepted(socket)`: it is called instead of `makeConnection`, and closes the connection.
"""

# ruff: noqa: N802, N815 - Twisted's own names

from __future__ import annotations

import socket
from functools import cached_property, lru_cache
from typing import Any

from twisted.internet import address, tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IProtocol, IReactorFDSet
from twisted.logger import Logger

_ACCEPTS_A_TURN = 64
"""The most connections that a port accepts in one turn of the reactor. If more wait, it is called again in the next, so
that open sessions go on meanwhile."""

_STREAM = int(socket.SOCK_STREAM)

_log = Logger()


@lru_cache(maxsize=256)
def _local_address(kind: Any, name: tuple[Any, ...]) -> Any:
    """The address of our end of a connection. There are few of them, and many connections to each."""
    return kind("TCP", *tcp._getrealname(name))


class QuickServer(tcp.Server):
    """The transport of an accepted connection. The arguments are those of tcp.Server."""

    _shouldShutdown = False
    without_log_context = False
    """Set by a protocol that logs nothing to which Twisted would have to add the prefix of its transport."""

    def __init__(
        self,
        sock: socket.socket,
        protocol: IProtocol,
        client: tuple[Any, ...],
        server: tcp.Port,
        sessionno: int,
        reactor: IReactorFDSet,
    ) -> None:
        # This does what tcp.Server's does, except for the strings.
        FileDescriptor.__init__(self, reactor)
        sock.setblocking(False)
        self.socket = sock
        self.fileno = sock.fileno
        self.protocol = protocol
        self.client = client
        self.server = server
        self.sessionno = sessionno
        if len(client) != 2:
            self._addressType = address.IPv6Address
        self.startReading()
        self.connected = 1

    def getHost(self) -> Any:
        kind: Any = self._addressType
        return _local_address(kind, self.socket.getsockname())

    @property
    def hostname(self) -> Any:  # type: ignore[override]
        """The IP address of the client."""
        return self.client[0]

    @cached_property
    def logstr(self) -> str:  # type: ignore[override]
        """The prefix for the log. Twisted's own reactors ask for it at each read, the one on uvloop hardly ever."""
        # There is no protocol any more when the connection is lost.
        prefix = self._getLogPrefix(getattr(self, "protocol", None))
        return f"{prefix},{self.sessionno},{self.hostname}"

    def __repr__(self) -> str:
        name = type(getattr(self, "protocol", None)).__name__
        return f"<{name} #{self.sessionno} on {self.server._realPortNumber}>"


PLAIN_TCP = (tcp.Server, QuickServer)
"""The transports that neither encrypt nor send anything but octets, if `TLS` is false. Compared with `type()`."""


class QuickPort(tcp.Port):
    """A TCP port whose connections have a QuickServer as their transport."""

    transport = QuickServer
    most_admitted = _ACCEPTS_A_TURN
    """The most connections in one turn of the reactor that are not closed at once."""

    def doRead(self) -> None:
        """Called by the reactor when connections wait to be accepted."""
        listening: Any = self.socket
        # What accept() of the socket calls too. That converts family and type to enums for each connection.
        accept, family = listening._accept, int(listening.family)
        admitted = 0
        for _ in range(_ACCEPTS_A_TURN):
            try:
                descriptor, client = accept()
            except BlockingIOError:
                return
            except OSError:
                # Twisted's own method tries again, and sheds connections if there is no descriptor left.
                super().doRead()
                return
            try:
                admitted += self._begin(socket.socket(family, _STREAM, 0, descriptor), client)
            except Exception:  # noqa: BLE001 - the other connections must still be accepted
                _log.failure("A connection could not begin")
            if admitted >= self.most_admitted:
                return

    def _begin(self, connection: socket.socket, client: tuple[Any, ...]) -> bool:
        """Give a connection to its protocol, and return whether it goes on."""
        if len(client) == 4 and client[3]:
            # Python reports the scope of a link-local address as a number only.
            name = socket.getnameinfo(client, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
            client = (name, *client[1:])
        protocol: Any = self.factory.buildProtocol(self._buildAddr(client))  # type: ignore[union-attr]
        if protocol is None:
            connection.close()
            return False
        end_accepted = getattr(protocol, "end_accepted", None)
        if end_accepted is not None:
            end_accepted(connection)
            return False
        number = self.sessionno
        self.sessionno = number + 1
        transport = self.transport(connection, protocol, client, self, number, self.reactor)
        protocol.makeConnection(transport)
        return True


def make_quick(port: tcp.Port) -> None:
    """Make a listening TCP port of Twisted's a QuickPort. It keeps its socket and its factory; other ports stay as
    they are."""
    if type(port) is tcp.Port:
        port.__class__ = QuickPort


def bound_accepts(port: Any) -> None:
    """Have a port of Twisted's accept no more connections in a turn of the reactor than in its first, which is 100.

    By itself it accepts 20 more in each turn in which that many wait, so that a flood makes a turn take seconds. Called
    while a connection of the port begins. Other ports stay as they are.
    """
    if getattr(port, "numberAccepts", 0) > _ACCEPTS_A_TURN:
        port.numberAccepts = _ACCEPTS_A_TURN
