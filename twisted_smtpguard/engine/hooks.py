"""The answers of hooks: the check of what they answer, the reply to one that failed, and the wait for one that answers
later, with its time limit, its cancellation, and its answer, in time or too late."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.port import Cancellable, Cancelled, Expired
from twisted_smtpguard.engine.stages import ENDED, Stage
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


def outcome_of(answer: Any, error: BaseException | None) -> str:
    """The word in the metrics for the answer of a delivery's hook, or for what it has raised."""
    if isinstance(error, Refused) or (isinstance(answer, Reply) and answer.code >= 400):
        return "refused"
    if isinstance(error, Expired):
        return "timeout"
    return "ok" if error is None else "error"


def answered_in_call(engine: Engine, hook: str, answer: Any, error: BaseException | None = None) -> None:
    """Measure a hook of the delivery that has answered in its call, unless it has simply accepted (see
    `Measurements.hook_seconds`)."""
    outcome = outcome_of(answer, error)
    if outcome != "ok":
        engine.context.measured.hooks[hook, outcome].observe(0)


def answer_checked(engine: Engine, reply: Any, *, refused: bool = False) -> Reply:
    """A delivery's reply with an enhanced code added if it has none (RFC 2034), or LOCAL_ERROR, logged, if it is no
    Reply or its code is not allowed. `refused`: only 4xx and 5xx are allowed."""
    if not isinstance(reply, Reply) or reply.code not in (_REFUSALS if refused else _ANSWERS):
        engine.delivery_failed(
            ValueError(shown_answer(reply)), "a hook returned a reply that is not allowed here"
        )
        return replies.LOCAL_ERROR
    return replies.with_enhanced_code(replies.with_known_code(reply))


def shown_answer(answer: Any) -> str:
    """The answer of a hook for the log, whatever it is."""
    try:
        return repr(answer)
    except Exception:  # noqa: BLE001 - __repr__ is foreign code too
        return f"a {type(answer).__name__}"


Then = Callable[[Engine, Any], Reply | None]
"""Called with the engine, and the hook's answer or the exception that it raised. Returns the reply, or None if nothing
is sent now."""

Late = Callable[[Engine, Any, BaseException | None], object]
"""Called with the engine, the hook's answer and None; or with the engine, None and the exception that it raised."""


def wait_for(
    engine: Engine,
    later: Any,
    then: Then,
    failed: Then | None = None,
    *,
    late: Late | None = None,
    stage: Stage = Stage.ANSWER,
    hook: str = "",
    seconds: float | None = None,
) -> Reply | None:
    """Wait for a hook that answers later. Returns the reply if the answer is there already, else None.

    `then` turns the answer into the reply, and `failed` an exception; without it the exception is raised here. `late`
    gets an answer that comes after the wait is over. `hook` is the name of a hook of the delivery; "" for any other
    hook. `seconds` is the time limit, by default the delivery's; 0 for none.
    """
    pending = engine.pending = Wait(engine, then, failed, late, hook)
    engine.hooks_at_work += pending.is_delivery
    engine.enter(stage)
    handle: Cancellable | None = None
    try:
        handle = engine.host.wait(later, pending.answered)
    except BaseException as error:  # noqa: BLE001 - an awaitable of a hook is foreign code too
        pending.answered(None, error)
    if pending.there:
        return pending.reply()
    limit = engine.context.limits.delivery_timeout if seconds is None else seconds
    pending.handle = handle
    pending.began_at = engine.context.seconds()
    if limit:
        pending.expires_at = pending.began_at + limit
        _watch(engine, pending.expires_at)
    return None


def _watch(engine: Engine, when: float) -> None:
    """Look at `when` whether the time of a hook is over. The timer stays from one hook to the next, since most answer
    long before that: then a hook costs an assignment."""
    timer = engine.hook_timer
    if timer is not None:
        if timer.when <= when:
            timer.when = when
            return
        timer.cancel()
    engine.hook_timer = engine.context.call_later(when - engine.context.seconds(), partial(_look, engine))


def _look(engine: Engine) -> None:
    engine.hook_timer = None
    pending = engine.pending
    if pending is not None and pending.expires_at:
        # The time of the call is a sum, and may have been rounded down.
        if engine.context.seconds() >= pending.expires_at - 0.001:
            engine.input(pending.expire)
        else:
            _watch(engine, pending.expires_at)


