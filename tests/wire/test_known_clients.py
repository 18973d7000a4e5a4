"""What makes a client known, and what ends that: the verdicts on its mail."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import attrs
import pytest
from fakes import Conversation, FakeFilter, Guard, refusal
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_smtpguard import DiscardDelivery, Limits
from twisted_smtpguard.engine.verdict import is_junk
from twisted_smtpguard.interfaces import IAsksForKnownClients
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import PASS, Address, Client, Peer, Refused

CLIENT = "192.0.2.1"
MAIL = ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA", "x", ".")
BDAT = (*MAIL[:2], "BDAT 1 LAST")


def known(guard: Guard) -> list[str]:
    return [key for key, _ in guard.factory.known.by_mail()]


def answers(guard: Guard, hook: str, reply: Reply) -> None:
    def raises(*_: object) -> None:
        raise Refused(reply)

    guard.delivery.answers[hook] = raises


def mail(client: Conversation) -> int:
    """The code of the verdict on a mail."""
    return client.codes(*MAIL)[-1]


@pytest.mark.parametrize("bytewise", [False, True])
def test_a_mail_that_is_accepted_makes_its_client_known(bytewise: bool) -> None:
    guard = Guard()
    client = guard.greeted(CLIENT)
    client.say(*MAIL[:-1], bytewise=bytewise)
    assert known(guard) == []
    client.say(MAIL[-1], bytewise=bytewise)
    assert known(guard) == [CLIENT]


def test_a_mail_in_chunks_does_too() -> None:
    guard = Guard()
    guard.greeted(CLIENT).send("".join(f"{line}\r\n" for line in BDAT).encode() + b"x")
    assert known(guard) == [CLIENT]


def test_a_verdict_that_comes_when_the_client_has_left_does_too() -> None:
    guard = Guard()
    verdict: Deferred[Any] = Deferred()
    guard.delivery.answers["finish"] = lambda *_: verdict
    client = guard.greeted(CLIENT)
    client.say(*MAIL)
    client.disconnect()
    assert known(guard) == []
    verdict.callback(None)
    assert known(guard) == [CLIENT]


def test_an_ipv6_client_is_known_as_the_network_that_limits_count() -> None:
    guard = Guard()
    mail(guard.greeted("2001:db8::1"))
    assert known(guard) == ["2001:db8::/64"]
    assert guard.connect("2001:db8::2").protocol.engine.is_known
    assert not guard.connect("2001:db8:0:1::1").protocol.engine.is_known


@pytest.mark.parametrize(
    ("reply", "junk"),
    [
        (Reply(550, "5.7.1", ("Spam",)), True),
        (Reply(554, "5.7.0", ("Virus",)), True),
        (Reply(550, "5.7.26", ("Not aligned",)), True),
        (Reply(550, "", ("This message scored 8 points",)), True),
        (Reply(554, "", ("Transaction failed",)), True),
        (Reply(552, "5.2.2", ("Mailbox full",)), False),
        (Reply(550, "5.1.1", ("No such user",)), False),
        (Reply(554, "5.3.0", ("Some have it, others not",)), False),
        (Reply(552, "", ("Too large",)), False),
        (Reply(451, "4.7.1", ("Greylisted",)), False),
        (Reply(450, "", ("Later",)), False),
    ],
    ids=lambda value: f"{value.code} {value.enhanced}" if isinstance(value, Reply) else "",
)
@pytest.mark.parametrize("hook", ["finish", "write"])
def test_a_client_is_known_until_the_delivery_refuses_a_mail_of_it_as_junk(
    hook: str, reply: Reply, junk: bool
) -> None:
    guard = Guard()
    client = guard.greeted(CLIENT)
    assert mail(client) == 250
    answers(guard, hook, reply)
    assert mail(client) == reply.code
    assert known(guard) == ([] if junk else [CLIENT])
    del guard.delivery.answers[hook]
    assert mail(client) == 250
    assert known(guard) == [CLIENT]


def test_no_reply_of_the_guard_itself_is_taken_for_the_deliverys() -> None:
    guard = Guard(max_message_size=10, max_received_fields=1)
    client = guard.greeted(CLIENT)
    assert mail(client) == 250
    for text in ("x" * 20, "a\nb", "\r\n".join(["Received: x"] * 2)):
        assert client.codes(*MAIL[:3], text, ".")[-1] >= 500
    assert known(guard) == [CLIENT]


def test_a_refusal_before_the_end_of_data_changes_nothing() -> None:
    guard = Guard()
    client = guard.greeted(CLIENT)
    assert mail(client) == 250
    answers(guard, "recipient", Reply(550, "5.7.1", ("Relaying denied",)))
    assert client.codes(*MAIL[:2])[-1] == 550
    assert known(guard) == [CLIENT]


def test_further_mails_of_a_session_ask_the_table_no_more() -> None:
    guard = Guard()
    client = guard.greeted(CLIENT)
    assert mail(client) == 250
    guard.factory.known.forget(CLIENT)
    assert mail(client) == 250
    assert known(guard) == []
    assert mail(guard.greeted(CLIENT)) == 250
    assert known(guard) == [CLIENT]


def proxied(guard: Guard, header: bytes) -> Conversation:
    client = guard.connect("203.0.113.1")
    client.send(header)
    client.say("EHLO client.example")
    return client


def test_behind_a_balancer_the_client_is_known_and_never_the_balancer() -> None:
    guard = Guard(proxy_protocol_from=["203.0.113.1"])
    assert mail(proxied(guard, b"PROXY TCP4 192.0.2.1 203.0.113.9 1000 25\r\n")) == 250
    assert known(guard) == [CLIENT]


def test_a_header_that_names_no_client_makes_nobody_known() -> None:
    guard = Guard(proxy_protocol_from=["203.0.113.1"])
    client = proxied(guard, b"PROXY UNKNOWN\r\n")
    assert mail(client) == 250
    assert known(guard) == []
    guard.factory.known.accepted("203.0.113.1")
    answers(guard, "finish", refusal(550, "Spam", "5.7.1"))
    assert mail(client) == 550
    assert known(guard) == ["203.0.113.1"]


def test_a_plain_reply_of_success_is_no_junk() -> None:
    assert not is_junk(Reply(250, "2.7.0", ("OK",)))


def test_with_no_time_no_mail_makes_anybody_known() -> None:
    guard = Guard(DiscardDelivery(), known_for=0)
    assert mail(guard.greeted(CLIENT)) == 250
    assert known(guard) == []
    assert Limits().known_for == 30 * 86400


@implementer(IAsksForKnownClients)
class AskingFilter(FakeFilter):
    """It keeps what it is told of known clients."""

    def ask_for_known(self, known_client: Callable[[Address], str]) -> None:
        self.known_client = known_client


def test_a_filter_that_asks_for_it_is_told_who_is_known_now() -> None:
    asking = AskingFilter(PASS)
    guard = Guard(ip_filters=[asking])
    address, neighbour = (ip_address(each) for each in ("2001:db8::1", "2001:db8::2"))
    assert asking.known_client(neighbour) == ""
    assert mail(guard.greeted(str(address))) == 250
    assert asking.known_client(neighbour) == "2001:db8::/64"
    guard.factory.known.forget("2001:db8::/64")
    assert asking.known_client(address) == ""


def told(guard: Guard) -> list[bool]:
    """What the delivery was told of the clients of all messages: whether each is known."""
    return [message.client.known for message in guard.delivery.messages]


def test_a_delivery_is_told_whether_the_client_is_known_as_its_own_mail_changes_it() -> None:
    guard = Guard()
    client = guard.greeted(CLIENT)
    assert [mail(client) for _ in range(3)] == [250] * 3
    assert told(guard) == [False, True, True]
    answers(guard, "finish", refusal(550, "Spam", "5.7.1"))
    assert [mail(client) for _ in range(2)] == [550] * 2
    assert told(guard)[3:] == [True, False]
    guard.delivery.answers.clear()
    assert [mail(client), mail(client), mail(guard.greeted(CLIENT))] == [250] * 3
    assert told(guard)[5:] == [False, True, True]


def test_whom_the_operator_has_named_is_no_stranger_to_a_delivery() -> None:
    guard = Guard(known_for=0)
    guard.factory.known.is_listed = lambda address: address == ip_address(CLIENT)
    for source in (CLIENT, "192.0.2.2"):
        assert mail(guard.greeted(source)) == 250
    assert told(guard) == [True, False]
    assert [message.client.is_stranger for message in guard.delivery.messages] == [False, True]


@pytest.mark.parametrize(
    ("changes", "stranger"),
    [({}, True), ({"known": True}, False), ({"trusted": True}, False), ({"identity": "ann"}, False)],
)
def test_a_stranger_is_neither_known_nor_trusted_nor_logged_in(changes: Any, stranger: bool) -> None:
    client = Client(Peer(ip_address(CLIENT), 1, None, None), "1-1", "c", "ESMTP", None, trusted=False)
    assert attrs.evolve(client, **changes).is_stranger is stranger
