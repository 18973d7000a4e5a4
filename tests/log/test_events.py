"""Events: what is counted, what is logged, what a flood and a hostile client can do to the log."""

from __future__ import annotations

import inspect
import json
import re
import string
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from io import StringIO
from typing import Any

import pytest
from documents import DOCS
from hypothesis import given
from hypothesis import strategies as st
from reference_pages import REFERENCE
from twisted.internet.task import Clock
from twisted.logger import (
    FilteringLogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    jsonFileLogObserver,
    textFileLogObserver,
)
from twisted.python.failure import Failure

from twisted_smtpguard import replies
from twisted_smtpguard.admission.bans import Ban
from twisted_smtpguard.filters.dnsbllist import DnsblNotices
from twisted_smtpguard.inputs.escaping import escape_word
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.eventfile import EventFileNotices
from twisted_smtpguard.log.eventlog import MAX_VALUE_CHARACTERS, EventLog
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.serviceevents import ServiceEvents
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.tls.doubts import Doubt
from twisted_smtpguard.upstream.notices import Notices

PRINTABLE = set(string.printable) - set(string.whitespace) | {" "}


class Log:
    """Events with a clock, and what they logged: as events, as text and as JSON, in the way `twist` writes."""

    def __init__(self, level: Any = LogLevel.info, **limits: Any) -> None:
        self.clock = Clock()
        self.events: list[LogEvent] = []
        self._text, self._json = StringIO(), StringIO()
        self._files = [
            FilteringLogObserver(make(file), [LogLevelFilterPredicate(defaultLogLevel=level)])
            for make, file in ((textFileLogObserver, self._text), (jsonFileLogObserver, self._json))
        ]
        self.counts = Statistics()
        logger = Logger(namespace="twisted_smtpguard", observer=self.observe)
        self.to = Events(self.counts, self.clock, Limits(**limits), level, logger)
        self.notices = Notices("smtp:tcp:mx.example:25", self.clock)
        # Those of a delivery that is made by a plugin go to the one log of the process.
        self.notices._log = EventLog(self.clock.seconds, level, logger)
        self.dnsbl_notices = DnsblNotices(self.clock.seconds, logger)
        self.file_notices = EventFileNotices("/var/log/smtpguard/events", self.clock.seconds, logger)

    def observe(self, event: LogEvent) -> None:
        self.events.append(event)
        for file in self._files:
            file(dict(event))

    @property
    def lines(self) -> list[str]:
        return [formatEvent(event) for event in self.events]

    @property
    def line(self) -> str:
        (line,) = self.lines
        return line

    @property
    def text_file(self) -> str:
        return self._text.getvalue()

    @property
    def json_file(self) -> list[dict[str, Any]]:
        return [json.loads(record) for record in self._json.getvalue().split("\x1e")[1:]]

    def reject_many(self, times: int, peer: str = "1.2.3.4", reason: str = "not_smtp") -> None:
        for _ in range(times):
            self.to.reject(peer, reason, session="s1")


@pytest.fixture
def log() -> Log:
    return Log()


def fields_of(event: LogEvent) -> dict[str, Any]:
    return {
        name: v for name, v in event.items() if not name.startswith("log_") and name not in ("event", "text")
    }


def a_failure(message: str = "no such spool") -> Failure:
    try:
        raise ValueError(message)
    except ValueError:
        return Failure()


def _checker_failed(to: Events) -> None:
    for _ in range(11):
        to.checker_failed("7f3a01", "192.0.2.1", "/etc/smtpguard/users: Permission denied")
    to._clock.advance(1)  # type: ignore[attr-defined]
    to.checker_failed("7f3a01", "192.0.2.1", "/etc/smtpguard/users: Permission denied")


def _reject(to: Events) -> None:
    for _ in range(11):
        to.reject("192.0.2.1", "max_recipients", session="s1")
    to._clock.advance(1)  # type: ignore[attr-defined]
    to.reject(
        "192.0.2.1",
        "max_recipients",
        dry_run=True,
        session="7f3a01",
        port=40000,
        listener="tcp:25",
        helo="mx.example",
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
        ip_filter="lookup",
        policy="greylist",
        rule="192.0.2.0/24",
        network="192.0.2.0/24",
        limit=100,
        value=101,
        reply=Reply(452, "4.2.2", ("Full",), said="452 4.2.2 Full"),
        command="RCPT",
        parameter="XSPAM",
        sender="ann@example.org",
        recipient="bob@example.com",
        user="ann",
        client_gone=True,
        hint="--max-recipients",
    )


def _hangup(to: Events) -> None:
    for _ in range(12):
        to.hangup("192.0.2.1", 1.5, port=40000, listener="tcp:25")
        to._clock.advance(0.09)  # type: ignore[attr-defined]


