"""One message on its way to the upstream server: the connection that it holds, and how that ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import attrs

from twisted_smtpguard import replies
from twisted_smtpguard.delivery.lookahead import SentAhead
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.notices import Notices
from twisted_smtpguard.upstream.parameters import UpstreamOptions
from twisted_smtpguard.upstream.pool import Pool
from twisted_smtpguard.upstream.refusals import verdict_of
from twisted_smtpguard.upstream.replyparser import HANGS_UP, UpstreamReply, for_client
from twisted_smtpguard.upstream.smtpclient import Connection
from twisted_smtpguard.values import Client, Path, Refused

Combine: TypeAlias = Callable[[Client, Sequence[Path], Sequence[Reply]], Reply]
"""Called with the client, the accepted recipients and the server's verdict for each. Returns the one for the client."""


@attrs.frozen
class Relay:
    """What all transactions with one server share."""

    pool: Pool
    options: UpstreamOptions
    notices: Notices
    hostname: str
    seconds: Callable[[], float]
    """The clock."""
    combine: Combine | None
    """LMTP: makes one verdict of those for each recipient. None: the server gives one for all."""


class RelayedMail:
    """One mail transaction with the server. It holds one connection, from MAIL until the connection is given back to
    the pool or dropped."""

    def __init__(self, relay: Relay, client: Client) -> None:
        self.relay = relay
        self.client = client
        self.recipients: list[Path] = []
        """The accepted recipients."""
        self.prepended: Sequence[str] = ()
        """The header fields of session policies."""
        self._connection: Connection | None = None
        self._ahead = SentAhead()

    @property
    def connection(self) -> Connection:
        """The connection. `Refused`: it was dropped."""
        if self._connection is None:
            raise Refused(replies.UPSTREAM_LOST)
        return self._connection

    def checked(self, reply: UpstreamReply) -> UpstreamReply:
        """Return `reply`, and drop the connection if it is a 421 or 221, after which the server closes it."""
        if reply.code >= 400:
            self.connection.error_replies += 1
        if reply.code in HANGS_UP:
            self.drop(verdict_of(reply).reply)
        return reply

    def require_data(self, reply: UpstreamReply) -> None:
        """Begin the message data, if `reply` is the 354 to DATA. `Refused`: it is not, and the connection was given
        back or dropped."""
        if self.checked(reply).code == 354:
            self.connection.start_data()
            return
        if reply.code < 400:
            # After such a reply the server may take the next input for message data.
            self.drop()
        self.give_back()
        raise verdict_of(reply)

    def accepted(self, reply: UpstreamReply) -> Reply:
        """Return `reply` as the client gets it. `Refused`: it is not a 2xx."""
        if not self.checked(reply).positive:
            raise verdict_of(reply)
        return for_client(reply)

    def give_back(self) -> None:
        """Give the connection back to the pool. Called when no message on it is incomplete."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._ahead:
            give_back = partial(self.relay.pool.give_back, connection, self.client)
            # A connection of one session only is of no use to others, and the session may be over when that happens.
            self._ahead.forget(connection, give_back, waits=not self.relay.options.proxied)
        else:
            self.relay.pool.give_back(connection, self.client)

    def drop(self, problem: Reply = replies.UPSTREAM_LOST) -> None:
        """Abort the connection, so that a message that has begun is not delivered."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end(problem)
