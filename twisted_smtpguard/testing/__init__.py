"""The test kit for authors of deliveries, IP filters and session policies, and for applications that use them.

The checks do to a delivery, a filter or a policy what a guard and its clients can do to it:

async def test_delivery():
    await check_delivery(MyDelivery())


async def test_filter():
    await check_filter(MyFilter())


async def test_policy():
    await check_policy(MyPolicy())

A Guard holds SMTP conversations in a test, without sockets and without waiting:

def test_a_stranger_is_told_so():
    client = Guard(MyDelivery(), max_recipients=10).greeted()
    assert client.say("MAIL FROM:<stranger@example.org>") == "550 5.7.1 I do not know you\r\n"

The fakes give the answers that a test sets.
"""

from twisted_smtpguard.testing.conversation import Clients, Conversation, Guard, codes
from twisted_smtpguard.testing.counterstores import check_counter_store
from twisted_smtpguard.testing.deliveries import check_delivery
from twisted_smtpguard.testing.dialogues import Turn, dialogue
from twisted_smtpguard.testing.fakes import Delivered, FakeDelivery, FakeFilter, FakePolicy, SlowFilter
from twisted_smtpguard.testing.filters import check_filter
from twisted_smtpguard.testing.policychecks import check_policy
from twisted_smtpguard.testing.transport import FakeTransport

__all__ = [
    "Clients",
    "Conversation",
    "Delivered",
    "FakeDelivery",
    "FakeFilter",
    "FakePolicy",
    "FakeTransport",
    "Guard",
    "SlowFilter",
    "Turn",
    "check_counter_store",
    "check_delivery",
    "check_filter",
    "check_policy",
    "codes",
    "dialogue",
]
