"""The envelope of a message, and the transaction that gathers one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from zope.interface import implementer

from twisted_smtpguard.inputs.arguments import check_fields
from twisted_smtpguard.interfaces import IMessageSink, IPrependingTransaction
from twisted_smtpguard.values import Client, Path


@attrs.frozen
class Envelope:
    """The envelope of a message: the client, the reverse-path and the recipients."""

    client: Client
    sender: Path
    recipients: tuple[Path, ...]
    """The accepted recipients, in the order of their RCPT commands; one or more."""
    prepended: tuple[str, ...] = ()
    """The header fields of session policies, each one line without its end. They are not in the message."""

    def __attrs_post_init__(self) -> None:
        usual = isinstance(self.client, Client) and isinstance(self.sender, Path)
        if not (usual and type(self.recipients) is tuple and self.prepended == ()):
            check_fields(self)


@implementer(IPrependingTransaction)
class EnvelopeTransaction:
    """A transaction that accepts every recipient. At DATA it makes the sink, with the envelope."""

    def __init__(self, client: Client, sender: Path, make_sink: Callable[[Envelope], IMessageSink]) -> None:
        self._client = client
        self._sender = sender
        self._make_sink = make_sink
        self._recipients: list[Path] = []
        self._prepended: tuple[str, ...] = ()

    def recipient(self, recipient: Path) -> None:
        self._recipients.append(recipient)

    def prepend(self, fields: Sequence[str]) -> None:
        self._prepended = tuple(fields)

    def data(self) -> IMessageSink:
        return self._make_sink(Envelope(self._client, self._sender, tuple(self._recipients), self._prepended))

    def abort(self) -> None:
        """There is nothing to undo before DATA."""