def _filter_failed(to: Events) -> None:
    for _ in range(11):
        to.filter_failed("lookup", "192.0.2.1", "timeout", let_in=False)
    to._clock.advance(1)  # type: ignore[attr-defined]
    to.filter_failed("lookup", "192.0.2.1", "timeout", let_in=False)


def _policy_failed(to: Events) -> None:
    def fail() -> None:
        to.policy_failed(
            "greylist", "rcpt", "192.0.2.1", "unavailable", "it is away", session="7f3a01", outcome="refused"
        )

    for _ in range(11):
        fail()
    to._clock.advance(1)  # type: ignore[attr-defined]
    fail()


def _policy_note(to: Events) -> None:
    for _ in range(11):
        to.policy_note("greylist", "rcpt", "192.0.2.1", "WARN look", session="7f3a01")
    to._clock.advance(1)  # type: ignore[attr-defined]
    to.policy_note("greylist", "rcpt", "192.0.2.1", "WARN look", session="7f3a01")


def _field_left_out(to: Events) -> None:
    for _ in range(11):
        to.field_left_out("7f3a01", "192.0.2.1", "it is too late", policy="spf")
    to._clock.advance(1)  # type: ignore[attr-defined]
    to.field_left_out("7f3a01", "192.0.2.1", "it is too late", policy="spf")


def _banned(to: Events) -> None:
    ban = Ban("192.0.2.1", 1_796_055_000.0, 1, 20, "auth_failed:15,bad_sequence:5", dry_run=True)
    for _ in range(11):
        to.banned("192.0.2.1", ban)
    to._clock.advance(1)  # type: ignore[attr-defined]
    to.banned("192.0.2.1", ban)


def _accept_failed(to: Events) -> None:
    for _ in range(11):
        to.accept_failed("ENFILE")
    to._clock.advance(1)  # type: ignore[attr-defined]
    to.accept_failed("ENFILE")


def _failure(to: Events) -> None:
    for _ in range(11):
        to.failure(a_failure(), "the delivery failed: finish()", "7f3a01", "192.0.2.1")
    to._clock.advance(1)  # type: ignore[attr-defined]
    to.failure(a_failure(), "the delivery failed: finish()", "7f3a01", "192.0.2.1")


def _refused(to: Events) -> Events:
    for _ in range(12):
        to.reject("192.0.2.1", "not_smtp")
    to.reject("192.0.2.1", "max_errors", session="7f3a01", dry_run=True)
    return to


EVERY_FIELD: dict[str, Callable[[Events], object]] = {
    "listening": lambda to: to.listening("tcp:2525:interface=127.0.0.1", "127.0.0.1:2525"),
    "serving_metrics": lambda to: to.serving_metrics("unix:/run/metrics.sock", "/run/metrics.sock"),
    "ssl_endpoint": lambda to: to.ssl_endpoint("ssl:465:privateKey=guard.pem"),
    "delivering": lambda to: to.delivering("maildir:/var/mail/in"),
    "filtering": lambda to: to.filtering("networks"),
    "policing": lambda to: to.policing("greylist", {"rcpt", "data"}),
    "dry_run": lambda to: to.dry_run({"max_errors", "connection_rate"}),
    "reloaded": lambda to: to.reloaded("networks", "ip-filter", "/etc/smtpguard/networks"),
    "reload_failed": lambda to: to.reload_failed(
        "certificate", "tls-key", "there is no private key in PEM form", "/etc/smtpguard/guard.key"
    ),
    "restart_needed": lambda to: to.restart_needed("listen", "file /etc/smtpguard/guard.conf line 3"),
    "doubtful_certificate": lambda to: to.doubtful_certificate(
        Doubt(
            "expired",
            "tls-certificate",
            "/etc/smtpguard/guard.pem",
            "CN=mx.example.org",
            ["mx.example.org", "*.mx.example.org"],
            datetime(2026, 1, 31, 12, tzinfo=timezone.utc),
            "it expired on 2026-01-31 12:00 UTC",
        )
    ),
    "no_connection_cap": lambda to: to.no_connection_cap(1024),
    "descriptors_below_cap": lambda to: to.descriptors_below_cap(1024, 2000, 1024, 50),
    "open_relay": lambda to: to.open_relay("SmtpDelivery"),
    "counters_away": lambda to: to.counters_away("no answer in 50 ms"),
    "counters_back": lambda to: to.counters_back(2.5),
    "stress": lambda to: to.stress(400, 500, begins=True),
    "draining": lambda to: to.draining(3, 1),
    "operator": lambda to: to.operator("uid:1000", "end", ["7f3a01"]),
    "state_restored": lambda to: to.state_restored("/var/lib/smtpguard", 1, 2, 300),
    "state_failed": lambda to: to.state_failed("/var/lib/smtpguard", "database or disk is full"),
    "worker_started": lambda to: to.worker_started(2, 4711, "0.1.0"),
    "worker_died": lambda to: to.worker_died(2, 4711, "signal:SIGKILL", 3600.5),
    "worker_retired": lambda to: to.worker_retired(2, 4711, 3600.5),
    "restart_failed": lambda to: to.restart_failed("worker 3 has ended before it was ready, by status:1"),
    "setup_warning": lambda to: to.setup_warning(
        "readable_file",
        "/etc/smtpguard/guard.key has a private key in it, and every user of this machine can read it",
    ),
    "statistics": lambda to: _refused(to).statistics_now(),
    "stopped": lambda to: _refused(to).stopped(),
    "connect": lambda to: to.connect(
        "7f3a01",
        "192.0.2.1",
        port=40000,
        listener="tcp:465",
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
        trusted=True,
    ),
    "hangup": _hangup,
    "accept_failed": _accept_failed,
    "filter_failed": _filter_failed,
    "policy_failed": _policy_failed,
    "policy_note": _policy_note,
    "field_left_out": _field_left_out,
    "login": lambda to: to.login("7f3a01", "192.0.2.1", "ann@example.org", "PLAIN"),
    "checker_failed": _checker_failed,
    "disconnect": lambda to: to.disconnect("7f3a01", "192.0.2.1", "quit", 1.5, 1),
    "reject": _reject,
    "banned": _banned,
    "accept": lambda to: to.accept(
        "7f3a01",
        "192.0.2.1",
        sender="ann@example.org",
        recipients=["bob@example.com", "eve@example.com"],
        octets=5120,
        seconds=0.25,
        reply=Reply(250, "2.0.0", ("Ok: queued as 4711",), said="250 2.0.0 Ok: queued as 4711"),
        helo="mx.example",
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
        client_gone=True,
        late=True,
        user="ann",
    ),
    "failure": _failure,
}
"""How each event is made with every field it can have. It is the last one logged."""


