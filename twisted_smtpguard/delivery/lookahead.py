"""Commands that go to the upstream server together with the one that the guard has come to, because the client has sent
them already. Each spares a round trip. What the server says to one is kept until the guard has come to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeAlias

from twisted_smtpguard import replies
from twisted_smtpguard.hooks.promise import LazyPromise, Promise, run
from twisted_smtpguard.interfaces import IMailTransaction
from twisted_smtpguard.upstream.hello import Hello
from twisted_smtpguard.upstream.mailcommands import rcpt_command
from twisted_smtpguard.upstream.parameters import UpstreamOptions
from twisted_smtpguard.upstream.pool import CLOSE_SECONDS
from twisted_smtpguard.upstream.replyparser import HANGS_UP, UpstreamReply
from twisted_smtpguard.upstream.smtpclient import Connection, stop_timer
from twisted_smtpguard.values import Path, Refused

Upcoming: TypeAlias = Callable[[], Iterable[Path | None]]
"""Returns what the client has sent after the command that is being carried out: the recipients of the next RCPTs, and
None for a DATA after them. The hooks will be called for them, in this order, unless the mail transaction ends before;
that for DATA also only if a recipient is accepted."""

Wrap: TypeAlias = Callable[[IMailTransaction], IMailTransaction]
"""Makes the transaction of a delivery from that of the one that it wraps."""

DATA = b"DATA"


class Beginning(LazyPromise[IMailTransaction]):
    """The answer of `begin()`. It lets the engine say what the client has sent already, before MAIL is sent.

    The engine calls `look_ahead` once, before it waits for the answer. Whoever wraps the answer need know nothing of
    it: the engine then says nothing, and one command is sent at a time.
    """

    __slots__ = ("_wrap", "look_ahead")

    def __init__(
        self,
        start: Callable[[], Coroutine[Any, Any, IMailTransaction]],
        look_ahead: Callable[[Upcoming], object],
    ) -> None:
        super().__init__(start)
        self.look_ahead = look_ahead
        self._wrap: Wrap | None = None

    def wrapped(self, wrap: Wrap, upcoming: Callable[[Upcoming], Upcoming]) -> Beginning:
        """This answer, of a delivery that wraps the transaction by `wrap`, which raises nothing, and refuses some
        recipients itself, which `upcoming` leaves out. Called before the answer is waited for."""
        inner, look_ahead = self._wrap, self.look_ahead
        self._wrap = wrap if inner is None else lambda mail: wrap(inner(mail))
        self.look_ahead = lambda given: look_ahead(upcoming(given))
        return self

    def succeed(self, value: IMailTransaction) -> None:
        self.settle(value if self._wrap is None else self._wrap(value), None)


def following(
    upcoming: Iterable[Path | None], hello: Hello, options: UpstreamOptions, known: int
) -> list[bytes]:
    """The commands that may leave together with MAIL or, if `known` is not 0, with the RCPT of recipient number
    `known`."""
    lines: list[bytes] = []
    for recipient in upcoming if "PIPELINING" in hello else ():
        if recipient is None:
            lines += [] if goes_on_small(hello, options) else [DATA]
        elif 0 < options.recipients <= known + len(lines):
            # The guard itself refuses it.
            break
        else:
            lines.append(rcpt_command(recipient, hello))
    return lines


def goes_on_small(hello: Hello, options: UpstreamOptions) -> bool:
    """Whether a message that comes by DATA goes on in one BDAT if it is small, so that DATA may not be needed."""
    return options.bdat == "small" and "CHUNKING" in hello


class SentAhead(deque[tuple[bytes, Promise[UpstreamReply]]]):
    """The commands of one transaction that were sent, and that the guard has not come to, each with its answer."""

    def add(self, lines: Iterable[bytes], answers: Iterable[Promise[UpstreamReply]]) -> None:
        self.extend(zip(lines, answers, strict=True))

    def take(self, connection: Connection, line: bytes, seconds: float) -> Promise[UpstreamReply] | None:
        """The answer to `line`, which the guard has come to, and for which the server has so many seconds. None: it
        was not sent, and may be sent now."""
        sent, answer = self.popleft()
        if sent == line:
            if not answer.there:
                # If it has come with the answer before, the client gets both in one write.
                connection.tell()
            return answer
        if sent == DATA:
            # The guard has refused it, since the server has refused every recipient.
            forgotten = run(_forget(connection, sent, answer))
            if not forgotten.there:
                return run(_ask_after(forgotten, connection, line, seconds))
        else:
            # Somebody between the guard and this has refused a recipient, which cannot be taken back.
            self.clear()
            connection.end(replies.UPSTREAM_LOST)
        return None

    def forget(self, connection: Connection, then: Callable[[], None], *, waits: bool) -> None:
        """Called when the transaction is over before the guard has come to all. Calls `then` when the answers that are
        left have come, so that the connection can be used again. It is ended instead if they have not come yet and not
        `waits`, or do not come soon: no client waits for them, so no limit on clients bounds how many such connections
        there are."""
        forgotten = run(self._forget_all(connection))
        if forgotten.there:
            then()
        elif waits and connection.usable:
            limit = connection.end_after(CLOSE_SECONDS)

            def answered(*_: object) -> None:
                stop_timer(limit)
                then()

            forgotten.when_answered(answered)
        else:
            connection.end(replies.UPSTREAM_LOST)

    async def _forget_all(self, connection: Connection) -> None:
        for line, answer in self:
            await _forget(connection, line, answer)


async def _ask_after(
    forgotten: Promise[None], connection: Connection, line: bytes, seconds: float
) -> UpstreamReply:
    """Send `line` when the server has answered a DATA, after which nothing may be sent (RFC 2920 3.1)."""
    await forgotten
    return await connection.command(line, seconds)


async def _forget(connection: Connection, line: bytes, answer: Promise[UpstreamReply]) -> None:
    """Take an answer that nobody asks for. The connection ends if it cannot be used after that."""
    if not answer.there:
        connection.tell()
    try:
        reply = await answer
    except Refused:
        # It has ended already.
        return
    # The server counts them too.
    connection.error_replies += reply.code >= 400
    if reply.code in HANGS_UP or (line == DATA and reply.code < 400):
        # The server closes it, or waits for a message that does not come.
        connection.end(replies.UPSTREAM_LOST)
