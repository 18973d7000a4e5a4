"""A hook that answers later: its time limit, its cancellation, and its answer, whether or not it is still wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted_smtpguard.engine.port import Cancellable, Cancelled

Then = Callable[[Any, Any, BaseException | None], Any]
"""Called with the engine, what a hook has answered, and None; or with the engine, None, and what it has raised."""


class Expired(Exception):  # noqa: N818 - it is what has happened
    """Stands for the answer of a hook that has had its time. `at_work`: it goes on in spite of its cancellation."""

    def __init__(self, *, at_work: bool) -> None:
        super().__init__()
        self.at_work = at_work


class Waiter(Protocol):
    """An engine, as what it waits for sees it."""

    pending: Wait | None

    def input(self, function: Callable[..., object], *arguments: object) -> None:
        """Carry out an input."""

    def take_answer(self, pending: Wait) -> None:
        """What was waited for has been answered, or has had its time."""

    def forget(self, wait: Wait, value: Any, error: BaseException | None) -> None:
        """A hook has answered for which nobody waits any more."""


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
        self, engine: Waiter, then: Then, late: Then | None, *, is_delivery: bool, finishes: bool
    ) -> None:
        self._engine = engine
        self.then = then
        self.late = late
        """What becomes of an answer that is not wanted any more."""
        self.is_delivery = is_delivery
        """The hook is the delivery's, which hears of the end of the session only after its last answer."""
        self.finishes = finishes
        """The delivery is deciding on a whole message: neither the client nor a stop cancels it."""
        self.handle: Cancellable | None = None
        self.there = False
        """It has answered: `value` or `error` says what."""
        self.value: Any = None
        self.error: BaseException | None = None
        self.expired = False
        self._timer: Cancellable | None = None

    def begin(self, handle: Cancellable, timer: Cancellable | None) -> None:
        """It has not answered at once."""
        self.handle = handle
        self._timer = timer

    def answered(self, value: Any, error: BaseException | None) -> None:
        """Called by the host, once."""
        self.there, self.value, self.error = True, value, error
        self._stop_timer()
        engine = self._engine
        if engine.pending is not self:
            engine.input(engine.forget, self, value, error)
        elif self.handle is not None and not self.expired:
            engine.input(engine.take_answer, self)
        # Else whoever is calling the host, or cancelling, takes the answer.

    def cancel(self) -> None:
        """The answer is not wanted any more. The hook may go on in spite of that."""
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
        if late and self.late is not None:
            self.late(self._engine, self.value, None)
        if late or not self.there or isinstance(self.error, Cancelled | TimeoutError):
            self.value, self.error = None, Expired(at_work=not self.there)
        self._engine.take_answer(self)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
