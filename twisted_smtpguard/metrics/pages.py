"""The pages about a guard over HTTP, as a resource of twisted.web: `/metrics` and `/healthz`.

This file imports twisted.web and prometheus-client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from twisted.web.resource import Resource
from twisted.web.server import Request

from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.log.measurements import Histogram
from twisted_smtpguard.metrics.collector import GuardCollector, with_own_names
from twisted_smtpguard.operations.condition import problem_of
from twisted_smtpguard.service.service import SMTPGuardService

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = (b"GET", b"HEAD")


@attrs.frozen
class Page:
    """An answer: its status, its type and its octets."""

    status: int
    content_type: str
    octets: bytes


def plain(status: int, line: str) -> Page:
    """A page of one line."""
    return Page(status, "text/plain; charset=utf-8", f"{line}\n".encode())


class GuardPages(Resource):
    """The resource: mount it where you like, such as `root.putChild(b"guard", GuardPages(guard))`.

    It is read-only. Who may ask for it is up to you: it has no password. `lag` is that of a GuardCollector.
    """

    isLeaf = True

    @checked
    def __init__(self, guard: SMTPGuardService, lag: Histogram | None = None) -> None:
        super().__init__()
        self._guard = guard
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(GuardCollector(guard, lag))
        ProcessCollector(registry=self._registry)
        self.pages: dict[bytes, Callable[[bytes], Page]] = {
            b"/metrics": self._metrics,
            b"/healthz": self._healthz,
        }
        """Called with the Accept header of the request."""

    def render(self, request: Request) -> bytes:
        """Called by twisted.web for each request."""
        headers = request.responseHeaders
        # Nobody needs to know which software this is, and in which version.
        headers.removeHeader(b"Server")
        page = self._page(request)
        if page.status == 405:
            headers.setRawHeaders(b"Allow", [b", ".join(_METHODS)])
        headers.setRawHeaders(b"Content-Type", [page.content_type])
        headers.setRawHeaders(b"Cache-Control", [b"no-store"])
        headers.setRawHeaders(b"X-Content-Type-Options", [b"nosniff"])
        request.setResponseCode(page.status)
        if request.method == b"HEAD":
            # twisted.web would log a warning for each body.
            headers.setRawHeaders(b"Content-Length", [b"%d" % len(page.octets)])
            return b""
        return page.octets

    def _page(self, request: Request) -> Page:
        if request.method not in _METHODS:
            return plain(405, "GET or HEAD is expected")
        path = b"/" + b"/".join(request.postpath or [])
        answer = self.pages.get(path)
        if answer is None:
            return plain(404, f"there are {' and '.join(each.decode() for each in self.pages)}")
        return answer(b",".join(request.requestHeaders.getRawHeaders(b"Accept", [])))

    def _metrics(self, accept: bytes) -> Page:
        if b"application/openmetrics-text" in accept:
            return Page(200, openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest(self))
        return Page(200, _TEXT, generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        """The metrics as OpenMetrics has them."""
        return with_own_names(self._registry.collect())

    def _healthz(self, _: bytes) -> Page:
        problem = problem_of(self._guard.state, self._guard.factory.context.delivery)
        return plain(503, problem) if problem else plain(200, "ok")
