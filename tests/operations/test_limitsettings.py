"""Limits that an operator sets: what is in force, and where each value came from."""

from __future__ import annotations

import attrs
import pytest
from commandline import parsed
from fakes import Conversation, codes
from logbook import logbook
from operated import Operated
from twisted.python.usage import UsageError

from twisted_smtpguard import Limits


def test_a_limit_that_is_set_holds_is_shown_and_logged() -> None:
    guard = Operated(max_connections=2)
    with logbook() as log:
        answer = guard.operator.set("max-connections", "1", by="uid:1000")
        assert log.take("operator") == ["operator by=uid:1000 verb=set what=max-connections=1"]
    assert answer == {
        "limit": "max-connections",
        "value": "1",
        "unit": "a count",
        "dry_run": False,
        "from": "set by uid:1000 at 1970-01-01T00:00:00Z",
        "holds_from": "the next connection",
        "before": "2",
    }
    assert [guard.tries(), guard.tries()] == [220, 421]
    del answer["before"]
    assert guard.row("max-connections") == answer


def test_unset_gives_the_value_back_that_it_had_before() -> None:
    guard = Operated(max_connections=7)
    guard.operator.set("max-connections", "1")
    guard.operator.set("max-connections", "2")
    assert guard.operator.unset("max-connections")["value"] == "7"
    assert guard.factory.limits == Limits(max_connections=7)


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("max-connections", "many"),
        ("max-connections", "-1"),
        ("max-connections", ""),
        ("connection-rate", "60/0"),
        ("max-message-size", "10 megabytes"),
        ("ipv4-client-prefix", "33"),
        ("bare-newline", "ignore"),
        ("strict-enhanced-codes", "maybe"),
        ("socket-send-buffer", "2G"),
        ("socket-receive-buffer", "999999999999999999G"),
    ],
)
def test_a_wrong_value_is_refused_with_the_sentence_that_the_option_would_have_got(
    limit: str, value: str
) -> None:
    guard = Operated()
    with pytest.raises(ValueError) as refused, logbook() as log:
        guard.operator.set(limit, value)
    assert log.take("operator") == []
    if limit != "strict-enhanced-codes":
        with pytest.raises(UsageError) as usage:
            parsed(f"--{limit}={value}")
        assert str(refused.value) == str(usage.value)
    assert guard.factory.limits == Limits()


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ("max-connection", "there is no limit 'max-connection', did you mean max-connections?"),
        ("listen", "there is no limit 'listen'"),
        ("min-free-space", "min-free-space cannot be changed while the guard runs, a restart is needed"),
    ],
)
def test_what_is_no_limit_of_a_running_guard_is_refused(limit: str, problem: str) -> None:
    with pytest.raises(ValueError) as refused:
        Operated().operator.set(limit, "1")
    assert str(refused.value) == problem


def test_nobody_can_unset_what_nobody_has_set() -> None:
    with pytest.raises(ValueError, match=r"^max-errors is not set, its value is that of: default$"):
        Operated().operator.unset("max-errors")


@pytest.mark.parametrize("name", ["max-errors", "max_errors", "--max-errors"])
def test_a_limit_may_be_named_as_its_option_or_its_field(name: str) -> None:
    assert Operated().operator.set(name, "5")["limit"] == "max-errors"


def test_every_limit_that_can_be_set_can_be_set_to_what_it_is() -> None:
    guard = Operated(max_errors=3)
    rows = list(guard.operator.limits())
    assert [row["limit"] for row in rows] == [spec.option for spec in Limits.specs()]
    for row in rows:
        if row["holds_from"] != "a restart":
            guard.operator.set(row["limit"], row["value"])
    assert guard.factory.limits == Limits(max_errors=3)


def test_where_values_of_an_application_come_from() -> None:
    guard = Operated(max_errors=5)
    assert guard.row("max-errors")["from"] == "application"
    assert guard.row("max-messages")["from"] == "default"
    guard.operator.set("max-errors", "6", by="uid:0")
    # An application may swap all limits itself, whatever an operator has set.
    guard.factory.set_limits(attrs.evolve(Limits(), max_errors=9))
    assert guard.row("max-errors")["from"] == "application"


