"""Run with: python -m twisted.trial test_dnslist"""

from ipaddress import ip_address
from typing import Any

from dnslist import MAX_ANSWERS, MAX_QUESTIONS, DNSList, DNSListFactory
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.names import client, dns, server
from twisted.names.authority import FileAuthority
from twisted.names.error import DNSNameError, DNSServerError
from twisted.trial.unittest import TestCase

from twisted_smtpguard import PASS, Peer, Verdict
from twisted_smtpguard.testing import check_filter

ZONE, ZONE6 = "bl.example", "bl6.example"
NAME = "4.3.2.1.bl.example"
NAME6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.8.8.4.0.6.8.4.1.0.0.2.bl6.example"
"""Of 2001:4860:4888::1, which is written backwards, digit by digit."""


def peer(address: str | None) -> Peer:
    known = None if address is None else ip_address(address)
    return Peer(known, 40000, ip_address("192.0.2.25"), 25, tls=False, proxied=False)


def listed(name: str, address: str = "127.0.0.2", ttl: int = 600) -> Any:
    return [dns.RRHeader(name, dns.A, ttl=ttl, payload=dns.Record_A(address, ttl))], [], []


def unlisted(minimum: int = 120) -> DNSNameError:
    soa = dns.Record_SOA(minimum=minimum, ttl=600)
    message = dns.Message()
    message.authority = [dns.RRHeader(ZONE, dns.SOA, ttl=600, payload=soa)]
    return DNSNameError(message)


class FakeResolver:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.questions: list[str] = []
        self.answers: list[Deferred[Any]] = []

    def lookupAddress(self, name: str, timeout: object = None) -> Deferred[Any]:  # noqa: N802
        self.questions.append(name)
        self.answers.append(Deferred())
        return self.answers[-1]


