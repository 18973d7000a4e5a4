"""The places of the pool of connections to the upstream server: what takes them, and whether one is free."""

from __future__ import annotations

from twisted_smtpguard.upstream.smtpclient import Connection


class Places:
    """The places. A connection has one while it is being made, while it is open, and while it is closing. `most` is how
    many there are."""

    def __init__(self, most: int) -> None:
        self.most = most
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
        return {"in_use": len(self.connections) - idle - parked, **others}

    @property
    def is_one_free(self) -> bool:
        """Whether there is a place for a new connection."""
        return self.in_use + len(self.closing) < self.most

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
