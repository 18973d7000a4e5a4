"""The connections to the mail server behind: so many at once, used again while they are sound."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from twisted_smtpguard.faults import cancel
from twisted_smtpguard.interfaces import Client, Refused
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.upstream.connection import Connection
from twisted_smtpguard.upstream.dialling import Dialler
from twisted_smtpguard.upstream.health import Health
from twisted_smtpguard.upstream.hello import Hello
from twisted_smtpguard.upstream.leaving import STOPPING_SECONDS, Leaving
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.offering import Offering
from twisted_smtpguard.upstream.options import UpstreamOptions
from twisted_smtpguard.upstream.refusals import ClientRefused, Crowded, NotNow, Unreachable
from twisted_smtpguard.upstream.waiting import Waiting

MOST_COMPLAINTS = 5
"""Replies of 400 and above on one connection since its last message. The server counts them too, and slows down or
hangs up on who is next: Postfix from the tenth on."""

_RSET_SECONDS = 10.0

_FULL_SECONDS = 5.0
"""For which no connection is tried beside those that there are, after one that was too many for the server."""

_AFTERWARDS_SECONDS = 1.0
"""For which a server may still count a connection that is gone."""

_UP_SECONDS = 5.0
"""For which a server that has taken a connection is up, whatever it says to one client."""

_CROWDED = frozenset({replies.UPSTREAM_TIMED_OUT, replies.UPSTREAM_LOST})
"""What becomes of a connection that a server has no process for."""


class Pool:
    """A place is a connection that there is, one that is leaving, or one that is being made."""

    def __init__(
        self, dialler: Dialler, clock: IReactorTime, options: UpstreamOptions, notices: Notices
    ) -> None:
        self._dialler = dialler
        self._clock = clock
        self._options = options
        self._connections: set[Connection] = set()
        """Those that can be used: in use, idle, or parked for their client."""
        self._idle: list[Connection] = []
        self._idle_calls: dict[Connection, IDelayedCall] = {}
        self._parked: dict[str, Connection] = {}
        self._trying: set[Connection] = set()
        """Those of whoever tries to get one, until it is ready."""
        self._tries = 0
        """Places that are held for them."""
        self._dialling: set[Deferred[Connection]] = set()
        """Connections that are being made."""
        self._leaving = Leaving(clock, self._place_freed)
        self._freed_at = self._succeeded_at = float("-inf")
        self._waiting = Waiting(clock)
        self._calling = False
        self._notices = notices
        self._health = Health(clock, notices, self._probe, self._call)
        self._offering = Offering(clock)
        self._open = self._stopped = False
        """Neither: it was never started. Then there is a connection for each message, and none is kept."""

    # Its life.

    def start(self) -> None:
        """Try a connection, so that it is known what the server offers."""
        self._open, self._stopped = True, False
        self._health.start()

    def stop(self) -> Deferred[Any]:
        """Say goodbye on connections that nobody uses, drop the others. Fires when all are gone."""
        self._open, self._stopped = False, True
        self._health.stop()
        self._waiting.send_away(replies.UPSTREAM_UNAVAILABLE)
        gone = self._leaving.stop([*self._idle, *self._parked.values()])
        for connection in [*self._connections, *self._trying]:
            connection.end(replies.SHUTTING_DOWN)
        for dialling in list(self._dialling):
            cancel(dialling)
        return gone

    def try_now(self) -> None:
        """What is configured has changed."""
        self._health.reconfigured()

    @property
    def hello(self) -> Hello:
        """What clients may be offered."""
        return self._offering.hello

    @property
    def in_use(self) -> int:
        """Places that are taken, but for connections that are leaving."""
        return len(self._connections) + self._tries

    # Taking and giving back.

    async def take(self, client: Client) -> Connection:
        """A connection that is ready for a MAIL of `client`. `Refused`: there is none now."""
        parked = self._parked.pop(client.session, None)
        if parked is not None and await self._renewed(parked, client):
            return parked
        deadline = self._clock.seconds() + self._options.wait
        number = self._waiting.number()
        called = False
        while True:
            if not self._idle:
                self._check_that_it_is_there()
            if not self._is_available():
                self._make_room(len(self._waiting) + 1)
                self._explore()
            if (called or not self._waiting) and self._is_available():
                began = self._clock.seconds()
                try:
                    return await self._try(client)
                except Crowded:
                    # It has not waited for a connection meanwhile, and others have got some.
                    deadline += self._clock.seconds() - began
            else:
                await self._waiting.turn(number, deadline - self._clock.seconds())
            called = True

    def give_back(self, connection: Connection, client: Client) -> None:
        """Whatever was answered: no command is under way, no message has begun that has not ended."""
        if not connection.usable:
            return
        if not self._open or self._is_spent(connection):
            self._leaving.add(connection)
        elif self._options.proxied:
            self._parked[client.session] = connection
        else:
            self._keep(connection)
        self._call()

    def session_ended(self, session: str) -> None:
        """Its own connection is of no use to another."""
        connection = self._parked.pop(session, None)
        if connection is not None:
            self._leaving.add(connection)

    def _is_spent(self, connection: Connection) -> bool:
        """It is of no use to the next client."""
        options = self._options
        return (
            0 < options.messages <= connection.messages
            or connection.complaints >= MOST_COMPLAINTS
            # Behind an XCLIENT Postfix asks whether that client may say another.
            or (options.announce == "xclient" and "XCLIENT" not in connection.hello)
        )

    # One try, with a place of its own.

    async def _try(self, client: Client) -> Connection:
        """The place is held from the beginning to the end: what frees it for a moment lets nobody else in."""
        self._tries += 1
        try:
            connection = await self._used_before(client) or await self._new(client)
            self._connections.add(connection)
        finally:
            self._tries -= 1
            self._call()
        return connection

    async def _used_before(self, client: Client) -> Connection | None:
        if not self._idle:
            return None
        connection = self._idle.pop()
        self._forget_idle(connection)
        self._connections.discard(connection)
        self._trying.add(connection)
        try:
            return connection if await self._renewed(connection, client) else None
        finally:
            self._trying.discard(connection)

    async def _new(self, client: Client) -> Connection:
        # It may have gone while another was tried.
        self._check_that_it_is_there()
        try:
            return await self._announced(client)
        except ClientRefused as refused:
            self._notices.command_refused(refused.command, refused.reply.said[:3], refused.why)
            raise

    async def _announced(self, client: Client) -> Connection:
        connection = await self._dial(client)
        self._trying.add(connection)
        try:
            # Who waits to see whether the server takes one more need not wait for what this client is told.
            self._call()
            await self._announce(connection, client)
        finally:
            self._trying.discard(connection)
        return connection

    async def _renewed(self, connection: Connection, client: Client) -> bool:
        """Whether a connection that was used before is as new."""
        try:
            if not await self._dialler.reset(connection, client, min(_RSET_SECONDS, self._options.timeout)):
                connection.end(replies.UPSTREAM_LOST)
                return False
        except Refused as refused:
            connection.end(refused.reply)
            if connection.problem is replies.UPSTREAM_TIMED_OUT:
                # The others will have nobody at their end either.
                for other in list(self._idle):
                    other.end(replies.UPSTREAM_TIMED_OUT)
            return False
        try:
            await self._announce(connection, client)
        except Refused:
            # Perhaps of the connection, as with a 421: another one is tried before the client hears of it.
            return False
        return True

    async def _announce(self, connection: Connection, client: Client) -> None:
        try:
            await self._dialler.announce(connection, client)
            if not connection.usable:
                raise Refused(connection.verdict)
        except Refused as refused:
            # Of the client perhaps, and the connection could be used for others. It is not worth the risk.
            connection.end(refused.reply)
            raise
        connection.messages += 1
        self._offering.heard(connection.hello, by_client=self._options.tells_client)

    async def _dial(self, client: Client | None) -> Connection:
        attempt = self._health.attempt()
        dialling = Deferred.fromCoroutine(self._dialler.dial(client, self._ended))
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
            # The client left, or its time was up before ours: whether the server is down is not known.
            self._health.unknown()
            raise
        finally:
            self._dialling.discard(dialling)
        self._succeeded_at = self._clock.seconds()
        self._health.succeeded(attempt)
        if client is None or not self._options.proxied:
            self._offering.heard(connection.hello)
        return connection

    async def _probe(self) -> None:
        """A connection of our own."""
        if not self._has_place():
            # It is there, then.
            return
        self._tries += 1
        try:
            connection = await self._dial(None)
            if connection.usable:
                self._connections.add(connection)
                if self._options.proxied:
                    self._leaving.add(connection)
                else:
                    self._keep(connection)
        finally:
            self._tries -= 1
            self._call()

    def _failed(self, refused: Refused, client: Client | None, attempt: tuple[int, int]) -> None:
        """A connection did not come about. `Crowded`: because of those that there are."""
        if isinstance(refused, ClientRefused):
            if self._clock.seconds() - self._succeeded_at >= _UP_SECONDS:
                # Perhaps it says so to every client.
                self._health.unknown()
            return
        put_off = isinstance(refused, NotNow)
        connections = len(self._connections) + len(self._trying)
        there_are_others = bool(connections or self._leaving or (put_off and self._tries > 1))
        if self._options.proxied and not isinstance(refused, Unreachable):
            # Each is greeted for itself.
            if client is not None:
                # Perhaps it would not do so to others: no client may decide that it is down.
                self._health.unknown()
                return
            if put_off and there_are_others:
                return
        if there_are_others and (put_off or isinstance(refused, Unreachable) or refused.reply in _CROWDED):
            self._health.crowded(refused, connections, _FULL_SECONDS)
            raise Crowded(refused.reply) from refused
        if put_off and self._clock.seconds() - self._freed_at < _AFTERWARDS_SECONDS:
            self._health.crowded(refused, 0, _AFTERWARDS_SECONDS)
            raise Crowded(refused.reply) from refused
        self._health.failed(refused, attempt)

    # Places.

    def _check_that_it_is_there(self) -> None:
        """`Refused`: no connection is to be made."""
        if self._stopped:
            raise Refused(replies.UPSTREAM_UNAVAILABLE)
        if self._health.down is not None:
            raise Refused(self._health.down)

    def _has_place(self) -> bool:
        return self.in_use + len(self._leaving) < self._options.connections

    def _is_available(self) -> bool:
        """Whether a try makes sense now."""
        if self._idle:
            return True
        return (
            self._has_place()
            and not self._health.full
            and not (self._health.careful and (self._dialling or not self._options.proxied))
            and self._health.down is None
        )

    def _explore(self) -> None:
        """Somebody waits, and perhaps a server that was full takes one more. It may take long to say no, so that who
        waits does not try it, and has any other connection meanwhile."""
        if (
            self._health.careful
            and not (self._health.full or self._dialling or self._options.proxied)
            and self._has_place()
        ):
            self._health.explore()

    def _make_room(self, waiting: int) -> None:
        """So many wait: who keeps a connection between two messages can have another one."""
        self._leaving.hurry()
        while self._parked and not self._has_place() and len(self._leaving) < waiting:
            self._leaving.add(self._parked.pop(next(iter(self._parked))), STOPPING_SECONDS)

    def _call(self) -> None:
        """There may be something for those who wait."""
        if self._calling:
            return
        self._calling = True
        try:
            while self._waiting and self._is_available():
                self._waiting.call_first()
        finally:
            self._calling = False
        if self._health.down is not None:
            self._waiting.send_away(self._health.down)
        if self._waiting:
            self._make_room(len(self._waiting))
            self._explore()

    def _ended(self, connection: Connection) -> None:
        """Nothing can be done with it any more."""
        if connection in self._trying:
            # Its place with us is still held.
            self._server_has_place()
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self._forget_idle(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        for session, parked in list(self._parked.items()):
            if parked is connection:
                del self._parked[session]
        if connection not in self._leaving:
            self._place_freed()

    def _place_freed(self) -> None:
        self._server_has_place()
        self._call()

    def _server_has_place(self) -> None:
        self._freed_at = self._clock.seconds()
        self._health.place_freed()

    # Those that nobody uses.

    def _keep(self, connection: Connection) -> None:
        self._idle.append(connection)
        self._idle_calls[connection] = self._clock.callLater(
            self._options.idle, self._leaving.add, connection
        )

    def _forget_idle(self, connection: Connection) -> None:
        call = self._idle_calls.pop(connection, None)
        if call is not None and call.active():
            call.cancel()
