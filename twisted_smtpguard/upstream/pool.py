"""The connections to the mail server behind: so many at once, used again while they are sound, none while it is down.

While the server is down every client is told so at once, and one connection is tried from time to time.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from twisted_smtpguard.interfaces import Client, Refused
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.upstream.connection import Connection
from twisted_smtpguard.upstream.dialling import (
    ClientRefused,
    Dialler,
    NotNow,
    Unreachable,
    Unsuitable,
    describe,
)
from twisted_smtpguard.upstream.hello import NOTHING, Hello
from twisted_smtpguard.upstream.leaving import Leaving
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.options import UpstreamOptions

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 5.0
"""How long after a failure a dead server is tried again: twice as long each time, up to this. A server that is back
gets mail again that soon."""

FIRST_UNSUITABLE_RETRY_SECONDS = 30.0
LAST_UNSUITABLE_RETRY_SECONDS = 600.0
"""The same for a server that is there and cannot be used as configured: a wrong password that is tried every few
seconds has the account, or our address, locked out."""

_FULL_SECONDS = 5.0
"""For which no connection is tried beside those that there are, after one that was too many for the server."""

_RSET_SECONDS = 10.0


class Pool:
    def __init__(
        self, dialler: Dialler, clock: IReactorTime, options: UpstreamOptions, notices: Notices
    ) -> None:
        self._dialler = dialler
        self._clock = clock
        self._options = options
        self._notices = notices
        self._connections: set[Connection] = set()
        """Those that can be used: in use, idle, or parked for their client."""
        self._leaving = Leaving(clock, options.connections)
        self._dialled = 0
        """Connections that are being made."""
        self._idle: list[Connection] = []
        self._parked: dict[str, Connection] = {}
        self._idle_calls: dict[Connection, IDelayedCall] = {}
        self._waiting: deque[Deferred[None]] = deque()
        self._full: IDelayedCall | None = None
        """While there is one, the server wants no more connections than there are."""
        self._full_told = False
        self._down: Reply | None = None
        self._unsuitable = False
        """Why it is down."""
        self._retry_seconds = 0.0
        """How long to wait the next time, if that is not too short or too long."""
        self._retry: IDelayedCall | None = None
        self._probe: Deferred[None] | None = None
        self._probe_again = False
        """What is configured has changed since the probe began."""
        self._open = self._stopped = False
        self.hello: Hello = NOTHING
        """What the server offered last."""

    # Its life.

    def start(self) -> None:
        """Try a connection, so that it is known what the server offers."""
        self._open, self._stopped = True, False
        self._begin_probe()

    def stop(self) -> Deferred[Any]:
        """Say goodbye on connections that nobody uses, drop the others. Fires when all are gone."""
        self._open, self._stopped = False, True
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self._retry = None
        if self._probe is not None:
            self._probe.cancel()
        while self._waiting:
            self._waiting.popleft().errback(Refused(replies.UPSTREAM_UNAVAILABLE))
        self._end_full()
        gone = self._leaving.stop([*self._idle, *self._parked.values()])
        for connection in list(self._connections):
            connection.end(replies.SHUTTING_DOWN)
        return gone

    def try_now(self) -> None:
        """What is configured has changed: a server that is down may be so no longer."""
        if self._probe is not None:
            self._probe_again = True
        elif self._open and self._down is not None:
            self._retry_seconds = 0.0
            if self._retry is not None:
                self._retry.cancel()
            self._begin_probe()

    @property
    def in_use(self) -> int:
        """Connections that hold a place: all but those that are leaving."""
        return len(self._connections) + self._dialled

    # Taking and giving back.

    async def take(self, client: Client) -> Connection:
        """A connection that is ready for a MAIL of `client`. `Refused`: there is none now."""
        parked = self._parked.pop(client.session, None)
        if parked is not None and await self._renewed(parked, client):
            return parked
        deadline = self._clock.seconds() + self._options.wait
        while True:
            while self._idle:
                connection = self._idle.pop()
                self._forget_idle(connection)
                if await self._renewed(connection, client):
                    return connection
            if self._down is not None:
                raise Refused(self._down)
            if self._stopped:
                raise Refused(replies.UPSTREAM_UNAVAILABLE)
            if self.in_use < self._options.connections and self._full is None:
                try:
                    connection = await self._dial(client)
                except NotNow:
                    if self._full is None:
                        raise
                else:
                    await self._announce(connection, client)
                    return connection
            await self._wait(max(0, deadline - self._clock.seconds()))

    def give_back(self, connection: Connection, client: Client) -> None:
        """Whatever was answered: no command is under way, no message has begun that has not ended."""
        if not connection.usable:
            return
        if not self._open or 0 < self._options.messages <= connection.messages:
            self._leaving.add(connection)
        elif self._options.proxied:
            self._parked[client.session] = connection
        else:
            self._keep(connection)
            self._wake()

    def session_ended(self, session: str) -> None:
        """Its own connection is of no use to another."""
        connection = self._parked.pop(session, None)
        if connection is not None:
            self._leaving.add(connection)

    async def _renewed(self, connection: Connection, client: Client) -> bool:
        """Whether a connection that was used before is as new. What it says of the client is raised."""
        try:
            if not await self._dialler.reset(connection, client, min(_RSET_SECONDS, self._options.timeout)):
                connection.end(replies.UPSTREAM_LOST)
                return False
            await self._announce(connection, client)
        except ClientRefused:
            raise
        except Refused as refused:
            connection.end(refused.reply)
            if connection.problem is replies.UPSTREAM_TIMED_OUT:
                # The others will have nobody at their end either.
                for other in list(self._idle):
                    other.end(replies.UPSTREAM_TIMED_OUT)
            return False
        return True

    async def _announce(self, connection: Connection, client: Client) -> None:
        try:
            await self._dialler.announce(connection, client)
        except ClientRefused:
            # It may be used for others, but is not worth the risk of being taken for this client's.
            connection.end(replies.UPSTREAM_LOST)
            raise
        except Refused as refused:
            connection.end(refused.reply)
            raise
        connection.messages += 1

    async def _dial(self, client: Client | None) -> Connection:
        self._dialled += 1
        try:
            connection = await self._dialler.dial(client, self._ended)
        except Exception as error:
            self._dialled -= 1
            if isinstance(error, Refused):
                self._failed(error, client)
            elif isinstance(error, CancelledError):
                # The client left, or its time was up before ours: whether the server is down is not known.
                self._find_out()
            self._wake()
            raise
        self._dialled -= 1
        self._connections.add(connection)
        self.hello = connection.hello
        self._came_up()
        self._full_told = False
        if self.in_use < self._options.connections:
            # Who waited since the server was full may find a place now.
            self._wake()
        return connection

    def _ended(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self._end_full()
            self._forget_idle(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            for session, parked in list(self._parked.items()):
                if parked is connection:
                    del self._parked[session]
            self._wake()

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

    # Those who wait.

    async def _wait(self, seconds: float) -> None:
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)

        def expire() -> None:
            self._waiting.remove(waiting)
            waiting.errback(Refused(replies.UPSTREAM_BUSY))

        call = self._clock.callLater(seconds, expire)
        try:
            await waiting
        finally:
            if call.active():
                call.cancel()

    def _wake(self) -> None:
        if self._waiting:
            self._waiting.popleft().callback(None)

    # Up and down.

    def _failed(self, refused: Refused, client: Client | None) -> None:
        """A connection did not come about."""
        if isinstance(refused, ClientRefused) or not self._open:
            return
        if isinstance(refused, NotNow) and (self.in_use or len(self._leaving)):
            # Where each connection is a client's own, the next one is greeted for itself.
            if not self._options.proxied:
                self._became_full(refused)
        elif client is None or isinstance(refused, Unreachable) or not self._options.proxied:
            self._went_down(refused)
        else:
            # Perhaps it would not do so to others: no client may decide that it is down.
            self._find_out()

    def _find_out(self) -> None:
        """Try a connection of our own, soon."""
        if self._open and self._retry is None and self._probe is None:
            self._retry = self._clock.callLater(FIRST_RETRY_SECONDS, self._begin_probe)

    def _became_full(self, refused: Refused) -> None:
        self._end_full()
        self._full = self._clock.callLater(_FULL_SECONDS, self._full_over)
        if not self._full_told:
            self._full_told = True
            self._notices.full(len(self._connections), describe(refused))

    def _end_full(self) -> None:
        if self._full is not None:
            self._full.cancel()
            self._full = None

    def _full_over(self) -> None:
        """Perhaps the server takes one more by now."""
        self._full = None
        self._wake()

    def _went_down(self, refused: Refused) -> None:
        unsuitable = isinstance(refused, Unsuitable)
        if self._down is None or unsuitable != self._unsuitable:
            self._notices.down(describe(refused))
        self._down = refused.reply
        self._unsuitable = unsuitable
        if self._retry is None and self._probe is None:
            self._retry_later()
        # Whoever waits for a place would wait for nothing.
        while self._waiting:
            self._wake()

    def _came_up(self) -> None:
        if self._down is not None:
            self._notices.up()
        self._down = None
        self._retry_seconds = 0.0
        if self._retry is not None:
            if self._retry.active():
                self._retry.cancel()
            self._retry = None

    def _retry_later(self) -> None:
        first, last = FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS
        if self._unsuitable:
            first, last = FIRST_UNSUITABLE_RETRY_SECONDS, LAST_UNSUITABLE_RETRY_SECONDS
        seconds = min(max(self._retry_seconds, first), last)
        self._retry = self._clock.callLater(seconds, self._begin_probe)
        self._retry_seconds = 2 * seconds

    def _begin_probe(self) -> None:
        self._retry = None
        probing = Deferred.fromCoroutine(self._try())
        self._probe = probing
        probing.addErrback(self._probe_failed).addCallback(self._probed, probing)

    async def _try(self) -> None:
        if self.in_use >= self._options.connections:
            # It is there, then, and there is no place.
            return
        connection = await self._dial(None)
        if self._options.proxied:
            self._leaving.add(connection)
        elif self._open:
            self._keep(connection)
            self._wake()

    def _probe_failed(self, failure: Failure) -> None:
        """What is no answer of the server's is our fault, or the endpoint's."""
        if not failure.check(Refused, CancelledError):
            self._notices.failed(failure)

    def _probed(self, _: None, probing: Deferred[None]) -> None:
        self._probe = None
        again, self._probe_again = self._probe_again, False
        if again:
            self.try_now()
        if self._down is not None and self._retry is None and self._probe is None and self._open:
            self._retry_later()
