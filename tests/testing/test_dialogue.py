"""`dialogue` says what went otherwise than it was written, however the octets arrived."""

from __future__ import annotations

import pytest
from fakes import FakeDelivery

from twisted_smtpguard.replies import Reply
from twisted_smtpguard.testing import dialogue

NOOP = ("NOOP", "250 2.0.0 OK")
ENVELOPE = (
    ("MAIL FROM:<>", "250 2.1.0 Sender OK"),
    ("RCPT TO:<a@b.example>", "250 2.1.5 Recipient OK"),
    ("DATA", "354 End data with <CR><LF>.<CR><LF>"),
)


class Fickle(FakeDelivery):
    """Every second one has its own text, or keeps another message."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Fickle.made += 1
        self.odd = bool(Fickle.made % 2)


class FickleReply(Fickle):
    def __init__(self) -> None:
        super().__init__()
        if self.odd:
            self.answers["finish"] = lambda: Reply(250, "2.0.0", ("Other words",))


class FickleMemory(Fickle):
    def __init__(self) -> None:
        super().__init__()
        if self.odd:
            self.answers["finish"] = self.messages.clear


def test_it_passes_where_all_goes_as_written_and_returns_the_conversation() -> None:
    client = dialogue(
        NOOP,
        ("NOOP\nNOOP", "250 2.0.0 OK\n250 2.0.0 OK"),
        ("QUIT", "221 2.0.0 Closing connection"),
        closed=True,
    )
    assert client.closed


@pytest.mark.parametrize("said", ["250 2.0.0 Fine", "", "250 2.0.0 OK\n250 2.0.0 OK"])
def test_another_reply_is_told_with_what_was_heard(said: str) -> None:
    with pytest.raises(AssertionError, match=r"the reply to 'NOOP':\s+'250 2\.0\.0 OK'\s+and not"):
        dialogue(("NOOP", said))


@pytest.mark.parametrize(
    ("turn", "closed"), [(NOOP, True), (("QUIT", "221 2.0.0 Closing connection"), False)]
)
def test_an_end_that_was_not_written_is_told(turn: tuple[str, str], closed: bool) -> None:
    with pytest.raises(AssertionError, match="closed at the end"):
        dialogue(turn, closed=closed)


@pytest.mark.parametrize(
    ("delivery", "what"),
    [(FickleReply, "250 2.0.0 Other words"), (FickleMemory, "what the delivery saw")],
)
def test_a_delivery_that_does_otherwise_another_time_is_told(delivery: type[FakeDelivery], what: str) -> None:
    Fickle.made = 1
    with pytest.raises(AssertionError, match=what):
        dialogue(*ENVELOPE, ("Subject: x\n.", "250 2.0.0 Message accepted"), delivery=delivery)
