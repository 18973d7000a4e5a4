"""A delivery that answers as it is told to, and keeps a list of every promise to it that was broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from fakes import refusal
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from twisted_smtpguard.interfaces import Client, IDelivery, IMailTransaction, IMessageSink, Path, Refused

NOW = ("now", "fired", "coroutine", "refused", "refused coroutine", "failed", "raised")
LATER = ("late", "late coroutine", "stubborn")
"""`stubborn` goes on in spite of its cancellation."""


class Stubborn(Deferred[Any]):
    """What a coroutine returns that catches its cancellation and goes on."""

    def cancel(self) -> None:
        """It does not care."""


@attrs.define(eq=False)
class Pending:
    """A hook that has not answered."""

    hook: str
    succeed: Callable[[], None]
    deferred: Deferred[Any]
    transaction: StrictTransaction
    cancels: int = 0

    def fail(self, error: Exception) -> None:
        """Answer with a failure."""
        self.deferred.errback(error)


@implementer(IDelivery)
class StrictDelivery:
    """`outcome(hook)` is asked what a hook is to do: one of NOW or LATER."""

    extensions = frozenset({"8BITMIME", "SMTPUTF8"})
    max_message_octets = 0

    def __init__(self, outcome: Callable[[str], str] = lambda hook: "now") -> None:
        self.outcome = outcome
        self.transactions: list[StrictTransaction] = []
        self.pending: list[Pending] = []
        self.broken: list[str] = []
        """Promises that were."""

    def begin(self, client: Client, sender: Path) -> Any:
        transaction = StrictTransaction(self)
        self.transactions.append(transaction)
        return self.play("begin", transaction, transaction, transaction.hand_over)

    def promise(self, kept: bool, text: str) -> None:
        """Note it where it was not."""
        if not kept:
            self.broken.append(text)

    def play(
        self,
        hook: str,
        transaction: StrictTransaction,
        value: object,
        answered: Callable[[], None] = lambda: None,
    ) -> Any:
        """Do what was asked for. `answered()` is called when the guard gets `value`."""
        outcome = self.outcome(hook)
        if outcome in LATER:
            return self._later(hook, transaction, value, answered, outcome)
        if outcome in {"now", "fired", "coroutine"}:
            answered()
        return {
            "now": lambda: value,
            "fired": lambda: succeed(value),
            "coroutine": lambda: _answer(value),
            "failed": lambda: fail(ValueError("secret")),
            "refused": lambda: _raise(Refused(refusal(550, "No"))),
            "refused coroutine": lambda: _raise_later(Refused(refusal(450, "No"))),
            "raised": lambda: _raise(ValueError("secret")),
        }[outcome]()

    def _later(
        self,
        hook: str,
        transaction: StrictTransaction,
        value: object,
        answered: Callable[[], None],
        outcome: str,
    ) -> Any:
        def cancelled(_: object) -> None:
            pending.cancels += 1

        def done(result: object) -> object:
            transaction.busy = None
            self.pending.remove(pending)
            return result

        def answer() -> None:
            answered()
            deferred.callback(value)

        deferred = Stubborn() if outcome == "stubborn" else Deferred(cancelled)
        pending = Pending(hook, answer, deferred, transaction)
        self.pending.append(pending)
        transaction.busy = hook
        deferred.addBoth(done)
        return _answer_of(deferred) if outcome == "late coroutine" else deferred


@implementer(IMailTransaction)
class StrictTransaction:
    """A transaction and its sink, so that both ends are counted in one place."""

    def __init__(self, delivery: StrictDelivery) -> None:
        self.delivery = delivery
        self.busy: str | None = None
        """The hook that is pending."""
        self.handed_over = False
        self.recipients = 0
        self.sink: StrictSink | None = None
        self.ends: list[str] = []

    def hand_over(self) -> None:
        """The guard has it, and owes it an end."""
        self.handed_over = True

    def begin_hook(self, hook: str) -> None:
        """A call of a hook: what holds for all of them."""
        promise = self.delivery.promise
        promise(self.handed_over, f"{hook} of a transaction that was not handed over")
        promise(self.busy is None, f"{hook} while {self.busy} is pending")
        promise(not self.ends, f"{hook} after {self.ends}")

    def recipient(self, recipient: Path) -> Any:
        self.begin_hook("recipient")
        self.delivery.promise(self.sink is None, "recipient after data")
        return self.delivery.play("recipient", self, None, self._accepted)

    def _accepted(self) -> None:
        self.recipients += 1

    def data(self) -> Any:
        self.begin_hook("data")
        self.delivery.promise(self.sink is None, "data twice")
        self.delivery.promise(self.recipients > 0, "data without a recipient")
        sink = StrictSink(self)
        return self.delivery.play("data", self, sink, sink.hand_over)

    def abort(self) -> None:
        self.delivery.promise(self.handed_over, "abort of a transaction that was not handed over")
        self.delivery.promise(self.sink is None, "abort of the transaction after data")
        self.end("abort")

    def end(self, how: str) -> None:
        """One of the three ends."""
        self.delivery.promise(not self.ends, f"{how} after {self.ends}")
        self.ends.append(how)


@implementer(IMessageSink)
class StrictSink:
    def __init__(self, transaction: StrictTransaction) -> None:
        self.transaction = transaction
        self.octets = b""

    def hand_over(self) -> None:
        """From now on the sink gets the end."""
        self.transaction.sink = self

    def write(self, data: bytes) -> Any:
        self.transaction.begin_hook("write")
        self.transaction.delivery.promise(0 < len(data) <= 65536, f"a write of {len(data)}")
        self.octets += data
        return self.transaction.delivery.play("write", self.transaction, None)

    def finish(self) -> Any:
        self.transaction.begin_hook("finish")
        self.transaction.end("finish")
        return self.transaction.delivery.play("finish", self.transaction, None)

    def abort(self) -> None:
        self.transaction.end("sink.abort")


async def _answer(value: object) -> object:
    return value


async def _answer_of(deferred: Deferred[object]) -> object:
    return await deferred


async def _raise_later(error: Exception) -> object:
    raise error


def _raise(error: Exception) -> object:
    raise error
