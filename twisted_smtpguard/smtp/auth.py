"""AUTH in one session (RFC 4954): challenges, responses, and who the client turns out to be."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.faults import cancel
from twisted_smtpguard.interfaces import CheckerUnavailable, Refused
from twisted_smtpguard.later import FAULTS, begun, explained
from twisted_smtpguard.smtp import replies, sasl
from twisted_smtpguard.smtp.replies import Reply

if TYPE_CHECKING:
    from twisted_smtpguard.checkers.checking import Judgement, User
    from twisted_smtpguard.smtp.session import Session
    from twisted_smtpguard.smtp.transaction import Answer


class _WithheldError(Exception):
    """In the place of a checker's exception, whose message may have the password in it."""


class Authentication:
    """Made at the first AUTH of a session. No password outlives the question whether it is right."""

    __slots__ = ("_asking", "_exchange", "_mechanism", "_session", "_waiting", "failures", "user")

    def __init__(self, session: Session) -> None:
        self._session = session
        self.user: User | None = None
        """Once the client has logged in."""
        self.failures = 0
        """Wrong credentials, in the whole session."""
        self._mechanism = ""
        self._exchange: Generator[bytes, bytes, sasl.Login] | None = None
        self._asking: Deferred[Judgement] | None = None
        self._waiting: Deferred[Reply | None] | None = None

    @property
    def identity(self) -> str | None:
        """The name of the user."""
        return None if self.user is None else self.user.name

    @property
    def awaits_response(self) -> bool:
        """The next line is no command."""
        return self._exchange is not None

    def begin(self, mechanism: str, initial: bytes | None) -> Answer:
        """An AUTH command in sequence."""
        self._mechanism = mechanism
        exchange = sasl.MECHANISMS[mechanism](sasl.decode_initial(initial))
        return self._advance(exchange, lambda: next(exchange))

    def respond(self, line: bytes) -> Answer:
        """The line behind a challenge."""
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        try:
            response = sasl.decode_response(line)
        except Refused as refused:
            return refused.reply
        return self._advance(exchange, lambda: exchange.send(response))

    def cancel(self) -> None:
        """What came is no response."""
        self._exchange = None

    def forget(self) -> None:
        """TLS has begun: whoever logged in before may have been somebody else."""
        self.user = self._exchange = None

    def _advance(self, exchange: Generator[bytes, bytes, sasl.Login], step: Callable[[], bytes]) -> Answer:
        try:
            challenge = step()
        except StopIteration as end:
            return self._check(end.value)
        except Refused as refused:
            return refused.reply
        self._exchange = exchange
        return replies.challenge(b64encode(challenge).decode("ascii"))

    def _check(self, login: sasl.Login) -> Answer:
        session = self._session
        session.conduct.user = login.username.decode("utf-8", "backslashreplace")
        checkers = session.site.checkers
        assert checkers is not None
        try:
            answer = begun(checkers.identify(login))
        except FAULTS:
            return self._unavailable(explained(Failure()))
        if not isinstance(answer, Deferred):
            return self._judged(answer)
        waiting: Deferred[Reply | None] = Deferred()
        self._asking, self._waiting = answer, waiting
        answer.addBoth(self._answered, waiting)
        return waiting

    def _answered(self, outcome: Judgement | Failure, waiting: Deferred[Reply | None]) -> None:
        if self._waiting is not waiting:
            # It comes too late, and nobody waits for it any more.
            return
        self._asking = self._waiting = None
        waiting.callback(
            self._unavailable(outcome) if isinstance(outcome, Failure) else self._judged(outcome)
        )

    def _judged(self, judgement: Judgement) -> Reply:
        for failure in judgement.failures:
            self._log_failure(failure)
        if judgement.user is None and judgement.failures:
            return replies.AUTH_UNAVAILABLE
        return self._decided(judgement.user)

    def _decided(self, user: User | None) -> Reply:
        session = self._session
        conduct, site = session.conduct, session.site
        if user is not None:
            self.user = user
            site.events.login(session.name, session.visitor.name, user.name, self._mechanism)
            return replies.AUTHENTICATED
        self.failures += 1
        limit = site.limits.max_auth_failures
        if 0 < limit <= self.failures and conduct.trips("max_auth_failures", self.failures, once=True):
            # It goes against no limit that this one is wrong, but that so many were.
            conduct.value, conduct.value_behind = None, self.failures
            conduct.behind = replies.TOO_MANY_AUTH_FAILURES
        return replies.AUTH_FAILED

    def _unavailable(self, failure: Failure) -> Reply:
        self._log_failure(failure)
        return replies.AUTH_UNAVAILABLE

    def _log_failure(self, failure: Failure) -> None:
        session = self._session
        events, peer = session.site.events, session.visitor.name
        if isinstance(failure.value, CheckerUnavailable):
            events.checker_failed(session.name, peer, str(failure.value))
            return
        kind = type(failure.value).__name__
        failure.value = _WithheldError(f"a {kind}, whose message is withheld: it may hold a password")
        events.failure(failure, "a checker failed", session.name, peer)

    def expire(self) -> None:
        """The checker had its time."""
        waiting = self._give_up()
        if waiting is not None:
            session = self._session
            problem = f"no answer in {session.site.limits.delivery_timeout:g} seconds"
            session.site.events.checker_failed(session.name, session.visitor.name, problem)
            waiting.callback(replies.AUTH_UNAVAILABLE)

    def end(self) -> None:
        """The client is gone."""
        self._exchange = None
        self._give_up()

    def _give_up(self) -> Deferred[Reply | None] | None:
        asking, waiting = self._asking, self._waiting
        self._asking = self._waiting = None
        cancel(asking, lambda failure, _: self._log_failure(failure))
        return waiting