EVERY_NOTICE: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
    "upstream_down": (Notices.down, ("Connection was refused by other side: 111: Connection refused.",)),
    "upstream_up": (Notices.up, ()),
    "upstream_full": (
        Notices.full,
        (20, "it greets with 421 4.7.0 Too many connections from you"),
    ),
    "command_refused": (
        Notices.command_refused,
        ("XCLIENT", "501", "it answers XCLIENT with 501 5.5.4 Bad ADDR syntax: [2001:db8::1]"),
    ),
    "upstream_in_clear": (Notices.in_clear, ("TLS failed: it closed the connection",)),
    "mixed_verdicts": (
        Notices.mixed,
        (
            "7f3a01",
            Reply(554, "5.3.0", ("Told",)),
            [
                ("bob@example.com", Reply(250, "2.0.0", ("Saved",))),
                ("eve@example.com", Reply(552, "5.2.2", ("Mailbox full",))),
            ],
        ),
    ),
    "may_come_twice": (Notices.may_come_twice, ("7f3a01",)),
    "upstream_failed": (Notices.failed, (a_failure("no such endpoint"),)),
}
"""The same of an upstream server: the method, and what it is given."""

EVERY_FILE_NOTICE: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
    "event_log_failed": (EventFileNotices.failed, ("No space left on device",)),
    "event_log_restored": (EventFileNotices.restored, (17,)),
}
"""The same of the file of --event-log."""

EVERY_DNSBL_NOTICE: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
    "dnsbl_left_out": (DnsblNotices.left_out, ("zen", "it lists 127.0.0.1, and so may list everybody")),
    "dnsbl_back": (DnsblNotices.back, ("zen",)),
    "dnsbl_dry_run": (
        DnsblNotices.in_dry_run,
        ("zen", "in this hour it would have refused 4 of 61 known clients"),
    ),
    "dnsbl_enforced": (DnsblNotices.enforced, ("zen",)),
}
"""The same of lists in the DNS."""


def log_of(name: str) -> Log:
    """In which this event is the last one."""
    log = Log()
    if name in EVERY_FIELD:
        EVERY_FIELD[name](log.to)
        return log
    if name in EVERY_FILE_NOTICE:
        method, arguments = EVERY_FILE_NOTICE[name]
        method(log.file_notices, *arguments)
        return log
    if name in EVERY_DNSBL_NOTICE:
        method, arguments = EVERY_DNSBL_NOTICE[name]
        method(log.dnsbl_notices, *arguments)
        return log
    method, arguments = EVERY_NOTICE[name]
    for _ in range(11):
        method(log.notices, *arguments)
    log.clock.advance(1)
    method(log.notices, *arguments)
    return log


