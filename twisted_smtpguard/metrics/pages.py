"""The pages about a guard over HTTP, as a resource of twisted.web: `/metrics`, `/healthz`, `/status`, `/status.json`.

This file imports twisted.web and prometheus-client.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

import attrs
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.log.measurements import Histogram
from twisted_smtpguard.metrics.collector import GuardCollector, with_own_names
from twisted_smtpguard.metrics.snapshot import Hour, Snapshots
from twisted_smtpguard.metrics.statuspage import HEADERS, page_of
from twisted_smtpguard.operations.condition import problem_of
from twisted_smtpguard.service.service import SMTPGuardService

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = (b"GET", b"HEAD")

_log = Logger()


@attrs.frozen
class Page:
    """An answer: its status, its type, its octets and further headers."""

    status: int
    content_type: str
    octets: bytes
    headers: Mapping[str, str] = attrs.field(factory=dict)


def plain(status: int, line: str) -> Page:
    """A page of one line."""
    return Page(status, "text/plain; charset=utf-8", f"{line}\n".encode())


class Pages(Resource):
    """A resource of pages that are read only."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[bytes, Callable[[bytes], Page | Deferred[Page]]] = {}
        """By path what makes each page, at once or later. It is called with the Accept header of the request."""

    def render(self, request: Request) -> bytes | int:
        """Called by twisted.web for each request."""
        page = self._page(request)
        if not isinstance(page, Deferred):
            return self._octets(request, page)
        # Cancelled when the client is gone.
        request.notifyFinish().addErrback(lambda _: page.cancel())
        page.addCallback(self._send_later, request).addErrback(self._failed, request)
        return NOT_DONE_YET

    def _send_later(self, page: Page, request: Request) -> None:
        octets = self._octets(request, page)
        request.setHeader(b"content-length", b"%d" % len(octets))
        request.write(octets)
        request.finish()

    def _failed(self, failure: Failure, request: Request) -> None:
        if not failure.check(CancelledError):
            _log.failure("a page about the guard could not be made", failure)
            self._send_later(plain(500, "the guard has a fault, which its log shows"), request)

    def _octets(self, request: Request, page: Page) -> bytes:
        headers = request.responseHeaders
        # Nobody needs to know which software this is, and in which version.
        headers.removeHeader(b"Server")
        if page.status == 405:
            headers.setRawHeaders(b"Allow", [b", ".join(_METHODS)])
        headers.setRawHeaders(b"Content-Type", [page.content_type])
        headers.setRawHeaders(b"Cache-Control", [b"no-store"])
        headers.setRawHeaders(b"X-Content-Type-Options", [b"nosniff"])
        for name, value in page.headers.items():
            headers.setRawHeaders(name, [value])
        request.setResponseCode(page.status)
        if request.method == b"HEAD":
            # twisted.web would log a warning for each body.
            headers.setRawHeaders(b"Content-Length", [b"%d" % len(page.octets)])
            return b""
        return page.octets

    def _page(self, request: Request) -> Page | Deferred[Page]:
        if request.method not in _METHODS:
            return plain(405, "GET or HEAD is expected")
        path = b"/" + b"/".join(request.postpath or [])
        answer = self.pages.get(path)
        if answer is None:
            *paths, last = (each.decode() for each in self.pages)
            return plain(404, f"there are {', '.join(paths)} and {last}")
        return answer(b",".join(request.requestHeaders.getRawHeaders(b"Accept", [])))


def metrics_page(accept: bytes, registry: Collector) -> Page:
    """The page of what `registry` collects, in the format that `accept` asks for."""
    if b"application/openmetrics-text" in accept:
        return Page(200, openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest(_Renamed(registry)))
    return Page(200, _TEXT, generate_latest(registry))


class _Renamed(Collector):
    """The metrics as OpenMetrics has them."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        return with_own_names(self._collector.collect())


class StatusPages:
    """The status for people and for programs, from `snapshots`. Each snapshot is made a page of once, however many
    readers there are."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._made: dict[str, tuple[object, Page]] = {}
        self.pages: Mapping[bytes, Callable[[bytes], Deferred[Page]]] = {
            b"/status": lambda _: self._page("text/html; charset=utf-8", page_of, HEADERS),
            b"/status.json": lambda _: self._page("application/json", _as_json, {}),
        }
        """What makes each page, by path, as a Pages has it."""

    def _page(
        self, kind: str, text_of: Callable[[Mapping[str, object]], str], headers: Mapping[str, str]
    ) -> Deferred[Page]:
        def made(snapshot: Mapping[str, object]) -> Page:
            of, page = self._made.get(kind, (None, None))
            if page is None or of is not snapshot:
                page = Page(200, kind, text_of(snapshot).encode("ascii"), headers)
                self._made[kind] = snapshot, page
            return page

        return self._snapshots.take().addCallback(made)


def _as_json(snapshot: Mapping[str, object]) -> str:
    return f"{json.dumps(snapshot)}\n"


class GuardPages(Pages):
    """The resource: mount it where you like, such as `root.putChild(b"guard", GuardPages(guard))`.

    It is read-only. Who may ask for it is up to you: it has no password. `lag` is that of a GuardCollector, and `hour`
    has the charts of the status, which there are none of without it.
    """

    @checked
    def __init__(
        self, guard: SMTPGuardService, lag: Histogram | None = None, hour: Hour | None = None
    ) -> None:
        super().__init__()
        self._guard = guard
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(GuardCollector(guard, lag))
        ProcessCollector(registry=self._registry)
        status = StatusPages(Snapshots(guard.operator, guard.factory.deadlines.clock, hour))
        self.pages = {b"/metrics": self._metrics, b"/healthz": self._healthz, **status.pages}

    def _metrics(self, accept: bytes) -> Page:
        return metrics_page(accept, self._registry)

    def _healthz(self, _: bytes) -> Page:
        problem = problem_of(self._guard.state, self._guard.factory.context.delivery)
        return plain(503, problem) if problem else plain(200, "ok")
