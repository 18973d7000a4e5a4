"""`check_filter` does to an IP filter what a guard and its clients can do to it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from time import perf_counter
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.later import call_hook
from twisted_smtpguard.interfaces import IIPFilter, IPreparedReload, IReloadable
from twisted_smtpguard.testing.demands import require, verify
from twisted_smtpguard.values import Peer, Verdict

MAX_BLOCKING_SECONDS = 0.25
"""How long a check may block the reactor, and so every other client of the guard."""
MAX_STALLS = 5
"""How many checks may block for longer, since the machine may have been busy. A filter that blocks exceeds this number:
it blocks at each check, or, with a cache, at the first check of each address."""
AT_ONCE = 10
"""The number of clients at each address, in the check of many at once."""

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
    # An unhandled error from before the check is logged now, so that it is not taken for one of the filter.
    gc.collect()
    with capturedLogs() as events:
        verdicts = await _Checks(ip_filter, seconds).all()
        gc.collect()
    of_deferreds = [event for event in events if event.get("log_namespace") == "twisted.internet.defer"]
    unhandled = [event["log_failure"].value for event in of_deferreds if "log_failure" in event]
    require(not unhandled, f"an error was left unhandled in a Deferred: {unhandled}")
    return verdicts


class _Question:
    """A call of check(), and its outcome."""

    def __init__(self, what: str, answer: Deferred[Any]) -> None:
        self.what = what
        self.outcome: list[object] = []
        """The answer, or a Failure; empty until it has come."""
        self._answer: Deferred[None] = answer.addBoth(self.outcome.append)

    async def verdict(self) -> None:
        await self._answer
        (outcome,) = self.outcome
        if isinstance(outcome, Failure):
            raise AssertionError(f"{self.what} raised {outcome.value!r}") from outcome.value
        require(isinstance(outcome, Verdict), f"{self.what} answered {outcome!r}, not a Verdict")

    def cancel(self) -> None:
        """Cancel the answer. After the answer has come this does nothing."""
        try:
            self._answer.cancel()
        except Exception as error:
            raise AssertionError(f"{self.what} was cancelled, and its canceller raised {error!r}") from error


class _Checks:
    """The checks of one filter."""

    def __init__(self, ip_filter: Any, seconds: Callable[[], float]) -> None:
        self._filter = ip_filter
        self._seconds = seconds
        self._verdicts = 0
        self._stalls = 0
        self._given: dict[int, Deferred[Any]] = {}
        """The Deferreds that the filter has given, by their ids. They are kept, so that no id is used again."""

    async def all(self) -> int:
        """Run all checks. Returns the number of verdicts."""
        for peer in PEERS:
            await self._judged([self._ask(peer)])
        await self._judged(self._many(", many at once"))
        await self._some_leave()
        if IReloadable.providedBy(self._filter):
            verify(IReloadable, self._filter, "the filter")
            await self._meanwhile("reload()", self._filter.reload)
        if IPreparedReload.providedBy(self._filter):
            verify(IPreparedReload, self._filter, "the filter")
            switch = await self._meanwhile("prepare_reload()", self._filter.prepare_reload)
            require(callable(switch), f"prepare_reload() answered {switch!r}, which cannot be called")
            await self._meanwhile("what prepare_reload() answered", switch)
        return self._verdicts

    async def _some_leave(self) -> None:
        """Let all clients at each address but one leave. The look-up for the one that stays must go on, and whatever
        was taken for the others must be freed."""
        leaving = self._many()
        staying = [self._ask(peer, ", of whom others were cancelled") for peer in PEERS]
        for question in leaving:
            question.cancel()
        await self._judged(staying)
        await self._judged(self._many(", many at once after as many were cancelled"))
        for question in leaving:
            require(bool(question.outcome), f"{question.what} was cancelled, and has not ended")

    async def _meanwhile(self, what: str, hook: Callable[[], Any]) -> Any:
        """The answer of a hook that reloads data. Clients are checked during the reload and after it."""
        pending = call_hook(hook)
        await self._judged([self._ask(peer, f" during {what}") for peer in PEERS])
        try:
            answer = await pending
        except Exception as error:
            raise AssertionError(f"{what} raised {error!r}") from error
        await self._judged([self._ask(peer, f" after {what}") for peer in PEERS])
        return answer

    def _many(self, when: str = "") -> list[_Question]:
        return [self._ask(peer, when) for _ in range(AT_ONCE) for peer in PEERS]

    def _ask(self, peer: str, when: str = "") -> _Question:
        what = f"check() of {peer}{when}"
        began = self._seconds()
        try:
            answer = self._filter.check(PEERS[peer])
            coming = call_hook(lambda: answer)
        except Exception as error:
            raise AssertionError(f"{what} raised {error!r}") from error
        blocked = self._seconds() - began
        self._stalls += blocked > MAX_BLOCKING_SECONDS
        require(
            self._stalls <= MAX_STALLS,
            f"{what} blocked for {blocked:.2f} s, as {MAX_STALLS} did before it: no client was served meanwhile",
        )
        require(id(answer) not in self._given, f"{what} answered with a Deferred that it gave before")
        if isinstance(answer, Deferred):
            self._given[id(answer)] = answer
        return _Question(what, coming)

    async def _judged(self, questions: Iterable[_Question]) -> None:
        """Wait for the verdicts, and count them."""
        for question in questions:
            await question.verdict()
            self._verdicts += 1
