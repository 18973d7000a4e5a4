"""A delivery, IP filters and session policies that give the answers that a test sets, and record their calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_smtpguard.inputs.arguments import check_fields
from twisted_smtpguard.interfaces import (
    IDelivery,
    IIPFilter,
    IMessageSink,
    IPrependingTransaction,
    ISessionPolicy,
)
from twisted_smtpguard.policyvalues import PolicyRequest, PolicyVerdict
from twisted_smtpguard.values import PASS, Client, Path, Peer


@attrs.define
class Delivered:
    """A message for which `finish()` was called."""

    client: Client
    sender: Path
    recipients: list[Path]
    """Every recipient that the delivery was asked about, including those that the test refused."""
    octets: bytes
    prepended: list[str] = attrs.field(factory=list)
    """The header fields of session policies."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)


@implementer(IDelivery)
class FakeDelivery:
    """A delivery that accepts everything and keeps it in `messages`.

    A test sets another answer for a hook with a function in `answers[hook]`. The function is called with the hook's
    arguments, and its result is the hook's answer: it may return a Deferred or a coroutine, or raise. The hooks are
    `begin`, `recipient`, `data`, `write`, `finish`, `transaction.abort` and `sink.abort`.
    """

    extensions = frozenset({"8BITMIME", "SMTPUTF8", "BINARYMIME"})
    max_message_octets = 0

    def __init__(self) -> None:
        self.messages: list[Delivered] = []
        """The messages for which `finish()` was called, whatever its answer."""
        self.calls: list[str] = []
        """The hooks that were called, in order."""
        self.answers: dict[str, Any] = {}

    def _answer(self, hook: str, default: Any, *args: object) -> Any:
        self.calls.append(hook)
        answer = self.answers.get(hook)
        return answer(*args) if answer is not None else default

    def begin(self, client: Client, sender: Path) -> Any:
        return self._answer("begin", FakeTransaction(self, client, sender), client, sender)


@implementer(IPrependingTransaction)
class FakeTransaction:
    """The transaction of a FakeDelivery. The delivery's `answers` apply to its hooks."""

    def __init__(self, delivery: FakeDelivery, client: Client, sender: Path) -> None:
        self.delivery, self.client, self.sender = delivery, client, sender
        self.recipients: list[Path] = []
        self.prepended: list[str] = []

    def recipient(self, recipient: Path) -> Any:
        self.recipients.append(recipient)
        return self.delivery._answer("recipient", None, recipient)

    def prepend(self, fields: Sequence[str]) -> None:
        self.prepended = list(fields)

    def data(self) -> Any:
        return self.delivery._answer("data", FakeSink(self))

    def abort(self) -> None:
        self.delivery._answer("transaction.abort", None)


@implementer(IMessageSink)
class FakeSink:
    """The sink of a FakeTransaction. `octets` is the message so far."""

    def __init__(self, transaction: FakeTransaction) -> None:
        self.transaction = transaction
        self.octets = b""

    def write(self, data: bytes) -> Any:
        self.octets += data
        return self.transaction.delivery._answer("write", None, data)

    def finish(self) -> Any:
        txn = self.transaction
        txn.delivery.messages.append(
            Delivered(txn.client, txn.sender, txn.recipients, self.octets, txn.prepended)
        )
        return txn.delivery._answer("finish", None)

    def abort(self) -> None:
        self.transaction.delivery._answer("sink.abort", None)


@implementer(IIPFilter)
class FakeFilter:
    """A filter that gives `answer` for every peer: a verdict or an awaitable. An `answer` that is callable is called
    with the peer, and may raise. `peers` has the peers that the filter was asked about."""

    def __init__(self, answer: Any = PASS) -> None:
        self.answer = answer
        self.peers: list[Peer] = []

    def check(self, peer: Peer) -> Any:
        self.peers.append(peer)
        return self.answer(peer) if callable(self.answer) else self.answer


@implementer(ISessionPolicy)
class FakePolicy:
    """A session policy that gives `answer` for every request: a verdict or an awaitable. An `answer` that is callable
    is called with the request, and may raise. `requests` has what the policy was asked."""

    def __init__(self, answer: Any = None, *stages: str) -> None:
        self.answer = PolicyVerdict.dunno() if answer is None else answer
        self.stages = frozenset(stages or ("rcpt",))
        self.requests: list[PolicyRequest] = []

    def check(self, request: PolicyRequest) -> Any:
        self.requests.append(request)
        return self.answer(request) if callable(self.answer) else self.answer


class SlowFilter(FakeFilter):
    """A filter that answers with Deferreds, which are kept in `asked`. A test fires one with a verdict, or lets the
    time limit pass.

    `cancelled` is the number of Deferreds that were cancelled.
    """

    def __init__(self) -> None:
        super().__init__(self._ask)
        self.asked: list[Deferred[Any]] = []
        self.cancelled = 0

    def _ask(self, _: Peer) -> Deferred[Any]:
        self.asked.append(Deferred(self._cancel))
        return self.asked[-1]

    def _cancel(self, _: object) -> None:
        self.cancelled += 1
