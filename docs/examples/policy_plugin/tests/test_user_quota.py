"""Run with: python -m twisted.trial tests/test_user_quota.py"""

from ipaddress import ip_address

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from user_quota import MAX_USERS, UserQuota, UserQuotaFactory

from twisted_smtpguard import Peer, PolicyRequest
from twisted_smtpguard.testing import check_policy

PEER = Peer(ip_address("192.0.2.1"), 40000, ip_address("192.0.2.25"), 25)


class UserQuotaTests(TestCase):
    timeout = 20  # seconds, for one that waits in vain

    def setUp(self) -> None:
        self.clock = Clock()
        self.policy = UserQuota(2, 60, self.clock)

    def ask(self, user: str | None) -> str:
        return self.policy.check(PolicyRequest(stage="rcpt", peer=PEER, instance="1", identity=user)).kind

    async def test_it_keeps_the_contract(self) -> None:
        await check_policy(UserQuotaFactory().make_policy("1000000/60", self.clock))

    def test_each_user_has_a_quota(self) -> None:
        self.assertEqual([self.ask("ann") for _ in range(3)], ["dunno", "dunno", "refuse"])
        self.assertEqual(self.ask("bob"), "dunno")

    def test_it_begins_anew(self) -> None:
        for _ in range(3):
            self.ask("ann")
        self.clock.advance(60)
        self.assertEqual(self.ask("ann"), "dunno")

    def test_who_has_not_logged_in_has_none(self) -> None:
        self.assertEqual([self.ask(None) for _ in range(3)], ["dunno"] * 3)

    def test_the_table_is_bounded(self) -> None:
        for number in range(MAX_USERS + 5):
            self.ask(str(number))
        self.assertEqual(len(self.policy._users), MAX_USERS)

    def test_a_wrong_argument_is_told(self) -> None:
        with self.assertRaisesRegex(ValueError, "RECIPIENTS/SECONDS"):
            UserQuotaFactory().make_policy("many", self.clock)
