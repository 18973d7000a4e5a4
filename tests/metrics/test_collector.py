"""The collector: which metrics there are, what they say, and that strangers make no new ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from certificates import CERTIFICATE
from documents import DOCS
from fakes import FakeFilter, SlowFilter, refusal
from mailserver import Behind, MailServer
from manual_threads import ManualThreads
from prometheus_client import CollectorRegistry
from servedguard import collector_of, samples, service_with
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_smtpguard import (
    CertificateFiles,
    FilterEntry,
    Limits,
    NetworksFile,
    Rate,
    replies,
)
from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.engine.commands import COMMANDS
from twisted_smtpguard.filters.dnsbl import DnsblFilter
from twisted_smtpguard.filters.dnsblsettings import parse_dnsbl
from twisted_smtpguard.interfaces import FilterMetric, ICounterStore, IMeasuredFilter
from twisted_smtpguard.log.measurements import Histogram
from twisted_smtpguard.metrics.collector import GuardCollector
from twisted_smtpguard.testing import FakeDelivery, FakePolicy, FakeTransport

MAIL = ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA", "Subject: x", "", ".")


def test_what_happens_is_counted_by_name() -> None:
    guard = service_with(limits=Limits(max_connections=2), names=("smtp",))
    client = guard.greeted()
    client.say(*MAIL, "MAIL FROM:<a@example.org>", "RCPT TO:<b@[x>", "RCPT TO:<c@example.org>")
    other = guard.connect()
    guard.connect()
    found = samples(guard)
    assert found['connections{state="command"}'] == found['connections{state="first_line"}'] == 1
    assert found['connections_total{listener="smtp",outcome="accepted"}'] == 2
    assert found['connections_total{listener="smtp",outcome="refused"}'] == 1
    assert found['connections_total{listener="smtp",outcome="hung_up"}'] == 0
    assert found['refusals_total{dry_run="false",reason="max_connections"}'] == 1
    assert found['refusals_total{dry_run="true",reason="max_connections"}'] == 0
    assert found['replies_total{code="250",command="MAIL"}'] == 2
    assert found['replies_total{code="354",command="DATA"}'] == 1
    assert found['messages_total{outcome="accepted"}'] == 1
    assert found['messages_total{outcome="aborted"}'] == 0
    assert found["message_octets_total"] == len("Subject: x\r\n\r\n")
    assert found['recipients_total{outcome="accepted"}'] == 2
    assert found['recipients_total{outcome="rejected"}'] == 1
    assert found["message_seconds_count"] == 1
    assert found['delivery_seconds_count{hook="begin",outcome="ok"}'] == 2
    assert found['delivery_seconds_bucket{hook="finish",le="0.005",outcome="ok"}'] == 1
    assert found["session_seconds_count"] == 0
    other.disconnect()
    assert samples(guard)["session_seconds_count"] == 1


@implementer(IMeasuredFilter)
class Measured(FakeFilter):
    def __init__(self, *metrics: FilterMetric) -> None:
        super().__init__()
        self.metrics = metrics


def test_what_filters_count_is_added_by_name() -> None:
    head = ("dns_answers", "Answers.", ("list", "outcome"))
    one = FilterMetric(*head, {("a", "listed"): 2, ("b", "listed"): 1}, rises=True)
    other = FilterMetric(*head, {("a", "listed"): 3, ("c", "listed"): 0}, rises=True)
    up = FilterMetric("dns_up", "Whether.", ("list",), {("a",): 1})
    found = samples(service_with(ip_filters=[FakeFilter(), Measured(one, up), Measured(other)]))
    assert {name: number for name, number in found.items() if name.startswith("dns_")} == {
        'dns_answers_total{list="a",outcome="listed"}': 5,
        'dns_answers_total{list="b",outcome="listed"}': 1,
        'dns_answers_total{list="c",outcome="listed"}': 0,
        'dns_up{list="a"}': 1,
    }


def test_a_421_is_no_answer_about_a_recipient() -> None:
    delivery = FakeDelivery()
    answers = [refusal(550, "No"), refusal(450, "Later"), refusal(421, "Enough")]
    delivery.answers["recipient"] = lambda _: answers.pop(0)
    guard = service_with(delivery)
    guard.greeted().say("MAIL FROM:<a@example.org>", *["RCPT TO:<b@example.org>"] * 3)
    found = samples(guard)
    assert found['recipients_total{outcome="rejected"}'] == found['recipients_total{outcome="deferred"}'] == 1


def test_limits_are_those_in_force() -> None:
    guard = service_with(limits=Limits(max_connections=7, connection_rate=Rate(60, 30), read_timeout=1.5))
    found = samples(guard)
    assert found['limit{name="max_connections"}'] == 7
    assert found['limit{name="connection_rate"}'] == 60
    assert found['limit{name="message_rate"}'] == 0
    assert found['limit{name="read_timeout"}'] == 1.5
    assert found['limit{name="strict_enhanced_codes"}'] == 0
    # A choice of words is no number.
    assert 'limit{name="bare_newline"}' not in found
    guard.factory.set_limits(attrs.evolve(guard.factory.context.limits, max_connections=8))
    assert samples(guard)['limit{name="max_connections"}'] == 8


def test_tables_of_clients_have_their_sizes() -> None:
    guard = service_with(limits=Limits(max_connections_per_client=5, message_rate=Rate(60, 60)))
    guard.greeted("192.0.2.1").say("MAIL FROM:<a@example.org>")
    guard.greeted("192.0.2.2")
    found = samples(guard)
    assert found['table_clients{table="max_connections_per_client"}'] == 2
    assert found['table_clients{table="message_rate"}'] == 1


def test_a_filter_has_the_name_that_the_operator_gave_it() -> None:
    slow = SlowFilter()
    guard = service_with(ip_filters=[FilterEntry(FakeFilter(), "first"), FilterEntry(slow, "zen")])
    guard.connect()
    guard.clock.advance(3)
    slow.asked[0].errback(ValueError("a bug"))
    found = samples(guard)
    assert found['filter_seconds_sum{filter="first",verdict="pass"}'] == 0
    assert found['filter_seconds_sum{filter="zen",verdict="error"}'] == 3


def test_an_upstream_server_is_up_or_down() -> None:
    server = MailServer()
    behind = Behind(server)
    guard = service_with(behind.proxy, clock=behind.clock)
    found = samples(guard)
    assert found["upstream_up"] == found['upstream_connections{state="idle"}'] == 1
    server.reachable = False
    server.links[0].close()
    guard.greeted().say("MAIL FROM:<a@example.org>")
    behind.clock.advance(1)
    found = samples(guard)
    assert (found["upstream_up"], found['upstream_connections{state="idle"}']) == (0, 0)


def test_a_delivery_that_tells_nothing_has_no_metrics_of_an_upstream_server() -> None:
    assert not [name for name in samples(service_with()) if name.startswith("upstream_")]


@implementer(ICounterStore)
class LateStore:
    """Answers when the test does, or at once with `count`."""

    lease_seconds = 0

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.answers: list[Deferred[list[int]]] = []

    def take(self, *_: object) -> Any:
        if self.count:
            return [self.count]
        self.answers.append(Deferred())
        return self.answers[-1]

    def give_back(self, *_: object) -> None: ...
    def look(self, *_: object) -> None: ...
    def renew(self, *_: object) -> None: ...


def test_a_guard_that_counts_alone_and_the_time_of_decisions_are_told() -> None:
    store = LateStore()
    guard = service_with(limits=Limits(max_connections=5), counters=store)
    guard.connect()
    guard.clock.advance(0.002)
    store.answers[0].callback([1])
    found = samples(guard)
    assert found["counters_up"] == 1
    assert found['counter_decision_seconds_bucket{le="0.001"}'] == 0
    assert found['counter_decision_seconds_bucket{le="0.0025"}'] == 1
    guard.connect()
    guard.clock.advance(0.05)
    assert samples(guard)["counters_up"] == 0
    # What is in memory answers always, and at once.
    alone = service_with(counters=LocalCounterStore(0))
    assert not [name for name in samples(alone) if name.startswith("counter")]


def test_lines_that_the_log_left_out_are_counted() -> None:
    guard = service_with(limits=Limits(max_log_lines=1, max_invalid_commands=0))
    guard.greeted().say("FROB", "FROB", "FROB")
    assert samples(guard)["log_lines_suppressed_total"] == 2


def test_the_first_certificate_to_expire_is_the_one_that_counts() -> None:
    tls = CertificateFiles(str(CERTIFICATE))
    found = samples(service_with(tls=tls))
    assert found["tls_certificate_not_after_seconds"] == tls.not_after() > 1.7e9
    assert "tls_certificate_not_after_seconds" not in samples(service_with())


def test_a_part_whose_last_reload_has_failed_is_0(tmp_path: Path) -> None:
    networks = tmp_path / "networks"
    networks.write_text("deny 192.0.2.0/24\n")
    threads = ManualThreads()
    mine = FilterEntry(NetworksFile(networks, threads), "mine")
    guard = service_with(clock=threads, ip_filters=[mine, FakeFilter()])
    name = 'reload_success{what="mine"}'
    assert {each for each in samples(guard) if each.startswith("reload_")} == {name}
    for text, success in (("frobnicate", 0), ("deny 192.0.2.0/24", 1)):
        networks.write_text(f"{text}\n")
        guard.service.reload()
        threads.work()
        assert samples(guard)[name] == success


def test_every_reason_of_the_catalogue_is_there_from_the_start() -> None:
    found = samples(service_with())
    for entry in replies.catalogue():
        if entry.reason:
            assert found[f'refusals_total{{dry_run="false",reason="{entry.reason}"}}'] == 0


WORDS = (
    "FROB{0}\r\nX{0} y\r\n",
    "MAIL FROM:<a{0}@example.org>\r\nRCPT TO:<b{0}@example.org>\r\nDATA\r\n",
    "MAIL FROM:<a@example.org> X{0}=1\r\nRCPT TO:<c>\r\n",
    "VRFY {0}\r\nAUTH PLAIN {0}\r\n",
    "GET /{0} HTTP/1.1\r\n",
    "BDAT {0}\r\n",
)


def attack(listener: Any, number: int) -> None:
    """What a stranger chooses is another one each time: the address, names, verbs and parameters."""
    transport = FakeTransport(f"{1 + number % 223}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}")
    protocol = listener.buildProtocol(transport.getPeer())
    transport.protocol = protocol
    protocol.makeConnection(transport)
    said = WORDS[number % len(WORDS)].format(number)
    protocol.dataReceived((f"EHLO h{number}.example\r\n" * (number % 4 != 0) + said).encode())
    transport.lose()


@pytest.mark.parametrize("number", [10_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
@pytest.mark.timeout(1800)
def test_however_many_strangers_come_there_are_no_more_series(number: int) -> None:
    guard = service_with(
        limits=Limits.for_profile("edge", greet_delay=0, max_tracked_clients=1000),
        ip_filters=[FilterEntry(FakeFilter(), "mine")],
    )
    listener: Any = guard.service._listeners[0][1]
    for each in range(50):
        attack(listener, each)
    before = set(samples(guard))
    for each in range(50, number):
        attack(listener, each)
        if each % 1000 == 0:
            guard.clock.advance(1)
    after = set(samples(guard))
    assert after == before
    assert (
        guard.factory.statistics.connections_accepted + guard.factory.statistics.connections_refused >= number
    )


def test_the_labels_of_commands_are_the_verbs_of_the_table() -> None:
    guard = service_with()
    client = guard.greeted()
    client.say("FROB x", "NOOP", "QUIT")
    commands = {found for each in samples(guard) for found in re.findall(r'command="(\w+)"', each)}
    assert commands - {"none"} <= {verb.decode() for verb in COMMANDS}
    assert "none" in commands


def test_a_registry_takes_it_and_gives_it_back() -> None:
    registry = CollectorRegistry(auto_describe=True)
    collector = collector_of(service_with())
    registry.register(collector)
    assert registry.get_sample_value("smtpguard_messages_total", {"outcome": "accepted"}) == 0
    registry.unregister(collector)
    assert registry.get_sample_value("smtpguard_messages_total", {"outcome": "accepted"}) is None


def rows() -> dict[str, tuple[str, str]]:
    """The type and the labels of each metric of the reference."""
    text = (DOCS / "reference" / "metrics.md").read_text()
    return {
        name: (kind, labels)
        for name, kind, labels in re.findall(r"(?m)^\| `(smtpguard_\w+)` \| (\w+) \| ([^|]*?) \|", text)
    }


def test_the_reference_has_every_metric_with_its_type_its_labels_and_its_words() -> None:
    server = MailServer()
    behind = Behind(server)
    guard = service_with(
        behind.proxy,
        clock=behind.clock,
        tls=CertificateFiles(str(CERTIFICATE)),
        ip_filters=[FakeFilter(), DnsblFilter(parse_dnsbl("bl.example"), behind.clock)],
        policies=[FakePolicy()],
        limits=Limits(max_connections_per_client=5),
        counters=LateStore(1),
        names=("smtp",),
    )
    guard.factory.context.events.measured.handshakes["TLSv1.3", "completed"] += 1
    guard.greeted().say(*MAIL)
    families = {}
    for family in GuardCollector(guard.service, Histogram((1.0,))).collect():
        name = family.name + "_total" * (family.type == "counter")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        families[name] = (family.type, ", ".join(f"`{each}`" for each in sorted(labels)) or "none")
    assert families == {name: (kind, labels) for name, (kind, labels) in rows().items()}
    page = (DOCS / "reference" / "metrics.md").read_text()
    for family in GuardCollector(guard.service, Histogram((1.0,))).collect():
        assert f" {family.documentation}" in page
