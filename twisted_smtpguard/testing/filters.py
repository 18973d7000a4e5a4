"""`check_filter` does to an IP filter what a guard and its clients can do to it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from time import perf_counter

import attrs
from twisted.internet.defer import Deferred

from twisted_smtpguard.interfaces import IIPFilter
from twisted_smtpguard.testing.demands import verify
from twisted_smtpguard.testing.judging import checked_judge
from twisted_smtpguard.values import Peer, Verdict

_PEER = Peer(IPv4Address("192.0.2.1"), 40000, IPv4Address("192.0.2.25"), 25, tls=False, proxied=False)
_IPV6 = attrs.evolve(_PEER, address=IPv6Address("2001:db8::1"), local_address=IPv6Address("2001:db8::25"))
_UNIX = Peer(None, None, None, None, tls=False, proxied=False)
PEERS = {
    "IPv4": _PEER,
    "IPv6": _IPV6,
    "no ports": attrs.evolve(_PEER, port=None, local_port=None),
    "a UNIX socket": _UNIX,
    "IPv4 under TLS": attrs.evolve(_PEER, tls=True),
    "IPv6 under TLS": attrs.evolve(_IPV6, tls=True),
    "IPv4 behind a proxy": attrs.evolve(_PEER, proxied=True),
    "IPv6 behind an IPv4 proxy": attrs.evolve(_PEER, address=_IPV6.address, proxied=True),
    "IPv4 behind a proxy on a UNIX socket": attrs.evolve(_UNIX, address=_PEER.address, port=1, proxied=True),
    "loopback": attrs.evolve(_PEER, address=IPv4Address("127.0.0.1")),
    "IPv6 loopback": attrs.evolve(_IPV6, address=IPv6Address("::1")),
    "IPv4 link-local": attrs.evolve(_PEER, address=IPv4Address("169.254.0.1")),
    "IPv6 link-local": attrs.evolve(_IPV6, address=IPv6Address("fe80::1")),
    "IPv6 link-local with a zone": attrs.evolve(_IPV6, address=IPv6Address("fe80::1%eth0")),
    "the lowest IPv4 address": attrs.evolve(_PEER, address=IPv4Address(0)),
    "the highest IPv4 address": attrs.evolve(_PEER, address=IPv4Address(2**32 - 1)),
    "the lowest IPv6 address": attrs.evolve(_IPV6, address=IPv6Address(0)),
    "the highest IPv6 address": attrs.evolve(_IPV6, address=IPv6Address(2**128 - 1)),
}
"""Every kind of Peer. There is no IPv4-mapped IPv6 address, since the guard turns it into an IPv4 address."""


def check_filter(ip_filter: IIPFilter, *, seconds: Callable[[], float] = perf_counter) -> Deferred[int]:
    """Check that `ip_filter` keeps its contract: with every kind of peer, with many at once, with clients that leave
    while they wait, and with a reload if it has one. A filter that is a service must have been started. `seconds` is
    the clock, in seconds.

    The Deferred fires with the number of verdicts, of any kind and at once or later. It fails with an AssertionError
    that says what the filter did wrong, and with which peer. It never fires if a check that was not cancelled never
    answers. One slow check among many is not noticed, nor is work that goes on for clients that have left.
    """
    return Deferred.fromCoroutine(_check(ip_filter, seconds))


async def _check(ip_filter: IIPFilter, seconds: Callable[[], float]) -> int:
    verify(IIPFilter, ip_filter, "the filter")
    return await checked_judge(ip_filter, "the filter", PEERS, Verdict, seconds)
