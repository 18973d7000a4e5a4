"""Tests of inbox.py, without a socket and without waiting: python -m pytest, or python -m unittest."""

from unittest import TestCase

from inbox import Inbox, Standing, Store
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_smtpguard import TRUST
from twisted_smtpguard.testing import Conversation, Guard, SlowFilter, check_delivery, check_filter, dialogue

REFUSED = "421 4.7.0 Connection refused\r\n"


def opened(standing: dict[str, str] | None = None) -> Store:
    store = Store(["desk@example.org", "press@example.org"], standing or {})
    store.startService()
    return store


class InboxTests(TestCase):
    def setUp(self) -> None:
        self.store = opened()
        self.guard = Guard(Inbox(self.store), max_recipients=2, delivery_timeout=60)

    def sending(self, *recipients: str) -> Conversation:
        """A client that may go on with its message."""
        client = self.guard.greeted()
        client.say("MAIL FROM:<a@example.com>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA")
        return client

    def test_a_message_is_in_the_mailbox_of_each_recipient_when_it_is_accepted(self) -> None:
        client = self.sending("desk@example.org", "press@example.org")
        self.assertEqual(client.codes("Subject: Hi", "", "..dots", "."), [250])
        kept = [b"Subject: Hi\r\n\r\n.dots\r\n"]
        self.assertEqual(self.store.mailboxes, {"desk@example.org": kept, "press@example.org": kept})

    def test_a_client_that_leaves_in_the_middle_has_sent_nothing(self) -> None:
        client = self.sending("desk@example.org")
        client.say("Subject: Hi")
        client.disconnect()
        self.assertEqual(self.store.mailboxes["desk@example.org"], [])

    def test_a_database_that_is_closed_is_no_loss(self) -> None:
        self.store.stopService()
        client = self.sending("desk@example.org")
        self.assertEqual(client.codes("Subject: Hi", "."), [451])

    def test_a_database_that_does_not_answer_in_time_is_no_loss(self) -> None:
        client = self.sending("desk@example.org")
        self.store.keep = lambda *_: Deferred()
        self.assertEqual(client.codes("Subject: Hi", "."), [])
        self.guard.clock.advance(61)
        self.assertEqual(client.heard()[:4], "451 ")

    def test_unknown_recipients_are_refused_however_the_octets_arrive(self) -> None:
        dialogue(
            ("MAIL FROM:<a@example.com>", "250 2.1.0 Sender OK"),
            ("RCPT TO:<nobody@example.org>", "550 5.1.1 No such mailbox"),
            ("RCPT TO:<desk@example.org>", "250 2.1.5 Recipient OK"),
            ("QUIT", "221 2.0.0 Closing connection"),
            delivery=lambda: Inbox(opened()),
            closed=True,
        )


class StandingTests(TestCase):
    def test_who_is_banned_is_refused_and_a_friend_is_not_counted(self) -> None:
        standing = Standing(opened({"192.0.2.1": "friend", "192.0.2.2": "banned"}))
        guard = Guard(ip_filters=[standing], max_connections_per_client=1)
        self.assertEqual(guard.connect("192.0.2.2").heard(), REFUSED)
        for address, greeted in {"192.0.2.1": 3, "192.0.2.3": 1}.items():
            greetings = [guard.connect(address).heard()[:3] for _ in range(3)]
            self.assertEqual(greetings, ["220"] * greeted + ["421"] * (3 - greeted))

    def test_it_is_asked_about_strangers_only_after_another_filter(self) -> None:
        slow = SlowFilter()
        guard = Guard(ip_filters=[slow, Standing(opened({"192.0.2.2": "banned"}))])
        client = guard.connect("192.0.2.2")
        self.assertEqual(client.heard(), "")
        slow.asked[0].callback(TRUST)
        self.assertEqual(client.heard(), "220 guard.example ESMTP ready\r\n")


class ContractTests(SynchronousTestCase):
    def test_the_delivery_keeps_the_contract(self) -> None:
        check = check_delivery(Inbox(opened()), recipient="desk@example.org")
        self.assertGreater(self.successResultOf(check), 0)

    def test_the_filter_keeps_the_contract(self) -> None:
        self.assertGreater(self.successResultOf(check_filter(Standing(opened()))), 0)
