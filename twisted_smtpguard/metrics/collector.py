"""The metrics of a guard, for a registry of prometheus-client. They are read from the guard when they are asked for.

This file imports prometheus-client, which the extra `metrics` installs. Every label has its values from a fixed set:
what stands in the catalogue of replies, in the table of commands or in `Limits`, and what the operator has named.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from twisted_smtpguard import replies
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.interfaces import FilterMetric, IMeasuredFilter, IReportsHealth
from twisted_smtpguard.limits.limits import Limits, dry_runnable
from twisted_smtpguard.limits.units import Part, Rate
from twisted_smtpguard.log.measurements import Histogram
from twisted_smtpguard.service.service import SMTPGuardService

_PREFIX = "smtpguard_"
_OUTCOMES = ("accepted", "refused", "hung_up")
_CLASSES = (("accepted", (200, 300)), ("deferred", (400, 500)), ("rejected", (500, 600)))


class GuardCollector:
    """Collects the metrics of `guard`. Register it where you like: `registry.register(GuardCollector(guard))`.

    `lag` has the times by which the reactor was late; a MetricsService measures them. Two guards in one registry need a
    label, which this does not give: use a registry for each.
    """

    @checked
    def __init__(self, guard: SMTPGuardService, lag: Histogram | None = None) -> None:
        self._guard = guard
        self._lag = lag

    def describe(self) -> Iterable[Metric]:
        """Called by a registry, which only wants to know the names."""
        return with_own_names(self.collect())

    def collect(self) -> Iterator[Metric]:
        """Called by a registry at each scrape."""
        yield from self._connections()
        yield from self._sessions()
        yield from self._messages()
        yield from self._hooks()
        yield from self._upstream()
        yield from self._limits()
        yield from self._process()

    def _connections(self) -> Iterator[Metric]:
        factory = self._guard.factory
        text = "Open connections, by their stage."
        yield _gauge("connections", text, "state", factory.connections_by_stage())
        text = "Whether the guard is in stress, so that strangers have less time and fewer errors."
        yield GaugeMetricFamily(f"{_PREFIX}stress", text, int(factory.context.stressed))
        measured = factory.context.events.measured
        # What has not happened yet is 0, so that the first time is an increase.
        named = {(name, outcome): 0 for name in self._guard.listener_names for outcome in _OUTCOMES}
        text = "Connections that were accepted by a listener, by what became of them."
        yield _counter("connections", text, ("listener", "outcome"), {**named, **measured.connections})
        text = "TLS handshakes that are over."
        yield _counter("tls_handshakes", text, ("version", "outcome"), measured.handshakes)
        ends = getattr(factory.tls, "not_after", None)
        if ends is not None:
            text = "When the certificate that is served, or one of its chain, expires: the first of all, since 1970."
            yield GaugeMetricFamily(f"{_PREFIX}tls_certificate_not_after_seconds", text, ends())

    def _sessions(self) -> Iterator[Metric]:
        factory = self._guard.factory
        statistics, measured = factory.statistics, factory.context.events.measured
        refusals = {(entry.reason, "false"): 0 for entry in replies.catalogue() if entry.reason}
        refusals |= {(name, dry_run): 0 for name in dry_runnable() for dry_run in ("false", "true")}
        refusals |= {(reason, "false"): number for reason, number in statistics.refusals.items()}
        refusals |= {(reason, "true"): number for reason, number in statistics.dry_run_refusals.items()}
        text = "Refusals of connections, commands and messages, by the reason in the log."
        yield _counter("refusals", text, ("reason", "dry_run"), refusals)
        text = "Bans that were made, of clients or of networks."
        bans = {(kind, dry_run): 0 for kind in ("client", "network") for dry_run in ("false", "true")}
        yield _counter("bans", text, ("of", "dry_run"), {**bans, **measured.bans})
        text = "Clients and networks that are banned now; in dry run those that would be."
        yield GaugeMetricFamily(f"{_PREFIX}bans", text, len(factory.bans))
        text = "Replies to commands."
        by_code = {(verb, str(code)): number for (verb, code), number in measured.replies.items()}
        yield _counter("replies", text, ("command", "code"), by_code)
        text = "How long sessions took that have ended."
        yield _histogram("session_seconds", text, (), {(): measured.session_seconds})
        text = "Lines that the budget of the log has left out."
        yield CounterMetricFamily(
            f"{_PREFIX}log_lines_suppressed", text, factory.context.events.suppressed_lines
        )

    def _messages(self) -> Iterator[Metric]:
        factory = self._guard.factory
        statistics, measured = factory.statistics, factory.context.events.measured
        outcomes = {"accepted": statistics.messages_accepted, "rejected": 0, "deferred": 0, "aborted": 0}
        text = "Messages whose data came, by what became of them."
        yield _counter("messages", text, ("outcome",), _keyed({**outcomes, **measured.messages}))
        text = "Octets of accepted messages."
        yield CounterMetricFamily(f"{_PREFIX}message_octets", text, statistics.octets_accepted)
        recipients = {
            outcome: sum(
                number
                for (verb, code), number in measured.replies.items()
                # A 421 is about the session.
                if verb == "RCPT" and low <= code < high and code != 421
            )
            for outcome, (low, high) in _CLASSES
        }
        yield _counter("recipients", "Answers to RCPT.", ("outcome",), _keyed(recipients))
        text = "How long accepted messages took, from MAIL to the verdict."
        yield _histogram("message_seconds", text, (), {(): measured.message_seconds})

    def _hooks(self) -> Iterator[Metric]:
        factory = self._guard.factory
        measured = factory.context.events.measured
        text = "How long the delivery's hooks took to answer."
        hooks = measured.hook_seconds(factory.statistics.messages_accepted)
        yield _histogram("delivery_seconds", text, ("hook", "outcome"), hooks)
        text = "How long IP filters took to answer."
        yield _histogram("filter_seconds", text, ("filter", "verdict"), measured.filters)
        text = "How long session policies took to answer."
        yield _histogram("policy_seconds", text, ("policy", "stage", "verdict"), measured.policies)
        yield from self._of_filters()

    def _of_filters(self) -> Iterator[Metric]:
        """What filters count themselves. Those of one name are added."""
        found: dict[str, FilterMetric] = {}
        for entry in self._guard.factory.filters:
            measured = entry.filter
            for each in IMeasuredFilter(measured).metrics if IMeasuredFilter.providedBy(measured) else ():
                known = found[each.name].values if each.name in found else {}
                sums = {key: known.get(key, 0) + each.values.get(key, 0) for key in {**known, **each.values}}
                found[each.name] = each._replace(values=sums)
        for each in found.values():
            kind = CounterMetricFamily if each.rises else GaugeMetricFamily
            family = kind(_PREFIX + each.name, each.text, labels=each.labels)
            for key, value in each.values.items():
                family.add_metric(key, value)
            yield family

    def _upstream(self) -> Iterator[Metric]:
        delivery = self._guard.factory.context.delivery
        if not IReportsHealth.providedBy(delivery):
            return
        health = IReportsHealth(delivery)
        text = "Connections of the delivery to its server, by what they are doing."
        yield _gauge("upstream_connections", text, "state", health.connections_by_state)
        text = "Whether the delivery can take messages: 0 while its server is down."
        yield GaugeMetricFamily(f"{_PREFIX}upstream_up", text, 0 if health.problem else 1)

    def _limits(self) -> Iterator[Metric]:
        factory = self._guard.factory
        text = (
            "The limits in force; 0 is no limit. Of a rate it is the number of events, of a part of the connections "
            "their number."
        )
        yield _gauge("limit", text, "name", dict(_numbers(factory.context.limits)))
        records = factory.known.records
        text = "Clients that are remembered: for each limit that counts by client, as known, and for suggestions."
        sizes = {**factory.own_counters.sizes(), records.kind: len(records), **factory.clients.peaks.sizes()}
        yield _gauge("table_clients", text, "table", sizes)
        if factory.counting.can_fail:
            text = "Whether the counter store can be asked: 0 while this guard counts alone."
            yield GaugeMetricFamily(f"{_PREFIX}counters_up", text, int(factory.counting.is_up))
            text = "How long decisions took for which a counter store was asked that answers later."
            measured = {(): factory.context.events.measured.counter_seconds}
            yield _histogram("counter_decision_seconds", text, (), measured)

    def _process(self) -> Iterator[Metric]:
        measured = self._guard.factory.context.events.measured
        failed = measured.failed_reloads
        parts = {each: 0 if each in failed else 1 for each in (*self._guard.reloadable, *failed)}
        text = "Whether the last reload of a part has succeeded; 1 before the first."
        yield _gauge("reload_success", text, "what", parts)
        if self._lag is not None:
            text = "How late the reactor called what was due, measured each second."
            yield _histogram("reactor_lag_seconds", text, (), {(): self._lag})
        text = "1; the versions are in its labels."
        info = GaugeMetricFamily(f"{_PREFIX}build_info", text, labels=("version", "python", "twisted"))
        info.add_metric((version("twisted_smtpguard"), platform.python_version(), version("Twisted")), 1)
        yield info


def with_own_names(families: Iterable[Metric]) -> Iterator[Metric]:
    """The metrics with a name for each. In OpenMetrics, as in prometheus-client, a counter has its name without
    `_total`. If another metric has that name, the counter's type becomes unknown, and `_total` a part of its name."""
    families = list(families)
    others = {each.name for each in families if each.type != "counter"}
    for each in families:
        if each.type == "counter" and each.name in others:
            renamed = Metric(f"{each.name}_total", each.documentation, "unknown")
            renamed.samples = each.samples
            yield renamed
        else:
            yield each


def _numbers(limits: Limits) -> Iterator[tuple[str, float]]:
    """The limits that are numbers. A choice of words, or a list of prefix lengths, is none."""
    for spec in Limits.specs():
        value = getattr(limits, spec.name)
        if isinstance(value, Rate):
            yield spec.name, value.events
        elif isinstance(value, Part):
            yield spec.name, value.of(limits.max_connections)
        elif not isinstance(value, str | tuple):
            yield spec.name, value


def _keyed(numbers: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    return {(name,): number for name, number in numbers.items()}


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=(label,))
    for value, number in values.items():
        family.add_metric((value,), number)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=labels)
    for value, number in values.items():
        family.add_metric(value, number)
    return family


def _histogram(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, Histogram]) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, text, labels=labels)
    for value, histogram in values.items():
        total, buckets = 0, []
        for bound, number in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            total += number
            buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
        family.add_metric(value, buckets, histogram.seconds)
    return family
