"""check_filter finds what is wrong with an IP filter, and nothing where nothing is."""

from __future__ import annotations

import gc
from contextlib import suppress

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from twisted_smtpguard.interfaces import (
    PASS,
    TRUST,
    IIPFilter,
    IPreparedReload,
    IReloadable,
    Refused,
    refuse,
)
from twisted_smtpguard.replies import LOCAL_ERROR
from twisted_smtpguard.testing import check_filter
from twisted_smtpguard.testing.filters import PEERS
from twisted_smtpguard.testing.judging import AT_ONCE


@implementer(IIPFilter)
class Good:
    """The tests below spoil one thing each. `clock` runs while the filter is checked."""

    def __init__(self, clock):
        self.clock = clock
        self.asked = 0
        self.waiting = {}

    def check(self, peer):
        self.asked += 1
        return PASS

    def look_up(self, verdict=PASS):
        return deferLater(self.clock, 1, lambda: verdict)


def spoilt(*interfaces, **spoils):
    """A filter with other methods, and how to check it: the number of its verdicts."""
    clock = Clock()
    ip_filter = type("Spoilt", (Good,), spoils)(clock)
    alsoProvides(ip_filter, *interfaces)
    return checked(ip_filter, clock)


def checked(ip_filter, clock):
    outcomes = []
    check_filter(ip_filter, seconds=clock.seconds).addBoth(outcomes.append)
    for _ in range(100):
        clock.advance(1)
    (outcome,) = outcomes
    if isinstance(outcome, Failure):
        outcome.raiseException()
    assert clock.getDelayedCalls() == []
    return outcome


def late(self, peer):
    return self.look_up(refuse())


async def coroutine(self, peer):
    await self.look_up()
    return TRUST


def now_and_then(self, peer):
    self.asked += 1
    return [PASS, succeed(TRUST), self.look_up()][self.asked % 3]


async def ends_late(self, peer):
    """As a client of some other network service: it says goodbye before it goes."""
    try:
        return await self.look_up()
    except CancelledError:
        await deferLater(self.clock, 0.5)
        raise


def shares_look_ups(self, peer):
    """One look-up for all who wait for the same address."""
    waiting = self.waiting.setdefault(peer.address, [])
    answer = Deferred(waiting.remove)
    waiting.append(answer)
    if len(waiting) == 1:
        self.clock.callLater(1, lambda: [each.callback(PASS) for each in self.waiting.pop(peer.address)])
    return answer


@pytest.mark.parametrize("check", [late, coroutine, now_and_then, ends_late, shares_look_ups])
def test_a_filter_that_keeps_to_its_contract_passes(check) -> None:
    assert spoilt(check=check) == spoilt()


def test_the_number_of_verdicts_is_told():
    clock = Clock()
    good = Good(clock)
    verdicts = checked(good, clock)
    # Those who leave get none.
    assert verdicts == good.asked - AT_ONCE * len(PEERS)


def test_what_is_no_filter_is_said():
    with pytest.raises(AssertionError, match=r"the filter: .*IIPFilter"):
        checked(object(), Clock())


def needs_an_address(self, peer):
    return PASS if peer.address.is_global else refuse()


def needs_ports(self, peer):
    return PASS if peer.address is None or peer.port + peer.local_port else refuse()


def takes_addresses_for_text(self, peer):
    assert "%" not in str(peer.address)
    return PASS


async def answers_nothing(self, peer):
    return None


def raises_refused(self, peer):
    raise Refused(LOCAL_ERROR)


def blocks(self, peer):
    self.clock.rightNow += 0.26
    return PASS


async def blocks_in_coroutine(self, peer):
    return blocks(self, peer)


def blocks_for_new_addresses(self, peer):
    if peer.address is not None and peer.address not in self.waiting:
        self.waiting[peer.address] = True
        blocks(self, peer)
    return PASS


