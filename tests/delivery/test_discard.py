"""Messages that are accepted and forgotten."""

from __future__ import annotations

import pytest
import pytest_twisted
from zope.interface.verify import verifyObject

from twisted_smtpguard.delivery.discard import DiscardDelivery, DiscardFactory
from twisted_smtpguard.interfaces import IDeliveryFactory
from twisted_smtpguard.testing import check_delivery


@pytest_twisted.ensureDeferred
async def test_it_keeps_the_contract_and_accepts_everything():
    assert await check_delivery(DiscardDelivery()) == 29


def test_the_factory_makes_one():
    factory = DiscardFactory()
    verifyObject(IDeliveryFactory, factory)
    assert factory.make_delivery("", object()).extensions == {"8BITMIME", "SMTPUTF8", "BINARYMIME"}


def test_it_takes_no_argument():
    with pytest.raises(ValueError, match="discard takes no argument"):
        DiscardFactory().make_delivery("x", object())
