"""The places of the pool of connections to the upstream server: what takes them, and who may take one more.

The last part of them may be reserved for clients that are no strangers. A transaction holds a connection from MAIL to
its end, so a crowd that stops after MAIL would take them all. To take a connection only at RCPT would not help: the
crowd would stop after RCPT, and the server's verdict on MAIL would come too late for the client.
"""

from __future__ import annotations

from fractions import Fraction

from twisted_smtpguard.upstream.smtpclient import Connection


class Places:
    """The places. A connection has one while it is being made, while it is open, and while it is closing. `most` is how
    many there are."""

    def __init__(self, most: int) -> None:
        self.most = self._all = most
        self._part = 0, 1
        """Which of how many equal parts of all places these are."""
        self._share = Fraction(0)
        self.reserved = 0
        """How many of them strangers never have."""
        self.connections: set[Connection] = set()
        """The usable connections: in use, idle, or parked for their client."""
        self.idle: dict[Connection, None] = {}
        """Unused connections, the last used one last."""
        self.parked: dict[str, Connection] = {}
        """Unused connections that belong to one client each, by its session, the last used one last."""
        self.held = 0
        """How many places are held for transactions whose connection is not ready yet."""
        self.unready: set[Connection] = set()
        """Connections that are being made ready for a transaction, in a place that is held."""
        self.closing: set[Connection] = set()
        """Connections that are closing after QUIT. Each has its place until it is closed."""

    @property
    def in_use(self) -> int:
        """How many places are taken, closing connections not counted."""
        return len(self.connections) + self.held

    @property
    def by_state(self) -> dict[str, int]:
        """How many places there are, by what they are used for."""
        idle, parked, closing = len(self.idle), len(self.parked), len(self.closing)
        others = {"idle": idle, "parked": parked, "opening": self.held, "closing": closing}
        kept = min(self.reserved, self.most - self._taken)
        return {"in_use": len(self.connections) - idle - parked, **others, "reserved": kept}

    def divide(self, part: int, parts: int) -> None:
        """Have only one of `parts` equal parts of all places, and of those that are reserved. The first is 0."""
        self._part = part, parts
        self.most = self._part_of(self._all)
        self.reserve(self._share)

    def reserve(self, share: Fraction) -> None:
        """Reserve this share of all places, from 0 to 1. Each side has one at least, if there are two."""
        self._share = share
        self.reserved = min(max(1, self._part_of(int(share * self._all))), self.most - 1) if share else 0

    def _part_of(self, number: int) -> int:
        part, parts = self._part
        return number // parts + (part < number % parts)

    @property
    def _taken(self) -> int:
        """How many are taken. An idle connection leaves its place to whoever may use it."""
        return self.in_use - len(self.idle) + len(self.closing)

    @property
    def is_one_free(self) -> bool:
        """Whether there is a place for a new connection."""
        return self.in_use + len(self.closing) < self.most

    def are_open_to(self, stranger: bool) -> bool:
        """Whether a client of this kind may take an idle connection, or a free place, if there is any. Whoever has
        taken the others, as many as are reserved are left to those that are no strangers."""
        return not stranger or self._taken < self.most - self.reserved

    def take_idle(self) -> Connection:
        """The idle connection that was used last, to be made ready in a place that is held."""
        connection, _ = self.idle.popitem()
        self.connections.discard(connection)
        self.unready.add(connection)
        return connection

    def take_oldest_parked(self) -> Connection:
        """The parked connection that has been unused for longest."""
        return self.parked.pop(next(iter(self.parked)))

    def ready(self, connection: Connection) -> None:
        """Called when a connection has been made ready, and is in use if it has not ended meanwhile."""
        self.unready.discard(connection)
        if connection.usable:
            self.connections.add(connection)

    def ended(self, connection: Connection) -> bool:
        """Called once for each connection, as soon as it can no longer be used. Returns whether its place is free."""
        # The place of one that was being made ready is still held.
        self.unready.discard(connection)
        if connection not in self.connections:
            return False
        self.connections.discard(connection)
        self.idle.pop(connection, None)
        self.parked = {session: parked for session, parked in self.parked.items() if parked != connection}
        return connection not in self.closing