def last_of(name: str) -> LogEvent:
    return log_of(name).events[-1]


EVERY_EVENT = [*EVERY_FIELD, *EVERY_NOTICE, *EVERY_FILE_NOTICE, *EVERY_DNSBL_NOTICE]

each_event = pytest.mark.parametrize("name", EVERY_EVENT)


# The reference page.


def _methods(kind: type) -> dict[str, Callable[..., object]]:
    """By the names of their events."""
    methods = {
        name: f for name, f in vars(kind).items() if inspect.isfunction(f) and not name.startswith("_")
    }
    # `Events.statistics` are the counts themselves.
    return {name.removesuffix("_now"): method for name, method in methods.items()}


def test_every_event_is_tested_here() -> None:
    assert list(EVERY_FIELD) == list(_methods(ServiceEvents) | _methods(Events))
    assert [method for method, _ in EVERY_NOTICE.values()] == list(_methods(Notices).values())
    assert [method for method, _ in EVERY_FILE_NOTICE.values()] == list(_methods(EventFileNotices).values())
    assert [method for method, _ in EVERY_DNSBL_NOTICE.values()] == list(_methods(DnsblNotices).values())


def test_every_event_has_its_row() -> None:
    rows = []
    methods = _methods(ServiceEvents) | _methods(Events)
    notices = EVERY_NOTICE | EVERY_FILE_NOTICE | EVERY_DNSBL_NOTICE
    methods |= {name: method for name, (method, _) in notices.items()}
    for name, method in methods.items():
        event = last_of(name)
        when = inspect.getdoc(method).split("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr]
        fields = " ".join(f"`{field}`" for field in fields_of(event))
        rows.append(f"| `{name}` | {event['log_level'].name} | {when} | {fields} |")
    page = (REFERENCE / "events.md").read_text()
    events, _, _ = page.partition("## The fields")
    assert [line for line in events.splitlines() if line.startswith("| `")] == rows, "\n".join(rows)


def test_every_field_has_its_row() -> None:
    page = (REFERENCE / "events.md").read_text()
    _, _, described = page.partition("## The fields")
    used = {field for name in EVERY_EVENT for field in fields_of(last_of(name))} - {"log_failure"}
    assert set(re.findall(r"^\| `(\w+)` \|", described, re.MULTILINE)) == used


def test_the_examples_are_what_is_logged() -> None:
    page = (REFERENCE / "events.md").read_text()
    examples = page.partition("```text\n")[2].partition("```")[0].splitlines()
    lines = [formatEvent(last_of(name)) for name in EVERY_EVENT]
    assert examples == lines, "\n".join(lines)


# The text form.


def test_a_refusal_starts_with_who_and_why(log: Log) -> None:
    log.to.reject("1.2.3.4", "max_connections", limit=100, value=101, reply=replies.TOO_MANY_CONNECTIONS)
    assert log.line == "reject peer=1.2.3.4 reason=max_connections limit=100 value=101 code=421"


def test_a_refusal_has_only_the_fields_that_were_given(log: Log) -> None:
    log.to.reject("2001:db8::1", "not_smtp", session="s1")
    assert log.line == "reject peer=2001:db8::1 reason=not_smtp session=s1"
    assert fields_of(log.events[0]) == {"peer": "2001:db8::1", "reason": "not_smtp", "session": "s1"}


def test_a_reply_of_ours_is_not_repeated(log: Log) -> None:
    accepted = {"sender": "a@b", "recipients": ["c@d"], "octets": 1, "seconds": 0}
    log.to.accept("s1", "1.2.3.4", **accepted, reply=replies.MESSAGE_ACCEPTED)  # type: ignore[arg-type]
    log.to.reject("1.2.3.4", "max_recipients", session="s1", reply=replies.TOO_MANY_RECIPIENTS)
    assert [fields_of(event).get("reply") for event in log.events] == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        "x",
        " ",
        "\x00",
        "\x7f",
        '"',
        "\\",
        "\u00e9",
        "\u20ac",
        "\U0001f600",
        "\udcff",
        "a\r\nreject peer=1.2.3.4 ",
    ],
)
@pytest.mark.parametrize("times", [1, 20, 199, 200, 201, 10_000])
def test_what_a_server_says_is_at_most_200_octets_and_none_of_its_escapes_is_cut(
    log: Log, text: str, times: int
) -> None:
    said = f"550 {text * times}"
    log.to.reject("1.2.3.4", "upstream_refused", session="s1", reply=Reply(550, "", ("No",), said=said))
    (shown,) = [fields_of(event)["reply"] for event in log.events]
    assert len(shown) <= 200
    assert set(shown) <= PRINTABLE - {" ", '"'} or '\\"' in shown
    assert log.line == f"reject peer=1.2.3.4 reason=upstream_refused session=s1 code=550 reply={shown}"
    whole = escape_word(said)
    if len(whole) <= 200:
        assert shown == whole
    else:
        assert shown.endswith("...")
        start = shown.removesuffix("...")
        assert whole.startswith(start)
        # What was left out begins with a whole escape.
        assert any(escape_word(said[:end]) == start for end in range(len(said) + 1)[:201])


