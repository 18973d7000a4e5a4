"""Each delivery that comes with the guard puts the header fields of session policies before a message."""

from __future__ import annotations

from typing import Any, BinaryIO

import pytest
from manual_threads import ManualThreads
from twistedmail import Notebook, deliverer

from twisted_smtpguard import (
    AcceptedDomains,
    CallableDelivery,
    DiscardDelivery,
    Envelope,
    TwistedMailDelivery,
)
from twisted_smtpguard.interfaces import IPrependingTransaction
from twisted_smtpguard.policyvalues import PolicyVerdict
from twisted_smtpguard.testing import FakeDelivery, FakePolicy, Guard

FIELDS = ["X-A: 1", "X-B: 2"]


def send(delivery: Any, clock: Any = None) -> str:
    """The verdict on a message for which two policies have prepended a field each."""
    policies = [FakePolicy(PolicyVerdict.prepend(field)) for field in FIELDS]
    client = Guard(delivery, clock, policies=policies).greeted()
    client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA")
    return client.say("Subject: x\r\n\r\ntext\r\n.").splitlines()[-1]


@pytest.mark.parametrize("wrapped", [False, True])
def test_one_of_a_test_has_them_in_their_order(wrapped: bool) -> None:
    delivery = FakeDelivery()
    assert send(AcceptedDomains(delivery, ["example.org"]) if wrapped else delivery).startswith("250")
    assert [each.prepended for each in delivery.messages] == [FIELDS]


def test_a_function_has_them_in_the_envelope_and_not_in_the_body() -> None:
    told: list[tuple[Envelope, bytes]] = []

    def take(envelope: Envelope, body: BinaryIO) -> None:
        told.append((envelope, body.read()))

    clock = ManualThreads()
    assert send(CallableDelivery(take, clock), clock).startswith("250")
    ((envelope, body),) = told
    assert envelope.prepended == tuple(FIELDS)
    assert body.startswith(b"Subject: x\r\n")


def test_code_for_twisted_mail_has_them_as_lines_above_received() -> None:
    notebook = Notebook()
    delivery = TwistedMailDelivery(deliverer("delivery", notebook), "guard.example")
    assert send(delivery).startswith("250")
    lines = [entry[-1] for entry in notebook.seen if entry[0] == "line"]
    assert lines[:2] == [b"X-A: 1", b"X-B: 2"]
    assert b"Subject: x" in lines


def test_one_that_throws_messages_away_takes_them() -> None:
    assert send(DiscardDelivery()).startswith("250")
    begun = DiscardDelivery().begin(None, None)  # type: ignore[arg-type]
    assert IPrependingTransaction.providedBy(begun)


def test_a_wrapped_transaction_that_prepends_nothing_says_so() -> None:
    class Plain(FakeDelivery):
        def begin(self, client: Any, sender: Any) -> Any:
            begun = super().begin(client, sender)

            class Transaction:
                recipient, data, abort = begun.recipient, begun.data, begun.abort

            return Transaction()

    delivery = Plain()
    assert send(AcceptedDomains(delivery, ["example.org"])).startswith("250")
    assert delivery.messages[0].prepended == []
