"""`--workers N`: the service of the process that supervises the workers, and what makes a process a worker.

What supervises and what is a worker is imported where it is needed, since it needs Linux.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from twisted_smtpguard.cli.settings import Asked, PagesOfProcess, metrics_endpoint, serve_control
from twisted_smtpguard.cli.statedirectory import keep_state_of_workers
from twisted_smtpguard.delivery.domains import AcceptedDomains
from twisted_smtpguard.delivery.upstream import UpstreamDelivery
from twisted_smtpguard.engine.hostnames import parse_domain
from twisted_smtpguard.interfaces import IConnectingDelivery
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import RATE
from twisted_smtpguard.service.process import keep_house
from twisted_smtpguard.service.service import SMTPGuardService

if TYPE_CHECKING:
    from twisted_smtpguard.workers.supervisor import Supervisor
    from twisted_smtpguard.workers.worker import Worker

LISTEN = ("listen", "listen-tls")

_CLIENTS = 1_000_000
"""How many clients of each counter the shared table has if there is no limit on them."""


class _Setting(Protocol):
    text: str

    def blamed(self) -> AbstractContextManager[None]: ...
    def wrong(self, problem: str) -> Exception: ...


class _Given(Asked, Protocol):
    """What is needed of a command line. It is an Options."""

    workers: int
    limits: Limits

    @property
    def given(self) -> Mapping[str, Sequence[Any]]: ...
    def endpoints(self, option: str, reactor: Any, *, trial: bool) -> Sequence[Any]: ...


def told_as_worker(reactor: Any) -> Worker | None:
    """This process as a worker; None: it is none. Asked once, at the start."""
    if not hasattr(os, "memfd_create"):
        return None
    from twisted_smtpguard.workers.inheritance import inherited  # noqa: PLC0415
    from twisted_smtpguard.workers.worker import Worker  # noqa: PLC0415

    told = inherited(os.environ)
    return None if told is None else Worker(reactor, told)


def all_endpoints(
    options: _Given, worker: Worker | None, reactor: Any, *, trial: bool
) -> Sequence[Sequence[Any]]:
    """The endpoints of --listen, those of --listen-tls, both of which a worker inherits, and those of --metrics."""
    # Those of a worker are never listened on.
    unheard = trial or worker is not None
    metrics = options.each("metrics", lambda text: metrics_endpoint(text, reactor, trial=unheard))
    if worker is not None:
        return *worker.endpoints(len(options.given[LISTEN[0]])), metrics
    return *(options.endpoints(option, reactor, trial=trial) for option in LISTEN), metrics


def join(worker: Worker, guard: SMTPGuardService, *, metrics: bool) -> None:
    """Make the guard of a worker a part of the whole. If it counts in another store than the table of the workers, it
    counts there while that store is away. `metrics`: its metrics will be asked for."""
    guard.factory.counting.fall_back_on(worker.counters)
    delivery = _inner(guard.factory.context.delivery)
    if isinstance(delivery, UpstreamDelivery):
        delivery.divide(*worker.share)
    if not metrics:
        worker.join(guard)
        return
    from twisted_smtpguard.metrics.ofworkers import WorkerMetrics  # noqa: PLC0415

    of_worker = WorkerMetrics(guard)
    of_worker.setServiceParent(guard)
    worker.join(guard, of_worker.told)


def supervised(options: _Given, guard: SMTPGuardService, reactor: Any) -> Supervisor:
    """The service that supervises the workers. `guard` is made of the same options, so that each mistake in them has
    been told, and is thrown away. UsageError: it is nothing for several processes."""
    from twisted_smtpguard.workers.listening import Listened, check_passable  # noqa: PLC0415
    from twisted_smtpguard.workers.operatorofworkers import OperatorOfWorkers  # noqa: PLC0415
    from twisted_smtpguard.workers.supervisor import Supervisor  # noqa: PLC0415

    metrics = options.endpoints("metrics", reactor, trial=False)
    listened = []
    for option in LISTEN:
        endpoints = options.endpoints(option, reactor, trial=False)
        for setting, endpoint in zip(options.given[option], endpoints, strict=True):
            with setting.blamed():
                check_passable(endpoint)
            listened.append(Listened(f"--{option}", setting.text, endpoint))
    delivery = _inner(guard.factory.context.delivery)
    most = IConnectingDelivery(delivery).max_connections if IConnectingDelivery.providedBy(delivery) else 0
    if 0 < most < options.workers:
        setting = options.given["deliver"][-1]
        raise setting.wrong(f"each of {options.workers} workers needs a connection, and there may be {most}")
    # The connections and the points of each client, and its rates.
    counters = 2 + sum(spec.unit is RATE for spec in Limits.specs())
    clients = options.limits.max_tracked_clients or _CLIENTS
    command = [sys.executable, *sys.orig_argv[1:]]
    events = guard.factory.context.events
    supervisor = Supervisor(
        reactor, options.workers, listened, command, max_clients=counters * clients, events=events
    )
    keep_state_of_workers(supervisor, options.paths("state"), reactor)
    operator = OperatorOfWorkers(supervisor)
    serve_control(operator, options.paths("control"), reactor, supervisor)
    if metrics:
        from twisted_smtpguard.metrics.ofworkers import WorkersPages  # noqa: PLC0415
        from twisted_smtpguard.metrics.snapshot import Hour, Snapshots  # noqa: PLC0415
        from twisted_smtpguard.workers.metricsofworkers import MetricsOfWorkers  # noqa: PLC0415

        hour = Hour(operator, reactor)
        snapshots = Snapshots(operator, reactor, hour)
        ask = MetricsOfWorkers(supervisor, reactor).ask
        pages = WorkersPages(ask, lambda: supervisor.state, snapshots)
        hosts = (guard.factory.context.hostname, *options.each("metrics-host", parse_domain))
        served = PagesOfProcess(pages, reactor, events, metrics, options.texts("metrics"), hour, hosts)
        served.setServiceParent(supervisor)
    keep_house(reactor, supervisor)
    # Its filters may have long lists.
    del guard
    gc.collect()
    return supervisor


def _inner(delivery: Any) -> Any:
    """The delivery that stores or passes on."""
    return delivery.delivery if isinstance(delivery, AcceptedDomains) else delivery
