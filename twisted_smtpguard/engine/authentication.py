"""AUTH in one session (RFC 4954): challenges, responses, and the user that the client logs in as.

No password is kept after it has been checked.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts, ending, sasl
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.hooks import wait_for
from twisted_smtpguard.engine.port import Expired
from twisted_smtpguard.engine.stages import Phase, Stage
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import FAULTS, Challenge, CheckerUnavailable, LoginClient, Refused, is_later

_LONGEST_CHALLENGE = (replies.MAX_CHALLENGE_LINE_OCTETS - len("334 \r\n")) // 4 * 3
"""In octets, before base64."""


class WithheldError(Exception):
    """Replaces a checker's exception in the log, because its message may contain the password."""


def is_certified(engine: Engine) -> bool:
    """Whether the client has shown a certificate."""
    peer = engine.known_peer
    return peer is not None and peer.certificate is not None


def auth(engine: Engine, argument: bytes) -> Reply | None:
    """Carry out AUTH. It may succeed once in a session, after EHLO and outside a mail transaction (RFC 4954 4)."""
    context = engine.context
    if context.identify is None:
        return counts.invalid(engine, replies.UNRECOGNIZED_COMMAND)
    mechanism, initial = sasl.parse_auth(argument)
    if engine.phase is not Phase.READY or not engine.offered or engine.user is not None:
        return counts.invalid(engine, replies.BAD_SEQUENCE)
    if not (engine.tls or context.auth_without_tls):
        return replies.ENCRYPTION_REQUIRED
    if mechanism not in context.mechanisms(is_certified(engine)):
        return replies.UNKNOWN_MECHANISM
    engine.known_client = None
    response = sasl.decode_initial(initial)
    begin = sasl.PasswordExchange if mechanism in sasl.MECHANISMS else context.begin_exchange
    try:
        exchange = begin(mechanism, _client_of(engine))
    except FAULTS as error:
        return _unavailable(engine, error)
    return _advance(engine, _Exchange(mechanism, exchange), response)


def respond(engine: Engine, line: bytes) -> Reply | None:
    """Take the line with the response to a challenge. Returns the reply, or None if it comes later."""
    judgement = engine.auth.final
    if judgement is not None and judgement.user is None:
        # No answer makes wrong credentials right, and none takes back that they were tried.
        ending.drop_exchange(engine)
        return _refused(engine)
    try:
        response = sasl.decode_response(line)
    except Refused as refused:
        ending.drop_exchange(engine)
        return refused.reply
    exchange, engine.auth = engine.auth, None
    return _advance(engine, exchange, response)


class _Exchange:
    """An exchange that goes on."""

    __slots__ = ("abort", "final", "mechanism", "respond", "user")

    def __init__(self, mechanism: str, exchange: Any) -> None:
        self.mechanism = mechanism
        self.respond: Callable[[bytes | None], Any] = exchange.respond
        self.abort: Callable[[], object] = exchange.abort
        self.user = b""
        """As whom the client wants to log in, as far as it is known."""
        self.final: Any = None
        """The judgement, if there is one and the client only has to take note of what it was sent."""


def _client_of(engine: Engine) -> LoginClient:
    return LoginClient(engine.peer, engine.name, engine.tls, key=engine.key)


def _advance(engine: Engine, exchange: _Exchange, response: bytes | None) -> Reply | None:
    if exchange.final is not None:
        return replies.BAD_AUTH_RESPONSE if response else _logged_in(engine, exchange, exchange.final)
    ask: Callable[[Any], Any] = partial(_respond, exchange, response)
    if exchange.mechanism in sasl.MECHANISMS:
        try:
            outcome = exchange.respond(response)
        except Refused as refused:
            return refused.reply
        if isinstance(outcome, Challenge):
            return _challenge(engine, exchange, outcome.octets)
        exchange.user = outcome.username
        ask = partial(_identify, engine, outcome)
    else:
        exchange.user = exchange.user or sasl.claimed_user(exchange.mechanism, response)
    return _try(engine, exchange, ask)


def _challenge(engine: Engine, exchange: _Exchange, octets: bytes) -> Reply:
    if len(octets) > _LONGEST_CHALLENGE:
        _abort(engine, exchange)
        return _unavailable(engine, CheckerUnavailable(f"a challenge of {len(octets)} octets is too long"))
    engine.auth = exchange
    engine.enter(Stage.AUTH_RESPONSE)
    return replies.challenge(b64encode(octets).decode("ascii"))


def _respond(exchange: _Exchange, response: bytes | None, attempt: Any) -> Any:
    return exchange.respond(response)


def _identify(engine: Engine, login: sasl.Login, attempt: Any) -> Any:
    identify = engine.context.identify
    assert identify is not None
    assert login.client is not None
    client = attrs.evolve(login.client, known=attempt.known)
    return identify(attrs.evolve(login, client=client))


