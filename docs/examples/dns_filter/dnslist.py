"""An IP filter that asks a DNS list of addresses (RFC 5782): who stands in it is refused, all others are left to the
next filter.

Answers are kept as long as their TTL says. Clients that come while a question is on its way wait for the same answer.
"""

from collections import OrderedDict
from ipaddress import IPv4Address, ip_network
from typing import Any

from twisted.internet.defer import Deferred
from twisted.names import dns
from twisted.names.error import DNSNameError
from twisted.plugin import IPlugin
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard import PASS, Peer, Reply, Verdict, refuse
from twisted_smtpguard.interfaces import IIPFilter, IIPFilterFactory

MAX_ANSWERS = 10_000  # That are kept; the oldest goes first.
MAX_QUESTIONS = 200  # On their way at once.
TIMEOUTS = (1, 3)  # Seconds for the first try and the second: together less than --ip-filter-timeout.
MIN_TTL, MAX_TTL = 30, 3600
LISTED = ip_network(
    "127.0.0.0/8"
)  # Whatever else comes back is no list's answer: a domain that has been sold.
TROUBLE = ip_network("127.255.255.0/24")  # What lists answer to those whom they do not serve.


@implementer(IIPFilter)
class DNSList:
    """Refuses who stands in the list `zone`, for IPv6 in `zone6`; "": clients of that kind are not asked about.

    `resolver` is one of twisted.names, `clock` the reactor.
    """

    def __init__(self, resolver: Any, clock: Any, zone: str, zone6: str = "") -> None:
        self._resolver = resolver
        self._clock = clock
        self._zones = {4: zone, 6: zone6}
        self._answers: OrderedDict[str, tuple[float, Verdict]] = OrderedDict()
        self._waiting: dict[str, list[Deferred[Verdict]]] = {}

    def question(self, peer: Peer) -> str:
        """The name to look up. An IPv6 address has a label for each of its 32 digits. "": there is nothing to ask."""
        address = peer.address
        if address is None or not address.is_global or not self._zones[address.version]:
            return ""
        labels = address.reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")
        return f"{labels}.{self._zones[address.version]}"

    def check(self, peer: Peer) -> Verdict | Deferred[Verdict]:
        name = self.question(peer)
        if not name:
            return PASS
        until, verdict = self._answers.get(name, (0.0, PASS))
        if self._clock.seconds() < until:
            return verdict
        is_new = name not in self._waiting
        if is_new and len(self._waiting) >= MAX_QUESTIONS:
            raise RuntimeError("too many DNS queries are on their way")
        waiting = self._waiting.setdefault(name, [])
        # A client that leaves takes itself out. The question goes on: its answer is kept for the next one.
        answer: Deferred[Verdict] = Deferred(waiting.remove)
        waiting.append(answer)
        if is_new:
            asked = self._resolver.lookupAddress(name, timeout=TIMEOUTS)
            zone = self._zones[peer.address.version]
            asked.addCallbacks(self._judge, self._unlisted, callbackArgs=(zone,)).addBoth(self._tell, name)
        return answer

    def _judge(self, found: Any, zone: str) -> tuple[float, Verdict]:
        """An answer, and for how long it holds. A CNAME may lead out of the zone, so the names in it say nothing."""
        records = [record for record in found[0] if record.type == dns.A]
        addresses = [IPv4Address(record.payload.dottedQuad()) for record in records]
        if any(address in TROUBLE for address in addresses):
            raise RuntimeError(
                f"the list answers {', '.join(map(str, addresses))}: does it serve your resolver?"
            )
        for record, address in zip(records, addresses, strict=True):
            if address in LISTED:
                words = f"Your address is listed by {zone}"
                return record.ttl, refuse(Reply(521, "5.7.1", (words,)), rule=f"{zone} {address}")
        return MIN_TTL, PASS

    def _unlisted(self, failure: Failure) -> tuple[float, Verdict]:
        """Most clients are in no list. For how long that holds is told by the SOA (RFC 2308). Anything else is raised:
        the guard refuses, or with fail-open asks the next filter."""
        failure.trap(DNSNameError)
        authority = getattr(failure.value.args[0], "authority", ())
        times = [min(record.ttl, record.payload.minimum) for record in authority if record.type == dns.SOA]
        return min(times, default=MIN_TTL), PASS

    def _tell(self, outcome: tuple[float, Verdict] | Failure, name: str) -> None:
        if not isinstance(outcome, Failure):
            seconds, verdict = outcome
            self._answers[name] = (self._clock.seconds() + min(max(seconds, MIN_TTL), MAX_TTL), verdict)
            self._answers.move_to_end(name)
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
        waiting = self._waiting.pop(name)
        while waiting:
            answer = waiting.pop(0)
            if isinstance(outcome, Failure):
                answer.errback(outcome)
            else:
                answer.callback(outcome[1])


@implementer(IPlugin, IIPFilterFactory)
class DNSListFactory:
    name = "dns-list"
    summary = "Refuses the clients that stand in a DNS list of addresses."
    argument_format = (
        "ZONE, or ZONE,ZONE6 for a list that has IPv6 addresses too, which may be the same zone."
    )

    def make_filter(self, argument: str, reactor: Any) -> DNSList:
        """Called before anything listens. The resolver asks the servers in /etc/resolv.conf."""
        from twisted.names.client import Resolver  # noqa: PLC0415 - a plugin file imports little

        zone, _, zone6 = argument.partition(",")
        if not zone:
            raise ValueError("a zone is expected, such as dns-list:zen.example")
        return DNSList(Resolver(resolv="/etc/resolv.conf", reactor=reactor), reactor, zone, zone6)
