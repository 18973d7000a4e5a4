"""Whose child a filter or a delivery is that is a service itself: one guard's, or somebody else's who shares it out."""

from __future__ import annotations

import pytest
from fakes import FakeDelivery
from mailserver import MailServer
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from twisted_smtpguard import AcceptedDomains, SmtpDelivery, SMTPGuardService
from twisted_smtpguard.interfaces import PASS, IDelivery, IIPFilter, Peer, Verdict
from twisted_smtpguard.testing import Clients

SHARED = "belongs to another guard already, which would stop it"


@implementer(IIPFilter)
class RunningFilter(Service):  # type: ignore[misc]
    def check(self, peer: Peer) -> Verdict:
        return PASS


def upstream(server: MailServer, clock: Clock) -> SmtpDelivery:
    return SmtpDelivery(server, clock, hostname="guard.example")


def over(deferred: Deferred[object]) -> bool:
    done: list[object] = []
    deferred.addBoth(done.append)
    return done == [None]


def test_a_delivery_without_a_parent_becomes_the_child_of_its_guard() -> None:
    delivery = upstream(MailServer(), Clock())
    guard = SMTPGuardService(Clock(), [], delivery)
    assert delivery.parent is guard
    domains = AcceptedDomains(upstream(MailServer(), Clock()), ["example.org"])
    assert IService(domains.delivery).parent is domains


def test_the_stop_of_one_guard_does_not_cut_off_the_mail_of_another_that_shares_its_delivery() -> None:
    clock, server = Clock(), MailServer()
    application = MultiService()
    delivery = upstream(server, clock)
    delivery.setServiceParent(application)
    one, other = (SMTPGuardService(clock, [], delivery, hostname="guard.example") for _ in range(2))
    for guard in (one, other):
        guard.setServiceParent(application)
    application.startService()
    client = Clients(one.factory, clock).connect()
    assert client.codes("EHLO a", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")[-1] == 354
    client.say("Subject: x", "", "half")
    assert over(other.stopService())
    assert delivery.running
    assert client.codes("rest", ".") == [250]
    assert len(server.taken) == 1
    client.say("QUIT")
    application.stopService()
    assert not delivery.running


@pytest.mark.parametrize("domains", [False, True])
def test_what_one_guard_has_is_no_other_s(domains: bool) -> None:
    delivery = upstream(MailServer(), Clock())

    def another() -> SMTPGuardService:
        part: IDelivery = AcceptedDomains(delivery, ["example.org"]) if domains else delivery
        return SMTPGuardService(Clock(), [], part)

    first = another()
    with pytest.raises(ValueError, match=f"^SmtpDelivery {SHARED}; .* setServiceParent"):
        another()
    assert delivery.parent is (first.factory.context.delivery if domains else first)


def test_a_filter_is_no_other_s_either_and_may_be_asked_twice_by_one() -> None:
    shared = RunningFilter()
    guard = SMTPGuardService(Clock(), [], FakeDelivery(), ip_filters=[shared, shared])
    with pytest.raises(ValueError, match=f"^RunningFilter {SHARED}"):
        SMTPGuardService(Clock(), [], FakeDelivery(), ip_filters=[shared])
    guard.startService()
    assert shared.running
    assert over(guard.stopService())
    assert not shared.running


def test_what_a_guard_no_longer_needs_may_be_taken_from_it() -> None:
    delivery = upstream(MailServer(), Clock())
    SMTPGuardService(Clock(), [], delivery)
    delivery.disownServiceParent()
    guard = SMTPGuardService(Clock(), [], delivery)
    assert delivery.parent is guard
