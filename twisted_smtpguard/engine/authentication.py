"""AUTH in one session (RFC 4954): challenges, responses, and the user that the client logs in as.

No password is kept after it has been checked.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts, sasl
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.hooks import wait_for
from twisted_smtpguard.engine.port import Expired
from twisted_smtpguard.engine.stages import Phase, Stage
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import FAULTS, CheckerUnavailable, Refused, is_later


class WithheldError(Exception):
    """Replaces a checker's exception in the log, because its message may contain the password."""


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
    if mechanism not in sasl.MECHANISMS:
        return replies.UNKNOWN_MECHANISM
    engine.known_client = None
    steps = sasl.MECHANISMS[mechanism](sasl.decode_initial(initial))
    return _advance(engine, mechanism, steps, partial(next, steps))


def respond(engine: Engine, line: bytes) -> Reply | None:
    """Take the line with the response to a challenge. Returns the reply, or None if it comes later."""
    (mechanism, steps), engine.auth = engine.auth, None
    try:
        response = sasl.decode_response(line)
    except Refused as refused:
        return refused.reply
    return _advance(engine, mechanism, steps, partial(steps.send, response))


def _advance(engine: Engine, mechanism: str, steps: sasl.Steps, step: Callable[[], bytes]) -> Reply | None:
    try:
        challenge = step()
    except StopIteration as end:
        return _check(engine, mechanism, end.value)
    except Refused as refused:
        return refused.reply
    engine.auth = mechanism, steps
    engine.enter(Stage.AUTH_RESPONSE)
    return replies.challenge(b64encode(challenge).decode("ascii"))


def _check(engine: Engine, mechanism: str, login: sasl.Login) -> Reply | None:
    """Check the credentials, unless so many of the client have been wrong that no more may be checked."""
    engine.user_tried = login.username.decode("utf-8", "backslashreplace")
    attempt = engine.context.attempts.begin(engine.key, login.username, trusted=engine.trusted)
    if is_later(attempt):
        return wait_for(engine, attempt, partial(_identify, mechanism, login), _unavailable, late=_left)
    return _identify(mechanism, login, engine, attempt)


def _left(engine: Engine, attempt: Any, error: BaseException | None) -> None:
    """Called when it is decided whether the credentials may be checked, and the client has left."""
    if error is None:
        attempt.withdraw()


def _identify(mechanism: str, login: sasl.Login, engine: Engine, attempt: Any) -> Reply | None:
    for exceeded in attempt.exceeded:
        if counts.enforces(engine, exceeded.limit, exceeded.failures, network=exceeded.network):
            engine.reason = exceeded.limit
            return replies.AUTH_UNAVAILABLE
    identify = engine.context.identify
    assert identify is not None
    try:
        judgement = identify(login)
    except FAULTS as error:
        return _failed(attempt, engine, error)
    if is_later(judgement):
        then, failed = partial(_judged, mechanism, attempt), partial(_failed, attempt)
        return wait_for(engine, judgement, then, failed, late=partial(_judged_late, attempt))
    return _judged(mechanism, attempt, engine, judgement)


def _judged(mechanism: str, attempt: Any, engine: Engine, judgement: Any) -> Reply:
    for failure in judgement.failures:
        log_failure(engine, failure.value)
    user = judgement.user
    if user is None and judgement.failures:
        attempt.withdraw()
        return replies.AUTH_UNAVAILABLE
    if user is not None:
        attempt.right()
        engine.user, engine.mechanism = user, mechanism
        engine.context.events.login(engine.name, engine.peer_name, user.name, mechanism)
        return replies.AUTHENTICATED
    attempt.wrong()
    engine.failures += 1
    limit = engine.context.limits.max_auth_failures
    if 0 < limit <= engine.failures and counts.enforces(
        engine, "max_auth_failures", engine.failures, once=True
    ):
        # Only the closing reply is logged with the number of failures: this failure alone exceeds no limit.
        engine.value = None
        engine.closing_reply = replies.TOO_MANY_AUTH_FAILURES
    return replies.AUTH_FAILED


def _judged_late(attempt: Any, engine: Engine, judgement: Any, error: BaseException | None) -> None:
    """Called when the checkers have answered, and the client has left. A wrong password stays counted."""
    if error is None and judgement.user is None and not judgement.failures:
        attempt.wrong()
    else:
        attempt.withdraw()


def _failed(attempt: Any, engine: Engine, error: BaseException) -> Reply:
    attempt.withdraw()
    return _unavailable(engine, error)


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
