"""The listeners of a supervisor: sockets that are bound and listen, and from which it accepts nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from twisted.internet import tcp
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.protocol import ServerFactory

from twisted_smtpguard.hooks.endpointfaults import why_not
from twisted_smtpguard.service.service import BACKLOG

_PLAIN = (AdoptedStreamServerEndpoint, TCP4ServerEndpoint, TCP6ServerEndpoint, UNIXServerEndpoint)


class Listened(NamedTuple):
    """One endpoint of the guard."""

    option: str
    """The option that it comes from, such as `--listen`."""
    name: str
    endpoint: IStreamServerEndpoint


def check_passable(endpoint: IStreamServerEndpoint) -> None:
    """Check that workers can inherit what an endpoint listens on. ValueError: they cannot."""
    if not isinstance(endpoint, _PLAIN):
        raise ValueError("with --workers a tcp:, tcp6:, unix: or systemd: endpoint is expected")


class SharedListener(ServerFactory):
    """Never asked for a protocol."""

    noisy = False


class Listeners:
    """The listening sockets of these endpoints."""

    def __init__(self, listened: Sequence[Listened]) -> None:
        self._listened = listened
        self._ports: list[Any] = []

    def open(self) -> None:
        """Listen. SystemExit: one of them cannot, and none does."""
        try:
            for each in self._listened:
                self._open(each)
        except BaseException:
            self.close()
            raise

    def _open(self, listened: Listened) -> None:
        try:
            ports: list[Any] = []
            failures: list[Any] = []
            listening: Deferred[Any] = maybeDeferred(listened.endpoint.listen, SharedListener())
            listening.addCallbacks(ports.append, failures.append)
            if failures:
                failures[0].raiseException()
        # OverflowError: a port above 65535.
        except (CannotListenError, OverflowError, OSError) as error:
            others = [(other.name, port) for other, port in zip(self._listened, self._ports, strict=False)]
            reason = why_not(listened.name, error, others)
            raise SystemExit(f"{listened.option}: cannot listen on {listened.name}: {reason}") from error
        # In the same turn, so that it accepts nothing.
        ports[0].stopReading()
        # It would end the socket for the workers too, before they have been told to stop.
        ports[0]._shouldShutdown = False
        self._ports += ports
        if ports[0].backlog == tcp.Port.backlog:
            ports[0].socket.listen(BACKLOG)

    @property
    def descriptors(self) -> list[int]:
        """The descriptors of the sockets, in the order of the endpoints."""
        return [port.fileno() for port in self._ports]

    @property
    def families(self) -> tuple[int, ...]:
        """Their address families."""
        return tuple(int(port.socket.family) for port in self._ports)

    def close(self) -> Deferred[Any]:
        """Close the sockets of this process. Fires when they are closed."""
        ports, self._ports = self._ports, []
        return gatherResults([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)