def test_what_is_set_stays_above_what_is_configured_anew_until_it_is_unset() -> None:
    guard = Operated()
    guard.operator.set("max-errors", "5", by="uid:0")
    guard.operator.settings.configure(Limits(max_errors=8, max_messages=9), {"max_errors": "file f line 2"})
    assert guard.factory.limits == Limits(max_errors=5, max_messages=9)
    assert guard.operator.unset("max-errors")["from"] == "file f line 2"
    assert guard.factory.limits == Limits(max_errors=8, max_messages=9)


def test_a_limit_in_dry_run_is_shown_as_such() -> None:
    assert Operated(dry_run=["max_errors"]).row("max-errors")["dry_run"] is True


# Deferring all mail.


def deferred(client: Conversation) -> str:
    return client.say("MAIL FROM:<a@b.example>")


def test_every_mail_is_deferred_while_sessions_go_on() -> None:
    guard = Operated(max_errors=2, max_junk_commands=100)
    client, in_mail = guard.greeted(), guard.greeted()
    in_mail.say("MAIL FROM:<a@b.example>", "RCPT TO:<b@c.example>")
    client.heard()
    with logbook() as log:
        assert guard.operator.defer("on", by="uid:0") == {
            "deferring": True,
            "reply": "451 4.3.2 Service temporarily unavailable",
        }
        assert log.take("operator") == [
            "operator by=uid:0 verb=defer what=on,Service\\x20temporarily\\x20unavailable"
        ]
        assert guard.operator.status()["deferring"] is True
        for _ in range(5):
            assert deferred(client) == "451 4.3.2 Service temporarily unavailable\r\n"
        (line, *_) = log.take("reject")
        assert " reason=deferred " in line
        assert " code=451 command=MAIL sender=a@b.example " in line
    assert client.codes("RCPT TO:<b@c.example>", "NOOP") == [503, 250]
    assert in_mail.codes("DATA", "x", ".")[-2:] == [354, 250]
    guard.operator.defer("off")
    assert guard.operator.status()["deferring"] is False
    assert codes(deferred(client)) == [250]
    assert guard.factory.statistics.refusals["deferred"] == 5


def test_with_the_operators_own_words_too() -> None:
    guard = Operated(max_errors=1)
    client = guard.greeted()
    client.heard()
    with logbook() as log:
        guard.operator.defer("on", "Back at 18:00")
        assert deferred(client) == "451 4.3.2 Back at 18:00\r\n"
        assert " reason=deferred " in log.take("reject")[0]
    assert client.codes("NOOP") == [250]


def test_trusted_clients_and_those_that_have_to_log_in_are_deferred_too() -> None:
    guard = Operated()
    guard.operator.trust("192.0.2.1")
    guard.factory.context.require_auth = True
    guard.operator.defer("on")
    client = guard.greeted()
    assert codes(deferred(client))[-1] == 451
    guard.operator.defer("off")
    assert codes(deferred(client)) == [530]


@pytest.mark.parametrize("text", ["a\r\n250 b", "gr\xfc\xdfe", "x" * 501, "\0"])
def test_words_that_are_no_line_of_a_reply_are_refused(text: str) -> None:
    guard = Operated()
    with pytest.raises(ValueError, match=r"^at most 500 printable characters of ASCII are expected, not "):
        guard.operator.defer("on", text)
    assert codes(deferred(guard.greeted()))[-1] == 250


def test_the_longest_words_are_one_whole_line() -> None:
    guard = Operated()
    client = guard.greeted()
    client.heard()
    guard.operator.defer("on", "x" * 500)
    assert deferred(client) == f"451 4.3.2 {'x' * 500}\r\n"


@pytest.mark.parametrize("value", ["64,48", "64", "100"])
def test_a_network_that_is_not_wider_than_a_client_cannot_be_set(value: str) -> None:
    guard = Operated()
    with pytest.raises(ValueError) as refusal:
        guard.operator.set("ipv6-networks", value)
    expected = "prefix lengths below 64, which is that of a client, are expected"
    assert str(refusal.value) == f"--ipv6-networks: {expected}, not '{value}'"
    assert guard.factory.limits.ipv6_networks == ()


def test_a_prefix_of_clients_that_is_as_wide_as_a_network_leaves_it_without_effect() -> None:
    guard = Operated(ipv6_networks=(56, 48), max_connections_per_client=1)
    guard.operator.set("ipv6-client-prefix", "48")
    assert guard.operator.settings.set("ipv6-networks", "32", None, "me")["value"] == "32"
    assert guard.operator.unset("ipv6-networks")["value"] == "56,48"
    assert guard.factory.limits.networks(6) == ()
