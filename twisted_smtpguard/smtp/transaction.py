"""One mail transaction with the delivery: every hook call, its outcome as a reply, and exactly one end.

The delivery may answer now or later, refuse, raise, never answer, or answer after its time limit. Here all of
that becomes a Reply, or a Deferred of one; the session only reads `Transaction.over` and goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.faults import cancel, safely
from twisted_smtpguard.interfaces import (
    Client,
    IDelivery,
    IMailTransaction,
    IMessageSink,
    IRelayTransaction,
    Path,
    Refused,
)
from twisted_smtpguard.later import FAULTS, as_deferred, explained, is_later
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.farewell import Farewell
from twisted_smtpguard.smtp.replies import Reply

T = TypeVar("T")
R = TypeVar("R")

Answer: TypeAlias = Reply | Deferred[Reply | None] | None
"""What answers a command: a reply now, one later, or None: nothing is to be said yet."""

MAX_WRITE_OCTETS = 64 * 1024
"""What a sink's write() is given at most."""


_REFUSALS = frozenset(range(400, 600))
_ANSWERS = _REFUSALS | frozenset(range(200, 300)) - {221}
"""Codes that a delivery may give. Only a client's QUIT is answered with 221."""


def then(result: T | Deferred[T], go_on: Callable[[T], Answer]) -> Answer:
    """`go_on(result)`, now where the result is there: no Deferred exists where nothing waits."""
    # Deferred is an abstract type, of which to ask costs more than the rest of this.
    if result is not None and type(result) is not Reply and isinstance(result, Deferred):
        later: Deferred[Reply | None] = result.addCallback(go_on)
        return later
    return go_on(result)