class DNSListTests(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.resolver, self.clock = FakeResolver(), Clock()
        self.filter = DNSList(self.resolver, self.clock, ZONE, ZONE6)

    def asked(self, address: str = "1.2.3.4") -> Any:
        return self.filter.check(peer(address))

    def test_a_listed_client_is_refused_and_the_log_is_told_by_which_answer(self) -> None:
        waiting = self.asked()
        self.assertEqual(self.resolver.questions, [NAME])
        self.resolver.answers[0].callback(listed(NAME))
        verdict = self.successResultOf(waiting)
        self.assertEqual((verdict.reply.code, verdict.rule), (521, "bl.example 127.0.0.2"))

    def test_an_ipv6_client_is_looked_up_digit_by_digit_in_its_zone(self) -> None:
        waiting = self.asked("2001:4860:4888::1")
        self.assertEqual(self.resolver.questions, [NAME6])
        self.resolver.answers[0].callback(listed(NAME6))
        self.assertEqual(self.successResultOf(waiting).rule, "bl6.example 127.0.0.2")

    def test_without_a_zone_for_ipv6_such_a_client_passes(self) -> None:
        only = DNSList(self.resolver, self.clock, ZONE)
        self.assertEqual(only.check(peer("2001:4860:4888::1")), PASS)

    def test_a_zone_may_have_capital_letters_and_a_final_dot_and_its_answer_another_name(self) -> None:
        for zone, answered in (("BL.example", NAME), ("bl.example.", NAME), (ZONE, "listed.example.net")):
            waiting = DNSList(self.resolver, self.clock, zone).check(peer("1.2.3.4"))
            self.resolver.answers[-1].callback(listed(answered))
            self.assertEqual(self.successResultOf(waiting).rule, f"{zone} 127.0.0.2")

    def test_whose_address_is_not_public_passes_and_nothing_is_asked(self) -> None:
        for address in ("127.0.0.1", "10.0.0.1", "100.64.0.1", "::1", "fe80::1", None):
            self.assertEqual(self.filter.check(peer(address)), PASS)
        self.assertEqual(self.resolver.questions, [])

    def test_clients_that_come_together_wait_for_one_question(self) -> None:
        waiting = [self.asked() for _ in range(1000)]
        self.assertEqual(len(self.resolver.questions), 1)
        self.resolver.answers[0].errback(unlisted())
        self.assertEqual({self.successResultOf(each) for each in waiting}, {PASS})

    def test_an_answer_is_kept_for_its_ttl(self) -> None:
        self.asked()
        self.resolver.answers[0].callback(listed(NAME, ttl=100))
        self.clock.advance(99)
        self.assertEqual(self.asked().reply.code, 521)
        self.clock.advance(2)
        self.assertIsInstance(self.asked(), Deferred)
        self.assertEqual(len(self.resolver.questions), 2)

    def test_that_a_client_is_not_listed_is_kept_as_long_as_the_zone_says(self) -> None:
        self.asked()
        self.resolver.answers[0].errback(unlisted(minimum=120))
        self.clock.advance(119)
        self.assertEqual(self.asked(), PASS)
        self.clock.advance(2)
        self.assertIsInstance(self.asked(), Deferred)

    def test_a_client_that_leaves_costs_the_others_nothing(self) -> None:
        leaving, staying = self.asked(), self.asked()
        leaving.cancel()
        self.failureResultOf(leaving, CancelledError)
        self.resolver.answers[0].errback(unlisted())
        self.assertEqual(self.successResultOf(staying), PASS)

    def test_clients_that_come_and_leave_cost_one_question_whose_answer_is_kept(self) -> None:
        for _ in range(1000):
            leaving = self.asked()
            leaving.cancel()
            self.failureResultOf(leaving, CancelledError)
        self.assertEqual(len(self.resolver.questions), 1)
        self.assertEqual(list(self.filter._waiting.values()), [[]])
        self.resolver.answers[0].errback(unlisted())
        self.assertEqual(self.asked(), PASS)

    def test_a_server_that_fails_is_no_verdict_and_is_asked_again(self) -> None:
        waiting = [self.asked(), self.asked()]
        self.resolver.answers[0].errback(DNSServerError(dns.Message()))
        for each in waiting:
            self.failureResultOf(each, DNSServerError)
        self.asked()
        self.assertEqual(len(self.resolver.questions), 2)

    def test_a_list_that_does_not_serve_this_resolver_is_no_verdict(self) -> None:
        waiting = self.asked()
        self.resolver.answers[0].callback(listed(NAME, "127.255.255.254"))
        self.failureResultOf(waiting, RuntimeError)

    def test_a_domain_that_answers_everything_with_its_own_address_lists_no_client(self) -> None:
        waiting = self.asked()
        self.resolver.answers[0].callback(listed(NAME, "198.51.100.7"))
        self.assertEqual(self.successResultOf(waiting), PASS)

    def test_questions_and_answers_are_bounded(self) -> None:
        for number in range(MAX_QUESTIONS):
            self.asked(f"1.2.3.{number}")
        with self.assertRaises(RuntimeError):
            self.asked("1.2.4.1")
        for answer in self.resolver.answers:
            answer.errback(unlisted())
        for number in range(MAX_ANSWERS + 10):
            self.asked(str(ip_address(0x08080000 + number)))
            self.resolver.answers[-1].errback(unlisted())
        self.assertEqual(len(self.filter._answers), MAX_ANSWERS)

    def test_a_zone_is_expected(self) -> None:
        with self.assertRaisesRegex(ValueError, "a zone is expected"):
            DNSListFactory().make_filter("", reactor)


class Zone(FileAuthority):
    """What the name server of the list has."""

    def loadFile(self, filename: object) -> None:  # noqa: N802 - Twisted's name
        soa = dns.Record_SOA(mname="ns.bl.example", rname="root.bl.example", serial=1, minimum=60, ttl=600)
        self.soa = (b"bl.example", soa)
        self.records = {b"bl.example": [soa], NAME.encode(): [dns.Record_A("127.0.0.2", ttl=600)]}


class WithANameServer(TestCase):
    timeout = 20

    def setUp(self) -> None:
        port = reactor.listenUDP(
            0, dns.DNSDatagramProtocol(server.DNSServerFactory([Zone(None)])), "127.0.0.1"
        )
        self.addCleanup(port.stopListening)
        resolver = client.Resolver(servers=[("127.0.0.1", port.getHost().port)], reactor=reactor)
        self.filter = DNSList(resolver, reactor, ZONE)

    async def says(self, address: str) -> Verdict:
        verdict = self.filter.check(peer(address))
        return await verdict if isinstance(verdict, Deferred) else verdict

    async def test_it_keeps_the_contract(self) -> None:
        self.assertGreater(await check_filter(self.filter), 0)

    async def test_who_is_listed_is_refused_and_nobody_else(self) -> None:
        self.assertEqual((await self.says("1.2.3.4")).rule, "bl.example 127.0.0.2")
        self.assertEqual(await self.says("1.2.3.5"), PASS)
        both = [ensureDeferred(self.says("1.2.3.6")) for _ in range(2)]
        self.assertEqual([await each for each in both], [PASS, PASS])
