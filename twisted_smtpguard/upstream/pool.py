"""The pool of connections to the upstream server: a limited number at once, each used for several messages."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults

from twisted_smtpguard import replies
from twisted_smtpguard.hooks.promise import Promise, run
from twisted_smtpguard.upstream.dialling import Dialler, Early, Taken
from twisted_smtpguard.upstream.health import Health
from twisted_smtpguard.upstream.hello import OfferedExtensions
from twisted_smtpguard.upstream.refusals import ClientRefused, ConnectionPutOff, ServerFull, Unreachable
from twisted_smtpguard.upstream.smtpclient import Connection
from twisted_smtpguard.upstream.waitingqueue import WaitingQueue
from twisted_smtpguard.values import Client, Refused

MAX_ERROR_REPLIES = 5
"""How many 4xx and 5xx replies a connection may have had since its last accepted message. The server counts them too,
and slows down or disconnects whoever uses the connection next: Postfix from the tenth on."""

CLOSE_SECONDS = 5.0
FAST_CLOSE_SECONDS = 1.0
"""How long the server has to close a connection after QUIT. The second number is for a place that a transaction waits
for, and for the stop of the guard."""

_RSET_SECONDS = 10.0

_FULL_SECONDS = 5.0
"""How long no further connection is attempted after the server was found full."""

_CLOSE_LAG_SECONDS = 1.0
"""How long a server may still count a connection that has been closed."""

_UP_SECONDS = 5.0
"""How long a server counts as up after it has accepted a connection, even if it then refuses single clients."""

_SIGNS_OF_FULL = frozenset({replies.UPSTREAM_TIMED_OUT, replies.UPSTREAM_LOST})
"""How a connection fails if the server accepts it and has no free process for it."""


class Pool:
    """The pool. Each connection takes a place: while it is being made, while it is open, and while it is closing."""

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler
        self._clock = clock = dialler.clock
        self._options = dialler.options
        self.most = self._options.connections
        self._notices = notices = dialler.notices
        self._connections: set[Connection] = set()
        """The usable connections: in use, idle, or parked for their client."""
        self._idle: dict[Connection, None] = {}
        """Unused connections, the last used one last."""
        self._parked: dict[str, Connection] = {}
        """Unused connections that belong to one client each, by its session, the last used one last."""
        self._unready: set[Connection] = set()
        """Connections that are being made ready for a transaction."""
        self._places_held = 0
        """How many places are held for transactions whose connection is not ready yet."""
        self._dialling: set[Promise[Connection]] = set()
        """The attempts to connect."""
        self._closing: set[Connection] = set()
        """Connections that are closing after QUIT. Each has its place until it is closed."""
        self._freed_at = float("-inf")
        """When a connection ended last, so that the server had room for another."""
        self._succeeded_at = float("-inf")
        """When a connection was made last."""
        self._waiting = WaitingQueue(clock)
        self._serving = False
        self.health = Health(clock, notices, self._probe, self._serve_waiting)
        self.offering = OfferedExtensions(clock)
        self._open = self._stopped = False
        """If both are false, the pool was never started. Then each message has its own connection, and none is kept."""

    # Start and stop.

    def start(self) -> None:
        """Attempt a connection, so that the server's extensions are known."""
        self._open, self._stopped = True, False
        self.health.start()

    def stop(self) -> Deferred[Any]:
        """Send QUIT on unused connections, abort those in use, and refuse all that wait. Fires when the unused ones,
        and those that were closing already, have been closed."""
        self._open, self._stopped = False, True
        self.health.stop()
        self._waiting.refuse_all(replies.UPSTREAM_UNAVAILABLE)
        closing, unused = list(self._closing), [*self._idle, *self._parked.values()]
        for connection in closing:
            connection.abandon()
        for connection in unused:
            self._close(connection, FAST_CLOSE_SECONDS)
        for connection in [*self._connections, *self._unready]:
            connection.end(replies.SHUTTING_DOWN)
        for dialling in list(self._dialling):
            dialling.cancel()
        return gatherResults([connection.closed for connection in closing + unused])

    @property
    def in_use(self) -> int:
        """How many places are taken, closing connections not counted."""
        return len(self._connections) + self._places_held

    @property
    def by_state(self) -> dict[str, int]:
        """How many places there are, by what they are used for."""
        idle, parked, closing = len(self._idle), len(self._parked), len(self._closing)
        others = {"idle": idle, "parked": parked, "opening": self._places_held, "closing": closing}
        return {"in_use": len(self._connections) - idle - parked, **others}

    # Taking and giving back.

    async def take(self, client: Client, early: Early) -> Taken:
        """A connection that is ready for a MAIL of `client`, and the answers to the commands of `early`; none if
        they have not been sent. `Refused`: no connection is available."""
        parked = self._parked.pop(client.session, None)
        if parked is not None and (taken := await self._make_ready(parked, client, early)):
            return taken
        deadline = self._clock.seconds() + self._options.wait
        number = self._waiting.next_number()
        woken = False
        while True:
            if not self._idle:
                self._check_server_up()
            if not self._can_try():
                self._make_room(len(self._waiting) + 1)
                self._explore()
            if (woken or not self._waiting) and self._can_try():
                began = self._clock.seconds()
                try:
                    return await self._get(client, early)
                except ServerFull:
                    # The time of the attempt was not spent in the queue, and does not count as such.
                    deadline += self._clock.seconds() - began
            else:
                await self._waiting.wait(number, deadline - self._clock.seconds())
            woken = True

    def give_back(self, connection: Connection, client: Client) -> None:
        """Give back a connection, on which no command is pending and no message incomplete."""
        if not connection.usable:
            return
        connection.messages += 1
        if not self._open or self._is_worn_out(connection):
            self._close(connection)
        elif self._options.proxied:
            self._parked[client.session] = connection
        else:
            self._keep(connection)
        self._serve_waiting()

    def session_ended(self, session: str) -> None:
        """Close the session's own connection, which no other session can use."""
        connection = self._parked.pop(session, None)
        if connection is not None:
            self._close(connection)

    def _is_worn_out(self, connection: Connection) -> bool:
        """Whether the connection has to be closed instead of used again."""
        options = self._options
        return (
            0 < options.messages <= connection.messages
            or connection.error_replies >= MAX_ERROR_REPLIES
            # After an XCLIENT, Postfix offers XCLIENT only if the announced client may use it.
            or (options.announce == "xclient" and "XCLIENT" not in connection.hello)
        )

    # One attempt, which holds its own place.

    async def _get(self, client: Client, early: Early) -> Taken:
        """Get a connection, idle or new. The place is held from beginning to end, so that no other transaction takes it
        while one connection is closed and the next is made."""
        self._places_held += 1
        try:
            taken = await self._reuse_idle(client, early) or (await self._new(client), ())
            connection = taken[0]
            self._unready.discard(connection)
            if connection.usable:
                self._connections.add(connection)
        finally:
            self._places_held -= 1
            self._serve_waiting()
        return taken

    async def _reuse_idle(self, client: Client, early: Early) -> Taken | None:
        """The idle connection that was used last, ready for `client`. None: there is none, or it was no longer good."""
        if not self._idle:
            return None
        connection, _ = self._idle.popitem()
        connection.use()
        self._connections.discard(connection)
        self._unready.add(connection)
        return await self._make_ready(connection, client, early)

    async def _new(self, client: Client) -> Connection:
        # The server may have gone down while an idle connection was tried.
        self._check_server_up()
        try:
            connection = await self._dial(client)
            self._unready.add(connection)
            # The server has accepted the connection. The queue need not wait until the client is announced.
            self._serve_waiting()
            await self._announce(connection, client)
        except ClientRefused as refused:
            self._notices.command_refused(refused.command, refused.reply.said[:3], refused.why)
            raise
        return connection

    async def _make_ready(self, connection: Connection, client: Client, early: Early) -> Taken | None:
        """Reset a connection that was used before, and announce `client`. None: the connection is not ready."""
        seconds = min(_RSET_SECONDS, self._options.timeout)
        try:
            taken = await self._dialler.reset(connection, client, early, seconds)
        except Refused as refused:
            # The refusal may be about the connection, as a 421 is. If it is about the client, the server will say so on
            # the next connection too.
            connection.end(refused.reply)
            if connection.problem is replies.UPSTREAM_TIMED_OUT:
                # The idle connections are probably dead too.
                for other in list(self._idle):
                    other.end(replies.UPSTREAM_TIMED_OUT)
            return None
        try:
            if not taken[1]:
                await self._announce(connection, client)
        except Refused:
            # The refusal may be about the connection, as a 421 is. Another one is tried before the client is refused.
            return None
        return taken

    async def _announce(self, connection: Connection, client: Client) -> None:
        try:
            await self._dialler.announce(connection, client)
            connection.require_usable()
        except BaseException as error:
            # Other clients could still use the connection if only this one was refused, but the guard cannot know that.
            connection.end(error.reply if isinstance(error, Refused) else replies.UPSTREAM_LOST)
            raise
        self.offering.update(connection.hello, by_client=self._options.server_sees_client)

    async def _dial(self, client: Client | None) -> Connection:
        attempt = self.health.attempt()
        dialling = run(self._dialler.dial(client, self._ended))
        self._dialling.add(dialling)
        try:
            connection = await dialling
        except Refused as refused:
            if self._open:
                self._failed(refused, client, attempt)
            raise
        except CancelledError:
            if self._stopped:
                raise Refused(replies.UPSTREAM_UNAVAILABLE) from None
            # The client left, or its own time limit was shorter. Whether the server is down is unknown.
            self.health.cause_unknown()
            raise
        finally:
            self._dialling.discard(dialling)
        self._succeeded_at = self._clock.seconds()
        self.health.succeeded(attempt)
        if client is None or not self._options.proxied:
            self.offering.update(connection.hello)
        return connection

    async def _probe(self) -> None:
        """Make a connection that is for no client, to find out whether the server is up and what it offers."""
        if not self._has_place():
            # All places are taken, so the server is up.
            return
        self._places_held += 1
        try:
            connection = await self._dial(None)
            self._connections.add(connection)
            if self._options.proxied:
                self._close(connection)
            else:
                self._keep(connection)
        finally:
            self._places_held -= 1
            self._serve_waiting()

    def _failed(self, refused: Refused, client: Client | None, attempt: tuple[int, int]) -> None:
        """Decide what a failed attempt says about the server. `ServerFull`: the server is full, since others are
        open."""
        if isinstance(refused, ClientRefused):
            if not 0 <= self._clock.seconds() - self._succeeded_at < _UP_SECONDS:
                # The server may refuse every client in this way.
                self.health.cause_unknown()
            return
        put_off = isinstance(refused, ConnectionPutOff)
        connections = len(self._connections) + len(self._unready)
        there_are_others = bool(connections or self._closing or (put_off and self._places_held > 1))
        if self._options.proxied and not isinstance(refused, Unreachable):
            # The server judges the address of the client, not that of the guard.
            if client is not None:
                # It may accept other clients, and no client may make the guard believe that the server is down.
                self.health.cause_unknown()
                return
            if put_off and there_are_others:
                return
        is_sign = put_off or isinstance(refused, Unreachable) or refused.reply in _SIGNS_OF_FULL
        if there_are_others and is_sign:
            self.health.found_full(refused, connections, _FULL_SECONDS)
            raise ServerFull(refused.reply) from refused
        if put_off and 0 <= self._clock.seconds() - self._freed_at < _CLOSE_LAG_SECONDS:
            self.health.found_full(refused, 0, _CLOSE_LAG_SECONDS)
            raise ServerFull(refused.reply) from refused
        self.health.failed(refused, attempt)

    # Places.

    def _check_server_up(self) -> None:
        """`Refused`: the pool has stopped or the server is down, so no connection is made."""
        if self._stopped:
            raise Refused(replies.UPSTREAM_UNAVAILABLE)
        if self.health.down is not None:
            raise Refused(self.health.down)

    def _has_place(self) -> bool:
        return self.in_use + len(self._closing) < self.most

    def _can_try(self) -> bool:
        """Whether a transaction may take an idle connection, or attempt a new one, now."""
        if self._idle:
            return True
        may_accept = self._options.proxied or not self.health.careful
        return self.health.down is None and may_accept and self._can_dial()

    def _can_dial(self) -> bool:
        """Whether there is a place for a new connection, and the server may have room for it."""
        if self.health.full or (self.health.careful and self._dialling):
            return False
        return self._has_place()

    def _explore(self) -> None:
        """Probe whether a server that was full has room again, since a transaction waits. A refusal may take long, so
        the transaction itself does not make the attempt, and can get any other connection meanwhile."""
        if self.health.careful and not self._options.proxied and self._can_dial():
            self.health.explore()

    def _make_room(self, waiting: int) -> None:
        """Free places for `waiting` transactions. A client whose parked connection is closed gets another one later."""
        for connection in self._closing:
            connection.hurry(FAST_CLOSE_SECONDS)
        while self._parked and not self._has_place() and len(self._closing) < waiting:
            self._close(self._parked.pop(next(iter(self._parked))), FAST_CLOSE_SECONDS)

    def _serve_waiting(self) -> None:
        """Wake waiting transactions, in their order, as long as they may take or attempt a connection."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._waiting and self._can_try():
                self._waiting.wake_first()
        finally:
            self._serving = False
        if self.health.down is not None:
            self._waiting.refuse_all(self.health.down)
        if self._waiting:
            self._make_room(len(self._waiting))
            self._explore()

    def _ended(self, connection: Connection) -> None:
        """Called once for each connection, as soon as it can no longer be used."""
        if connection in self._unready:
            # Its place in the pool is still held.
            self._unready.discard(connection)
            self._server_place_freed()
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        self._parked = {session: parked for session, parked in self._parked.items() if parked != connection}
        if connection not in self._closing:
            self._place_freed()

    def _close(self, connection: Connection, seconds: float = CLOSE_SECONDS) -> None:
        """Send QUIT. The connection is closed after `seconds` at the latest."""
        if not connection.closed.called:
            self._closing.add(connection)
            connection.closed.addCallback(lambda _: self._closing.discard(connection))
            connection.closed.addCallback(lambda _: self._place_freed())
            connection.quit(seconds)

    def _place_freed(self) -> None:
        self._server_place_freed()
        self._serve_waiting()

    def _server_place_freed(self) -> None:
        self._freed_at = self._clock.seconds()
        self.health.place_freed()

    def _keep(self, connection: Connection) -> None:
        """Make the connection idle. It is closed if no transaction takes it in time."""
        self._idle[connection] = None
        connection.rest(self._options.idle, self._close)