def blocks_for_one_kind_of_peer(self, peer):
    return blocks(self, peer) if peer.address is None and not peer.proxied else PASS


def blocks_when_others_wait(self, peer):
    """It goes through all who wait."""
    self.asked += 1
    self.clock.rightNow += self.asked * 0.002
    return self.look_up().addBoth(lambda verdict: setattr(self, "asked", self.asked - 1) or verdict)


def gives_one_deferred_twice(self, peer):
    return self.waiting.setdefault(peer, succeed(PASS))


def gets_stuck_by_two_at_once(self, peer):
    assert not self.waiting
    self.waiting[peer] = True
    return self.look_up().addCallback(lambda verdict: self.waiting.clear() or verdict)


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        (lambda self: PASS, "the filter: .*check"),
        (lambda self, peer: None, r"check\(\) of IPv4 answered None, not a Verdict"),
        (lambda self, peer: "pass", "answered 'pass', not a Verdict"),
        (lambda self, peer: succeed(True), "answered True, not a Verdict"),
        (answers_nothing, "answered None, not a Verdict"),
        (lambda self, peer: fail(OSError("broken")), r"check\(\) of IPv4 raised OSError\('broken'\)"),
        (raises_refused, r"check\(\) of IPv4 raised Refused"),
        (needs_an_address, r"check\(\) of a UNIX socket raised AttributeError"),
        (needs_ports, r"check\(\) of no ports raised TypeError"),
        (takes_addresses_for_text, r"check\(\) of IPv6 link-local with a zone raised AssertionError"),
        (blocks, r"check\(\) of IPv6 under TLS blocked for 0\.26 s, as 5 did before it"),
        (blocks_in_coroutine, r"check\(\) of IPv6 under TLS blocked for 0\.26 s"),
        (blocks_for_new_addresses, "blocked for 0.26 s"),
        (blocks_for_one_kind_of_peer, "a UNIX socket, many at once blocked for 0.26 s"),
        (blocks_when_others_wait, "many at once blocked for 0.26 s"),
        (gives_one_deferred_twice, "IPv4, many at once answered with a Deferred that it gave before"),
        (gets_stuck_by_two_at_once, "IPv6, many at once raised AssertionError"),
    ],
)
def test_what_is_wrong_is_said(check, problem):
    with pytest.raises(AssertionError, match=problem):
        spoilt(check=check)


def test_a_check_may_take_a_quarter_of_a_second():
    def check(self, peer):
        self.clock.rightNow += 0.24
        return PASS

    assert spoilt(check=check) == spoilt()


def test_a_machine_that_stalls_now_and_then_is_not_the_fault_of_the_filter():
    def check(self, peer):
        self.asked += 1
        if self.asked % 120 == 1:  # five times in all
            self.clock.rightNow += 3
        return PASS

    assert spoilt(check=check) == spoilt()


async def swallows_cancel(self, peer):
    with suppress(CancelledError):
        await self.look_up()
        return PASS
    return await Deferred()


def canceller_raises(self, peer):
    answer = Deferred(lambda _: 1 / 0)
    self.clock.callLater(1, lambda: answer.called or answer.callback(PASS))
    return answer


def cancels_the_look_up_of_others(self, peer):
    """Everybody has a Deferred of his own, but each one's canceller stops the look-up of all."""

    def cancel(_):
        for other in self.waiting.pop(peer.address, []):
            if not other.called:
                other.errback(CancelledError())

    waiting = self.waiting.setdefault(peer.address, [])
    waiting.append(Deferred(cancel))
    if len(waiting) == 1:
        self.clock.callLater(1, lambda: [each.callback(PASS) for each in self.waiting.pop(peer.address, [])])
    return waiting[-1]


async def loses_a_place_when_cancelled(self, peer):
    self.asked += 1
    assert self.asked <= 200, "no place is free"
    verdict = await self.look_up()
    self.asked -= 1
    return verdict


