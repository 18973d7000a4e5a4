"""The open connections, as an operator sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from heapq import nlargest
from ipaddress import ip_address
from itertools import islice
from typing import Any, Protocol, TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twisted_smtpguard.filters.networklist import contains, parse_network
from twisted_smtpguard.log.eventlog import encryption, utc, word
from twisted_smtpguard.log.history import client_of
from twisted_smtpguard.operations.verbs import TOP

TOP_ROWS = 20
"""How many clients `top` lists."""

ITEMS_A_TURN = 500
"""How many connections or clients are looked at in one turn of the reactor, which takes less than a millisecond."""

_Item = TypeVar("_Item")


class LiveSession(Protocol):
    """What is shown of a connection. It is an engine."""

    name: str
    peer_name: str
    stage: Any
    began_at: float
    helo: str
    tls: str
    user: Any
    messages: int
    recipients_accepted: int


def rows(sessions: Iterable[LiveSession], network: str = "") -> Iterator[dict[str, object]]:
    """One row for each of `sessions` whose client is in `network`, an address or a CIDR; `unix` stands for UNIX
    sockets, "" for everybody. What a client chose is escaped as in the log.

    ValueError: `network` is no network. It is raised here, and not when the rows are taken.
    """
    belongs = Network(network) if network else None
    return (_row(each) for each in sessions if belongs is None or each.peer_name in belongs)


async def top(
    sessions: Iterable[LiveSession],
    tallies: Iterable[tuple[str, tuple[int, int, int]]],
    by: str,
    clock: IReactorTime,
    most: int = TOP_ROWS,
    network_of: Callable[[str], str] | None = None,
) -> Iterator[dict[str, object]]:
    """The clients that have most of `by`, one of TOP, the first of them first: at most so many, and none that has none.
    With `network_of`, which returns the network of a client, these are the networks.

    `tallies` has the messages, recipients and refusals of each client without those of the `sessions`, which are open.
    There may be ten thousand of each, so that this takes a part of several turns of the reactor.
    """
    live: dict[str, list[int]] = {}
    async for several in _slices(sessions, clock):
        for session in several:
            client = client_of(session.peer_name)
            counts = live.setdefault(client if network_of is None else network_of(client), [0, 0, 0, 0])
            counts[0] += 1
            counts[1] += session.messages
            counts[2] += session.recipients_accepted
    place = TOP.index(by)
    leaders: list[tuple[str, Sequence[int]]] = []
    async for some in _slices(tallies, clock):
        # Nearly all have less than the leaders, and no object is made for them.
        least = leaders[-1][1][place] if len(leaders) == most else 0
        for name, ended in some:
            client = name
            if network_of is not None:
                client = network_of(name)
                live.setdefault(client, [0, 0, 0, 0])
            if client in live:
                live[client] = [sum(both) for both in zip(live[client], (0, *ended), strict=True)]
            elif place and ended[place - 1] > least:
                leaders.append((client, (0, *ended)))
        leaders = nlargest(most, leaders, key=lambda each: each[1][place])
    async for more in _slices(live.items(), clock):
        leaders = nlargest(most, [*leaders, *more], key=lambda each: each[1][place])
    return (
        {"client": client, **dict(zip(TOP, counts, strict=True))}
        for client, counts in leaders
        if counts[place]
    )


async def _slices(items: Iterable[_Item], clock: IReactorTime) -> AsyncIterator[list[_Item]]:
    """The items, as many at a time as are looked at in one turn of the reactor."""
    items = iter(items)
    some = list(islice(items, ITEMS_A_TURN))
    while some:
        yield some
        some = list(islice(items, ITEMS_A_TURN))
        if some:
            await deferLater(clock, 0)


class Network:
    """The clients in an address or a CIDR; `unix` stands for UNIX sockets. ValueError: the text is neither."""

    def __init__(self, text: str) -> None:
        self._network = None if text == "unix" else parse_network(text)

    def __contains__(self, peer: str) -> bool:
        """Whether a client belongs to it. `peer` is its name in the log."""
        if self._network is None or peer == "unix":
            return self._network is None and peer == "unix"
        return contains(self._network, ip_address(peer))


def _row(session: LiveSession) -> dict[str, object]:
    return {
        "id": session.name,
        "client": session.peer_name,
        "stage": session.stage.value,
        "since": utc(session.began_at),
        "helo": word(session.helo),
        "tls": encryption(session.tls),
        "user": "" if session.user is None else word(session.user.name),
        "messages": session.messages,
    }
