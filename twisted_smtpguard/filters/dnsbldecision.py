"""What follows from the answers of lists in the DNS (RFC 5782). Pure functions, and one count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, ip_address
from typing import NamedTuple

from twisted_smtpguard.filters.dnsblsettings import DnsList
from twisted_smtpguard.filters.networklist import parse_network
from twisted_smtpguard.filters.networktable import TRUSTED, NetworkTable, TableBuilder
from twisted_smtpguard.values import PASS, Address

_NOT_ASKED_ABOUT = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.168.0.0/16", "::/8", "fc00::/7", "fe80::/10"),
)
"""Addresses that mean nothing outside this host or its networks. Every list has 127.0.0.2 in it."""

LISTED, NOT_LISTED, ERROR, TIMEOUT, NOT_ASKED = "listed", "not_listed", "error", "timeout", "not_asked"
OUTCOMES = (LISTED, NOT_LISTED, ERROR, TIMEOUT, NOT_ASKED)
"""What may come of a question, for the metrics. `not_asked`: too many others were waiting."""

MAX_CODES_SHOWN = 5

VERSIONS = (4, 6)

TEST_LISTED = {4: ip_address("127.0.0.2"), 6: ip_address("::ffff:127.0.0.2")}
TEST_NOT_LISTED = {4: ip_address("127.0.0.1"), 6: ip_address("::ffff:127.0.0.1")}
"""What each list has, and what none has (RFC 5782 5), by the version of IP."""


class Answer(NamedTuple):
    """The answer of a name server to the question for the A records of a name."""

    addresses: tuple[int, ...] = ()
    """The IPv4 addresses, as numbers; empty if the name does not exist, or has none."""
    seconds: float = 0
    """How long that holds: the smallest TTL of the records, or what the zone says of names that do not exist."""
    problem: str = ""
    """Why there is no answer; "" if there is one."""
    outcome: str = ""
    """ERROR, TIMEOUT or NOT_ASKED if there is no answer, else ""."""


def _elsewhere() -> NetworkTable:
    builder = TableBuilder()
    for network in _NOT_ASKED_ABOUT:
        builder.add(*parse_network(network), TRUSTED)
    return builder.build(lambda: None)


_TABLE = _elsewhere()


def is_asked_about(address: Address) -> bool:
    """Whether lists in the DNS are asked about this address."""
    return _TABLE.verdict(address) is PASS


def question(address: Address, zone: str) -> str:
    """The name by which a zone has the address: its octets, or of IPv6 its 32 hexadecimal digits, the last one first
    (RFC 5782 2.1, 2.4)."""
    labels = str(address).split(".") if address.version == 4 else list(f"{int(address):032x}")
    return f"{'.'.join(reversed(labels))}.{zone}"


def codes_of(answer: Answer) -> tuple[tuple[int, ...], str]:
    """What a list says with its answer: its codes, empty if it does not list the client; and the problem if the answer
    is not that of a list, else ""."""
    if answer.problem:
        return (), answer.problem
    for address in answer.addresses:
        if address >> 24 != 127:
            return (
                (),
                f"it answers {IPv4Address(address)}, which is no listing: the zone may have another owner",
            )
        if address >> 8 == 0x7FFFFF:
            return (), f"it answers {IPv4Address(address)}, which is an error: it may not serve this resolver"
    return answer.addresses, ""


def counted(codes: Sequence[int], dns_list: DnsList) -> tuple[int, ...]:
    """Those codes that the operator's filter lets count."""
    return tuple(code for code in codes if dns_list.codes is None or dns_list.codes.has(code))


def decide(weights: Sequence[int], pending: Sequence[int], threshold: int) -> bool | None:
    """Whether a client is refused. `weights` are those of the lists that list it, `pending` of those that have not
    answered; None: it depends on them."""
    score = sum(weights)
    if score + sum(each for each in pending if each < 0) >= threshold:
        return True
    if score + sum(each for each in pending if each > 0) < threshold:
        return False
    return None


def shown(found: Mapping[str, Sequence[int]]) -> str:
    """The lists that list a client with their codes, as the rule in the log: `zen:127.0.0.2+127.0.0.4,bl:127.0.0.2`."""
    return ",".join(f"{name}:{shown_codes(codes)}" for name, codes in found.items())


def shown_codes(codes: Sequence[int]) -> str:
    more = f"+{len(codes) - MAX_CODES_SHOWN}_more" if len(codes) > MAX_CODES_SHOWN else ""
    return "+".join(str(IPv4Address(code)) for code in codes[:MAX_CODES_SHOWN]) + more


def judge_test(answers: Mapping[tuple[int, bool], Answer]) -> tuple[str, Sequence[int]]:
    """What is wrong with a list, "" if it works, and for which versions of IP it works. `answers` are those about
    TEST_NOT_LISTED, (version, False), and TEST_LISTED, (version, True).

    A list that has its entry for one version only has no addresses of the other, as many have none of IPv6.
    """
    for version in VERSIONS:
        for listed in (False, True):
            answer = answers[version, listed]
            if answer.problem and version == 4:
                return f"it does not answer: {answer.problem}", ()
            _, problem = codes_of(answer)
            if problem and not answer.problem:
                return problem, ()
            if answer.addresses and not listed:
                return f"it lists {TEST_NOT_LISTED[version]}, and so may list everybody", ()
    works = [version for version in VERSIONS if answers[version, True].addresses]
    return (
        "" if works else f"it does not list {TEST_LISTED[4]}, which every list does: it may be empty"
    ), works


class KnownShare:
    """Which part of the known clients a list would have refused in an hour. `most` bounds the clients that are
    counted, each once, however many addresses it has: else one known client of IPv6 could switch a list off."""

    SECONDS = 3600.0
    LEAST = 3
    """With fewer known clients nothing is said about a list: one or two of them may well have a virus."""

    def __init__(self, part: float = 0.05, most: int = 10_000) -> None:
        self._part = part
        self._most = most
        self._began = -math.inf
        self._clients: dict[str, bool] = {}
        self._refused = 0
        self.exceeded = False
        """Whether the list would refuse too many."""

    def add(self, client: str, refused: bool, now: float) -> bool:
        """Count a known client. Returns whether `exceeded` has changed: it becomes true as soon as there are too many,
        and false at the end of an hour in which there were not."""
        before = self.exceeded
        if not 0 <= now - self._began < self.SECONDS:
            if len(self._clients) >= self.LEAST:
                self.exceeded = self._too_many()
            self._began, self._clients, self._refused = now, {}, 0
        was_refused = self._clients.get(client)
        if was_refused is None and len(self._clients) >= self._most:
            return self.exceeded != before
        self._clients[client] = refused or bool(was_refused)
        self._refused += refused and not was_refused
        self.exceeded |= self._too_many()
        return self.exceeded != before

    def _too_many(self) -> bool:
        return self._refused >= self.LEAST and self._refused > self._part * len(self._clients)

    def __str__(self) -> str:
        return f"{self._refused} of {len(self._clients)} known clients"
