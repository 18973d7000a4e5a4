"""How the pool comes by a connection that is ready for a client, and what a failure says of the upstream server."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError

from twisted_smtpguard import replies
from twisted_smtpguard.hooks.promise import Promise, run
from twisted_smtpguard.upstream.dialling import Dialler, Early, Taken
from twisted_smtpguard.upstream.health import Health
from twisted_smtpguard.upstream.hello import OfferedExtensions
from twisted_smtpguard.upstream.places import Places
from twisted_smtpguard.upstream.refusals import ClientRefused, ConnectionPutOff, ServerFull, Unreachable
from twisted_smtpguard.upstream.smtpclient import Connection
from twisted_smtpguard.values import Client, Refused

_RSET_SECONDS = 10.0

_FULL_SECONDS = 5.0
"""How long no further connection is attempted after the server was found full."""

_CLOSE_LAG_SECONDS = 1.0
"""How long a server may still count a connection that has been closed."""

_UP_SECONDS = 5.0
"""How long a server counts as up after it has accepted a connection, even if it then refuses single clients."""

_SIGNS_OF_FULL = frozenset({replies.UPSTREAM_TIMED_OUT, replies.UPSTREAM_LOST})
"""How a connection fails if the server accepts it and has no free process for it."""


class Connector:
    """Makes connections in places that its callers hold, and makes used ones ready again. `ended(connection)` is called
    as soon as one can no longer be used; `accepted()` when the server has accepted one, so that it may accept more."""

    def __init__(
        self,
        dialler: Dialler,
        places: Places,
        health: Health,
        ended: Callable[[Connection], None],
        accepted: Callable[[], None],
    ) -> None:
        self._dialler = dialler
        self._clock = clock = dialler.clock
        self._options = dialler.options
        self._notices = dialler.notices
        self._places = places
        self._health = health
        self._ended = ended
        self._accepted = accepted
        self._dialling: set[Promise[Connection]] = set()
        """The attempts to connect."""
        self._freed_at = float("-inf")
        """When a connection or an attempt ended last, so that the server had room for another."""
        self._succeeded_at = float("-inf")
        """When a connection was made last."""
        self.offering = OfferedExtensions(clock)
        self.open = self._stopped = False
        """If both are false, the pool was never started. Then each message has its own connection, and none is kept."""

    def start(self) -> None:
        """Called before the first attempt of a pool that is started."""
        self.open, self._stopped = True, False

    def stop(self) -> None:
        """Refuse all further attempts."""
        self.open, self._stopped = False, True

    def end_attempts(self) -> None:
        """Cancel those that are under way. Called after `stop()`."""
        for dialling in list(self._dialling):
            dialling.cancel()

    def check_server_up(self) -> None:
        """`Refused`: the pool has stopped or the server is down, so no connection is made."""
        if self._stopped:
            raise Refused(replies.UPSTREAM_UNAVAILABLE)
        if self._health.down is not None:
            raise Refused(self._health.down)

    @property
    def may_dial(self) -> bool:
        """Whether there is a place for a new connection, and the server may have room for it."""
        if self._health.full or (self._health.careful and self._dialling):
            return False
        return self._places.is_one_free

    def server_has_room(self) -> None:
        """Called when a connection has ended: the server may accept another."""
        self._freed_at = self._clock.seconds()
        self._health.place_freed()

    async def new(self, client: Client) -> Connection:
        """A new connection that is ready for a MAIL of `client`. `Refused`: there is none."""
        # The server may have gone down while an idle connection was tried.
        self.check_server_up()
        try:
            connection = await self.dial(client)
            self._places.unready.add(connection)
            # The server has accepted the connection. The queue need not wait until the client is announced.
            self._accepted()
            await self._announce(connection, client)
        except ClientRefused as refused:
            self._notices.command_refused(refused.command, refused.reply.said[:3], refused.why)
            raise
        return connection

    async def make_ready(self, connection: Connection, client: Client, early: Early) -> Taken | None:
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
                for other in list(self._places.idle):
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

    async def dial(self, client: Client | None) -> Connection:
        """A new connection that is announced to nobody yet; with a PROXY header it belongs to `client`, or with None to
        no client. `Refused`: there is none."""
        attempt = self._health.attempt()
        dialling = run(self._dialler.dial(client, self._ended))
        self._dialling.add(dialling)
        try:
            connection = await dialling
        except Refused as refused:
            if self.open:
                self._failed(refused, client, attempt)
            raise
        except CancelledError:
            # The server may have accepted it, and count it for a moment.
            self._freed_at = self._clock.seconds()
            if self._stopped:
                raise Refused(replies.UPSTREAM_UNAVAILABLE) from None
            # The client left, or its own time limit was shorter. Whether the server is down is unknown.
            self._health.cause_unknown()
            raise
        finally:
            self._dialling.discard(dialling)
        self._succeeded_at = self._clock.seconds()
        self._health.succeeded(attempt)
        if client is None or not self._options.proxied:
            self.offering.update(connection.hello)
        return connection

    def _failed(self, refused: Refused, client: Client | None, attempt: tuple[int, int]) -> None:
        """Decide what a failed attempt says about the server. `ServerFull`: the server is full, since others are
        open."""
        places = self._places
        if isinstance(refused, ClientRefused):
            if not 0 <= self._clock.seconds() - self._succeeded_at < _UP_SECONDS:
                # The server may refuse every client in this way.
                self._health.cause_unknown()
            return
        put_off = isinstance(refused, ConnectionPutOff)
        connections = len(places.connections) + len(places.unready)
        there_are_others = bool(connections or places.closing or (put_off and places.held > 1))
        if self._options.proxied and not isinstance(refused, Unreachable):
            # The server judges the address of the client, not that of the guard.
            if client is not None:
                # It may accept other clients, and no client may make the guard believe that the server is down.
                self._health.cause_unknown()
                return
            if put_off and there_are_others:
                return
        is_sign = put_off or isinstance(refused, Unreachable) or refused.reply in _SIGNS_OF_FULL
        if there_are_others and is_sign:
            self._health.found_full(refused, connections, _FULL_SECONDS)
            raise ServerFull(refused.reply) from refused
        if put_off and 0 <= self._clock.seconds() - self._freed_at < _CLOSE_LAG_SECONDS:
            self._health.found_full(refused, 0, _CLOSE_LAG_SECONDS)
            raise ServerFull(refused.reply) from refused
        self._health.failed(refused, attempt)
