"""What a delivery to an upstream server tells about itself, for metrics and health checks."""

from __future__ import annotations

from typing import Any

from mailserver import Behind, MailServer, silence
from zope.interface.verify import verifyObject

from twisted_smtpguard import AcceptedDomains, DiscardDelivery
from twisted_smtpguard.interfaces import IReportsHealth


def states(delivery: Any) -> dict[str, int]:
    """Those of which there are any."""
    return {state: number for state, number in delivery.connections_by_state.items() if number}


def test_a_delivery_tells_what_its_connections_do() -> None:
    server = MailServer()
    behind = Behind(server)
    delivery = behind.delivery
    verifyObject(IReportsHealth, delivery)
    assert list(delivery.connections_by_state) == [
        "in_use",
        "idle",
        "parked",
        "opening",
        "closing",
        "reserved",
    ]
    assert states(delivery) == {"idle": 1}
    client = behind.greeted()
    client.say("MAIL FROM:<a@example.com>")
    assert states(delivery) == {"in_use": 1}
    server.links[0].lingers = True
    server.answers["EHLO"] = silence
    behind.greeted().say("MAIL FROM:<a@example.com>")
    assert states(delivery) == {"in_use": 1, "opening": 1}
    client.say("RSET", "QUIT")
    assert states(delivery) == {"idle": 1, "opening": 1}
    delivery.stopService()
    assert states(delivery) == {"closing": 1}


def test_a_delivery_tells_why_its_server_is_down() -> None:
    server = MailServer()
    server.reachable = False
    behind = Behind(server)
    assert behind.delivery.problem == "451 4.4.1 Upstream server unavailable, try again later"
    server.reachable = True
    behind.clock.advance(10)
    assert behind.delivery.problem == ""


def test_what_restricts_a_delivery_to_domains_tells_what_the_delivery_tells() -> None:
    behind = Behind(MailServer())
    restricted: Any = AcceptedDomains(behind.delivery, ["example.org"])
    verifyObject(IReportsHealth, restricted)
    assert (restricted.problem, states(restricted)) == ("", {"idle": 1})
    # A delivery that tells nothing is not one that is well.
    assert not IReportsHealth.providedBy(AcceptedDomains(DiscardDelivery(), ["example.org"]))
