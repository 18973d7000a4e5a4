"""The protocol as what Twisted's users know: a LineReceiver with a TimeoutMixin."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Conversation, Guard
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.defer import Deferred
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin

ENVELOPE = ("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>")


def in_data(**limits: Any) -> Conversation:
    client = Guard(**limits).greeted()
    client.say(*ENVELOPE, "DATA")
    client.heard()
    return client


def test_the_protocol_is_a_line_receiver_with_a_timeout_mixin() -> None:
    protocol = Guard().greeted().protocol
    assert isinstance(protocol, LineReceiver)
    assert isinstance(protocol, TimeoutMixin)
    assert protocol.delimiter == b"\r\n"


@pytest.mark.parametrize(("begin", "lines"), [("NOOP", True), ("DATA", False), ("BDAT 5", False)])
def test_line_mode_says_whether_a_line_or_message_data_comes_next(begin: str, lines: bool) -> None:
    client = Guard().greeted()
    client.say(*ENVELOPE, begin)
    assert client.protocol.line_mode is lines
    client.send(b"x\r\n\r\n.\r\n" if begin == "DATA" else b"x\r\n\r\n")
    assert client.protocol.line_mode is True


def test_line_mode_is_off_while_the_delivery_takes_its_time_with_message_data() -> None:
    client = in_data()
    client.guard.delivery.answers["write"] = lambda _: Deferred()
    client.send(b"text\r\n")
    assert client.protocol.line_mode is False


def test_max_length_is_the_longest_command_line_that_is_taken() -> None:
    client = Guard(max_command_line=1000).greeted()
    client.heard()
    longest = client.protocol.MAX_LENGTH
    assert [client.codes("NOOP " + "x" * (length - 7)) for length in (longest, longest + 1)] == [[250], [500]]


def test_without_a_limit_on_command_lines_max_length_is_where_an_endless_line_ends_the_session() -> None:
    assert Guard(max_command_line=0, max_endless_line=65536).greeted().protocol.MAX_LENGTH == 65536


def test_max_length_is_that_of_a_response_while_auth_waits_for_one() -> None:
    client = Guard(
        checkers=[InMemoryUsernamePasswordDatabaseDontUse()], max_command_line=512, max_auth_line=12288
    ).greeted()
    client.say("AUTH PLAIN")
    assert client.protocol.MAX_LENGTH == 12288
    client.say("*")
    assert client.protocol.MAX_LENGTH == 512


def test_a_line_or_data_given_to_the_protocol_is_as_if_it_had_come_from_the_client() -> None:
    client = Guard().greeted()
    client.heard()
    for line in (*ENVELOPE, "DATA"):
        client.protocol.lineReceived(line.encode())
    client.protocol.rawDataReceived(b"text\r\n")
    client.protocol.lineReceived(b".")
    assert [reply[:3] for reply in client.heard().splitlines()] == ["250", "250", "354", "250"]
    (message,) = client.guard.delivery.messages
    assert message.octets == b"text\r\n"


def test_the_read_timeout_is_the_time_out_of_the_timeout_mixin() -> None:
    client = Guard(read_timeout=300).greeted()
    client.heard()
    assert client.protocol.timeOut == 300
    client.guard.clock.advance(299)
    assert client.say("NOOP") == "250 2.0.0 OK\r\n"
    client.guard.clock.advance(299)
    assert client.heard() == ""
    client.guard.clock.advance(1.1)
    assert client.heard().startswith("421 4.4.2 ")


def test_a_subclass_may_override_what_happens_at_the_timeout() -> None:
    client = Guard(read_timeout=300).greeted()
    client.heard()
    times: list[float] = []
    client.protocol.timeoutConnection = lambda: times.append(client.guard.clock.seconds())
    client.guard.clock.advance(301)
    assert len(times) == 1
    assert client.heard() == ""


def test_a_deadline_of_zero_is_no_time_out() -> None:
    assert Guard(read_timeout=0).greeted().protocol.timeOut is None
