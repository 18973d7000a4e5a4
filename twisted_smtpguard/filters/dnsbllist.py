"""A list in the DNS as a guard uses it: tested from time to time, and watched for refusing those who are known.

A test checks docs/reference/events.md against the events here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twisted_smtpguard.filters.dnsblasker import Asker, Exchange
from twisted_smtpguard.filters.dnsbldecision import (
    TEST_LISTED,
    TEST_NOT_LISTED,
    VERSIONS,
    Answer,
    KnownShare,
    judge_test,
    question,
    shown_codes,
)
from twisted_smtpguard.filters.dnsblsettings import DnsblSettings, DnsList
from twisted_smtpguard.log.eventlog import EventLog, word
from twisted_smtpguard.values import Address


class DnsblNotices:
    """Logs these events. `seconds` returns the time. A list is told by its name, which has no key in it."""

    def __init__(self, seconds: Callable[[], float], logger: Logger | None = None) -> None:
        self._log = EventLog(seconds, logger=logger)

    def left_out(self, name: str, problem: str) -> None:
        """A list in the DNS has failed its test, and counts for no client until it passes one. Logged once until
        then."""
        self._log.warn("dnsbl_left_out", {"list": word(name)}, problem)

    def back(self, name: str) -> None:
        """A list in the DNS that was left out has passed its test, and counts again."""
        self._log.warn("dnsbl_back", {"list": word(name)})

    def in_dry_run(self, name: str, problem: str) -> None:
        """A list in the DNS would refuse too many known clients. Its refusals are logged with `dry_run=true` and not
        enforced, until an hour has passed in which it would not."""
        self._log.warn("dnsbl_dry_run", {"list": word(name)}, problem)

    def enforced(self, name: str) -> None:
        """A list in the DNS that was in dry run is enforced again."""
        self._log.warn("dnsbl_enforced", {"list": word(name)})


class Client(Protocol):
    """A client of name servers, as DNSClient is."""

    def ask(self, name: str, seconds: float, answered: Callable[[Answer], object]) -> Exchange: ...
    def find_servers(self) -> Deferred[None]: ...


class ListInUse:
    """One of the lists of a filter. `notices` logs what happens to it."""

    def __init__(
        self, dns_list: DnsList, settings: DnsblSettings, client: Client, clock: Any, notices: DnsblNotices
    ) -> None:
        self.list = dns_list
        self.name = dns_list.name
        self._client = client
        self._clock = clock
        self._timeout = settings.timeout
        self._notices = notices
        lists = len(settings.lists)
        self.asker = Asker(
            dns_list, client.ask, clock.seconds, settings.timeout, settings.ttl, lists, self.test
        )
        self.problem = "it has not been tested"
        """Why it is left out; "" if it is not."""
        self.untested = True
        self._works = dict.fromkeys(VERSIONS, False)
        self._share = KnownShare()
        self._testing: dict[tuple[int, bool], Exchange | None] = {}
        """The questions of the test that is going on."""
        self._answers: dict[tuple[int, bool], Answer] = {}
        self.tested: Callable[[], object] = lambda: None
        """Called after each test."""

    @property
    def weight(self) -> int:
        """What it adds to the score of a client that it lists."""
        return self.list.weight

    @property
    def in_dry_run(self) -> bool:
        """Whether it would refuse too many known clients, and so refuses nobody."""
        return self._share.exceeded

    def serves(self, address: Address) -> bool:
        """Whether it is asked about the address."""
        return self._works[address.version]

    def test(self) -> None:
        """Begin a test (RFC 5782 5), unless one is going on."""
        if self._testing:
            return
        self._answers = {}
        asked = {
            (version, listed): question(addresses[version], self.list.zone)
            for version in VERSIONS
            for listed, addresses in ((False, TEST_NOT_LISTED), (True, TEST_LISTED))
        }
        self._testing = dict.fromkeys(asked)
        for key, name in asked.items():
            self._testing[key] = self._client.ask(name, self._timeout, partial(self._take, key))
        self._see()

    def stop(self) -> None:
        """End the test that is going on, and all questions."""
        testing, self._testing = self._testing, {}
        for exchange in testing.values():
            if exchange is not None:
                exchange.cancel()
        self.asker.stop()

    def count_known(self, client: str, *, refused: bool) -> None:
        """Count a known client, and whether it is refused since this list lists it."""
        if self._share.add(client, refused, self._clock.seconds()):
            if self._share.exceeded:
                problem = f"in this hour it would have refused {self._share}"
                self._notices.in_dry_run(self.name, problem)
            else:
                self._notices.enforced(self.name)

    def answer_about(self, address: Address) -> tuple[str, bool]:
        """What is known of its answer about a client, in words, and whether it lists it."""
        if self.problem:
            return f"is left out: {self.problem}", False
        if not self.serves(address):
            return f"has no IPv{address.version} addresses", False
        codes = self.asker.kept(address)
        if codes is None:
            return "has not answered", False
        if not codes:
            return "does not list it", False
        dry_run = ", in dry run: it would refuse too many known clients" if self.in_dry_run else ""
        return f"{shown_codes(codes)}, weight {self.weight}{dry_run}", True

    def _take(self, key: tuple[int, bool], answer: Answer) -> None:
        if key in self._testing:
            self._answers[key] = answer
            if None not in self._testing.values():
                self._see()

    def _see(self) -> None:
        """End the test if all answers are there."""
        if not self._testing or len(self._answers) < len(self._testing):
            return
        self._testing = {}
        works_before = not self.problem
        self.problem, works = judge_test(self._answers)
        self._works = {version: version in works for version in VERSIONS}
        if self.problem and (works_before or self.untested):
            self._notices.left_out(self.name, self.problem)
        elif not (self.problem or works_before or self.untested):
            self._notices.back(self.name)
        self.untested = False
        self.tested()