def test_a_limit_or_a_value_of_zero_is_told(log: Log) -> None:
    log.to.reject("1.2.3.4", "insufficient_storage", session="s1", limit=0, value=0)
    assert log.line.endswith(" limit=0 value=0")


def test_the_null_sender_is_an_empty_field(log: Log) -> None:
    log.to.accept("s1", "1.2.3.4", sender="", recipients=["a@b"], octets=1, seconds=0)
    assert " sender= recipients=1 first_recipients=a@b " in log.line


def test_a_hundred_recipients_do_not_fill_the_line(log: Log) -> None:
    recipients = [f"user{number}@example.com" for number in range(100)]
    log.to.accept("s1", "1.2.3.4", sender="a@b", recipients=recipients, octets=1, seconds=0)
    assert fields_of(log.events[0])["recipients"] == 100
    assert fields_of(log.events[0])["first_recipients"] == ",".join(recipients[:5])


def test_times_are_told_to_the_millisecond(log: Log) -> None:
    log.to.accept("s1", "1.2.3.4", sender="", recipients=["a@b"], octets=1, seconds=0.123456)
    log.to.disconnect("s1", "1.2.3.4", "quit", 2.9999, 1)
    assert [fields_of(event)["seconds"] for event in log.events] == [0.123, 3.0]


def test_a_path_with_a_space_is_one_word(log: Log) -> None:
    log.to.delivering("maildir:/var/my mail")
    log.to.listening("unix:/run/my mail", "/run/my mail")
    assert log.lines == [
        r"delivering delivery=maildir:/var/my\x20mail",
        r"listening endpoint=unix:/run/my\x20mail address=/run/my\x20mail",
    ]


def test_an_acceptance_that_everybody_saw_says_nothing_of_the_client(log: Log) -> None:
    log.to.accept("s1", "1.2.3.4", sender="a@b", recipients=["a@b"], octets=1, seconds=0)
    assert "client_gone" not in log.line
    assert "late" not in log.line


@each_event
def test_an_event_is_one_line_of_text_and_one_json_record(name: str) -> None:
    log = log_of(name)
    without_tracebacks = [line for line in log.text_file.splitlines() if not line.startswith("\t")]
    assert len(without_tracebacks) == len(log.events) == len(log.json_file)
    assert without_tracebacks[-1].endswith(f"] {log.lines[-1]}")


@each_event
def test_the_line_is_made_of_the_fields(name: str) -> None:
    event = last_of(name)
    assert event["log_namespace"] == "twisted_smtpguard"
    fields = fields_of(event)
    line = formatEvent(event)
    # A sentence, and not a word.
    if " " in fields.get("problem", ""):
        line = line.removesuffix(f" {fields.pop('problem')}")
    words = line.split(" ")
    assert words[0] == event["event"] == name
    shown = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    for counts in ("refusals", "dry_run_refusals"):
        if counts in fields:
            ((reason, count),) = fields[counts].items()
            fields[counts] = f"{reason}:{count}"
    fields.pop("error", None)
    expected = {field: "true" if value is True else str(value) for field, value in fields.items()}
    assert shown == expected


def test_the_warning_of_an_open_relay_says_what_follows_and_what_to_do(log: Log) -> None:
    log.to.open_relay("SmtpDelivery")
    assert log.line.startswith(
        "open_relay delivery=SmtpDelivery the upstream server cannot tell clients from "
    )
    assert "anybody can send to any address" in log.line
    for remedy in ("--accept-domain", "announce=xclient", "announce=proxy"):
        assert remedy in log.line
    page = (DOCS / "explanation" / "open-relay.md").read_text()
    assert f"```text\n{log.line}\n```" in page


# The JSON form.


@each_event
def test_the_fields_are_fields_in_json(name: str) -> None:
    log = log_of(name)
    record = log.json_file[-1]
    fields = fields_of(log.events[-1])
    assert fields
    assert {field: record[field] for field in fields} == fields
    assert (record["event"], record["text"]) == (name, log.lines[-1])


# What a client chose.

FORGERIES = [
    "a@b\r\nreject peer=9.9.9.9 reason=not_smtp",
    "a@b reason=forged",
    '"a b"@example.com',
    "{peer}{0}{log_source.__class__}{{",
    "}{",
    "%s%(peer)s",
    "\x1b[2J\x07\x7f\x85\u2028\u202e",
    "\x00",
    "\n " * 40_000,
    "\udc80\udcff",
    "m\u00fcller@\u4f8b.\u30c6\u30b9\u30c8\U0001f600",
]


