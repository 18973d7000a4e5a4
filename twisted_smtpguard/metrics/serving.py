"""The metrics and the health of a guard over HTTP, as a service: `MetricsService`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IReactorTime, IStreamServerEndpoint
from twisted.python.failure import Failure

from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.measurements import Histogram
from twisted_smtpguard.metrics.snapshot import Hour
from twisted_smtpguard.service.service import SMTPGuardService, address_text, endpoint_name

LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_LAG_SECONDS = 1.0
"""How often the lag of the reactor is measured."""


def require_client() -> None:
    """ValueError: prometheus-client is not installed."""
    if find_spec("prometheus_client") is None:
        raise ValueError(
            "metrics need prometheus-client, which pip install 'twisted_smtpguard[metrics]' installs"
        )


class PagesService(Service):
    """Serves `pages`, a resource of twisted.web, on `endpoints`, whose `names` the log has, to those who ask for an
    address, `localhost` or one of `hosts`. Meanwhile `hour` is kept, for the status among them."""

    def __init__(
        self,
        pages: Any,
        clock: IReactorTime,
        events: Events,
        endpoints: Sequence[IStreamServerEndpoint],
        names: Sequence[str],
        hour: Hour,
        hosts: Sequence[str],
    ) -> None:
        # Loaded only where it is used.
        from twisted_smtpguard.metrics.boundedsite import BoundedSite  # noqa: PLC0415

        self._events = events
        called = list(names) or [endpoint_name(each) for each in endpoints]
        self._endpoints = list(zip(called, endpoints, strict=True))
        self.pages = pages
        """The resource that is served."""
        self._site = BoundedSite(pages, clock, hosts)
        self._hour = hour
        self._ports: list[IListeningPort] = []

    @property
    def ports(self) -> Sequence[IListeningPort]:
        """The listening ports. Empty while the service does not run."""
        return tuple(self._ports)

    def startService(self) -> None:
        """Listen. CannotListenError and the like: on one endpoint that is not possible."""
        super().startService()
        self._hour.start()
        try:
            for name, endpoint in self._endpoints:
                self._listen(name, endpoint)
        except BaseException:
            self.stopService()
            raise

    def _listen(self, name: str, endpoint: IStreamServerEndpoint) -> None:
        failures: list[Failure] = []
        listening: Deferred[Any] = maybeDeferred(endpoint.listen, self._site)
        listening.addCallback(self._listening, name, self._ports)
        if listening.called:
            listening.addErrback(failures.append)
        listening.addErrback(self._events.failure, f"listening on {name} for metrics")
        if failures:
            failures[0].raiseException()

    def _listening(self, port: IListeningPort, name: str, ports: list[IListeningPort]) -> None:
        if ports is not self._ports:
            # The service was stopped meanwhile.
            port.stopListening()
            return
        ports.append(port)
        host = getattr(port.getHost(), "host", "")
        self._events.serving_metrics(name, address_text(port.getHost()))
        if host and not _is_loopback(host):
            problem = (
                f"other hosts can read the metrics at {name}, which have no password: listen on 127.0.0.1 or a UNIX "
                "socket, or let a firewall see to it"
            )
            self._events.setup_warning("metrics", problem)

    def stopService(self) -> Deferred[Any]:
        """Stop listening, and abort open connections."""
        super().stopService()
        self._hour.stop()
        ports, self._ports = self._ports, []
        closing = [maybeDeferred(port.stopListening) for port in ports]
        self._site.end()
        return gatherResults(closing, consumeErrors=True)


class MetricsService(PagesService):
    """Serves `/metrics`, `/healthz`, `/status` and `/status.json` of `guard` on `endpoints`, whose `names` the log has.

    Make it a child of the guard by `setServiceParent(guard)`: then it listens before the guard does, and until the last
    session has ended, so that `/healthz` says 503 while the guard starts, drains and stops. Anybody who can connect can
    read, and the start warns of an address that other hosts can reach. Except on a UNIX socket, a request whose Host is
    no IP address, `localhost`, the hostname of the guard or one of `hosts` gets a 421: so no web page of a stranger
    reads the answers. ValueError: prometheus-client is not installed.
    """

    @checked
    def __init__(
        self,
        guard: SMTPGuardService,
        endpoints: Sequence[IStreamServerEndpoint],
        names: Sequence[str] = (),
        hosts: Sequence[str] = (),
    ) -> None:
        require_client()
        from twisted_smtpguard.metrics.pages import GuardPages  # noqa: PLC0415

        clock = guard.factory.deadlines.clock
        self._lag, hour = Lag(clock), Hour(guard.operator, clock)
        pages = GuardPages(guard, self._lag.histogram, hour)
        context = guard.factory.context
        super().__init__(pages, clock, context.events, endpoints, names, hour, (context.hostname, *hosts))

    def startService(self) -> None:
        """Listen. CannotListenError and the like: on one endpoint that is not possible."""
        self._lag.start()
        super().startService()

    def stopService(self) -> Deferred[Any]:
        """Stop listening, and abort open connections."""
        self._lag.stop()
        return super().stopService()


class Lag:
    """Measures by `clock` how late the reactor calls what is due, once a second."""

    def __init__(self, clock: IReactorTime) -> None:
        self.histogram = Histogram(LAG_BOUNDS)
        self._clock = clock
        self._due = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        self._due = self._clock.seconds() + _LAG_SECONDS
        self._call = self._clock.callLater(_LAG_SECONDS, self._measure)

    def stop(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _measure(self) -> None:
        self.histogram.observe(self._clock.seconds() - self._due)
        self.start()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
