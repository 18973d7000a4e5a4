"""A delivery that answers when the test says so: it asks by one file of the current directory, and waits for another.

A test puts this file into a folder twisted/plugins on PYTHONPATH, and `twist` then knows the delivery `held`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from twisted.internet.task import deferLater
from twisted.plugin import IPlugin
from zope.interface import implementer

from twisted_smtpguard import CallableDelivery, Envelope
from twisted_smtpguard.interfaces import IDeliveryFactory

ASKED, VERDICT, TAKEN = "asked", "verdict", "taken"
"""Files: it has a message, it may answer, what it took."""


@implementer(IPlugin, IDeliveryFactory)
class HeldDeliveryFactory:
    name = "held"
    summary = "Answers when it is told to."
    argument_format = "The folder of its files."

    def make_delivery(self, argument: str, reactor: Any) -> CallableDelivery:
        folder = Path(argument)

        async def receive(envelope: Envelope, body: BinaryIO) -> None:
            (folder / ASKED).touch()
            while not (folder / VERDICT).exists():
                await deferLater(reactor, 0.01, lambda: None)
            (folder / TAKEN).write_bytes(body.read())

        return CallableDelivery(receive, reactor)


held = HeldDeliveryFactory()