def hostile_lines(text: str) -> Log:
    """A log in which `text` stands wherever a client can put something."""
    log = Log()
    log.to.reject("1.2.3.4", "bad_arguments", session="s1", command=text, sender=text, recipient=text)
    log.to.accept("s1", "1.2.3.4", sender=text, recipients=[text, text], octets=1, seconds=0)
    log.to.failure(a_failure(text), f"the delivery failed: {text}", "s1", "1.2.3.4")
    return log


def all_strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from all_strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from all_strings(each)


def assert_nothing_forged(text: str) -> None:
    log = hostile_lines(text)
    reject, accept, _ = log.lines
    names = [word.partition("=")[0] for word in reject.split(" ")]
    command = ["command"] if text else []
    assert names == ["reject", "peer", "reason", "session", *command, "sender", "recipient"]
    names = [word.partition("=")[0] for word in accept.split(" ")]
    assert names == [
        "accept",
        "session",
        "peer",
        "sender",
        "recipients",
        "first_recipients",
        "octets",
        "seconds",
    ]
    assert fields_of(log.events[1])["first_recipients"].count(",") == 1

    assert set(log.text_file) <= PRINTABLE | {"\n", "\t"}
    unindented = [line for line in log.text_file.split("\n") if line and not line.startswith("\t")]
    assert len(unindented) == 3
    for record in log.json_file:
        for each in all_strings(record):
            assert set(each) <= PRINTABLE


@pytest.mark.parametrize("text", FORGERIES)
def test_a_client_can_forge_no_line_and_no_field(text: str) -> None:
    assert_nothing_forged(text)


@given(st.text(st.characters(codec=None), max_size=400))
def test_no_text_at_all_forges_a_line_or_a_field(text: str) -> None:
    assert_nothing_forged(text)


def test_braces_are_shown_as_they_came(log: Log) -> None:
    log.to.reject("1.2.3.4", "bad_arguments", session="s1", sender="{peer}@{0}")
    assert log.line.endswith(" sender={peer}@{0}")


def test_a_long_value_is_cut_and_says_so(log: Log) -> None:
    log.to.reject("1.2.3.4", "bad_arguments", session="s1", sender="a" * 70_000, recipient="b" * 320)
    fields = fields_of(log.events[0])
    assert fields["sender"] == "a" * MAX_VALUE_CHARACTERS + "..."
    assert fields["recipient"] == "b" * 320


# Our own faults.


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("BREW", "BREW"),
        ("X" * 33, "X" * 32),
        ("\x01" * 9, r"\x01" * 8),
        ("X" * 31 + "\x01", "X" * 31),
        ("X" * 30 + '""', "X" * 30 + r"\""),
        ("\x1b[31m" + "y" * 40, r"\x1b[31m" + "y" * 24),
    ],
)
def test_a_verb_and_a_parameter_are_escaped_and_cut_to_32_characters(log: Log, said: str, shown: str) -> None:
    log.to.reject("1.2.3.4", "unrecognized_command", session="s1", command=said, parameter=said)
    assert (
        log.line
        == f"reject peer=1.2.3.4 reason=unrecognized_command session=s1 command={shown} parameter={shown}"
    )


def test_a_failure_is_logged_with_its_traceback_and_says_whom_it_concerned(log: Log) -> None:
    log.to.failure(a_failure(), "the delivery failed: begin()", "s1", "1.2.3.4")
    assert log.line == "failure session=s1 peer=1.2.3.4 the delivery failed: begin()"
    assert "in a_failure\n" in log.text_file
    assert "builtins.ValueError: no such spool" in log.text_file
    assert log.json_file[0]["error"] == "ValueError: no such spool"
    assert log.json_file[0]["log_failure"]["type"]["__name__"] == "ValueError"


def test_a_failure_may_concern_no_client(log: Log) -> None:
    log.to.failure(a_failure(), "the listener failed")
    assert log.line == "failure the listener failed"


def test_what_a_client_sent_is_escaped_in_a_traceback(log: Log) -> None:
    failure = a_failure("bad\r\nreject peer=9.9.9.9 reason=not_smtp\x1b[2J")
    log.to.failure(failure, "the delivery failed", "s1", "1.2.3.4")
    assert r"builtins.ValueError: bad\x0d\x0areject peer=9.9.9.9 reason=not_smtp\x1b[2J" in log.text_file
    assert "in a_failure\n" in log.text_file
    assert log.events[0]["log_failure"].check(ValueError)
    assert str(failure.value).startswith("bad\r\n"), "the failure itself was changed"


