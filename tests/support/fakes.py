"""What the tests talk to and with, most of it `twisted_smtpguard.testing`'s."""

from __future__ import annotations

from collections.abc import Iterator

from twisted_smtpguard.interfaces import Path, Refused
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.testing import (
    Conversation,
    FakeDelivery,
    FakeFilter,
    FakeTransport,
    Guard,
    SlowFilter,
    codes,
)

__all__ = [
    "Conversation",
    "FakeDelivery",
    "FakeFilter",
    "FakeTransport",
    "Guard",
    "SlowFilter",
    "codes",
    "delivery_without_nobody",
    "refusal",
    "splits",
]


def refusal(code: int, text: str, enhanced: str = "") -> Reply:
    """A delivery's own reply."""
    return Reply(code, enhanced or f"{code // 100}.1.1", (text,))


def splits(octets: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every way to cut octets in two."""
    for i in range(1, len(octets)):
        yield octets[:i], octets[i:]


def delivery_without_nobody() -> FakeDelivery:
    """It knows every recipient but nobody@."""

    def recipient(path: Path) -> None:
        if path.address.startswith("nobody@"):
            raise Refused(refusal(550, "No such user"))

    delivery = FakeDelivery()
    delivery.answers["recipient"] = recipient
    return delivery
