"""`--deliver discard`: every message is accepted and thrown away, for load tests and for a first try of the guard."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from twisted_smtpguard.interfaces import (
    IDelivery,
    IDeliveryFactory,
    IMailTransaction,
    IMessageSink,
    IPrependingTransaction,
)
from twisted_smtpguard.values import Client, Path


@implementer(IPrependingTransaction, IMessageSink)
class _Nothing:
    """A transaction and a sink in one. It has no state, so one object serves all sessions."""

    def recipient(self, recipient: Path) -> None:
        pass

    def prepend(self, fields: Sequence[str]) -> None:
        pass

    def data(self) -> IMessageSink:
        return self

    def write(self, data: bytes) -> None:
        pass

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


_NOTHING = _Nothing()


@implementer(IDelivery)
class DiscardDelivery:
    """Every message is accepted, and none is kept."""

    extensions = frozenset({"8BITMIME", "SMTPUTF8", "BINARYMIME"})
    max_message_octets = 0

    def begin(self, client: Client, sender: Path) -> IMailTransaction:
        return _NOTHING


@implementer(IDeliveryFactory)
class DiscardFactory:
    """`--deliver discard`."""

    name = "discard"
    summary = "Accept every message and throw it away."
    argument_format = "It takes no argument."

    def make_delivery(self, argument: str, reactor: object) -> IDelivery:
        if argument:
            raise ValueError("discard takes no argument")
        return DiscardDelivery()