def test_a_failure_with_nothing_to_escape_is_logged_as_it_is(log: Log) -> None:
    failure = a_failure()
    log.to.failure(failure, "the delivery failed", "s1", "1.2.3.4")
    assert log.events[0]["log_failure"] is failure


def test_an_exception_that_holds_a_whole_message_does_not_fill_the_log(log: Log) -> None:
    log.to.failure(a_failure("x" * 10_000_000), "the delivery failed", "s1", "1.2.3.4")
    assert len(log.text_file) < 4_000
    assert len(json.dumps(log.json_file)) < 4_000


# Levels.


class Unbuildable(str):
    """Something that shows when it is looked at."""

    def __len__(self) -> int:
        raise AssertionError("an event that nobody sees was built")

    translate = __len__  # type: ignore[assignment]
    isascii = __len__  # type: ignore[assignment]


def test_below_the_level_nothing_is_built_and_everything_counted() -> None:
    log = Log(level=LogLevel.warn)
    log.to.connect("s1", "1.2.3.4")
    log.to.reject("1.2.3.4", "max_recipients", session="s1", sender=Unbuildable(), recipient=Unbuildable())
    log.to.accept("s1", "1.2.3.4", sender=Unbuildable(), recipients=["a@b"], octets=7, seconds=0)
    log.to.disconnect("s1", "1.2.3.4", "quit", 1, 1)
    log.to.stopped()
    assert log.events == []
    assert log.counts == Statistics(
        connections_accepted=1,
        peak_live_connections=1,
        sessions_ended=1,
        messages_accepted=1,
        octets_accepted=7,
        recipients_accepted=1,
        refusals={"max_recipients": 1},
    )


@pytest.mark.parametrize(
    ("level", "logged"),
    [
        (LogLevel.debug, {"info", "warn", "critical"}),
        (LogLevel.info, {"info", "warn", "critical"}),
        (LogLevel.warn, {"warn", "critical"}),
        (LogLevel.error, {"critical"}),
        (LogLevel.critical, {"critical"}),
    ],
)
def test_what_is_logged_at_which_level(level: Any, logged: set[str]) -> None:
    log = Log(level=level)
    for make in EVERY_FIELD.values():
        make(log.to)
    assert {event["log_level"].name for event in log.events} == logged


# Counting.


def test_connections_are_counted_up_and_down(log: Log) -> None:
    for session in ("s1", "s2", "s3"):
        log.to.connect(session, "1.2.3.4")
    log.to.disconnect("s1", "1.2.3.4", "quit", 1, 0)
    log.to.disconnect("s3", "1.2.3.4", "lost", 1, 0)
    log.to.connect("s4", "1.2.3.4")
    assert log.counts == Statistics(
        connections_accepted=4, live_connections=2, peak_live_connections=3, sessions_ended=2
    )


def test_a_refusal_without_a_session_is_a_connection_refused(log: Log) -> None:
    log.to.reject("1.2.3.4", "max_connections")
    log.to.reject("1.2.3.4", "not_smtp", session="s1")
    assert log.counts == Statistics(connections_refused=1, refusals={"max_connections": 1, "not_smtp": 1})


def test_messages_octets_and_recipients_are_counted(log: Log) -> None:
    log.to.accept("s1", "1.2.3.4", sender="", recipients=["a@b", "c@d"], octets=100, seconds=0)
    log.to.accept("s1", "1.2.3.4", sender="", recipients=["a@b"], octets=50, seconds=0, client_gone=True)
    assert log.counts == Statistics(messages_accepted=2, octets_accepted=150, recipients_accepted=3)


# A flood.


def test_refusals_of_one_client_and_reason_are_logged_ten_times_a_second(log: Log) -> None:
    log.reject_many(1000)
    assert len(log.lines) == 10
    assert log.counts.refusals == {"not_smtp": 1000}


def test_another_client_or_reason_has_its_own_ten(log: Log) -> None:
    log.reject_many(1000)
    log.reject_many(1, peer="1.2.3.5")
    log.reject_many(1, reason="max_errors")
    assert [event["reason"] for event in log.events[10:]] == ["not_smtp", "max_errors"]


def test_refusals_in_all_are_logged_two_hundred_times_a_second(log: Log) -> None:
    for number in range(1000):
        log.reject_many(1, peer=f"10.0.{number // 256}.{number % 256}")
    assert len(log.lines) == 200
    assert log.counts.refusals == {"not_smtp": 1000}


def test_the_next_second_begins_anew(log: Log) -> None:
    log.reject_many(1000)
    log.clock.advance(1)
    log.reject_many(1000)
    assert len(log.lines) == 20


