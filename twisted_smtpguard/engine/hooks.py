"""The check of what a delivery's hooks answer, and the reply to a hook that failed."""

from __future__ import annotations

from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.port import Cancelled, Expired
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Refused

_REFUSALS = frozenset(range(400, 600))
_ANSWERS = _REFUSALS | frozenset(range(200, 300)) - {221}
"""The reply codes that a delivery may use. 221 is left out: it answers QUIT only."""


def missing_abort(given: Any) -> TypeError:
    """The exception for a begin() or data() that returned an object without abort()."""
    return TypeError(f"{given!r} has no abort()")


def hook_failed(engine: Engine, error: BaseException, *, over: bool = False) -> Reply:
    """The reply to a command whose hook raised `error`. Anything but a refusal or a timeout is logged as a bug of the
    delivery. `over`: the hook was cancelled, so that a `Cancelled` is expected and not logged."""
    if isinstance(error, Refused):
        return answer_checked(engine, error.reply, refused=True)
    if isinstance(error, Expired):
        return replies.DELIVERY_TIMED_OUT
    if not (over and isinstance(error, Cancelled)):
        engine.delivery_failed(error, "a hook raised")
    return replies.LOCAL_ERROR


def answer_checked(engine: Engine, reply: Any, *, refused: bool = False) -> Reply:
    """A delivery's reply with an enhanced code added if it has none (RFC 2034), or LOCAL_ERROR, logged, if it is no
    Reply or its code is not allowed. `refused`: only 4xx and 5xx are allowed."""
    if not isinstance(reply, Reply) or reply.code not in (_REFUSALS if refused else _ANSWERS):
        engine.delivery_failed(ValueError(_shown(reply)), "a hook returned a reply that is not allowed here")
        return replies.LOCAL_ERROR
    return replies.with_enhanced_code(replies.with_known_code(reply))


def _shown(answer: Any) -> str:
    try:
        return repr(answer)
    except Exception:  # noqa: BLE001 - __repr__ is foreign code too
        return f"a {type(answer).__name__}"