class Transaction:
    """From MAIL to the verdict. `report(failure, what)` is told of what the delivery did wrong, `farewell` of
    every hook."""

    # How it begins: a message costs only what it changes.
    _mail: IMailTransaction | None = None
    _sink: IMessageSink | None = None
    _inner: Deferred[Any] | None = None
    _outer: Deferred[Any] | None = None
    _expired = False
    _handing_over = False  # begin() or data() is pending: what it hands over has to be aborted too
    accepted_late: Callable[[Reply], object] | None = None
    """Called with the reply if the message turns out to be safe when the client was already told to try again: it may
    come twice."""
    over = False
    """The delivery has heard of the end, or hears of it as soon as its pending hook answers."""
    finishing = False
    """finish() was called and has not answered: neither the client nor a stop cancels it."""
    refusal: Reply | None = None
    """The sink's own refusal; the rest of the message is swallowed."""

    def __init__(
        self,
        delivery: IDelivery,
        report: Callable[[Failure, str], None],
        farewell: Farewell | None = None,
    ) -> None:
        self._delivery = delivery
        self._report = report
        self._farewell = farewell

    # The hooks, in their order.

    def begin(self, client: Client, sender: Path) -> Reply | Deferred[Reply]:
        """At MAIL. A 2xx reply means that the transaction is open."""
        self._handing_over = True
        return self._ask(self._begun, self._refused, self._delivery.begin, client, sender)

    def _begun(self, mail: IMailTransaction) -> Reply:
        self._handing_over = False
        self._mail = _owed_an_end(mail)
        if self.over:
            self._abort()
        if IRelayTransaction.providedBy(mail):
            return self._checked(IRelayTransaction(mail).begun)
        return replies.SENDER_OK

    def recipient(self, path: Path) -> Reply | Deferred[Reply]:
        """At RCPT. A 2xx reply means that the recipient was accepted."""
        assert self._mail is not None
        return self._ask(self._recipient_answered, self._hook_failed, self._mail.recipient, path)

    def _recipient_answered(self, reply: Reply | None) -> Reply:
        return replies.RECIPIENT_OK if reply is None else self._checked(reply)

    def data(self, *, chunked: bool = False) -> Answer:
        """At DATA or the first BDAT. None means that the sink is there; a reply refuses, and all is over."""
        mail = self._mail
        assert mail is not None
        self._handing_over = True
        if chunked and IRelayTransaction.providedBy(mail):
            return self._ask(self._sink_given, self._refused, IRelayTransaction(mail).data_in_chunks)
        return self._ask(self._sink_given, self._refused, mail.data)

    def _sink_given(self, sink: IMessageSink) -> None:
        self._handing_over = False
        self._mail, self._sink = None, _owed_an_end(sink)
        if self.over:
            self._abort()

    def write(self, data: bytes) -> Deferred[Any] | None:
        """The next octets for the sink. A Deferred holds the client back. A refusal is kept in `refusal`."""
        while data and self._sink is not None:
            # A slice of all that there is, is no copy.
            piece, data = data[:MAX_WRITE_OCTETS], data[MAX_WRITE_OCTETS:]
            result = self._ask(_nothing, self._write_failed, self._sink.write, piece)
            if result is not None:
                return result.addCallback(partial(self._write_on, data)) if data else result
        return None

    def _write_on(self, data: bytes, _: object) -> Deferred[Any] | None:
        return self.write(data)

    def _write_failed(self, failure: Failure) -> None:
        self.refusal = self._hook_failed(failure)
        self.end()

    def finish(self) -> Reply | Deferred[Reply]:
        """The message is whole. A 2xx reply means that it is safe."""
        sink, self._sink = self._sink, None
        assert sink is not None
        self.finishing = self.over = True
        return self._ask(self._finished, self._finish_failed, sink.finish)

    def _finished(self, reply: Reply | None) -> Reply:
        self.finishing = False
        return replies.MESSAGE_ACCEPTED if reply is None else self._checked(reply)

    def _finish_failed(self, failure: Failure) -> Reply:
        self.finishing = False
        return self._hook_failed(failure)

    # The ends.

    def end(self) -> None:
        """Without delivery: RSET, a refused message, a client that left, a stop. May be called twice."""
        if self.over:
            return
        self.over = True
        cancel(self._inner, self._report)
        if not self._handing_over:
            self._abort()
        # Else begin() or data() is still at work: what it hands over is aborted then.

    def expire(self) -> None:
        """The pending hook had its time. It is cancelled; whoever waits for it gets a 451 now."""
        inner, outer = self._inner, self._outer
        if inner is None or outer is None:
            return
        self._expired = True
        self.refusal = replies.DELIVERY_TIMED_OUT
        if self.finishing:
            cancel(inner, self._report)
        else:
            self.end()
        if self._outer is outer:
            # It goes on in spite of its cancellation. Nobody waits for it any more.
            self._inner = self._outer = None
            outer.callback(replies.DELIVERY_TIMED_OUT)

    def _abort(self) -> None:
        ending: IMessageSink | IMailTransaction | None = self._sink or self._mail
        self._sink = self._mail = None
        if ending is not None:
            safely(self._report, "abort() raised", ending.abort)

    # Calling.

    def _ask(
        self,
        answered: Callable[[Any], R],
        failed: Callable[[Failure], R],
        hook: Callable[..., Any],
        *args: object,
    ) -> R | Deferred[R]:
        farewell = self._farewell
        if farewell is not None:
            farewell.hook_called()
        try:
            result = hook(*args)
            if result is None or not is_later(result):
                outcome = answered(result)
            else:
                return self._wait(as_deferred(result), answered, failed)
        except FAULTS:
            outcome = failed(explained(Failure()))
        if farewell is not None:
            farewell.hook_answered()
        return outcome

    def _wait(
        self, inner: Deferred[Any], answered: Callable[[Any], R], failed: Callable[[Failure], R]
    ) -> Deferred[R]:
        outer: Deferred[R] = Deferred()
        self._inner, self._outer = inner, outer
        inner.addCallback(answered).addErrback(failed)
        inner.addBoth(self._settle, outer)
        return outer

    def _settle(self, outcome: Any, outer: Deferred[Any]) -> None:
        if self._outer is outer:
            self._inner = self._outer = None
            if self.over and not self.finishing:
                self._abort()
            outer.callback(outcome)
        elif self.accepted_late is not None and isinstance(outcome, Reply) and outcome.code < 300:
            self.accepted_late(outcome)
        if self._farewell is not None:
            self._farewell.hook_answered()

    # Outcomes.

    def _hook_failed(self, failure: Failure) -> Reply:
        if isinstance(failure.value, Refused):
            return self._checked(failure.value.reply, refused=True)
        if self._expired and failure.check(CancelledError, TimeoutError):
            return replies.DELIVERY_TIMED_OUT
        if not (self.over and failure.check(CancelledError)):
            self._report(failure, "a hook raised")
        return replies.LOCAL_ERROR

    def _refused(self, failure: Failure) -> Reply:
        """begin() or data() failed: there is nothing to go on with."""
        self._handing_over = False
        reply = self._hook_failed(failure)
        self.over = True
        self._abort()
        return reply

    def _checked(self, reply: Reply, *, refused: bool = False) -> Reply:
        """A delivery's reply as it may go out: of a possible code, with an enhanced code (RFC 2034)."""
        if not isinstance(reply, Reply) or reply.code not in (_REFUSALS if refused else _ANSWERS):
            self._report(Failure(ValueError(f"{reply!r}")), "not a reply to give here")
            return replies.LOCAL_ERROR
        return replies.with_enhanced_code(replies.with_known_code(reply))


def _owed_an_end(given: T) -> T:
    """What begin() or data() handed over. TypeError where it cannot be what was promised."""
    if not hasattr(given, "abort"):
        raise TypeError(f"{given!r} has no abort()")
    return given


def _nothing(_: object) -> None:
    return None
