"""The envelope of a message, and the transaction that gathers one."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from zope.interface import implementer

from twisted_smtpguard.arguments import check_fields
from twisted_smtpguard.interfaces import Client, IMailTransaction, IMessageSink, Path


@attrs.frozen
class Envelope:
    """Who sends a message, from where, and to whom."""

    client: Client
    sender: Path
    recipients: tuple[Path, ...]
    """The accepted ones, in the order in which they came; one or more."""

    def __attrs_post_init__(self) -> None:
        usual = isinstance(self.client, Client) and isinstance(self.sender, Path)
        if not (usual and type(self.recipients) is tuple):
            check_fields(self)


@implementer(IMailTransaction)
class EnvelopeTransaction:
    """Accepts every recipient. At the data it makes the sink, given the envelope."""

    def __init__(self, client: Client, sender: Path, make_sink: Callable[[Envelope], IMessageSink]) -> None:
        self._client = client
        self._sender = sender
        self._make_sink = make_sink
        self._recipients: list[Path] = []

    def recipient(self, recipient: Path) -> None:
        self._recipients.append(recipient)

    def data(self) -> IMessageSink:
        return self._make_sink(Envelope(self._client, self._sender, tuple(self._recipients)))

    def abort(self) -> None:
        """Nothing was taken yet."""
