"""The metrics of a guard of several workers, as one page: each worker tells its own, and the supervisor adds them up.

This file imports prometheus-client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from twisted.application.service import Service
from twisted.internet.defer import Deferred

from twisted_smtpguard.metrics.collector import GuardCollector
from twisted_smtpguard.metrics.pages import Page, Pages, StatusPages, metrics_page, plain
from twisted_smtpguard.metrics.serving import Lag
from twisted_smtpguard.metrics.snapshot import Snapshots
from twisted_smtpguard.service.service import SMTPGuardService

_RISING = ("counter", "histogram")
"""The types of metrics whose values only rise, also when a worker has ended."""

_ADDED = ("smtpguard_connections", "smtpguard_upstream_connections", "smtpguard_table_clients")
"""The gauges that are counts of something in each worker."""

_SHARED = ((("table", "known"),),)
"""The labels of those that are the same in all workers nevertheless."""

_LEAST = (
    "smtpguard_tls_certificate_not_after_seconds",
    "smtpguard_upstream_up",
    "smtpguard_reload_success",
    "smtpguard_dnsbl_list_counts",
)
_MOST = ("smtpguard_stress",)
"""The gauges of which the worst counts. All others are the same in all workers."""

Key = tuple[str, tuple[tuple[str, str], ...]]
"""The name and the labels of one sample."""

Told = Mapping[str, Any]
"""What a worker tells, which is made of what JSON has."""


class WorkerMetrics(Service):
    """The metrics of the guard of this process, which is a worker. A child of the guard."""

    def __init__(self, guard: SMTPGuardService) -> None:
        self._guard = guard
        self._lag = Lag(guard.factory.deadlines.clock)
        self._collector = GuardCollector(guard, self._lag.histogram)

    def startService(self) -> None:
        super().startService()
        self._lag.start()

    def stopService(self) -> None:
        super().stopService()
        self._lag.stop()

    def told(self) -> dict[str, Any]:
        """All that the supervisor needs for its pages."""
        families = [
            [
                each.name,
                each.type,
                each.documentation,
                [[s.name, [*s.labels.items()], s.value] for s in each.samples],
            ]
            for each in self._collector.collect()
        ]
        return {
            "families": families,
            "problem": self._guard.operator.status()["problem"],
            "cpu_seconds": time.process_time(),
        }


class _Family(NamedTuple):
    type: str
    documentation: str
    samples: dict[Key, float]


Families = dict[str, _Family]


def read(told: Told) -> Families:
    """The metrics of one worker, by their names. A counter and a gauge may have the same."""
    found: Families = {}
    for name, kind, documentation, samples in told["families"]:
        by_key = {(sample, tuple(map(tuple, labels))): value for sample, labels, value in samples}
        found[f"{name} {kind}"] = _Family(kind, documentation, by_key)
    return found


def rising(families: Families) -> Families:
    """Those that count on when their worker has ended."""
    return {name: each for name, each in families.items() if each.type in _RISING}


def merged(all_families: Iterable[Families]) -> Families:
    """The metrics of several workers as those of one guard."""
    result: Families = {}
    for families in all_families:
        for key, family in families.items():
            known = result.setdefault(key, _Family(family.type, family.documentation, {})).samples
            name = key.partition(" ")[0]
            for sample, value in family.samples.items():
                if sample not in known:
                    known[sample] = value
                elif family.type in _RISING or (name in _ADDED and sample[1] not in _SHARED):
                    known[sample] += value
                elif name in _LEAST:
                    known[sample] = min(known[sample], value)
                elif name in _MOST:
                    known[sample] = max(known[sample], value)
    return result


class _Merged(Collector):
    """Collects what several workers have told, `of_workers`, by their numbers. `ended` are the metrics of those that
    have ended."""

    def __init__(self, of_workers: Mapping[int, Told], ended: Families) -> None:
        self._of_workers = of_workers
        self._ended = ended

    def collect(self) -> Iterator[Metric]:
        families = {number: read(told) for number, told in self._of_workers.items()}
        # What is the same in all is that of a worker that runs.
        for name, family in merged([*families.values(), self._ended]).items():
            metric = Metric(name.partition(" ")[0], family.documentation, family.type)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric
        yield from self._each(families)

    def _each(self, families: Mapping[int, Families]) -> Iterator[Metric]:
        """What there is of each worker."""
        connections = GaugeMetricFamily(
            "smtpguard_worker_connections", "Open connections.", labels=("worker",)
        )
        messages = CounterMetricFamily(
            "smtpguard_worker_messages", "Messages that were accepted.", labels=("worker",)
        )
        seconds = CounterMetricFamily("smtpguard_worker_cpu_seconds", "Processor time.", labels=("worker",))
        for number, of_one in families.items():
            name = (str(number),)
            connections.add_metric(name, sum(of_one["smtpguard_connections gauge"].samples.values()))
            accepted = ("smtpguard_messages_total", (("outcome", "accepted"),))
            messages.add_metric(name, of_one["smtpguard_messages counter"].samples[accepted])
            seconds.add_metric(name, self._of_workers[number]["cpu_seconds"])
        yield from (connections, messages, seconds)


class WorkersPages(Pages):
    """`/metrics`, `/healthz`, `/status` and `/status.json` of a guard of several workers.

    `ask` fires with what each worker tells, by its number, and with the metrics of those that have ended. `state`
    returns the state of the guard, whose status is made of `snapshots`.
    """

    def __init__(
        self,
        ask: Callable[[], Deferred[tuple[Mapping[int, Told], Families]]],
        state: Callable[[], str],
        snapshots: Snapshots,
    ) -> None:
        super().__init__()
        self._ask = ask
        self._state = state
        status = StatusPages(snapshots)
        self.pages = {b"/metrics": self._metrics, b"/healthz": self._healthz, **status.pages}

    def _metrics(self, accept: bytes) -> Deferred[Page]:
        return self._ask().addCallback(lambda told: metrics_page(accept, _Merged(*told)))

    def _healthz(self, _: bytes) -> Page | Deferred[Page]:
        if self._state() != "listening":
            return plain(503, f"the guard does not listen, it is {self._state()}")
        return self._ask().addCallback(self._health)

    def _health(self, told: tuple[Mapping[int, Told], Families]) -> Page:
        problems = [each["problem"] for each in told[0].values()]
        # One worker that takes mail is enough.
        return plain(503, problems[0]) if problems and all(problems) else plain(200, "ok")
