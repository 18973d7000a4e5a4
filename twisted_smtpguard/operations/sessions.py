"""The open connections, as an operator sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from ipaddress import ip_address
from typing import Any, Protocol

from twisted_smtpguard.filters.networklist import parse_network
from twisted_smtpguard.filters.networktable import IPV4_BITS, IPV6_BITS
from twisted_smtpguard.log.eventlog import encryption, word


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


def utc(seconds: float) -> str:
    """A time, in seconds since 1970, as `2026-11-30T15:48:45Z`."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def rows(sessions: Iterable[LiveSession], network: str = "") -> Iterator[dict[str, object]]:
    """One row for each of `sessions` whose client is in `network`, an address or a CIDR; `unix` stands for UNIX
    sockets, "" for everybody. What a client chose is escaped as in the log.

    ValueError: `network` is no network. It is raised here, and not when the rows are taken.
    """
    belongs = Network(network) if network else None
    return (_row(each) for each in sessions if belongs is None or each.peer_name in belongs)


class Network:
    """The clients in an address or a CIDR; `unix` stands for UNIX sockets. ValueError: the text is neither."""

    def __init__(self, text: str) -> None:
        self._network = None if text == "unix" else parse_network(text)

    def __contains__(self, peer: str) -> bool:
        """Whether a client belongs to it. `peer` is its name in the log."""
        if self._network is None or peer == "unix":
            return self._network is None and peer == "unix"
        bits, start, length = self._network
        address = ip_address(peer)
        if (IPV4_BITS if address.version == 4 else IPV6_BITS) != bits:
            return False
        return int(address) >> bits - length == start >> bits - length


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
