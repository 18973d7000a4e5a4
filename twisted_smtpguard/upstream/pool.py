"""The pool of connections to the upstream server: a limited number at once, each used for several messages. It decides
which transaction gets which connection, and which has to wait."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from twisted_smtpguard import replies
from twisted_smtpguard.upstream.connecting import Connector
from twisted_smtpguard.upstream.dialling import Dialler, Early, Taken
from twisted_smtpguard.upstream.health import Health
from twisted_smtpguard.upstream.places import Places
from twisted_smtpguard.upstream.refusals import ServerFull
from twisted_smtpguard.upstream.smtpclient import Connection
from twisted_smtpguard.upstream.waitingqueue import WaitingQueue
from twisted_smtpguard.values import Client

MAX_ERROR_REPLIES = 5
"""How many 4xx and 5xx replies a connection may have had since its last accepted message. The server counts them too,
and slows down or disconnects whoever uses the connection next: Postfix from the tenth on."""

CLOSE_SECONDS = 5.0
FAST_CLOSE_SECONDS = 1.0
"""How long the server has to close a connection after QUIT. The second number is for a place that a transaction waits
for, and for the stop of the guard."""


class Pool:
    """The pool. Each connection takes one of its places."""

    def __init__(self, dialler: Dialler) -> None:
        self._clock = clock = dialler.clock
        self._options = dialler.options
        self.places = Places(self._options.connections)
        self.health = Health(clock, dialler.notices, self._probe, self._serve_waiting)
        self._connector = Connector(dialler, self.places, self.health, self._ended, self._serve_waiting)
        self.offering = self._connector.offering
        self._waiting = WaitingQueue(clock)
        self._serving = False

    # Start and stop.

    def start(self) -> None:
        """Attempt a connection, so that the server's extensions are known."""
        self._connector.start()
        self.health.start()

    def stop(self) -> Deferred[Any]:
        """Send QUIT on unused connections, abort those in use, and refuse all that wait. Fires when the unused ones,
        and those that were closing already, have been closed."""
        places = self.places
        self._connector.stop()
        self.health.stop()
        self._waiting.refuse_all(replies.UPSTREAM_UNAVAILABLE)
        closing, unused = list(places.closing), [*places.idle, *places.parked.values()]
        for connection in closing:
            connection.abandon()
        for connection in unused:
            self._close(connection, FAST_CLOSE_SECONDS)
        for connection in [*places.connections, *places.unready]:
            connection.end(replies.SHUTTING_DOWN)
        self._connector.end_attempts()
        return gatherResults([connection.closed for connection in closing + unused])

    def reserve(self, share: Fraction) -> None:
        """Reserve this share of the connections for clients that are no strangers. Those in use stay with whoever has
        them."""
        reserved = self.places.reserved
        self.places.reserve(share)
        if bool(reserved) != bool(self.places.reserved):
            # Whether strangers come last has changed for those that wait, too.
            self._waiting.wake_all()
        self._serve_waiting()

    # Taking and giving back.

    async def take(self, client: Client, early: Early) -> Taken:
        """A connection that is ready for a MAIL of `client`, and the answers to the commands of `early`; none if
        they have not been sent. `Refused`: no connection is available."""
        places = self.places
        parked = places.parked.pop(client.session, None)
        if parked is not None and (taken := await self._connector.make_ready(parked, client, early)):
            return taken
        deadline = self._clock.seconds() + self._options.wait
        number = self._waiting.next_number()
        woken = False
        while True:
            # Where nothing is reserved, all are served alike.
            stranger = places.reserved > 0 and client.is_stranger
            turn = (stranger, number)
            can_try = self._can_try(stranger)
            if not can_try:
                self._connector.check_server_up()
                self._make_room(len(self._waiting) + 1, stranger)
                self._explore()
                can_try = self._can_try(stranger)
            if can_try and (woken or not self._waiting.has_before(turn)):
                began = self._clock.seconds()
                try:
                    return await self._get(client, early)
                except ServerFull:
                    # The time of the attempt was not spent in the queue, and does not count as such.
                    deadline += self._clock.seconds() - began
            else:
                await self._waiting.wait(turn, deadline - self._clock.seconds())
            woken = True

    def give_back(self, connection: Connection, client: Client) -> None:
        """Give back a connection, on which no command is pending and no message incomplete."""
        if not connection.usable:
            return
        connection.messages += 1
        if not self._connector.open or self._is_worn_out(connection):
            self._close(connection)
        elif self._options.proxied:
            self.places.parked[client.session] = connection
        else:
            self._keep(connection)
        self._serve_waiting()

    def session_ended(self, session: str) -> None:
        """Close the session's own connection, which no other session can use."""
        connection = self.places.parked.pop(session, None)
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

    async def _get(self, client: Client, early: Early) -> Taken:
        """Get a connection, idle or new. The place is held from beginning to end, so that no other transaction takes it
        while one connection is closed and the next is made."""
        self.places.held += 1
        try:
            taken = await self._reuse_idle(client, early) or (await self._connector.new(client), ())
            self.places.ready(taken[0])
        finally:
            self.places.held -= 1
            self._serve_waiting()
        return taken

    async def _reuse_idle(self, client: Client, early: Early) -> Taken | None:
        """The idle connection that was used last, ready for `client`. None: there is none, or it was no longer good."""
        if not self.places.idle:
            return None
        connection = self.places.take_idle()
        connection.use()
        return await self._connector.make_ready(connection, client, early)

    async def _probe(self) -> None:
        """Make a connection that is for no client, to find out whether the server is up and what it offers."""
        places = self.places
        if not places.is_one_free:
            # All places are taken, so the server is up.
            return
        places.held += 1
        try:
            connection = await self._connector.dial(None)
            places.connections.add(connection)
            if self._options.proxied:
                self._close(connection)
            else:
                self._keep(connection)
        finally:
            places.held -= 1
            self._serve_waiting()

    # The queue.

    def _can_try(self, stranger: bool) -> bool:
        """Whether a transaction may take an idle connection, or attempt a new one, now."""
        if not self.places.are_open_to(stranger):
            return False
        if self.places.idle:
            return True
        may_accept = self._options.proxied or not self.health.careful
        return self.health.down is None and may_accept and self._connector.may_dial

    def _explore(self) -> None:
        """Probe whether a server that was full has room again, since a transaction waits. A refusal may take long, so
        the transaction itself does not make the attempt, and can get any other connection meanwhile."""
        if self.health.careful and not self._options.proxied and self._connector.may_dial:
            self.health.explore()

    def _make_room(self, waiting: int, stranger: bool) -> None:
        """Free places for `waiting` transactions, the first of which is that of a `stranger` or not. A client whose
        parked connection is closed gets another one later."""
        places = self.places
        for connection in places.closing:
            connection.hurry(FAST_CLOSE_SECONDS)
        while (
            places.parked
            and not (places.is_one_free and places.are_open_to(stranger))
            and len(places.closing) < waiting
        ):
            self._close(places.take_oldest_parked(), FAST_CLOSE_SECONDS)

    def _serve_waiting(self) -> None:
        """Wake waiting transactions, in their order, as long as they may take or attempt a connection."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._waiting and self._can_try(self._waiting.first_is_stranger):
                self._waiting.wake_first()
        finally:
            self._serving = False
        if self.health.down is not None:
            self._waiting.refuse_all(self.health.down)
        if self._waiting:
            self._make_room(len(self._waiting), self._waiting.first_is_stranger)
            self._explore()

    # Places that become free.

    def _ended(self, connection: Connection) -> None:
        """Called once for each connection, as soon as it can no longer be used."""
        if connection in self.places.unready:
            self._connector.server_has_room()
        if self.places.ended(connection):
            self._place_freed()

    def _close(self, connection: Connection, seconds: float = CLOSE_SECONDS) -> None:
        """Send QUIT. The connection is closed after `seconds` at the latest."""
        if not connection.closed.called:
            self.places.closing.add(connection)
            connection.closed.addCallback(lambda _: self.places.closing.discard(connection))
            connection.closed.addCallback(lambda _: self._place_freed())
            connection.quit(seconds)

    def _place_freed(self) -> None:
        self._connector.server_has_room()
        self._serve_waiting()

    def _keep(self, connection: Connection) -> None:
        """Make the connection idle. It is closed if no transaction takes it in time."""
        self.places.idle[connection] = None
        connection.rest(self._options.idle, self._close)
