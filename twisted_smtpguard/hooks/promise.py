"""The answers of the guard's own hooks that come later. Unlike a Deferred, a promise has one listener and no chain of
callbacks, and so costs a fraction of one.

Everybody else may await a promise like a Deferred: in a coroutine of Twisted's, or of asyncio's under that reactor.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.engine.port import Answered, Cancelled
from twisted_smtpguard.hooks.faults import at_debug, cancel, safely

T = TypeVar("T")
S = TypeVar("S")


class PromiseCancelledError(CancelledError, Cancelled):
    """The answer was cancelled, and does not come."""


class Promise(Generic[T]):
    """An answer that comes later: exactly one of `succeed` and `fail` is called, once; later calls have no effect.

    `canceller` is called if the answer is no longer needed. It ends the work, and need not settle the promise.
    """

    __slots__ = ("_answered", "_canceller", "error", "there", "value")

    value: Any
    """What it is, if the answer has come and is no exception."""
    error: BaseException | None
    """The exception; None if the answer has come and is none."""

    def __init__(self, canceller: Callable[[], object] | None = None) -> None:
        self._canceller = canceller
        self._answered: Answered | None = None
        self.there = False
        """Whether the answer has come, so that `value` and `error` are set."""

    def succeed(self, value: T) -> None:
        self.settle(value, None)

    def fail(self, error: BaseException) -> None:
        self.settle(None, error)

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Take the answer and tell the listener."""
        if not self.there:
            self.there = True
            self.value = value
            self.error = error
            answered = self._answered
            if answered is not None:
                # The listener may hold the promise.
                self._answered = None
                answered(value, error)

    def when_answered(self, answered: Answered) -> None:
        """Call `answered` once: with the value and None, or with None and the exception; at once if they are there."""
        if self.there:
            answered(self.value, self.error)
        elif self._answered is not None:
            raise RuntimeError("a promise has one listener")
        else:
            self._answered = answered

    def cancel(self) -> None:
        """Give up the answer, unless it is there. Whatever the canceller settles is replaced: it must not be taken for
        the outcome of the work."""
        canceller, self._canceller = self._canceller, None
        if canceller is not None and not self.there:
            answered, self._answered = self._answered, None
            safely(at_debug, "a canceller raised", canceller)
            self.there, self._answered = False, answered
            self.fail(PromiseCancelledError())

    def result(self) -> T:
        """The value that has come, or its exception."""
        if self.error is not None:
            raise self.error
        return cast(T, self.value)

    def now(self) -> T | Promise[T]:
        """The answer of a hook: the value if it is there, or its exception, else the promise itself."""
        return self.result() if self.there else self

    def mapped(self, function: Callable[[T], S]) -> Promise[S]:
        """A promise of what `function` makes of the value. Cancelling it cancels this one."""
        promise: Promise[S] = Promise(self.cancel)

        def answered(value: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
                return
            try:
                made = function(value)
            except Exception as failed:  # noqa: BLE001 - whoever waits gets it
                promise.fail(failed)
            else:
                promise.succeed(made)

        self.when_answered(answered)
        return promise

    def deferred(self) -> Deferred[T]:
        """A Deferred with the outcome. Cancelling it cancels the promise."""
        deferred: Deferred[T] = Deferred(lambda _: self.cancel())

        def answered(value: Any, error: BaseException | None) -> None:
            if not deferred.called:
                deferred.callback(value if error is None else Failure(error))

        self.when_answered(answered)
        return deferred

    def __await__(self) -> Generator[Any, Any, T]:
        if not self.there and (yield self) is self:
            # Only `run` knows promises. Others send back what they do not know.
            return cast(T, (yield from self.deferred().__await__()))
        return self.result()


class _Run(Promise[T]):
    """The outcome of a coroutine."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        super().__init__()
        self._coroutine = coroutine
        self._waits_for: Any = None

    def go_on(self, *outcome: object) -> None:
        """Run the coroutine to its next wait. It takes the outcome of that itself, except a Failure."""
        failure = outcome[0] if outcome else None
        try:
            if isinstance(failure, Failure) and failure.value is not None:
                waits_for = self._coroutine.throw(failure.value)
            else:
                waits_for = self._coroutine.send(None)
        except StopIteration as end:
            self.succeed(end.value)
        except CancelledError as cancelled:
            plain = PromiseCancelledError()
            plain.__cause__ = cancelled
            self.fail(plain)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the coroutine gets it
            self.fail(error)
        else:
            self._waits_for = waits_for
            if isinstance(waits_for, Promise):
                waits_for.when_answered(self.go_on)
            else:
                # A Deferred, whose failure is dealt with when this returns None.
                waits_for.addBoth(self.go_on)

    def cancel(self) -> None:
        """Cancel what the coroutine waits for. It may go on in spite of that."""
        waits_for, self._waits_for = self._waits_for, None
        if isinstance(waits_for, Promise):
            waits_for.cancel()
        elif not self.there:
            cancel(waits_for)


def run(coroutine: Coroutine[Any, Any, T]) -> Promise[T]:
    """Run a coroutine that awaits promises and Deferreds only, up to its first wait. Costs no Deferred."""
    promise = _Run(coroutine)
    promise.go_on()
    return promise


class LazyPromise(_Run[T]):
    """The outcome of the coroutine that `start` makes. It begins when the outcome is first waited for, as that of a
    coroutine does."""

    __slots__ = ("_start",)

    def __init__(self, start: Callable[[], Coroutine[Any, Any, T]]) -> None:
        Promise.__init__(self)
        self._start: Callable[[], Coroutine[Any, Any, T]] | None = start
        self._waits_for = None

    def when_answered(self, answered: Answered) -> None:
        start = self._start
        if start is None:
            super().when_answered(answered)
        else:
            self._start, self._answered = None, answered
            self._coroutine = start()
            self.go_on()

    def cancel(self) -> None:
        if self._start is None:
            super().cancel()
        else:
            self._start = None
            self.fail(PromiseCancelledError())
