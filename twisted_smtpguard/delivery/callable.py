"""`CallableDelivery`: each message is handed to a function of the application."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from io import BytesIO
from tempfile import TemporaryFile
from typing import IO, BinaryIO, TypeAlias

from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_smtpguard.delivery.envelope import Envelope, EnvelopeTransaction
from twisted_smtpguard.delivery.spool import Spool
from twisted_smtpguard.hooks.threads import ThreadedReactor
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.interfaces import IDelivery, IMailTransaction, IMessageSink, Later
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Client, Path

DeliveryFunction: TypeAlias = Callable[[Envelope, BinaryIO], Later[Reply | None]]


EXTENSIONS = frozenset({"8BITMIME", "SMTPUTF8", "BINARYMIME", "DSN"})
"""Everything that `IDelivery.extensions` may hold."""


class _TemporaryFile:
    """A file without a name. Only threads use it until the function gets it."""

    def __init__(self) -> None:
        self.body: IO[bytes] = TemporaryFile()  # noqa: SIM115 - remove() closes it
        self.write = self.body.write

    def rewind(self) -> BinaryIO:
        self.body.seek(0)
        return self.body  # type: ignore[return-value]

    def remove(self) -> None:
        # On a full disk a close fails too, since it writes what is left in the file's buffer. It frees the descriptor
        # nevertheless.
        with suppress(OSError):
            self.body.close()


@implementer(IMessageSink)
class _CallableSink:
    def __init__(self, delivery: CallableDelivery, envelope: Envelope) -> None:
        self._function = delivery._function
        self._envelope = envelope
        self._spool = Spool(delivery._reactor, _TemporaryFile)

    def write(self, data: bytes) -> Deferred[None] | None:
        return self._spool.write(data)

    async def finish(self) -> Reply | None:
        try:
            held = self._spool.in_memory()
            if held is not None:
                with BytesIO(held) as body:
                    return await self._call(body)
            return await self._call(await self._spool.finish(_TemporaryFile.rewind))
        finally:
            self._spool.discard()

    async def _call(self, body: BinaryIO) -> Reply | None:
        result = self._function(self._envelope, body)
        return await result if isawaitable(result) else result

    def abort(self) -> None:
        self._spool.discard()


@implementer(IDelivery)
class CallableDelivery:
    """Hands each message to `function(envelope, body)`, which is called in the reactor's thread.

    `body` is a seekable binary file at position 0, with the octets as they came, line ends CRLF. It is closed
    when `function` has answered, or when the time limit has cancelled it. A body of 64 KiB or more is on disk: read it
    in a thread if the reactor must not wait.

    `function` answers None (`250 2.0.0`) or a Reply when the message is safe: at once, with a Deferred or as a
    coroutine. It raises `Refused` to refuse the message; any other exception is a 451, and is logged.
    """

    @checked
    def __init__(
        self,
        function: DeliveryFunction,
        reactor: ThreadedReactor,
        *,
        extensions: frozenset[str] = frozenset({"8BITMIME", "SMTPUTF8"}),
        max_message_octets: int = 0,
    ) -> None:
        unknown = extensions - EXTENSIONS
        if unknown:
            raise ValueError(f"extensions must be of {sorted(EXTENSIONS)}, not {sorted(unknown)}")
        if max_message_octets < 0:
            raise ValueError(f"max_message_octets must be 0 or more, not {max_message_octets}")
        self.extensions = extensions
        self.max_message_octets = max_message_octets
        self._function = function
        self._reactor = reactor

    def begin(self, client: Client, sender: Path) -> IMailTransaction:
        return EnvelopeTransaction(client, sender, partial(_CallableSink, self))
