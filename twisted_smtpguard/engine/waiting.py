"""A hook that answers later: its time limit, its cancellation, and its answer, whether or not it is still wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.port import Cancellable, Cancelled
from twisted_smtpguard.engine.stages import ENDED, Stage
from twisted_smtpguard.replies import Reply

Then = Callable[[Any, Any, BaseException | None], Any]
"""Called with the engine, what a hook has answered, and None; or with the engine, None, and what it has raised."""


class Expired(Exception):  # noqa: N818 - it is what has happened
    """Stands for the answer of a hook that has had its time. `at_work`: it goes on in spite of its cancellation."""

    def __init__(self, *, at_work: bool) -> None:
        super().__init__()
        self.at_work = at_work


def wait_for(
    engine: Engine,
    later: Any,
    then: Then,
    *,
    late: Then | None = None,
    stage: Stage = Stage.ANSWER,
    is_delivery: bool = True,
    finishes: bool = False,
    seconds: float | None = None,
) -> Reply | None:
    """Wait for a hook that answers later. `then(engine, value, error)` makes the reply of its answer; `late` is told of
    an answer that is not wanted any more. `seconds` is the hook's time, by default the delivery's.

    A reply where the answer is there already, else None.
    """
    pending = engine.pending = Wait(engine, then, late, is_delivery=is_delivery, finishes=finishes)
    engine.hooks_at_work += is_delivery
    engine.enter(stage)
    handle = engine.host.wait(later, pending.answered)
    if pending.there:
        return pending.reply()
    limit = engine.context.limits.delivery_timeout if seconds is None else seconds
    pending.begin(handle, engine.context.call_later(limit, pending.time_out) if limit else None)
    return None


class Wait:
    """One answer to come. It is wanted while it is the engine's `pending`."""

    __slots__ = (
        "_engine",
        "_timer",
        "error",
        "expired",
        "finishes",
        "handle",
        "is_delivery",
        "late",
        "then",
        "there",
        "value",
    )

    def __init__(
        self, engine: Engine, then: Then, late: Then | None, *, is_delivery: bool, finishes: bool
    ) -> None:
        self._engine = engine
        self.then = then
        self.late = late
        """Called with an answer that comes after the wait is over."""
        self.is_delivery = is_delivery
        """Whether the hook is one of the delivery. `session_ended()` is called only after its last answer."""
        self.finishes = finishes
        """Whether the hook is `finish()`, which neither a disconnect nor a stop cancels."""
        self.handle: Cancellable | None = None
        self.there = False
        """Whether the answer has come. It is `value` or `error`."""
        self.value: Any = None
        self.error: BaseException | None = None
        self.expired = False
        self._timer: Cancellable | None = None

    def begin(self, handle: Cancellable, timer: Cancellable | None) -> None:
        """Called if the hook has not answered at once."""
        self.handle = handle
        self._timer = timer

    def answered(self, value: Any, error: BaseException | None) -> None:
        """Called by the host once, with the answer."""
        self.there, self.value, self.error = True, value, error
        self._stop_timer()
        engine = self._engine
        if engine.pending is not self:
            engine.input(self._forget)
        elif self.handle is not None and not self.expired:
            engine.input(self._take)
        # Otherwise `wait_for` or `_expire` is running, and takes the answer.

    def cancel(self) -> None:
        """Cancel the hook: its answer is not wanted any more. It may go on in spite of that."""
        self._stop_timer()
        if self.handle is not None and not self.there:
            self.handle.cancel()

    def time_out(self) -> None:
        """Called when the hook has had its time."""
        self._timer = None
        self._engine.input(self._expire)

    def _expire(self) -> None:
        if self._engine.pending is not self or self.there:
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
        """Called when the hook has answered or its time is over: reply to its command, and go on with the session."""
        engine = self._engine
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
        """The reply made from the answer; None if there is none yet."""
        engine = self._engine
        engine.pending = None
        if engine.stage is Stage.ANSWER:
            engine.enter(Stage.COMMAND)
        try:
            reply: Reply | None = self.then(engine, self.value, self.error)
        finally:
            if self.there:
                self._over()
        return reply

    def _forget(self) -> None:
        """Called when the hook has answered after its cancellation."""
        self._tell_late()
        self._over()

    def _tell_late(self) -> None:
        """Give an answer that is not wanted to `late`. What that raises answers no command, and is only logged."""
        if self.late is not None:
            try:
                self.late(self._engine, self.value, self.error)
            except BaseException as error:  # noqa: BLE001 - a delivery's fault must not keep the rest from being released
                self._engine.delivery_failed(error, "an answer that came too late could not be taken")

    def _over(self) -> None:
        if self.is_delivery:
            self._engine.hooks_at_work -= 1
            self._engine.notify_session_ended()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