def leaves_an_error_behind(self, peer):
    def cancel(_):
        Deferred().errback(OSError("nobody takes this"))

    answer = Deferred(cancel)
    self.clock.callLater(1, lambda: answer.called or answer.callback(PASS))
    return answer


def leaves_an_error_in_a_cycle(self, peer):
    def cancel(_):
        request.errback(OSError("nobody takes this"))

    request, answer = Deferred(), Deferred(cancel)
    request.owner = [request]
    self.clock.callLater(1, lambda: answer.called or answer.callback(PASS))
    return answer


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        (swallows_cancel, r"check\(\) of IPv4 was cancelled, and has not ended"),
        (canceller_raises, r"check\(\) of IPv4 was cancelled, and its canceller raised ZeroDivisionError"),
        (cancels_the_look_up_of_others, "of whom others were cancelled raised CancelledError"),
        (loses_a_place_when_cancelled, "after as many were cancelled raised AssertionError"),
        (leaves_an_error_behind, r"left unhandled in a Deferred: \[OSError"),
    ],
)
def test_what_goes_wrong_when_a_client_leaves_is_said(check, problem):
    with pytest.raises(AssertionError, match=problem):
        spoilt(check=check)


def test_an_error_that_only_the_garbage_collector_finds_is_said():
    gc.disable()
    try:
        with pytest.raises(AssertionError, match="left unhandled in a Deferred"):
            spoilt(check=leaves_an_error_in_a_cycle)
    finally:
        gc.enable()


def breaks(self):
    self.check = lambda peer: None


def breaks_while_it_lasts(self):
    self.check = lambda peer: None
    return deferLater(self.clock, 1, lambda: delattr(self, "check"))


def breaks_in_the_end(self):
    return self.look_up().addCallback(lambda _: breaks(self))


async def cannot_read(self):
    raise OSError("cannot read")


def nothing(self):
    return None


@pytest.mark.parametrize(
    ("interface", "spoils", "problem"),
    [
        (IReloadable, {}, "the filter: .*reload"),
        (IReloadable, {"reload": lambda self: 1 / 0}, r"reload\(\) raised ZeroDivisionError"),
        (IReloadable, {"reload": cannot_read}, r"reload\(\) raised OSError\('cannot read'\)"),
        (IReloadable, {"reload": breaks}, r"check\(\) of IPv4 during reload\(\) answered None"),
        (IReloadable, {"reload": breaks_in_the_end}, r"IPv4 after reload\(\) answered None"),
        (IReloadable, {"reload": breaks_while_it_lasts}, r"IPv4 during reload\(\) answered None"),
        (IPreparedReload, {"reload": nothing}, "the filter: .*prepare_reload"),
        (
            IPreparedReload,
            {"reload": nothing, "prepare_reload": cannot_read},
            r"prepare_reload\(\) raised OSError",
        ),
        (
            IPreparedReload,
            {"reload": nothing, "prepare_reload": nothing},
            r"prepare_reload\(\) answered None, which cannot be called",
        ),
        (
            IPreparedReload,
            {"reload": nothing, "prepare_reload": lambda self: lambda: 1 / 0},
            r"what prepare_reload\(\) answered raised ZeroDivisionError",
        ),
        (
            IPreparedReload,
            {"reload": nothing, "prepare_reload": lambda self: lambda: breaks(self)},
            r"IPv4 during what prepare_reload\(\) answered answered None",
        ),
    ],
)
def test_what_goes_wrong_in_a_reload_is_said(interface, spoils, problem):
    with pytest.raises(AssertionError, match=problem):
        spoilt(interface, **spoils)


def test_a_filter_is_asked_during_and_after_each_reload():
    def reload(self):
        return self.look_up(None)

    async def prepare_reload(self):
        await self.look_up()
        return lambda: None

    once = spoilt(IReloadable, reload=reload)
    assert once > spoilt()
    assert spoilt(IPreparedReload, reload=reload, prepare_reload=prepare_reload) > once