def test_a_clock_that_is_set_back_does_not_silence_the_log(log: Log) -> None:
    log.clock.advance(1000)
    log.reject_many(1000)
    log.clock.rightNow = 0
    log.reject_many(1)
    assert len(log.lines) == 11


def test_what_was_left_out_stands_in_the_next_refusal_of_whomever(log: Log) -> None:
    log.reject_many(1000)
    log.reject_many(2, peer="1.2.3.5")
    assert [event.get("suppressed") for event in log.events[9:]] == [None, 990, None]
    assert log.lines[10].endswith(" suppressed=990")


def test_what_is_left_at_the_end_stands_in_the_last_line(log: Log) -> None:
    log.reject_many(1000)
    log.to.stopped()
    assert log.lines[-1].startswith("stopped ")
    assert log.lines[-1].endswith(" refusals=not_smtp:1000 dry_run_refusals= suppressed=990")


def test_the_statistics_that_are_asked_for_tell_what_was_left_out_and_the_next_line_tells_it_too(
    log: Log,
) -> None:
    log.reject_many(1000)
    log.to.statistics_now()
    log.to.statistics_now()
    log.to.stopped()
    texts = [(event["event"], event["text"].partition(" ")[2]) for event in log.events[-3:]]
    assert {text for _, text in texts} == {texts[0][1]}
    assert texts[0][1].endswith(" suppressed=990")
    assert [name for name, _ in texts] == ["statistics", "statistics", "stopped"]


def test_a_service_started_again_does_not_tell_twice_what_was_left_out(log: Log) -> None:
    log.reject_many(1000)
    log.to.stopped()
    log.to.stopped()
    assert "suppressed" not in log.events[-1]


def test_no_limit_on_the_lines_of_a_client() -> None:
    log = Log(max_log_lines_per_client=0)
    log.reject_many(1000)
    assert len(log.lines) == 200


def test_no_limit_on_all_lines() -> None:
    log = Log(max_log_lines=0)
    for number in range(1000):
        log.reject_many(1, peer=f"10.0.{number // 256}.{number % 256}")
    log.reject_many(1000)
    assert len(log.lines) == 1010


def test_no_limit_at_all() -> None:
    log = Log(max_log_lines=0, max_log_lines_per_client=0)
    log.reject_many(1000)
    assert len(log.lines) == 1000


def test_a_refusal_that_is_left_out_is_not_built(log: Log) -> None:
    log.reject_many(10)
    log.to.reject("1.2.3.4", "not_smtp", session="s1", sender=Unbuildable(), recipient=Unbuildable())
    assert len(log.lines) == 10


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([0, 0, 0, 0.3, 1])), max_size=80
    ),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_every_refusal_is_logged_or_told_as_left_out(
    steps: list[tuple[int, int, float]], lines: int, lines_per_client: int
) -> None:
    log = Log(max_log_lines=lines, max_log_lines_per_client=lines_per_client)
    logged: dict[tuple[int, str, str], int] = {}
    for peer, reason, wait in steps:
        log.clock.advance(wait)
        before = len(log.events)
        log.to.reject(f"peer{peer}", f"reason{reason}", session="s1")
        if len(log.events) > before:
            key = (int(log.clock.seconds()), f"peer{peer}", f"reason{reason}")
            logged[key] = logged.get(key, 0) + 1
    assert all(count <= lines_per_client for count in logged.values()) or not lines_per_client
    for second in {key[0] for key in logged}:
        in_all = sum(count for key, count in logged.items() if key[0] == second)
        assert in_all <= lines or not lines
    refusals = len(log.events)
    log.to.stopped()
    assert refusals + sum(event.get("suppressed", 0) for event in log.events) == len(steps)


def test_failures_are_limited_as_refusals_are(log: Log) -> None:
    for _ in range(100):
        log.to.failure(a_failure(), "the session failed", "s1", "1.2.3.4")
    log.clock.advance(1)
    log.to.failure(a_failure(), "the session failed", "s1", "1.2.3.4")
    assert log.counts.failures == 101
    assert len(log.lines) == 11
    assert log.events[-1]["suppressed"] == 90


def test_failures_that_were_left_out_stand_in_the_last_line(log: Log) -> None:
    for _ in range(100):
        log.to.failure(a_failure(), "the session failed", "s1", "1.2.3.4")
    log.to.stopped()
    assert log.lines[-1].endswith(" suppressed=90")
    assert " failures=100 " in log.lines[-1]


def test_a_flood_of_refusals_does_not_hide_a_failure(log: Log) -> None:
    for number in range(1000):
        log.reject_many(1, peer=f"10.0.{number // 256}.{number % 256}")
    log.to.failure(a_failure(), "the session failed", "s1", "1.2.3.4")
    assert log.events[-1]["event"] == "failure"
