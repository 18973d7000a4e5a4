"""The log that `twist` writes: octet for octet what Twisted's own observers would write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_events import EVERY_EVENT, FORGERIES, log_of
from twisted.application.twist._options import TwistOptions
from twisted.internet.task import Clock
from twisted.logger import (
    FileLogObserver,
    LogEvent,
    Logger,
    LogLevel,
    jsonFileLogObserver,
    textFileLogObserver,
)
from twisted.python import usage
from twisted.python.failure import Failure

from twisted_smtpguard.cli import options as tap
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.file import json_file, text_file, write_quickly
from twisted_smtpguard.log.statistics import Statistics

FORMS = [(text_file, textFileLogObserver), (json_file, jsonFileLogObserver)]
each_form = pytest.mark.parametrize(("ours", "theirs"), FORMS, ids=["text", "JSON"])
Make = Callable[[Any], FileLogObserver]


def written(make: Make, events: list[LogEvent]) -> str:
    file = StringIO()
    observer = make(file)
    for event in events:
        observer(dict(event))
    return file.getvalue()


def logged(log: Callable[[Events], object], now: float = 0) -> list[LogEvent]:
    events: list[LogEvent] = []
    clock = Clock()
    clock.advance(now)
    log(
        Events(Statistics(), clock, Limits(), LogLevel.info, Logger("twisted_smtpguard", None, events.append))
    )
    return events


@each_form
@pytest.mark.parametrize("name", EVERY_EVENT)
def test_every_event_is_written_as_twisted_writes_it(ours: Make, theirs: Make, name: str) -> None:
    events = log_of(name).events
    assert written(ours, events) == written(theirs, events) != ""


@each_form
@pytest.mark.parametrize("text", FORGERIES)
def test_so_is_whatever_a_client_sent(ours: Make, theirs: Make, text: str) -> None:
    events = logged(lambda to: to.reject("192.0.2.1", "max_errors", sender=text, command=text))
    assert written(ours, events) == written(theirs, events) != ""


@given(st.lists(st.floats(0, 4e9), min_size=1), st.sampled_from(FORMS))
def test_so_is_any_time(times: list[float], form: tuple[Make, Make]) -> None:
    # Halves of a microsecond would be rounded into the next second by Twisted, and are not.
    events = [event for now in times for event in logged(lambda to: to.connect("s1", "::1"), round(now, 3))]
    assert written(form[0], events) == written(form[1], events)


def _others() -> Iterator[LogEvent]:
    [ours] = logged(lambda to: to.connect("s1", "192.0.2.1"))
    yield {**ours, "log_system": "a system"}
    yield {**ours, "log_flattened": {"text!s:": "flat", "text!:": "flat"}}
    yield {**ours, "log_failure": Failure(ValueError("bad"))}
    yield {**ours, "log_format": "{text} {text!r}"}
    yield {**ours, "more": [b"octets", {1}, object, LogLevel.warn, Failure(ValueError("bad"))]}
    yield {**ours, "log_namespace": "another", "text": "two\nlines"}
    yield {**ours, "last": 1}
    yield {"first": 1, **ours}
    yield {**ours, "log_source": "somebody"}
    yield {**ours, "log_time": 1}
    yield {**ours, "log_time": 1.0, "peer": float("inf"), "session": -1e300}
    yield {**ours, "text": 1}
    yield {name: value for name, value in ours.items() if name not in ("event", "session", "peer")}
    yield {name: ours[name] for name in ("text", "log_namespace", "log_format", "log_time", "log_level")}
    yield {"log_format": None}
    yield {}


@each_form
@pytest.mark.parametrize("event", list(_others()))
def test_what_others_log_or_add_is_written_as_twisted_writes_it(
    ours: Make, theirs: Make, event: LogEvent
) -> None:
    assert written(ours, [event]) == written(theirs, [event])


@each_form
def test_a_file_of_octets_gets_octets(ours: Make, theirs: Make) -> None:
    file = BytesIO()
    [event] = logged(lambda to: to.connect("s1", "192.0.2.1"))
    ours(file)(dict(event))
    assert file.getvalue().decode() == written(theirs, [event])


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    [event] = logged(lambda to: to.connect("s1", "192.0.2.1"))
    with (tmp_path / "log").open("w") as file:
        text_file(file)(event)
        assert (tmp_path / "log").read_text().endswith(" connect session=s1 peer=192.0.2.1\n")


@each_form
def test_twist_writes_by_ours_where_it_would_by_twisteds(ours: Make, theirs: Make) -> None:
    options = {"fileLogObserverFactory": theirs}
    write_quickly(options)
    assert options == {"fileLogObserverFactory": ours}


@pytest.mark.parametrize("options", [{}, {"fileLogObserverFactory": FileLogObserver}])
def test_whatever_else_it_writes_by_stays(options: dict[str, Any]) -> None:
    before = dict(options)
    write_quickly(options)
    assert options == before


@pytest.mark.parametrize(("name", "ours"), [("text", text_file), ("json", json_file)])
def test_the_service_that_twist_makes_has_it_write_so(
    name: str, ours: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap, "ignore_signals", lambda: None)
    monkeypatch.setattr(tap, "make_service", lambda options, reactor, **_: None)
    twist, options = TwistOptions(), tap.Options()
    twist.opt_log_format(name)
    options.parent = twist
    tap.makeService(options)
    assert twist["fileLogObserverFactory"] is ours


def test_another_parent_or_none_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "ignore_signals", lambda: None)
    monkeypatch.setattr(tap, "make_service", lambda options, reactor, **_: "made")
    options = tap.Options()
    for options.parent in (None, usage.Options()):
        assert tap.makeService(options) == "made"
