"""What the tests talk to and with, most of it `twisted_smtpguard.testing`'s."""

from __future__ import annotations

from collections.abc import Iterator

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
