"""What a hook of the delivery may answer, and the reply that each failure of one becomes."""

from __future__ import annotations

from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.port import Cancelled
from twisted_smtpguard.engine.waiting import Expired
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Refused

_REFUSALS = frozenset(range(400, 600))
_ANSWERS = _REFUSALS | frozenset(range(200, 300)) - {221}
"""Codes that a delivery may give. Only a client's QUIT is answered with 221."""


def missing_abort(given: Any) -> TypeError:
    """The fault of a begin() or data() that has handed over what has no abort(), and so is not what was promised."""
    return TypeError(f"{given!r} has no abort()")


def hook_failed(engine: Engine, error: BaseException, *, over: bool = False) -> Reply:
    """The reply that a failure becomes; logged where it is no refusal. `over`: the
    answer is not wanted any more, so that it is no fault to end by cancellation."""
    if isinstance(error, Refused):
        return answer_checked(engine, error.reply, refused=True)
    if isinstance(error, Expired):
        return replies.DELIVERY_TIMED_OUT
    if not (over and isinstance(error, Cancelled)):
        engine.delivery_failed(error, "a hook raised")
    return replies.LOCAL_ERROR


def answer_checked(engine: Engine, reply: Any, *, refused: bool = False) -> Reply:
    """A delivery's reply as it may go out: of a possible code, with an enhanced code (RFC 2034)."""
    if not isinstance(reply, Reply) or reply.code not in (_REFUSALS if refused else _ANSWERS):
        engine.delivery_failed(ValueError(_shown(reply)), "not a reply to give here")
        return replies.LOCAL_ERROR
    return replies.with_enhanced_code(replies.with_known_code(reply))


def _shown(answer: Any) -> str:
    try:
        return repr(answer)
    except Exception:  # noqa: BLE001 - it is foreign code too
        return f"a {type(answer).__name__}"
