"""Input that follows a command before its reply."""

from __future__ import annotations

import pytest
from fakes import Conversation, FakeDelivery, Guard, codes
from twisted.internet.defer import Deferred

MAIL, RCPT = "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>"


@pytest.mark.parametrize("command", ["EHLO x", "HELO x"])
def test_unexpected_pipelining_is_refused_where_the_operator_says_so(command: str) -> None:
    client = Guard(unexpected_pipelining="refuse").connect()
    client.heard()
    assert client.say(command, "NOOP") == "421 4.7.0 Protocol error: unexpected pipelined input\r\n"
    assert client.closed


def test_the_data_before_its_354_is_unexpected_pipelining() -> None:
    client = Guard(unexpected_pipelining="refuse").greeted()
    client.heard()
    said = client.say(MAIL, RCPT, "DATA", "Subject: x", "", ".")
    assert said.endswith("\r\n421 4.7.0 Protocol error: unexpected pipelined input\r\n")
    assert codes(said) == [250, 250, 421]
    assert client.guard.delivery.calls == ["begin", "recipient", "transaction.abort"]


def test_other_pipelining_is_served_even_so() -> None:
    client = Guard(unexpected_pipelining="refuse").greeted()
    client.heard()
    assert client.codes("NOOP", "RSET", MAIL, RCPT, "DATA") == [250, 250, 250, 250, 354]
    assert client.codes("Subject: x", "", ".", MAIL, RCPT, "QUIT") == [250, 250, 250, 221]


def test_by_default_unexpected_pipelining_is_served_in_order() -> None:
    client = Guard().connect()
    client.heard()
    assert client.codes("EHLO x", MAIL, RCPT, "DATA", ".", "NOOP", "QUIT") == [250] * 3 + [
        354,
        250,
        250,
        221,
    ]
    assert client.guard.delivery.messages[0].octets == b""


def waiting(hook: str, **limits: str) -> tuple[Conversation, Deferred[None]]:
    """A client before whose DATA everything is said, and what this hook of the delivery will answer."""
    delivery, answer = FakeDelivery(), Deferred[None]()
    delivery.answers[hook] = lambda *args: answer
    client = Guard(delivery, **limits).greeted()
    client.heard()
    return client, answer


def test_commands_after_the_end_of_the_data_are_expected() -> None:
    client, answer = waiting("finish", unexpected_pipelining="refuse")
    client.say(MAIL, RCPT, "DATA")
    client.heard()
    assert client.say("Subject: x", "", ".", MAIL, "QUIT") == ""
    answer.callback(None)
    assert codes(client.heard()) == [250, 250, 221]


def test_input_after_data_is_unexpected_until_the_delivery_has_decided() -> None:
    client, answer = waiting("data", unexpected_pipelining="refuse")
    client.say(MAIL, RCPT, "DATA")
    client.heard()
    assert client.say("Subject: x") == ""
    answer.errback(ValueError())
    assert client.heard() == "421 4.7.0 Protocol error: unexpected pipelined input\r\n"
    assert client.closed


@pytest.mark.parametrize(
    ("hook", "before", "command"),
    [
        ("begin", (), MAIL),
        ("recipient", (MAIL,), RCPT),
        ("data", (MAIL, RCPT), "DATA"),
        ("finish", (MAIL, RCPT, "DATA"), "."),
    ],
)
@pytest.mark.parametrize("last", ["RSET", "QUIT", "EHLO again", "BREW"])
def test_no_command_is_looked_at_until_the_previous_one_is_answered(
    hook: str, before: tuple[str, ...], command: str, last: str
) -> None:
    client, answer = waiting(hook)
    client.say(*before)
    client.heard()
    assert client.say(command, "NOOP", last) == ""
    calls = list(client.guard.delivery.calls)
    assert calls[-1] == hook
    assert client.say("NOOP", bytewise=True) == ""
    assert client.guard.delivery.calls == calls
    writes = len(client.transport.writes)
    answer.errback(ValueError())
    assert codes(client.heard())[:2] == [451, 250]
    assert len(client.transport.writes) == writes + 1
