"""The status page and its data, in memory: what is shown, that nothing on it is markup of a stranger, what it costs."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

import pytest
from servedguard import ServedGuard, service_with
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twisted_smtpguard import FilterEntry, Limits, refuse
from twisted_smtpguard.metrics.charts import bars
from twisted_smtpguard.metrics.pages import GuardPages, Page, StatusPages
from twisted_smtpguard.metrics.snapshot import LOOK_SECONDS, SAMPLES, Hour, Snapshots
from twisted_smtpguard.metrics.statuspage import HEADERS, page_of
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.testing import FakeFilter

EVIL = "<script>alert(1)</script>\"'&\u202e\x1b[31m\x00</title>"


def snapshot_of(guard: ServedGuard, hour: Hour | None = None) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    Snapshots(guard.service.operator, guard.clock, hour).take().addCallback(found.append)
    while not found:
        guard.clock.advance(0)
    return found[0]


class Reader(HTMLParser):
    """The text and the elements of a page, whose tags have to be closed in their order."""

    OPEN = ("meta", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.OPEN:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += f"{data} "


def with_everything(text: str) -> dict[str, Any]:
    """A snapshot in which every text is this one, with tables as long as they get."""
    counted = ("messages_accepted", "octets_accepted", "connections_refused", "failures")
    statistics: dict[str, Any] = dict.fromkeys(counted, 7_000_000_000)
    statistics |= {"refusals": {f"{text}{n}": n for n in range(60)}, "dry_run_refusals": {text: 1}}
    status = dict.fromkeys(("version", "hostname", "state", "problem"), text)
    numbers = dict.fromkeys(("pid", "connections", "sessions", "lingering", "tls_handshakes"), 1_000_000)
    worker = {"worker": 1, "pid": 7, "state": text, "version": text, "connections": 3}
    names = (
        "time",
        "address",
        "reason",
        "command",
        "filter",
        "rule",
        "limit",
        "reply",
        "user",
        "helo",
        "tls",
    )
    recent = {**dict.fromkeys(names, text), "ended": text, "value": 1, "messages": 1, "seconds": 1.5}
    hook = {"part": text, "name": text, "outcome": text, "answers": 5, "seconds": 1.0, "mean_seconds": 0.2}
    top = {"client": text, "connections": 1, "messages": 2, "recipients": 3, "refusals": 4}
    sample = {"time": "2026-11-30T17:00:00Z", "connections": 500, "accepted": 9, "refused": 9, "messages": 1}
    return {
        "time": "2026-11-30T17:00:00Z",
        "status": {
            **status,
            **numbers,
            "deferring": False,
            "stress": True,
            "reserved_connections": 100,
            "listening": {text: text},
            "max_connections": 1_000_000,
            "upstream": {text: 1},
            "statistics": statistics,
            "workers": [worker] * 8,
        },
        "recent": {"refusals": [recent] * 20, "sessions": [recent] * 20},
        "top": [top] * 20,
        "top_refused": [top] * 20,
        "hooks": [{**hook, "within_seconds": None}] * 40,
        "limits": [{"limit": text, "value": text, "from": text, "dry_run": True}] * 60,
        "hour": [{**sample, "refusals": n * n} for n in range(SAMPLES)],
        "problems": {"top": text},
    }


# What strangers sent.


def test_whatever_text_is_on_the_page_it_is_text() -> None:
    harmless, hostile = Reader(page_of(with_everything("x"))), Reader(page_of(with_everything(EVIL)))

    def shape(page: Reader) -> list[tuple[str, list[str]]]:
        return [(tag, sorted(attributes)) for tag, attributes in page.elements]

    assert shape(hostile) == shape(harmless)
    assert "<script>alert(1)</script>\"'&\\u202e\\x1b[31m\\x00</title>" in hostile.text
    assert page_of(with_everything(EVIL)).isascii()
    assert "\x1b" not in page_of(with_everything(EVIL))


def test_what_clients_sent_is_shown_as_the_log_shows_it() -> None:
    listed = FakeFilter(lambda peer: refuse(Reply(521, "5.7.1", ("<i>no</i>",)), rule="<b>rule</b>"))
    guard = service_with(ip_filters=[FilterEntry(listed, name="<u>f</u>")])
    guard.service.startService()
    guard.connect()
    listed.answer = lambda peer: refuse(Reply(421, "4.7.1", ("<i>no\u202e</i>",)))
    guard.connect("2001:db8::1")
    text = Reader(page_of(snapshot_of(guard))).text
    for shown in ("521 5.7.1 <i>no</i>", "<u>f</u> <b>rule</b>", "<i>no\\u202e</i>", "2001:db8::/64"):
        assert shown in text, text
    guard.service.stopService()


# What is shown.


def test_the_page_shows_the_state_the_cap_and_the_clients() -> None:
    guard = service_with(limits=Limits(max_connections=4))
    assert "the guard does not listen, it is stopped" in Reader(page_of(snapshot_of(guard))).text
    guard.service.startService()
    for _ in range(3):
        guard.greeted("192.0.2.7")
    text = Reader(page_of(snapshot_of(guard))).text
    assert "Listening, takes mail" in text
    assert "of 4 (75%)" in text
    assert re.search(r"192\.0\.2\.7\s+3 ", text)
    assert re.search(r"max-connections\s+4\s+application", text)
    guard.service.operator.defer("on")
    assert "every MAIL is deferred" in Reader(page_of(snapshot_of(guard))).text


def test_a_verb_without_an_answer_leaves_the_rest() -> None:
    class Refusing:
        def carry_out(self, verb: str, arguments: Mapping[str, object]) -> Any:
            raise ValueError(f"no worker is ready for <{verb}>")

    found: list[dict[str, Any]] = []
    Snapshots(Refusing(), Clock()).take().addCallback(found.append)
    text = Reader(page_of(found[0])).text
    for verb in ("status", "top", "hooks", "limits", "recent"):
        assert f"no worker is ready for <{verb}>" in text
    assert json.loads(json.dumps(found[0])) == found[0]


def test_workers_are_listed_where_there_are_some() -> None:
    snapshot = with_everything("x")
    assert "Workers" in page_of(snapshot)
    del snapshot["status"]["workers"]
    assert "Workers" not in page_of(snapshot)


def test_there_are_headings_captions_and_headers_of_rows() -> None:
    elements = Reader(page_of(with_everything("x"))).elements
    tags = [tag for tag, _ in elements]
    assert (tags.count("h1"), tags.count("main")) == (1, 1)
    assert tags.count("h2") == tags.count("section") == 8
    assert tags.count("caption") == tags.count("table") == 9
    identifiers = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    headers = [attributes["scope"] for tag, attributes in elements if tag == "th"]
    assert {*headers} == {"row", "col"}
    for tag, attributes in elements:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]


# It stands by itself.


def test_the_policy_admits_what_is_in_the_page_and_nothing_else() -> None:
    page = page_of(with_everything(EVIL))
    policy = HEADERS["Content-Security-Policy"]
    for kind in ("style", "script"):
        (inline,) = re.findall(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = b64encode(sha256(inline.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for directive in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"):
        assert directive in policy


def test_the_page_refers_to_nothing_elsewhere() -> None:
    for tag, attributes in Reader(page_of(with_everything(EVIL))).elements:
        assert not {name for name in attributes if name.startswith("on") or name in ("style", "src")}, tag
        if "href" in attributes:
            assert attributes["href"] in ("data:,", "status.json", "metrics", "healthz")
    assert "//" not in re.sub(r"(?m)^ *// .*$", "", page_of(with_everything("x")))


def test_the_page_is_small_with_tables_as_long_as_they_get() -> None:
    assert len(page_of(with_everything("twenty characters ..."))) < 60_000


# The last hour.


@pytest.fixture
def kept() -> Iterator[tuple[ServedGuard, Hour]]:
    guard = service_with(clock=Clock())
    hour = Hour(guard.service.operator, guard.clock)
    hour.start()
    yield guard, hour
    hour.stop()
    assert guard.clock.getDelayedCalls() == []


def minute(guard: ServedGuard) -> None:
    guard.clock.pump([LOOK_SECONDS] * 12)


def test_a_sample_has_what_happened_in_its_minute(kept: tuple[ServedGuard, Hour]) -> None:
    guard, hour = kept
    minute(guard)
    clients = [guard.connect() for _ in range(3)]
    guard.clock.advance(LOOK_SECONDS)
    for client in clients:
        client.say("RUBBISH")
        client.disconnect()
    minute(guard)
    counts = [
        (each["connections"], each["accepted"], each["refusals"], each["messages"]) for each in hour.samples()
    ]
    assert counts == [(0, 0, 0, 0), (3, 3, 3, 0), (0, 0, 0, 0)]
    assert [each["time"] for each in hour.samples()][1] == "1970-01-01T00:01:00Z"


def test_there_are_never_more_samples_than_an_hour_has(kept: tuple[ServedGuard, Hour]) -> None:
    guard, hour = kept
    for _ in range(SAMPLES + 30):
        minute(guard)
    assert len(hour.samples()) == SAMPLES
    assert hour.samples()[0]["time"] == "1970-01-01T00:31:00Z"


def test_a_status_that_is_not_to_be_had_is_looked_at_later() -> None:
    clock = Clock()
    answers: list[Any] = [ValueError("no worker is ready"), Deferred()]

    class Operator:
        def carry_out(self, verb: str, arguments: Mapping[str, object]) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    hour = Hour(Operator(), clock)
    hour.start()
    assert hour.samples() == []
    asked = answers[0]
    clock.advance(LOOK_SECONDS)
    asked.callback({"connections": 5, "statistics": {"refusals": {"x": 2}}})
    assert [each["connections"] for each in hour.samples()] == [5]
    hour.stop()


def test_a_chart_has_a_bar_for_each_sample_and_the_cap_if_they_come_near_it() -> None:
    samples = [{"time": f"2026-11-30T17:0{n}:00Z", "a": n} for n in range(5)]
    chart = bars("Things", samples, ["a"], 60)
    # Nothing has no bar.
    assert len(re.findall(r"M\d+ 56v-\d+h3V56z", chart)) == 4
    assert "now 4, most 4 at 17:04" in chart
    assert "M236 56v-52h3V56z" in chart
    assert 'class="cap"' not in bars("Things", samples, ["a"], 60, 9)
    assert 'class="cap" d="M0 4h240"' in bars("Things", samples, ["a"], 60, 8)
    assert 'd=""' in bars("Things", [], ["a"], 60)


# What it costs.


def test_a_crowd_of_readers_has_one_snapshot_a_second_made_for_it() -> None:
    clock = Clock()
    asked: list[str] = []
    waits: Deferred[Any] = Deferred()

    class Operator:
        def carry_out(self, verb: str, arguments: Mapping[str, object]) -> Any:
            asked.append(verb)
            return waits if verb == "top" and not waits.called else iter(())

    snapshots = Snapshots(Operator(), clock)
    found: list[Any] = []
    for _ in range(3):
        snapshots.take().addBoth(found.append)
    # One leaves before the answer.
    snapshots.take().addErrback(lambda _: None).cancel()
    assert (asked.count("status"), found) == (1, [])
    waits.callback(iter(()))
    assert found[0] is found[1] is found[2]
    snapshots.take().addBoth(found.append)
    assert (asked.count("status"), len(found)) == (1, 4)
    clock.advance(1)
    snapshots.take().addBoth(found.append)
    assert (asked.count("status"), len(found)) == (2, 5)


def test_readers_within_a_second_get_the_same_octets_and_later_ones_others() -> None:
    guard = service_with(clock=Clock())
    pages = StatusPages(Snapshots(guard.service.operator, guard.clock))
    found: list[Page] = []

    def read() -> Page:
        pages.pages[b"/status"](b"").addCallback(found.append)
        return found.pop()

    first = read()
    guard.clock.advance(0.9)
    assert read() is first
    guard.clock.advance(0.1)
    assert read() is not first


def test_no_sample_is_taken_of_a_guard_whose_page_is_not_served() -> None:
    guard = service_with(clock=Clock())
    GuardPages(guard.service)
    guard.service.startService()
    assert guard.clock.getDelayedCalls() == []
    assert snapshot_of(guard)["hour"] == []
