"""For people who write deliveries and IP filters: each check does to one what a guard and its clients can do to it.

async def test_delivery():
    await check_delivery(MyDelivery())


async def test_filter():
    await check_filter(MyFilter())
"""

from twisted_smtpguard.testing.deliveries import check_delivery
from twisted_smtpguard.testing.filters import check_filter

__all__ = ["check_delivery", "check_filter"]