def _try(engine: Engine, exchange: _Exchange, ask: Callable[[Any], Any]) -> Reply | None:
    """Ask about what the client has sent, unless so much of it was wrong that no more may be checked."""
    engine.user_tried = exchange.user.decode("utf-8", "backslashreplace")
    attempt = engine.context.attempts.begin(engine.key, exchange.user, trusted=engine.trusted)
    then = partial(_ask, exchange, ask)
    if is_later(attempt):
        return wait_for(engine, attempt, then, partial(_not_tried, exchange), late=partial(_left, exchange))
    return then(engine, attempt)


def _not_tried(exchange: _Exchange, engine: Engine, error: BaseException) -> Reply:
    _abort(engine, exchange)
    return _unavailable(engine, error)


def _left(exchange: _Exchange, engine: Engine, attempt: Any, error: BaseException | None) -> None:
    """Called when it is decided whether the credentials may be checked, and the client has left."""
    _abort(engine, exchange)
    if error is None:
        attempt.withdraw()


def _abort(engine: Engine, exchange: _Exchange) -> None:
    engine.auth = exchange
    ending.drop_exchange(engine)


def _ask(exchange: _Exchange, ask: Callable[[Any], Any], engine: Engine, attempt: Any) -> Reply | None:
    for exceeded in attempt.exceeded:
        if counts.enforces(engine, exceeded.limit, exceeded.failures, network=exceeded.network):
            _abort(engine, exchange)
            engine.reason = exceeded.limit
            return replies.AUTH_UNAVAILABLE
    try:
        outcome = ask(attempt)
    except FAULTS as error:
        return _failed(attempt, engine, error)
    if is_later(outcome):
        then, failed = partial(_judged, exchange, attempt), partial(_failed, attempt)
        return wait_for(engine, outcome, then, failed, late=partial(_judged_late, attempt))
    return _judged(exchange, attempt, engine, outcome)


def _judged(exchange: _Exchange, attempt: Any, engine: Engine, outcome: Any) -> Reply:
    """Called with a Challenge, or with the judgement."""
    if isinstance(outcome, Challenge):
        attempt.withdraw()
        return _challenge(engine, exchange, outcome.octets)
    for failure in outcome.failures:
        log_failure(engine, failure.value)
    if outcome.user is not None:
        attempt.right()
    elif outcome.failures:
        attempt.withdraw()
        return replies.AUTH_UNAVAILABLE
    else:
        attempt.wrong()
        engine.failures += 1
    if outcome.final:
        # The client answers, with an empty line if it has logged in, and is then told of the verdict (RFC 4954 4,
        # RFC 7628 3.2.3).
        exchange.final = outcome
        return _challenge(engine, exchange, outcome.final)
    return _refused(engine) if outcome.user is None else _logged_in(engine, exchange, outcome)


def _refused(engine: Engine) -> Reply:
    """The reply to wrong credentials, which have been counted."""
    limit = engine.context.limits.max_auth_failures
    if 0 < limit <= engine.failures and counts.enforces(
        engine, "max_auth_failures", engine.failures, once=True
    ):
        # Only the closing reply is logged with the number of failures: this failure alone exceeds no limit.
        engine.value = None
        engine.closing_reply = replies.TOO_MANY_AUTH_FAILURES
    return replies.AUTH_FAILED


def _logged_in(engine: Engine, exchange: _Exchange, judgement: Any) -> Reply:
    engine.user, engine.mechanism = judgement.user, exchange.mechanism
    engine.context.events.login(engine.name, engine.peer_name, judgement.user.name, exchange.mechanism)
    return replies.AUTHENTICATED


def _judged_late(attempt: Any, engine: Engine, outcome: Any, error: BaseException | None) -> None:
    """Called when the checkers have answered, and the client has left. A wrong password stays counted."""
    challenge = isinstance(outcome, Challenge)
    if error is None and not challenge and outcome.user is None and not outcome.failures:
        attempt.wrong()
    else:
        attempt.withdraw()


def _failed(attempt: Any, engine: Engine, error: BaseException) -> Reply:
    attempt.withdraw()
    return error.reply if isinstance(error, Refused) else _unavailable(engine, error)


def _unavailable(engine: Engine, error: BaseException) -> Reply:
    log_failure(engine, error)
    return replies.AUTH_UNAVAILABLE


def log_failure(engine: Engine, error: BaseException) -> None:
    """Log that a checker could not judge the credentials."""
    if isinstance(error, Expired):
        error = CheckerUnavailable(f"no answer in {engine.context.limits.delivery_timeout:g} seconds")
    if isinstance(error, CheckerUnavailable):
        engine.context.events.checker_failed(engine.name, engine.peer_name, str(error))
        return
    withheld = WithheldError(f"a {type(error).__name__}, whose message is withheld: it may hold a password")
    engine.log_failure(withheld.with_traceback(error.__traceback__), "a checker failed")
