"""Which clients are known: by their mail, for a time, and by what the operator has named."""

from __future__ import annotations

import tracemalloc
from ipaddress import IPv4Address

import attrs
import pytest
from twisted.internet.task import Clock

from twisted_smtpguard import Limits
from twisted_smtpguard.admission.known import KnownClients
from twisted_smtpguard.counters.redisstore import _record, _words_of_record
from twisted_smtpguard.records.records import Records
from twisted_smtpguard.values import Record

DAY = 86400
ONE, OTHER = "192.0.2.1", "192.0.2.2"


class Known(KnownClients):
    """The known clients of a guard whose clock a test sets. `changes` has the keys that were told to others."""

    def __init__(self, **limits: float) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        super().__init__(Limits(**limits), Records("known", 0, self.clock.seconds), self.clock.seconds)
        self.changes: list[str] = []
        self.records.on_change(lambda key, record: self.changes.append(key))

    def knows(self, key: str = ONE) -> bool:
        return self.has(key, None)


def test_nobody_is_known_before_a_mail_is_accepted() -> None:
    known = Known()
    assert not known.knows()
    known.accepted(ONE)
    assert known.knows()
    assert not known.knows(OTHER)


@pytest.mark.parametrize("seconds", [1, 3600, DAY, 30 * DAY])
def test_a_client_is_known_for_so_long_after_its_last_mail_and_no_longer(seconds: float) -> None:
    known = Known(known_for=seconds)
    known.accepted(ONE)
    known.clock.advance(seconds - 0.1)
    assert known.knows()
    known.accepted(ONE)
    known.clock.advance(seconds - 1.1)
    assert known.knows()
    known.clock.advance(1.2)
    assert not known.knows()


def test_however_many_mails_come_a_client_changes_something_once_a_day() -> None:
    known = Known()
    for _ in range(3 * 24 * 10):
        known.accepted(ONE)
        known.clock.advance(360)
    assert known.changes == [ONE] * 3


def test_a_client_whose_mail_was_refused_as_junk_is_not_known_until_its_next_mail() -> None:
    known = Known()
    known.accepted(ONE)
    known.accepted(OTHER)
    known.refused(ONE)
    assert (known.knows(ONE), known.knows(OTHER)) == (False, True)
    known.accepted(ONE)
    assert known.knows()


def test_to_forget_a_client_tells_whether_it_was_known() -> None:
    known = Known()
    known.accepted(ONE)
    assert (known.forget(ONE), known.forget(ONE), known.knows()) == (True, False, False)


def test_with_no_time_nobody_is_known_by_mail_but_whom_the_operator_names() -> None:
    known = Known(known_for=0)
    known.accepted(ONE)
    assert (known.knows(), known.changes) == (False, [])
    known.is_listed = IPv4Address(ONE).__eq__
    assert known.has(ONE, IPv4Address(ONE))
    assert not known.has(OTHER, IPv4Address(OTHER))


def test_whom_the_operator_names_stays_known_whatever_it_sends() -> None:
    known = Known()
    known.is_listed = lambda address: True
    known.refused(ONE)
    known.clock.advance(365 * DAY)
    assert known.has(ONE, IPv4Address(ONE))
    assert not known.has("unix", None)


def test_a_shorter_time_holds_at_once_for_clients_that_are_known_already() -> None:
    known = Known()
    known.accepted(ONE)
    known.clock.advance(2 * DAY)
    known.set_limits(attrs.evolve(Limits(), known_for=DAY))
    assert not known.knows()
    known.set_limits(Limits())
    assert known.knows()


def test_the_table_is_bounded_and_the_one_whose_mail_is_oldest_goes() -> None:
    known = Known(max_known_clients=3)
    for key in "abc":
        known.accepted(key)
        known.clock.advance(DAY)
    known.accepted("a")
    known.accepted("d")
    assert [key for key in "abcd" if known.knows(key)] == ["a", "c", "d"]


def test_the_memory_of_a_full_table_is_bounded() -> None:
    known = Known(max_known_clients=10_000)
    tracemalloc.start()
    try:
        for number in range(30_000):
            known.accepted(f"2001:db8:{number:x}::/64")
            known.clock.advance(1)
        octets, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(known.records) == 10_000
    # With the list of changes of this test.
    assert octets < 10_000 * 700 + 30_000 * 100


@pytest.mark.parametrize("value", ["", "yesterday", "-1", "inf", "nan", "1e999"])
def test_a_record_that_makes_no_sense_makes_nobody_known(value: str) -> None:
    known = Known()
    known.records.learn(ONE, Record(value, known.clock.seconds() + DAY))
    assert not known.knows()
    known.accepted(ONE)
    assert known.knows()


def test_a_client_is_told_with_its_mail_and_when_it_is_forgotten() -> None:
    known = Known(known_for=DAY)
    now = known.clock.seconds()
    known.accepted(ONE)
    known.clock.advance(10)
    known.accepted(OTHER)
    assert dict(known.by_mail()) == {ONE: (False, now, now + DAY), OTHER: (False, now + 10, now + 10 + DAY)}
    known.is_listed = IPv4Address(ONE).__eq__
    assert known.standing(ONE, IPv4Address(ONE)) == (True, now, None)
    known.clock.advance(2 * DAY)
    assert known.standing(ONE, IPv4Address(ONE)) == (True, None, None)
    assert known.standing(OTHER, None) is None
    assert dict(known.by_mail()) == {}


@pytest.mark.parametrize("skew", [-DAY, DAY])
def test_a_clock_that_is_a_day_off_makes_nobody_known_for_longer_or_for_less(skew: float) -> None:
    ours, theirs = Known(), Known()
    theirs.clock.rightNow += skew

    def later(seconds: float) -> None:
        ours.clock.advance(seconds)
        theirs.clock.advance(seconds)

    def share(key: str) -> None:
        # As a store does: it is told how long the record lives, and tells that.
        words = _words_of_record(ours.records.get(key), ours.clock.seconds())
        theirs.records.learn(key, _record(*words, theirs.clock.seconds()))

    ours.accepted(ONE)
    later(29 * DAY)
    ours.accepted(OTHER)
    later(3600)
    share(ONE)
    share(OTHER)
    standing = theirs.standing(OTHER, None)
    assert standing is not None
    assert standing.accepted_at == pytest.approx(theirs.clock.seconds() - 3600, abs=0.01)
    # What is an hour old is not renewed, there as here.
    theirs.accepted(OTHER)
    assert theirs.changes == []
    later(DAY - 3600 - 1)
    assert ours.knows() and theirs.knows()
    later(2)
    assert not (ours.knows() or theirs.knows())
    later(29 * DAY - 2)
    assert ours.knows(OTHER) and theirs.knows(OTHER)
    later(2)
    assert not (ours.knows(OTHER) or theirs.knows(OTHER))
