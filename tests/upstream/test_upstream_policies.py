"""Session policies before an upstream server: what one may refuse is not sent ahead, and fields that one prepends reach
the server above Received."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import codes
from mailserver import Behind
from test_upstream_ahead import ENVELOPE, NETWORK, behind, settle

from twisted_smtpguard import Reply
from twisted_smtpguard.policyvalues import PolicyVerdict
from twisted_smtpguard.testing import FakePolicy

DUNNO = PolicyVerdict.dunno()
LATER = Reply(450, "4.7.1", ("Later",))


def policed(*policies: Any) -> Behind:
    guarded = behind(limits={"policies": list(policies)})
    settle(guarded)
    return guarded


def first_write(guarded: Behind, *commands: str) -> list[str]:
    """What reaches the server first of commands that arrive together."""
    client = guarded.greeted()
    client.say(*commands)
    settle(guarded, NETWORK)
    (link,) = guarded.server.links
    since = [octets.decode().splitlines() for octets in link.writes[1:]]  # type: ignore[attr-defined]
    since[0].remove("RSET")
    return next(commands for commands in since if commands)


@pytest.mark.parametrize(
    ("stage", "ahead"),
    [("connect", 4), ("helo", 4), ("mail", 4), ("rcpt", 1), ("data", 3), ("end-of-data", 4)],
)
def test_what_a_policy_may_refuse_is_not_sent_ahead(stage: str, ahead: int) -> None:
    guarded = policed(FakePolicy(DUNNO, stage))
    assert first_write(guarded, *ENVELOPE) == ENVELOPE[:ahead]


@pytest.mark.parametrize("stage", ["connect", "helo", "mail"])
def test_a_recipient_who_will_be_deferred_is_not_sent_ahead(stage: str) -> None:
    guarded = policed(FakePolicy(PolicyVerdict.defer_if_permit(LATER), stage))
    client = guarded.greeted()
    client.say(*ENVELOPE)
    settle(guarded)
    assert codes(client.heard()) == [250, 450, 450, 554]
    assert not any(line.startswith(("RCPT", "DATA")) for line in guarded.server.commands)


def test_a_refused_recipient_does_not_reach_the_server() -> None:
    def answer(request: Any) -> PolicyVerdict:
        return PolicyVerdict.refuse(LATER) if request.recipient.address.startswith("ok1") else DUNNO

    guarded = policed(FakePolicy(answer))
    client = guarded.greeted()
    client.say(*ENVELOPE)
    settle(guarded)
    assert codes(client.heard()) == [250, 450, 250, 354]
    client.send(b"Subject: x\r\n\r\ntext\r\n.\r\n")
    settle(guarded)
    assert client.heard().startswith("250 ")
    assert [each for each in guarded.server.commands if each.startswith("RCPT")] == [ENVELOPE[2]]


def test_a_message_that_is_refused_at_its_end_is_not_taken_by_the_server() -> None:
    guarded = policed(FakePolicy(PolicyVerdict.refuse(LATER), "end-of-data"))
    client = guarded.greeted()
    client.say(*ENVELOPE)
    settle(guarded)
    client.heard()
    assert client.send(b"Subject: x\r\n\r\ntext\r\n.\r\n") == "450 4.7.1 Later\r\n"
    assert guarded.server.taken == []
    client.disconnect()
    guarded.assert_nothing_is_left()


@pytest.mark.parametrize("lmtp", [False, True])
def test_a_prepended_field_stands_above_received(lmtp: bool) -> None:
    policy = FakePolicy(PolicyVerdict.prepend("X-Policy: seen"))
    guarded = behind(lmtp=lmtp, limits={"policies": [policy]})
    client = guarded.greeted()
    client.say(*ENVELOPE)
    settle(guarded)
    client.send(b"Subject: x\r\n\r\ntext\r\n.\r\n")
    settle(guarded)
    (taken,) = guarded.server.taken
    assert taken.octets.startswith(b"X-Policy: seen\r\nX-Policy: seen\r\nReceived: from ")
    assert taken.octets.endswith(b"\r\nSubject: x\r\n\r\ntext\r\n")
