"""The end of a connection that data precede, in each stage of a session: it frees the place at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import Conversation, Guard, SlowFilter, codes, splits
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x12\x67\x00\x19"
COMMANDS = b"EHLO a\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<b@c.example>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"
NO_TIME_LIMITS = {"read_timeout": 0, "proxy_header_timeout": 0, "ip_filter_timeout": 0}
each_end = pytest.mark.parametrize("end", [Conversation.half_close, Conversation.disconnect])
each_time = pytest.mark.parametrize("limits", [{}, NO_TIME_LIMITS], ids=["limits", "no time limits"])


# Before the greeting.


def with_filter(**limits: Any) -> Conversation:
    return Guard(ip_filters=[SlowFilter()], **limits).connect()


def with_greet_delay(**limits: Any) -> Conversation:
    return Guard(greet_delay=2, **limits).connect()


def from_proxy(**limits: Any) -> Conversation:
    return Guard(proxy_protocol_from=["192.0.2.0/24"], **limits).connect()


def from_proxy_with_filter(**limits: Any) -> Conversation:
    return Guard(proxy_protocol_from=["192.0.2.0/24"], ip_filters=[SlowFilter()], **limits).connect()


BEFORE_GREETING: dict[str, tuple[Callable[..., Conversation], bytes]] = {
    "a filter, an octet": (with_filter, b"E"),
    "a filter, commands": (with_filter, COMMANDS),
    "a filter, more than is buffered": (with_filter, b"NOOP\r\n" * 20_000),
    "the greet delay, an octet": (with_greet_delay, b"E"),
    "the greet delay, commands": (with_greet_delay, COMMANDS),
    "a filter after a v1 header": (from_proxy_with_filter, V1),
    "a filter after a v1 header, commands": (from_proxy_with_filter, V1 + COMMANDS),
    "a filter after a v2 header, commands": (from_proxy_with_filter, V2 + COMMANDS),
    **{f"{cut} octets of a v1 header": (from_proxy, V1[:cut]) for cut in range(len(V1))},
    **{f"{cut} octets of a v2 header": (from_proxy, V2[:cut]) for cut in range(len(V2))},
}


@each_end
@each_time
@pytest.mark.parametrize(("arrive", "octets"), BEFORE_GREETING.values(), ids=BEFORE_GREETING)
def test_before_the_greeting_the_end_of_a_client_is_a_hangup(
    arrive: Callable[..., Conversation],
    octets: bytes,
    limits: dict[str, Any],
    end: Callable[[Conversation], object],
) -> None:
    with capturedLogs() as logged:
        client = arrive(max_connections_per_client=1, **limits)
        client.send(octets)
        client.guard.clock.advance(0.5)
        end(client)
    factory = client.guard.factory
    assert client.heard() == ""
    assert client.transport.lost
    assert factory.connections == 0
    assert factory.statistics.hangups == 1
    assert factory.statistics.refusals == {}
    assert [event["event"] for event in logged if event["event"] not in ("reject",)] == ["hangup"]
    assert client.guard.clock.getDelayedCalls() == []
    assert client.guard.delivery.calls == []


@each_end
def test_the_filter_is_cancelled_though_the_client_had_spoken(end: Callable[[Conversation], object]) -> None:
    slow = SlowFilter()
    client = Guard(ip_filters=[slow]).connect()
    client.send(COMMANDS)
    end(client)
    assert slow.cancelled == 1


# In a session.


def receiving(command: bytes) -> tuple[Conversation, list[Deferred[None]]]:
    """A client that has sent an envelope and `command`, and what `write()` will answer."""
    client = Guard().greeted()
    waiting: list[Deferred[None]] = []

    def write(_: bytes) -> Deferred[None]:
        waiting.append(Deferred())
        return waiting[-1]

    client.guard.delivery.answers["write"] = write
    client.say("MAIL FROM:<a@b.example>", "RCPT TO:<b@c.example>")
    client.send(command)
    client.heard()
    return client, waiting


TEXT = b"a long line that the sink is given at once\r\n.. and a dot\r\n.\r\n"


@pytest.mark.parametrize(("first", "behind"), list(splits(TEXT)))
def test_in_data_a_client_that_ends_while_a_write_is_pending_is_lost_at_once_unless_all_has_come(
    first: bytes, behind: bytes
) -> None:
    client, waiting = receiving(b"DATA\r\n")
    client.send(first)
    if not waiting:
        return
    for cut in range(len(behind)):
        client, waiting = receiving(b"DATA\r\n")
        client.send(first)
        client.send(behind[:cut])
        client.half_close()
        assert client.guard.factory.connections == 0
        assert client.guard.delivery.calls[-1] == "sink.abort"
        assert client.guard.clock.getDelayedCalls() == []
    client, waiting = receiving(b"DATA\r\n")
    client.send(first)
    client.send(behind)
    client.half_close()
    assert client.guard.factory.connections == 1
    for each in waiting:
        each.callback(None)
    assert codes(client.heard()) == [250]
    assert len(client.guard.delivery.messages) == 1
    assert client.transport.lost


@pytest.mark.parametrize("octets", range(2, 9))
def test_in_a_chunk_too(octets: int) -> None:
    client, waiting = receiving(b"BDAT 9 LAST\r\n")
    client.send(b"1")
    client.send(b"2" * (octets - 1))
    assert len(waiting) == 1
    client.half_close()
    assert client.guard.factory.connections == 0
    assert client.guard.delivery.calls[-1] == "sink.abort"


def test_a_chunk_that_is_whole_gets_its_reply() -> None:
    client, waiting = receiving(b"BDAT 9 LAST\r\n")
    client.send(b"1")
    client.send(b"2" * 8)
    client.half_close()
    assert client.guard.factory.connections == 1
    for each in waiting:
        each.callback(None)
    assert codes(client.heard()) == [250]
    assert len(client.guard.delivery.messages) == 1
