"""`ControlService`: the UNIX socket on which a running guard is asked and changed."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet import protocol, tcp
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.python.failure import Failure

from twisted_smtpguard.control.answering import ControlClient, Operator
from twisted_smtpguard.control.socketfile import MODE, ControlSocketError, SocketFile
from twisted_smtpguard.inputs.arguments import checked, unfit

try:
    from twisted.internet import unix
except ImportError:
    # Windows has no such sockets.
    unix = None  # type: ignore[assignment]

MAX_CONNECTIONS = 32
"""The most connections at once. One more takes the seat of one that asks nothing, does not read or asks in advance."""

_BACKLOG = 128


class ControlService(Service):
    """Answers on a UNIX socket at `path`, of mode 0660, for whoever may write to it. `operator` is a guard's.

    `reactor` listens and provides the time. Make it a child of whatever starts the guard: of the guard itself, or of
    the ProcessService. At its start: ControlSocketError: there can be no socket at `path`, for a reason that its text
    tells.
    """

    @checked
    def __init__(self, reactor: Any, operator: Operator, path: str) -> None:
        if not callable(getattr(reactor, "addReader", None)):
            raise unfit("reactor", "a reactor", reactor)
        self._reactor = reactor
        self._operator = operator
        self.path = path
        self._port: Any = None
        self._connections: ControlConnections | None = None

    def startService(self) -> None:
        """Listen. Called before the guard listens, so that it can be asked as soon as it does."""
        file = SocketFile(self.path)
        self._connections = ControlConnections(self._reactor, self._operator)
        try:
            self._port = _Port(file, self._connections, self._reactor)
            self._port.startListening()
        except BaseException as error:
            file.release()
            if isinstance(error, CannotListenError):
                raise ControlSocketError(f"{self.path}: {error.socketError}") from error
            raise
        super().startService()

    def stopService(self) -> Deferred[Any] | None:
        """Close the socket and all connections, and remove the file. Fires when that is done."""
        super().stopService()
        port, self._port = self._port, None
        if port is None:
            return None
        assert self._connections is not None
        self._connections.close()
        closed: Deferred[Any] = maybeDeferred(port.stopListening)
        return closed


if unix is not None:

    class _Port(unix.Port):
        """Twisted's port, but for the mode of the file, which nobody can write to before it is what it shall be, and
        for its end, when the file may be another's."""

        def __init__(self, file: SocketFile, factory: ControlConnections, reactor: Any) -> None:
            super().__init__(os.fsencode(file.path), factory, _BACKLOG, MODE, reactor)
            self._file = file

        def createInternetSocket(self) -> socket.socket:
            made: socket.socket = super().createInternetSocket()
            # Linux makes the file with the mode of the socket, so that no process's umask matters.
            with suppress(OSError):
                os.fchmod(made.fileno(), 0o600)
            return made

        def startListening(self) -> None:
            super().startListening()
            self._file.made()

        def connectionLost(self, reason: Failure) -> None:
            # The base class would remove the file, whosever it is, and fail if there is none.
            self._file.release()
            tcp.Port.connectionLost(self, reason)


class ControlConnections(protocol.ServerFactory):
    """The connections to one socket, those that have asked nothing for longest first."""

    noisy = False
    full = f"there are {MAX_CONNECTIONS} connections, and all of them are at work"

    def __init__(self, reactor: Any, operator: Operator) -> None:
        self.reactor = reactor
        self.operator = operator
        self.open: dict[ControlClient, None] = {}

    def buildProtocol(self, addr: object) -> protocol.Protocol:
        """Called at each accept."""
        return ControlClient(self)

    def opened(self, client: ControlClient) -> bool:
        """Take a seat. Returns whether there is one."""
        if len(self.open) >= MAX_CONNECTIONS:
            # The first of the most dispensable is the one that has asked nothing for longest.
            loser = max(self.open, key=lambda each: each.dispensable)
            if not loser.dispensable:
                return False
            del self.open[loser]
            loser.transport.abortConnection()
        self.open[client] = None
        return True

    def used(self, client: ControlClient) -> None:
        """Called at each request."""
        if self.open.pop(client, True) is None:
            self.open[client] = None

    def left(self, client: ControlClient) -> None:
        """Called once, at the end of each."""
        self.open.pop(client, None)

    def close(self) -> None:
        """End every connection, now."""
        for connection in list(self.open):
            connection.transport.abortConnection()
