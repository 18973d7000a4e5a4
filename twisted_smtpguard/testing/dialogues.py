"""Conversations that must have the same result however their octets arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.testing.conversation import Conversation, Guard
from twisted_smtpguard.testing.demands import require
from twisted_smtpguard.testing.fakes import FakeDelivery

Turn: TypeAlias = tuple[str | bytes, str]
"""What the client sends, and the replies that it must get. Text is sent as lines, to which CRLF is added; octets are
sent as they are. The lines of the replies are joined with `\\n`; "" means that there is no reply yet."""

_LARGE_REPLY = 4096
"""Replies of more characters than this, to one arrival, may be sent in several writes."""


@checked
def dialogue(
    *turns: Turn,
    hello: str = "EHLO client.example",
    delivery: Callable[[], Any] = FakeDelivery,
    closed: bool = False,
    bytewise: bool = True,
    **limits: Any,
) -> Conversation:
    """Hold a conversation turn by turn, then byte by byte, then with all turns in one arrival.

    AssertionError: the replies differ from those in `turns`, or the replies to one arrival are not in one write.
    `delivery` makes a delivery for each conversation; a FakeDelivery must see the same calls with the same octets each
    time. `closed`: whether the guard must have closed its side at the end. `hello` is sent first, and its reply is
    ignored; "": nothing is sent first. `bytewise=False` leaves out the conversation byte by byte. `limits` are fields
    of Limits. Returns the first conversation.
    """
    first = None
    ways = (_by_turns, _bytewise, _at_once) if bytewise else (_by_turns, _at_once)
    for way in ways:
        client = Guard(delivery(), **limits).connect()
        if hello:
            client.say(hello)
        client.heard()
        way(client, turns)
        _same(client.closed, closed, f"closed at the end, {way.__name__}")
        first = first or client
        _same(_seen(client), _seen(first), f"what the delivery saw, {way.__name__}")
    assert first is not None
    return first


def _by_turns(client: Conversation, turns: tuple[Turn, ...]) -> None:
    for said, reply in turns:
        writes = len(client.transport.writes)
        _same(_lines(client.send(_octets(said))), reply, f"the reply to {said!r}")
        _require_one_write(client, writes)


def _bytewise(client: Conversation, turns: tuple[Turn, ...]) -> None:
    for said, reply in turns:
        _same(_lines(client.send(_octets(said), bytewise=True)), reply, f"the reply to {said!r} byte by byte")


def _at_once(client: Conversation, turns: tuple[Turn, ...]) -> None:
    writes = len(client.transport.writes)
    heard = client.send(b"".join(_octets(said) for said, _ in turns))
    _same(_lines(heard), "\n".join(reply for _, reply in turns if reply), "the replies to all turns at once")
    if len(heard) <= _LARGE_REPLY:
        _require_one_write(client, writes)


def _require_one_write(client: Conversation, before: int) -> None:
    written = client.transport.writes[before:]
    require(len(written) <= 1, f"the replies to one arrival were sent in several writes: {written}")


def _octets(said: str | bytes) -> bytes:
    return said if isinstance(said, bytes) else b"".join(b"%s\r\n" % x.encode() for x in said.split("\n"))


def _lines(heard: str) -> str:
    lines = heard.split("\r\n")
    require(lines[-1] == "", f"a reply does not end in CRLF: {heard!r}")
    require(
        all(len(line) <= 510 and line.isprintable() for line in lines),
        f"a line is longer than 512 octets or has a control character: {heard!r}",
    )
    return "\n".join(lines[:-1])


def _seen(client: Conversation) -> object:
    delivery = client.guard.delivery
    if not isinstance(delivery, FakeDelivery):
        return None
    # The number of write() calls depends on the arrivals; for a refused message there may be none.
    calls = [hook for hook in delivery.calls if hook != "write"]
    return calls, [(m.sender, m.recipients, m.octets) for m in delivery.messages]


def _same(found: object, expected: object, what: str) -> None:
    require(found == expected, f"{what}:\n  {found!r}\nand not\n  {expected!r}")
