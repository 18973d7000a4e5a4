"""Conversations that have to go the same way however their octets arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fakes import Conversation, FakeDelivery, Guard

Turn = tuple["str | bytes", str]
"""What the client sends (text is lines, and gets its line ends; octets go as they are), and what it hears: the
reply lines joined with `\\n`, "" for nothing yet."""


def dialogue(
    *turns: Turn,
    hello: str = "EHLO client.example",
    delivery: Callable[[], Any] = FakeDelivery,
    closed: bool = False,
    bytewise: bool = True,
    **limits: Any,
) -> Conversation:
    """Hold a conversation turn by turn, then byte by byte, then with all turns in one arrival.

    Each time the replies are to be `turns`', in one write an arrival, and the delivery is to see the same calls
    with the same octets. `closed` says whether our side has been closed at the end. `hello` comes first, unheard;
    "" leaves it out. The conversation of the first time is returned.
    """
    first = None
    ways = (_by_turns, _bytewise, _at_once) if bytewise else (_by_turns, _at_once)
    for way in ways:
        client = Guard(delivery(), **limits).connect()
        if hello:
            client.say(hello)
        client.heard()
        way(client, turns)
        assert client.closed is closed, way.__name__
        first = first or client
        assert _seen(client) == _seen(first), way.__name__
    assert first is not None
    return first


def _by_turns(client: Conversation, turns: tuple[Turn, ...]) -> None:
    for said, reply in turns:
        writes = len(client.transport.writes)
        assert _lines(client.send(_octets(said))) == reply
        assert len(client.transport.writes) - writes <= 1, "in one write"


def _bytewise(client: Conversation, turns: tuple[Turn, ...]) -> None:
    for said, reply in turns:
        assert _lines(client.send(_octets(said), bytewise=True)) == reply


def _at_once(client: Conversation, turns: tuple[Turn, ...]) -> None:
    writes = len(client.transport.writes)
    heard = client.send(b"".join(_octets(said) for said, _ in turns))
    assert _lines(heard) == "\n".join(reply for _, reply in turns if reply)
    assert len(client.transport.writes) - writes <= 1 or len(heard) > 4096, "in one write"


def _octets(said: str | bytes) -> bytes:
    return said if isinstance(said, bytes) else b"".join(b"%s\r\n" % x.encode() for x in said.split("\n"))


def _lines(heard: str) -> str:
    assert heard == "" or heard.endswith("\r\n")
    assert all(len(line) <= 510 and line.isprintable() for line in heard.split("\r\n"))
    return heard.replace("\r\n", "\n").rstrip("\n")


def _seen(client: Conversation) -> object:
    delivery = client.guard.delivery
    # How often write() is called depends on the arrivals; of a message that is refused, whether it is called.
    calls = [hook for hook in delivery.calls if hook != "write"]
    return calls, [(m.sender, m.recipients, m.octets) for m in delivery.messages]