class Wait:
    """The wait for one answer. It is over when it is no longer the engine's `pending`.

    `late` is called with an answer that comes after the wait is over. `hook` is the name of a hook of the delivery, or
    "". `session_ended()` is called only when all hooks of the delivery have answered. Neither a disconnect nor a stop
    cancels its `finish()`.
    """

    handle: Cancellable | None = None
    """The answer to come; None while it is unknown whether the hook has answered at once."""
    began_at = 0.0
    """When the wait began, by the clock. Not set if the hook has answered at once."""
    expires_at = 0.0
    """When the time of the hook is over, by the clock; 0: it has no time limit."""
    there = False
    """Whether the answer has come, as `value` or `error`."""
    value: Any = None
    error: BaseException | None = None
    expired = False

    def __init__(
        self,
        engine: Engine,
        then: Then,
        failed: Then | None,
        late: Late | None,
        hook: str,
    ) -> None:
        self.engine = engine
        self.then = then
        self.failed = failed
        self.late = late
        self.hook = hook
        self.is_delivery = hook != ""
        self.finishes = hook == "finish"

    def answered(self, value: Any, error: BaseException | None) -> None:
        """Called once by the host, with the answer."""
        self.there, self.value, self.error = True, value, error
        engine = self.engine
        if engine.pending is not self:
            engine.input(self._forget)
        elif self.handle is not None and not self.expired:
            engine.input(self._take)
        # Otherwise this is called within `wait_for` or `expire`, which takes the answer.

    def cancel(self) -> None:
        """Cancel the hook, whose answer is no longer needed. The hook may ignore that and go on."""
        if self.handle is not None and not self.there:
            self.handle.cancel()

    def expire(self) -> None:
        """Called when the time limit of the hook is over."""
        if self.engine.pending is not self or self.there:
            return
        self.expired = True
        self.cancel()
        late = self.there and self.error is None and not self.finishes
        if late:
            self._tell_late()
        if late or not self.there or isinstance(self.error, Cancelled | TimeoutError):
            self.value, self.error = None, Expired(at_work=not self.there)
        self._take()

    def _take(self) -> None:
        """Reply to the hook's command and go on with the session: the hook has answered, or its time is over."""
        engine = self.engine
        if engine.pending is not self:
            # The session has ended between the answer and this.
            self._forget()
            return
        answers_command = engine.stage is Stage.ANSWER and not self.finishes
        reply = self.reply()
        if engine.stage in ENDED:
            return
        if reply is not None:
            if answers_command and engine.offset < len(engine.buffer) and counts.refuses_pipelining(engine):
                reply = replies.UNEXPECTED_PIPELINING
            engine.reply(reply)
        if engine.stage not in ENDED:
            engine.advance()

    def reply(self) -> Reply | None:
        """Return the reply that `then` makes of the answer. None: nothing is sent, or another hook has been asked."""
        engine = self.engine
        engine.pending = None
        if engine.stage is Stage.ANSWER:
            engine.enter(Stage.COMMAND)
        self._measure()
        try:
            if self.error is None:
                return self.then(engine, self.value)
            if self.failed is None:
                raise self.error
            return self.failed(engine, self.error)
        finally:
            if self.finishes and engine.stage in ENDED:
                engine.stop_hook_timer()
                engine.context.pending_deliveries -= 1
                engine.context.pending_delivery_settled()
            if self.there:
                self._over()

    def _measure(self, outcome: str = "") -> None:
        if self.hook:
            context = self.engine.context
            seconds = 0 if self.handle is None else context.seconds() - self.began_at
            context.measured.hooks[self.hook, outcome or outcome_of(self.value, self.error)].observe(seconds)

    def _forget(self) -> None:
        """Called when the hook has answered after the wait is over."""
        if not self.expired:
            self._measure("cancelled")
        self._tell_late()
        self._over()

    def _tell_late(self) -> None:
        """Log what the hook of a delivery has raised, and pass the answer to `late`. An exception from that is only
        logged, since no command waits for a reply."""
        try:
            if self.error is not None and self.is_delivery:
                hook_failed(self.engine, self.error, over=True)
            if self.late is not None:
                self.late(self.engine, self.value, self.error)
        except BaseException as error:  # noqa: BLE001 - a delivery's bug must not keep the rest from being released
            self.engine.delivery_failed(error, "an answer that came too late could not be taken")

    def _over(self) -> None:
        engine = self.engine
        if self.is_delivery:
            engine.hooks_at_work -= 1
            if engine.stage in ENDED:
                engine.notify_session_ended()
