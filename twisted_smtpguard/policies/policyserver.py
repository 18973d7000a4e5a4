"""A policy server that speaks Postfix's SMTPD_POLICY protocol, and the connections to it.

A connection is kept and asked again, one question at a time, as the protocol demands. There are few of them, however
many clients there are: a further question waits for one. The engine keeps the time: whoever does not get an answer in
time cancels the question, and its connection is closed. A client that leaves earlier cancels it too. Then the answer,
which nobody wants any more, is waited for as long, and the connection is kept, unless another question needs it.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.hooks.faults import cancel
from twisted_smtpguard.hooks.promise import Promise
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.interfaces import ISessionPolicy
from twisted_smtpguard.policies.answers import AnswerParser, verdict_of
from twisted_smtpguard.policies.attributes import question
from twisted_smtpguard.policyvalues import POLICY_STAGES, PolicyRequest, PolicyUnavailable, PolicyVerdict

IDLE_SECONDS = 300
"""How long a connection that is not needed is kept, as by Postfix."""

SELF_TEST_SECONDS = 5
"""How long `--check` waits for the server."""

MAX_LATE = 50
"""How many connections may wait for answers that nobody wants any more, at most."""

MAX_WAITING = 10_000
"""How many questions may wait for a connection. One more fails at once."""


class _Question:
    """One question, until it has its answer."""

    def __init__(self, octets: bytes, server: PolicyServer) -> None:
        self.octets = octets
        self.answer: Promise[PolicyVerdict] = Promise(partial(server._forget, self))
        self.asked_at = server._reactor.seconds()
        self.connecting: Deferred[Any] | None = None
        """The connection that is being opened for it."""
        self.connection: _Connection | None = None
        """The connection that it was sent on."""
        self.sent_again = False
        """Whether it was sent on a kept connection that turned out to be closed."""
        self.forgotten = False
        """Whether nobody waits for the answer any more."""


class _Connection(Protocol):
    """One connection to the server."""

    question: _Question | None = None
    kept = False
    """Whether it has answered a question before."""

    def __init__(self, server: PolicyServer) -> None:
        self._server = server
        self._parser = AnswerParser()
        self._dropped = False
        self.late: Any = None
        """The call that closes it, if it waits for an answer that nobody wants any more."""
        self.idle_since = 0.0

    def connectionMade(self) -> None:
        assert self.transport is not None
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        self._server._opened(self)

    def send(self, asked: _Question) -> None:
        assert self.transport is not None
        self.question, asked.connection = asked, self
        self._parser = AnswerParser()
        self.transport.write(asked.octets)

    def dataReceived(self, data: bytes) -> None:
        asked = self.question
        if asked is None:
            # Nothing was asked, so what comes could be taken for the answer to the next question.
            self.drop()
            return
        try:
            action = self._parser.feed(data)
            verdict = None if action is None else verdict_of(action)
        except PolicyUnavailable as error:
            self.question = None
            self._server._settled(self)
            if error.misconfigured and not self._parser.rest:
                self._server._free(self)
            else:
                self.drop()
            asked.answer.fail(error)
            return
        if verdict is not None:
            self.question, self.kept = None, True
            self._server._settled(self)
            if self._parser.rest:
                self.drop()
            else:
                self._server._free(self)
            asked.answer.succeed(verdict)

    def drop(self) -> None:
        """Close the connection at once."""
        if not self._dropped:
            self._dropped = True
            self._server._closing(self)
            self.transport.abortConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        asked, self.question = self.question, None
        if asked is not None and asked.forgotten:
            asked = None
        self._server._lost(self, asked, answer_begun=self._parser.begun)


@implementer(ISessionPolicy)
class PolicyServer(Service):
    """Asks the policy server at `endpoint`. `reactor` provides the time.

    `max_connections` is how many connections there are at once, at most; 0: any number. `stages` are those at which it
    is asked, unless its PolicyEntry says others. `timeout` is for how many seconds an answer is waited for whose client
    has left.
    """

    @checked
    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        reactor: IReactorTime,
        *,
        max_connections: int = 50,
        stages: frozenset[str] = frozenset({"rcpt"}),
        timeout: float = 10,
    ) -> None:
        unknown = stages - {*POLICY_STAGES}
        if unknown or not stages:
            raise ValueError(f"stages must be some of {', '.join(POLICY_STAGES)}, not {sorted(stages)}")
        self.stages = stages
        self.timeout = timeout
        self._endpoint = endpoint
        self._reactor = reactor
        self._max_connections = max_connections
        self._open: set[_Connection] = set()
        """The connections that are open, with those that are not used."""
        self._connecting = 0
        self._idle: OrderedDict[_Connection, None] = OrderedDict()
        """Those that are not used. The one that was used last is used next."""
        self._waiting: OrderedDict[_Question, None] = OrderedDict()
        self._late: OrderedDict[_Connection, None] = OrderedDict()
        """Those that wait for an answer that nobody wants any more, the longest waiting first."""
        self._serving = False
        self._sweep: Any = None
        """The call that closes the connections that have not been used for long."""

    def check(self, request: PolicyRequest) -> Promise[PolicyVerdict]:
        asked = _Question(question(request), self)
        self._serve(asked)
        return asked.answer

    async def self_test(self) -> str:
        """ "" if the server accepts a connection now, else a sentence about why it does not. Called by `--check`."""
        connecting: Deferred[Any] = self._endpoint.connect(Factory.forProtocol(Protocol))
        connecting.addTimeout(SELF_TEST_SECONDS, self._reactor)
        try:
            protocol = await connecting
        except Exception as error:  # noqa: BLE001 - whatever an endpoint raises
            why = Failure(error).getErrorMessage() or "it does not answer"
            return f"the policy server cannot be reached: {why}"
        protocol.transport.abortConnection()
        return ""

    def stopService(self) -> None:
        """Close every connection, and fail what waits."""
        super().stopService()
        problem = PolicyUnavailable("the guard stops")
        self._fail_waiting(problem)
        for connection in list(self._open):
            asked, connection.question = connection.question, None
            connection.drop()
            if asked is not None:
                asked.answer.fail(problem)
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    # Questions.

    def _serve(self, asked: _Question) -> None:
        """Send a question, open a connection for it, or let it wait."""
        if self._idle:
            connection, _ = self._idle.popitem()
            connection.send(asked)
        elif self._may_open():
            self._connect(asked)
        elif self._late:
            # It may be long until its answer comes.
            next(iter(self._late)).drop()
            self._connect(asked)
        elif len(self._waiting) >= MAX_WAITING:
            asked.answer.fail(PolicyUnavailable("too many questions wait for the policy server"))
        else:
            self._waiting[asked] = None

    def _serve_waiting(self) -> None:
        if self._serving:
            # What is going on comes to all that wait, without a call within a call for each.
            return
        self._serving = True
        try:
            while self._waiting and (self._idle or self._may_open()):
                asked, _ = self._waiting.popitem(last=False)
                self._serve(asked)
        finally:
            self._serving = False

    def _may_open(self) -> bool:
        return not self._max_connections or len(self._open) + self._connecting < self._max_connections

    def _forget(self, asked: _Question) -> None:
        """Called when nobody wants the answer any more: its time is over, or its client has left."""
        asked.forgotten = True
        self._waiting.pop(asked, None)
        if asked.connecting is not None:
            cancel(asked.connecting)
        elif asked.connection is not None and asked.connection.question is asked:
            connection, left = asked.connection, asked.asked_at + self.timeout - self._reactor.seconds()
            if left <= 0 or self._waiting or len(self._late) >= MAX_LATE:
                connection.drop()
            else:
                connection.late = self._reactor.callLater(left, connection.drop)
                self._late[connection] = None

    def _settled(self, connection: _Connection) -> None:
        """Called when a connection has its answer, or will have none."""
        self._late.pop(connection, None)
        if connection.late is not None:
            if connection.late.active():
                connection.late.cancel()
            connection.late = None

    def _fail_waiting(self, problem: PolicyUnavailable) -> None:
        waiting, self._waiting = self._waiting, OrderedDict()
        for asked in waiting:
            asked.answer.fail(problem)

    # Connections.

    def _connect(self, asked: _Question) -> None:
        self._connecting += 1
        connecting: Deferred[Any] = self._endpoint.connect(Factory.forProtocol(partial(_Connection, self)))
        asked.connecting = connecting
        connecting.addCallbacks(self._connected, self._not_connected, (asked,), {}, (asked,))
        connecting.addErrback(self._broken, asked)

    def _opened(self, connection: _Connection) -> None:
        self._open.add(connection)

    def _connected(self, connection: _Connection, asked: _Question) -> None:
        self._connecting -= 1
        asked.connecting = None
        if connection not in self._open:
            asked.answer.fail(PolicyUnavailable("the policy server closed the connection at once"))
        elif asked.forgotten:
            self._free(connection)
        else:
            connection.send(asked)

    def _not_connected(self, failure: Failure, asked: _Question) -> None:
        self._connecting -= 1
        asked.connecting = None
        if asked.forgotten:
            self._serve_waiting()
            return
        problem = PolicyUnavailable(f"the policy server cannot be reached: {failure.getErrorMessage()}")
        asked.answer.fail(problem)
        if not self._open and not self._connecting:
            # They would only find the same, one after the other.
            self._fail_waiting(problem)
        else:
            self._serve_waiting()

    def _broken(self, failure: Failure, asked: _Question) -> None:
        """Called if the endpoint, or whoever got the answer, has raised what it should not."""
        asked.answer.fail(failure.value or PolicyUnavailable("the connection failed"))

    def _free(self, connection: _Connection) -> None:
        """Use a connection for the next question, or keep it."""
        if connection not in self._open:
            return
        connection.idle_since = self._reactor.seconds()
        self._idle[connection] = None
        self._serve_waiting()
        if self._idle and self._sweep is None:
            self._sweep = self._reactor.callLater(IDLE_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        self._sweep = None
        now = self._reactor.seconds()
        for connection in list(self._idle):
            # The first has not been used for longest.
            left = connection.idle_since + IDLE_SECONDS - now
            if left > 0:
                self._sweep = self._reactor.callLater(left, self._close_idle)
                return
            connection.drop()

    def _closing(self, connection: _Connection) -> None:
        """Called when a connection is not to be used again."""
        self._settled(connection)
        self._idle.pop(connection, None)
        self._open.discard(connection)

    def _lost(self, connection: _Connection, asked: _Question | None, *, answer_begun: bool) -> None:
        """Called when a connection has ended. `asked` had no answer."""
        self._closing(connection)
        if asked is not None:
            if connection.kept and not answer_begun and not asked.sent_again:
                # It was closed before the question came, as by a server that has been started anew.
                asked.sent_again = True
                self._connect(asked)
            else:
                asked.answer.fail(
                    PolicyUnavailable("the policy server closed the connection before it answered")
                )
        self._serve_waiting()
