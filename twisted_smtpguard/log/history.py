"""What was refused lately, and which sessions have ended: the latest of each client and their number, in tables of
bounded size.

`Events` records every refusal and every end here, also those that the log leaves out. A flood passes through here too,
so a row is a plain tuple of values that exist already, and nothing is escaped before somebody looks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from socket import AF_INET6, inet_ntop, inet_pton
from typing import Any

from twisted_smtpguard.inputs.escaping import escape_text

MAX_CLIENTS = 10_000
"""The clients in a table. The one for which nothing has been recorded for longest is forgotten first."""

MAX_ROWS = 5
"""The rows of a client in a table. The oldest is forgotten first."""

MAX_CHARACTERS = 200
"""How much is shown of a text after escaping. The log shows as much of a reply."""

KEPT = MAX_CHARACTERS + 3
"""How many characters of a text a row keeps: a few more than are shown, so that a text that is cut ends in `...`, and
one that only loses its CRLF does not."""

Row = tuple[Any, ...]


class LatestRows:
    """A table with the latest rows of each client. `names` are those of the values in a row; the first is a time.

    A client is an IPv4 address, all UNIX sockets, or, however the limits count clients, an IPv6 /64: whoever has one
    address of it has all of them, and could drive everybody else out of the table.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._rows: OrderedDict[str | bytes, tuple[Row, ...]] = OrderedDict()

    def __len__(self) -> int:
        """The number of clients."""
        return len(self._rows)

    def add(self, peer: str, row: Row) -> None:
        """Record a row of the client with this name in the log."""
        client = _client_of(peer)
        table = self._rows
        rows = table.get(client)
        if rows is None:
            table[client] = (row,)
            if len(table) > MAX_CLIENTS:
                table.popitem(last=False)
        else:
            # Tuples of plain values: the garbage collector soon stops visiting them, as it never would with lists. They
            # are added, since `(*rows, row)` makes a list first.
            table[client] = (rows if len(rows) < MAX_ROWS else rows[1:]) + (row,)
            table.move_to_end(client)

    def of(self, peer: str) -> list[dict[str, object]]:
        """The rows of the client to which this address belongs, the latest first."""
        rows = self._rows.get(_client_of(peer), ())
        return [self._shown(row) for row in reversed(rows)]

    def latest(self, most: int) -> list[dict[str, object]]:
        """At most so many rows of all clients, the latest first. The costs do not depend on the number of clients."""
        clients = islice(reversed(self._rows.values()), most)
        rows = sorted((row for rows in clients for row in rows), key=lambda row: float(row[0]), reverse=True)
        return [self._shown(row) for row in rows[:most]]

    def _shown(self, row: Row) -> dict[str, object]:
        """A row as a dict. What strangers chose is escaped and cut; what is empty or unknown is left out."""
        return {
            name: _text(value) if isinstance(value, str | bytes) else value
            for name, value in zip(self._names, row, strict=True)
            if value not in ("", b"", None)
        }


class Tallies:
    """How much each client has sent in the sessions that have ended, and how often it was refused. Clients are told
    apart, and forgotten, as in a LatestRows."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str | bytes, tuple[int, int, int]] = OrderedDict()

    def add(self, peer: str, messages: int, recipients: int, refusals: int) -> None:
        """Add to the counts of the client with this name in the log."""
        client = _client_of(peer)
        table = self._counts
        before = table.get(client, (0, 0, 0))
        table[client] = before[0] + messages, before[1] + recipients, before[2] + refusals
        table.move_to_end(client)
        if len(table) > MAX_CLIENTS:
            table.popitem(last=False)

    def __iter__(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Each client that there is now, as `client_of` calls it, with its messages, recipients and refusals. Clients
        may come and go before the last is taken."""
        # A list of the pairs would be ten thousand more objects for the garbage collector, which would visit all.
        for client in list(self._counts):
            counts = self._counts.get(client)
            if counts is not None:
                yield _shown_client(client), counts


def client_of(peer: str) -> str:
    """The client to which an address belongs: the address itself, `unix`, or `2001:db8::/64`."""
    return _shown_client(_client_of(peer))


class History:
    """The latest refusals and sessions of each client. The values of a row are those of the events `reject` and
    `disconnect` in the log."""

    def __init__(self) -> None:
        self.refusals = LatestRows(
            "time",
            "address",
            "session",
            "reason",
            "command",
            "limit",
            "value",
            "network",
            "filter",
            "policy",
            "rule",
            "reply",
            "dry_run",
        )
        """Its `reply` has the octets for the client, or the words that an upstream server has chosen; it is empty if
        nothing could be said."""
        self.sessions = LatestRows(
            "ended", "seconds", "address", "session", "reason", "messages", "helo", "user", "tls"
        )
        self.tallies = Tallies()


def _client_of(peer: str) -> str | bytes:
    return peer if ":" not in peer else inet_pton(AF_INET6, peer.partition("%")[0])[:8]


def _shown_client(client: str | bytes) -> str:
    return client if isinstance(client, str) else f"{inet_ntop(AF_INET6, client.ljust(16, bytes(1)))}/64"


def _text(value: str | bytes) -> str:
    if isinstance(value, bytes):
        value = value.decode("ascii").replace("\r\n", " ").rstrip()
    shown = escape_text(value)
    return shown if len(shown) <= MAX_CHARACTERS else f"{shown[: MAX_CHARACTERS - 3]}..."
