"""The mail transaction that is passed on to the upstream server, command by command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from zope.interface import implementer

from twisted_smtpguard import replies
from twisted_smtpguard.delivery.lookahead import DATA, Upcoming, following, goes_on_small
from twisted_smtpguard.delivery.relayedmail import Relay, RelayedMail
from twisted_smtpguard.delivery.relaysink import By, RelaySink
from twisted_smtpguard.hooks.promise import Promise
from twisted_smtpguard.interfaces import IMessageSink, IPrependingTransaction, IRelayTransaction, Later
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.clientengine import one_line
from twisted_smtpguard.upstream.hello import Hello
from twisted_smtpguard.upstream.mailcommands import mail_command, rcpt_command
from twisted_smtpguard.upstream.replyparser import UpstreamReply
from twisted_smtpguard.upstream.smtpclient import Connection
from twisted_smtpguard.values import Client, Path, Refused

T = TypeVar("T")


@implementer(IRelayTransaction, IPrependingTransaction)
class UpstreamTransaction(RelayedMail):
    """The hooks of a mail transaction that is carried out by the server."""

    begun: Reply

    def __init__(self, relay: Relay, client: Client) -> None:
        super().__init__(relay, client)
        self._upcoming: Upcoming = tuple

    def look_ahead(self, upcoming: Upcoming) -> None:
        """Called before `begin`, if commands may be sent ahead."""
        self._upcoming = upcoming

    async def begin(self, sender: Path) -> UpstreamTransaction:
        """Take a connection and send MAIL. `Refused`: there is no transaction, and no connection is held."""
        lines: list[bytes] = []

        def early(hello: Hello) -> list[bytes]:
            nonlocal lines
            try:
                command = mail_command(sender, hello)
                one_line(command)
            except (Refused, ValueError):
                # The same is raised below, when a connection is ready.
                return []
            lines = [command, *self._following(hello)]
            return lines

        try:
            connection, answers = await self.relay.pool.take(self.client, early)
            self._connection = connection
            if not answers:
                command = mail_command(sender, connection.hello)
                lines = [command, *self._following(connection.hello)]
                answers = connection.commands(lines, self.relay.options.timeout)
            if len(answers) > 1:
                self._ahead.add(lines[1:], answers[1:])
            self.begun = self.accepted(await answers[0])
        except Refused:
            self.give_back()
            raise
        except Exception:
            self.drop()
            raise
        return self

    def recipient(self, recipient: Path) -> Later[Reply | None]:
        if 0 < self.relay.options.recipients <= len(self.recipients):
            raise Refused(replies.TOO_MANY_LMTP_RECIPIENTS)

        def answered(reply: UpstreamReply) -> Reply:
            told = self.accepted(reply)
            self.recipients.append(recipient)
            return told

        connection = self.connection
        line = rcpt_command(recipient, connection.hello)
        if not self._ahead:
            more = self._following(connection.hello, 1)
            if more:
                lines = [line, *more]
                self._ahead.add(lines, connection.commands(lines, self.relay.options.timeout))
        return self._ask(connection, line, answered)

    def prepend(self, fields: Sequence[str]) -> None:
        self.prepended = fields

    def data(self) -> Later[IMessageSink]:
        connection = self.connection
        if goes_on_small(connection.hello, self.relay.options):
            return self._without_data(By.BDAT_IF_SMALL)
        return self._ask(connection, DATA, self._data_answered)

    def _data_answered(self, reply: UpstreamReply) -> IMessageSink:
        self.require_data(reply)
        return RelaySink(self, By.DATA)

    def data_in_chunks(self) -> Later[IMessageSink]:
        return self._without_data(By.BDAT) if "CHUNKING" in self.connection.hello else self.data()

    def abort(self) -> None:
        self.give_back()

    def _without_data(self, by: By) -> RelaySink:
        if self._ahead:
            # Somebody between the guard and this has refused a recipient.
            self.drop()
        return RelaySink(self, by)

    def _ask(self, connection: Connection, line: bytes, then: Callable[[UpstreamReply], T]) -> T | Promise[T]:
        """Send a command, unless it was sent ahead. `then` makes the answer of the hook from the reply. `Refused`:
        there was none, and the connection has ended."""
        seconds = self.relay.options.timeout
        if self._ahead:
            answer = self._ahead.take(connection, line, seconds)
            if answer is not None:
                return answer.mapped(then).now()
        promise: Promise[T] = Promise(connection.forsake)
        connection.ask(line, partial(_settle, promise, then), seconds)
        return promise.now()

    def _following(self, hello: Hello, asked: int = 0) -> Sequence[bytes]:
        """What may leave together with MAIL, or with an RCPT that is `asked` about."""
        upcoming = self._upcoming()
        if not upcoming:
            return ()
        return following(upcoming, hello, self.relay.options, len(self.recipients) + asked)


def _settle(
    promise: Promise[T],
    then: Callable[[UpstreamReply], T],
    reply: UpstreamReply | None,
    problem: Reply | None,
) -> None:
    try:
        if reply is None:
            assert problem is not None
            raise Refused(problem)
        value = then(reply)
    except Exception as error:  # noqa: BLE001 - whoever waits for the answer gets it
        promise.fail(error)
    else:
        promise.succeed(value)
