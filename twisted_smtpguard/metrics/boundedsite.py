"""The HTTP server of the metrics: twisted.web's, with bounds on what a stranger can make of it.

A connection has one request and then ends, so there is nothing to pipeline. It has SECONDS for all of that, from accept
to the last octet that its client reads. This file imports twisted.web.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from io import BytesIO
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

SECONDS = 5.0
"""How long a connection may last."""

MAX_REQUESTS = 8
"""How many requests may be answered at once: until their clients have read the answer. Further ones get a 503."""

MAX_WAITING = 64
"""How many connections may be open on which no whole request has come. Above that the oldest is aborted: whoever asks
at once, as Prometheus does, gets an answer however many others say nothing."""


_UNAVAILABLE = 503, b"Service Unavailable"
_MISDIRECTED = 421, b"Misdirected Request"
_MISDIRECTED_TEXT = (
    b"the Host of the request is no address and no name of this server, and --metrics-host adds one\n"
)


def is_host(fields: Sequence[bytes], names: Collection[str]) -> bool:
    """Whether a request with these Host fields may be answered: each has an IP address, `localhost` or one of `names`,
    which are lower case, with or without a port. A request without the field may be, since every browser sends one.

    A page of a stranger in the operator's browser may have its own name point to this server (DNS rebinding). It could
    then read what is answered, but the browser puts that name into the Host.
    """
    return all(_is_host(field.decode("latin-1").strip().lower(), names) for field in fields)


def _is_host(host: str, names: Collection[str]) -> bool:
    if host.startswith("["):
        host, bracket, port = host[1:].partition("]")
        port = port.removeprefix(":") if bracket else "none"
    else:
        host, _, port = host.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        return False
    if host == "localhost" or host.removesuffix(".") in names:
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class _Nothing(BytesIO):
    """Takes the body of a request, which no page wants."""

    def write(self, octets: Any) -> int:
        return len(octets)


class _Request(Request):
    def gotLength(self, length: int | None) -> None:
        """Called by twisted.web, which would keep the body in memory or in a file."""
        self.content = _Nothing()

    def process(self) -> None:
        """Called by twisted.web when the request is complete."""
        channel: Any = self.channel
        if not channel.site.serves(channel):
            self._refuse(*_UNAVAILABLE)
        elif not channel.site.is_asked(channel, self.requestHeaders.getRawHeaders(b"Host", [])):
            self.responseHeaders.setRawHeaders(b"Content-Type", [b"text/plain; charset=utf-8"])
            self._refuse(*_MISDIRECTED, _MISDIRECTED_TEXT)
        else:
            if self.path == b"*":
                # twisted.web would answer `OPTIONS *` itself, and name its version.
                self.path = b"/*"
            super().process()

    def _refuse(self, status: int, reason: bytes, text: bytes = b"") -> None:
        self.setResponseCode(status, reason)
        self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(text)])
        if text and self.method != b"HEAD":
            self.write(text)
        self.finish()


class _Channel(HTTPChannel):
    """One connection."""

    MAX_LENGTH = 4096
    totalHeadersSize = 8192
    maxHeaders = 100
    site: BoundedSite
    transport: Any

    def connectionMade(self) -> None:
        super().connectionMade()
        self._end = self.site.clock.callLater(SECONDS, self.transport.abortConnection)
        self.site.opened(self)

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Called by twisted.web: whether the connection may have another request."""
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._end.active():
            self._end.cancel()
        self.site.closed(self)
        super().connectionLost(reason)


class BoundedSite(Site):
    """Serves `resource` within the bounds of this file, to those who ask for an address or one of `names`."""

    noisy = False
    protocol: Any = _Channel

    def __init__(self, resource: IResource, clock: IReactorTime, names: Sequence[str]) -> None:
        # Each connection has its own time limit.
        super().__init__(resource, requestFactory=_Request, timeout=None, reactor=clock)
        self.clock = clock
        self._names = frozenset(name.lower().removesuffix(".") for name in names)
        self._waiting: dict[Any, None] = {}
        """The connections on which no whole request has come, or that get a 503, the oldest first."""
        self._answering: set[Any] = set()

    # Called by the channels.

    def opened(self, channel: Any) -> None:
        """A connection was accepted."""
        if len(self._waiting) >= MAX_WAITING:
            next(iter(self._waiting)).transport.abortConnection()
        self._waiting[channel] = None

    def serves(self, channel: Any) -> bool:
        """Whether the request of a connection, which is complete, is answered. If not, there are too many."""
        served = len(self._answering) < MAX_REQUESTS
        if served:
            del self._waiting[channel]
            self._answering.add(channel)
        return served

    def is_asked(self, channel: Any, hosts: Sequence[bytes]) -> bool:
        """Whether a request with these Host fields is for this server. No browser asks on a UNIX socket."""
        return isinstance(channel.transport.getHost(), UNIXAddress) or is_host(hosts, self._names)

    def closed(self, channel: Any) -> None:
        """A connection is gone."""
        self._waiting.pop(channel, None)
        self._answering.discard(channel)

    def end(self) -> None:
        """Abort every connection: the service stops."""
        for channel in [*self._waiting, *self._answering]:
            channel.transport.abortConnection()

    # Called by twisted.web, which would keep an access log, and a clock for it.

    def startFactory(self) -> None:
        pass

    def stopFactory(self) -> None:
        pass

    def log(self, request: Any) -> None:
        pass
