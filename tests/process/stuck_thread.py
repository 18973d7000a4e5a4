"""A delivery with a thread that never ends what it does, as on a disk that does not answer.

A test puts this file into a folder twisted/plugins on PYTHONPATH, and `twist` then knows the delivery `stuck`.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.plugin import IPlugin
from zope.interface import implementer

from twisted_smtpguard import DiscardDelivery
from twisted_smtpguard.interfaces import IDeliveryFactory


@implementer(IPlugin, IDeliveryFactory)
class StuckThreadFactory:
    name = "stuck"
    summary = "Has a thread that hangs."
    argument_format = "Nothing."

    def make_delivery(self, argument: str, reactor: Any) -> DiscardDelivery:
        reactor.callInThread(time.sleep, 3600)
        return DiscardDelivery()


stuck = StuckThreadFactory()
