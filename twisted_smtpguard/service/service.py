"""`SMTPGuardService`, which applications compose: the listeners, their factory, and how they start and stop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.python.failure import Failure

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.hooks.faults import safely
from twisted_smtpguard.hooks.later import shielded, within
from twisted_smtpguard.hooks.parts import PartsOwner
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.interfaces import ICounterStore, IDelivery, IIPFilter, IReloadable, ISessionPolicy
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.operations.operator import Operator
from twisted_smtpguard.policies.policyentry import PolicyEntry
from twisted_smtpguard.reactors.quicktcp import make_quick
from twisted_smtpguard.service.reloading import Part, Reloader
from twisted_smtpguard.service.startwarnings import warn_of_setup
from twisted_smtpguard.tls.files import CertificateFiles
from twisted_smtpguard.transport.factory import SMTPGuardFactory
from twisted_smtpguard.transport.listener import Listener, bound_accept_log

BACKLOG = 2048
"""How many connections may wait to be accepted. A client for which there is no room tries again after a second, so
there is room for a crowd of a thousand that connect again at once. A full queue is refused in about half a second, for
which a new client waits. In a flood of connections that are reset, a queue of 4,096 made it wait for about a second."""

_SCHEMES = {"TCP4ServerEndpoint": "tcp", "TCP6ServerEndpoint": "tcp6", "SSL4ServerEndpoint": "ssl"}

_WARNING = "looking for risks in the setup"
_STOPPING_PARTS = "stopping a filter or the delivery"
_PARTS_SECONDS = 5
"""How long filters and a delivery that are services may take to stop."""

_PORT_SECONDS = 0.1
"""How long listeners may take to close, which needs a turn of the reactor. The sessions are ended after that, so that a
client that reconnects at once does not reach this guard again."""


class SMTPGuardService(PartsOwner):
    """A guard on any number of endpoints, with one limit on the connections of all of them.

    `reactor` provides the time. The `tls_endpoints` are plain endpoints on which the guard begins TLS before its
    greeting, with `tls`. `names` has one word for each of `endpoints` and then of `tls_endpoints`: the log has it as
    `endpoint` of a listener and as `listener` of a connection. Without `names` the log has a string that describes the
    endpoint. The other arguments are those of SMTPGuardFactory. Filters, policies, a counter store and a delivery that
    provide IService are started before any listener and stopped after the last session, unless they have a parent,
    which does so then.
    ValueError: one of them has another guard as its parent, or the number of `names` is wrong. The service can be
    started again after it was stopped.
    """

    @checked
    def __init__(
        self,
        reactor: Any,
        endpoints: Sequence[IStreamServerEndpoint],
        delivery: IDelivery,
        *,
        limits: Limits | None = None,
        hostname: str | None = None,
        events: Events | None = None,
        ip_filters: Sequence[IIPFilter | FilterEntry] = (),
        counters: ICounterStore | None = None,
        tls: object | None = None,
        tls_endpoints: Sequence[IStreamServerEndpoint] = (),
        proxy_protocol_from: Sequence[str] = (),
        proxy_protocol_tls: bool = False,
        checkers: Sequence[object] = (),
        require_tls: bool = False,
        require_auth: bool = False,
        auth_without_tls: bool = False,
        policies: Sequence[ISessionPolicy | PolicyEntry] = (),
        names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if checkers and not (tls or proxy_protocol_tls or auth_without_tls) and _all_plain(endpoints):
            raise ValueError("checkers need tls or auth_without_tls, since AUTH is offered under TLS only")
        self.factory = SMTPGuardFactory(
            reactor,
            delivery,
            limits=limits,
            hostname=hostname,
            events=events,
            ip_filters=ip_filters,
            counters=counters,
            tls=tls,
            proxy_protocol_from=proxy_protocol_from,
            proxy_protocol_tls=proxy_protocol_tls,
            checkers=checkers,
            require_tls=require_tls,
            require_auth=require_auth,
            auth_without_tls=auth_without_tls,
            policies=policies,
        )
        self._events = self.factory.context.events
        filters = self.factory.filters
        # One policy may have several entries.
        named = {entry.policy: entry.name for entry in reversed(self.factory.policies)}
        self._reloader = Reloader(
            [
                *(Part(entry.name, "ip-filter", entry.filter) for entry in filters),
                *(Part(name, "policy-plugin", policy) for policy, name in named.items()),
                Part("delivery", "deliver", delivery),
                Part("certificate", "tls-certificate", tls),
                *(Part("checker", "auth", each) for each in checkers),
            ],
            self._events,
            self.factory.deadlines.call_later,
            self._warn_of_certificates,
        )
        asked = [*endpoints, *tls_endpoints]
        called = list(names) or [endpoint_name(endpoint) for endpoint in asked]
        if len(called) != len(asked):
            raise ValueError(f"{len(asked)} names are expected, one for each endpoint")
        self._listeners = [
            (endpoint, Listener(self.factory, name, implicit_tls=number >= len(endpoints)))
            for number, (endpoint, name) in enumerate(zip(asked, called, strict=True))
        ]
        self._ports: list[IListeningPort] = []
        self.on_listening: Callable[[], object] = lambda: None
        """Called whenever one more endpoint listens."""
        self.failed_endpoint = ""
        """The name of the endpoint that made the latest start fail; "" if the start succeeded or failed otherwise."""
        self._ending = 0
        """How many drains and stops are under way."""
        self._stopping: Deferred[None] | None = None
        """The latest stop; None before the first."""
        self.operator = Operator(self)
        """What an operator may ask and change while the guard runs."""
        parts = (counters, *(entry.filter for entry in filters), *named, delivery, *checkers)
        for part in parts:
            self.adopt(part)

    @property
    def ports(self) -> Sequence[IListeningPort]:
        """The listening ports: those of `endpoints` in their order, then of `tls_endpoints`. Empty while the service
        does not run."""
        return tuple(self._ports)

    @property
    def ready(self) -> bool:
        """Whether every endpoint listens. False before the start, and from the beginning of a stop or drain on."""
        return bool(self.running) and len(self._ports) == len(self._listeners)

    @property
    def state(self) -> str:
        """`listening`, `starting` while an endpoint does not listen yet, `draining`, `drained`, or `stopped`, as before
        the first start."""
        if not self.running and not self._ending:
            return "stopped"
        if self._ending:
            return "draining"
        return "drained" if self.factory.context.draining else "listening" if self.ready else "starting"

    @property
    def addresses(self) -> dict[str, str]:
        """For the name of each endpoint that listens the address that it listens on, as in the log."""
        named = zip(self._listeners, self._ports, strict=False)
        return {listener.name: address_text(port.getHost()) for (_, listener), port in named}

    @property
    def listener_names(self) -> Sequence[str]:
        """The names of all endpoints, whether they listen or not."""
        return [listener.name for _, listener in self._listeners]

    @property
    def reloadable(self) -> Sequence[str]:
        """The names of the parts that a reload reads again, as the log has them."""
        return self._reloader.names

    @property
    def statistics(self) -> Statistics:
        """The counts since the service was made. They go on over stops and starts."""
        return self.factory.statistics

    def startService(self) -> None:
        """Listen: for the first time, after a stop, or after a drain. If an endpoint fails, its exception is raised
        (CannotListenError: the port is taken); then no endpoint listens, and the filters and the delivery are stopped,
        but after a drain the service is as it was, drained.

        A later failure of an endpoint is logged, and the others go on. RuntimeError: the service listens already, or a
        stop or drain is under way.
        """
        if self._ports:
            raise RuntimeError("the service listens already")
        if self._ending:
            raise RuntimeError("the service cannot be started while a stop or drain is under way")
        self.failed_endpoint = ""
        was_running = self.running
        try:
            if not was_running:
                super().startService()
            self.factory.reopen()
            for endpoint, listener in self._listeners:
                self.failed_endpoint = listener.name
                self._listen(endpoint, listener)
            self.failed_endpoint = ""
        except BaseException:
            ports, self._ports = self._ports, []
            for port in ports:
                self._close(port)
            self._ending += 1
            undone = self.factory.drain() if was_running else self._stop_parts()
            undone.addBoth(self._drain_ended)
            raise
        hosts = [port.getHost() for port in self._ports]
        # These ask the delivery and read certificates, either of which may fail.
        safely(self._events.failure, _WARNING, warn_of_setup, self.factory.context, hosts)
        safely(self._events.failure, _WARNING, self._warn_of_certificates)
        in_dry_run = self.factory.context.limits.dry_run
        if in_dry_run:
            self._events.dry_run(in_dry_run)

    def _listen(self, endpoint: IStreamServerEndpoint, listener: Listener) -> None:
        name = listener.name
        if isinstance(endpoint, SSL4ServerEndpoint):
            self._events.ssl_endpoint(name)
        failures: list[Failure] = []
        listening: Deferred[Any] = maybeDeferred(endpoint.listen, listener)
        listening.addCallback(self._listening, name, self._ports)
        if listening.called:
            listening.addErrback(failures.append)
        # A plugin's endpoint may fail later, when the start has succeeded already.
        listening.addErrback(self._events.failure, f"listening on {name}")
        if failures:
            failures[0].raiseException()

    def _listening(self, port: IListeningPort, name: str, ports: list[IListeningPort]) -> None:
        if ports is not self._ports:
            # The service was stopped before the endpoint began to listen.
            self._close(port)
            return
        ports.append(port)
        # Twisted's backlog of 50 fills at once in a flood, and a client that is dropped tries again only after a
        # second. An endpoint's own `backlog=` is kept.
        if isinstance(port, tcp.Port):
            make_quick(port)
            bound_accept_log(port, self._events)
            self.factory.socket_buffers.opened(port)
            if port.backlog == tcp.Port.backlog:
                port.socket.listen(BACKLOG)
        self._events.listening(name, address_text(port.getHost()))
        self.on_listening()

    def _close(self, port: IListeningPort) -> Deferred[Any]:
        """Close a listening port. Fires when it is closed, and never fails."""
        closing: Deferred[Any] = maybeDeferred(port.stopListening)
        return closing.addErrback(self._events.failure, "closing a listener")

    def _warn_of_certificates(self) -> None:
        """Log the mistakes in files of server names, and the problems of the certificates that are served."""
        tls, context = self.factory.tls, self.factory.context
        if isinstance(tls, CertificateFiles):
            for fault in tls.take_faults():
                self._events.reload_failed("certificate", fault.option, fault.problem, fault.file)
            for doubt in tls.doubts(context.hostname, context.seconds()):
                self._events.doubtful_certificate(doubt)

    @checked
    def also_reload(self, what: str, option: str, target: IReloadable) -> None:
        """Reload one more object with the others, whose data change after theirs, such as what an application is
        configured with. `what` is its name in the log, and `option` that of its file, without dashes."""
        self._reloader.add(Part(what, option, target))

    def reload(self) -> Deferred[None]:
        """Reload the data of every filter, the delivery, the certificate and every checker, as on SIGHUP, if it
        provides IReloadable.

        Fires when that is done, and never fails: problems are logged. Connections that have been greeted go on.
        """
        return self._reloader.reload()

    def close_listeners(self) -> Deferred[Any]:
        """Stop listening, and let the sessions go on. A stop or drain may follow at any time. Fires when every port is
        closed, and never fails."""
        ports, self._ports = self._ports, []
        return gatherResults([self._close(port) for port in ports])

    def end_grace(self) -> None:
        """End the grace of the stop or drain that is under way: every session ends now."""
        self.factory.end_now()

    def log_statistics(self) -> None:
        """Log the statistics, as on SIGUSR1."""
        self._events.statistics_now()

    def drain(self) -> Deferred[None]:
        """Stop listening at once, let the sessions end, and wait for pending verdicts.

        This is the first part of `stopService()`, and all of it that clients can see. Filters and a delivery that are
        services go on, and this service still runs for its parent: `startService()` makes it listen again, and
        `stopService()` stops the rest. Fires at most `Limits.shutdown_grace` + 5 seconds later, unless that limit is 0.
        May be called again meanwhile, and when nothing listens.
        """
        return self._until_drained(lambda _: None)

    def stopService(self) -> Deferred[None]:
        """Drain, then stop the filters and the delivery.

        If one of them is a service and does not stop, this fires 5 seconds later than a drain would. A reload that is
        going on is cancelled. A second call meanwhile waits for the same end.
        """
        if self._stopping is None or self._stopping.called:
            self._stopping = self._until_drained(self._stop_all)
        return shielded(self._stopping)

    def _until_drained(self, then: Callable[[object], Any]) -> Deferred[Any]:
        """Close the listeners, drain the factory, and call `then`. Fires when what it returns has fired."""
        self._ending += 1
        # A port that does not close must not keep the sessions from being ended.
        closing = shielded(self.close_listeners())
        ended: Deferred[Any] = within(_PORT_SECONDS, self.factory.deadlines.call_later, closing)
        ended.addBoth(lambda _: self.factory.drain())
        # A caller that no longer waits must not cancel the drain.
        return shielded(ended.addCallback(then).addBoth(self._drain_ended))

    def _drain_ended(self, outcome: Any) -> Any:
        self._ending -= 1
        return outcome

    def _stop_all(self, _: object) -> Deferred[Any]:
        """Stop the filters and the delivery, and log that the service has stopped."""
        return self._stop_parts().addCallback(lambda _: self._events.stopped())

    def _stop_parts(self) -> Deferred[Any]:
        """Stop the filters and the delivery. Fires when that is done, or after 5 seconds, and never fails: one that
        hangs must not delay the end of the process."""
        stopping: Deferred[Any] = shielded(maybeDeferred(self._end_parts))
        stopped = within(_PARTS_SECONDS, self.factory.deadlines.call_later, stopping)
        return stopped.addErrback(self._events.failure, _STOPPING_PARTS)

    def _end_parts(self) -> Deferred[Any] | None:
        self._reloader.stop()
        # Each start is followed by one stop of the parts, however often the service is stopped.
        if not self.running:
            return None
        return super().stopService().addErrback(self._events.failure, _STOPPING_PARTS)


def endpoint_name(endpoint: object) -> str:
    """The name in the log of an endpoint that was given no name: the string that would make it, as far as it is known,
    or the name of its class."""
    kind = type(endpoint).__name__
    if kind in _SCHEMES and hasattr(endpoint, "_port"):
        interface = getattr(endpoint, "_interface", "").replace(":", "\\:")
        return f"{_SCHEMES[kind]}:{endpoint._port}" + (f":interface={interface}" if interface else "")
    if isinstance(endpoint, UNIXServerEndpoint) and hasattr(endpoint, "_address"):
        return f"unix:{endpoint._address}"
    return kind


def _all_plain(endpoints: Collection[IStreamServerEndpoint]) -> bool:
    """Whether there are endpoints, and none of them can begin TLS by itself."""
    plain = {TCP4ServerEndpoint, TCP6ServerEndpoint, UNIXServerEndpoint}
    return bool(endpoints) and {*map(type, endpoints)} <= plain


def address_text(host: Any) -> str:
    """An address that is listened on, as the log has it."""
    if hasattr(host, "host"):
        return f"[{host.host}]:{host.port}" if ":" in host.host else f"{host.host}:{host.port}"
    name = getattr(host, "name", None)
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name or host)
