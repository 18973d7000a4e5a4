"""The most that clients had of each limit: in spans, in groups, in bounded memory, whoever comes."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from twisted_smtpguard import Limits, Rate
from twisted_smtpguard.admission.peaks import (
    ACCEPTED,
    BANNED,
    GROUPS,
    MAX_CLIENTS,
    NOTED,
    NOTED_LIMITS,
    REFUSED,
    ClientPeaks,
    span_of,
)
from twisted_smtpguard.records.records import Records
from twisted_smtpguard.values import Record

LIMITS = Limits.for_profile("edge")
LIMIT = "message_rate"
BAN = Record("", 1e10)


def made(bans: Records | None = None) -> ClientPeaks:
    return ClientPeaks(LIMITS, Clock().seconds, bans)


def no_bans() -> Records:
    return Records("ban", 0, Clock().seconds)


def counted(peaks: ClientPeaks, key: str, events: int, limit: str = LIMIT) -> None:
    """A client has one event after the other, of which those are noted that have to be."""
    for count in range(1, events + 1):
        if count in NOTED:
            peaks.note(key, limit, count)


def end_of_span(count: int) -> int:
    return next(last for last in range(count, 2 * count + 2) if span_of(last + 1) != span_of(count))


def test_spans_are_exact_up_to_sixteen_and_an_eighth_above() -> None:
    assert [span_of(count) for count in range(17)] == [*range(17)]
    for count in range(1, 5000):
        assert end_of_span(count) < count * 9 / 8 + 1
    assert span_of(2**40) < 256
    assert sorted(NOTED)[:18] == [*range(2, 17), 18, 20, 22]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 20),
            st.sampled_from(["accepted", "refused", "banned", "events"]),
            st.integers(1, 300),
        )
    )
)
def test_the_peaks_are_those_of_a_computation_that_keeps_everything(
    happenings: list[tuple[int, str, int]],
) -> None:
    bans = no_bans()
    peaks = made(bans)
    most: Counter[str] = Counter()
    marks: dict[str, set[str]] = {}
    for client, what, events in happenings:
        key = f"192.0.2.{client}"
        if what == "events":
            counted(peaks, key, events)
            most[key] = max(most[key], events)
        elif what == "banned":
            # It was refused before.
            marks.setdefault(key, set()).update((REFUSED, BANNED))
            peaks.refused(key)
            bans.put(key, BAN.value, BAN.end)
        else:
            marks.setdefault(key, set()).add(what)
            getattr(peaks, what)(key)
    expected: dict[str, Counter[int]] = {group: Counter() for group in GROUPS}
    for key, marked in marks.items():
        group = ACCEPTED if ACCEPTED in marked else BANNED if BANNED in marked else REFUSED
        # That a client has had one event is not noted.
        expected[group][end_of_span(most[key]) if most[key] > 1 else 0] += 1
    assert peaks.of_limit(LIMIT) == expected
    assert all(set(peaks.of_limit(name)[ACCEPTED]) <= {0} for name in NOTED_LIMITS if name != LIMIT)


def test_a_client_that_is_forgotten_stays_counted() -> None:
    peaks = made()
    peaks.accepted("busy")
    counted(peaks, "busy", 9)
    for client in range(MAX_CLIENTS):
        peaks.accepted(str(client))
    assert peaks.sizes()["peaks_accepted"] == MAX_CLIENTS
    assert peaks.of_limit(LIMIT)[ACCEPTED] == {0: MAX_CLIENTS, 9: 1}


def test_no_crowd_of_strangers_makes_the_guard_forget_a_client_with_accepted_mail() -> None:
    peaks = made()
    counted(peaks, "honest", 5)
    peaks.accepted("honest")
    for client in range(3 * MAX_CLIENTS):
        peaks.note(str(client), LIMIT, 4)
        peaks.refused(str(client))
    counted(peaks, "honest", 7)
    assert peaks.of_limit(LIMIT) == {ACCEPTED: {7: 1}, REFUSED: {4: 3 * MAX_CLIENTS}, BANNED: {}}


def test_a_client_without_mail_and_refusal_is_in_no_group() -> None:
    peaks = made()
    counted(peaks, "192.0.2.1", 5)
    assert peaks.of_limit(LIMIT) == {group: {} for group in GROUPS}
    for client in range(2 * MAX_CLIENTS):
        peaks.note(str(client), LIMIT, 3)
    assert peaks.of_limit(LIMIT) == {group: {} for group in GROUPS}


def test_a_ban_that_is_lifted_or_of_a_network_or_of_a_client_of_others_is_no_banned_client() -> None:
    bans = no_bans()
    peaks = made(bans)
    peaks.refused("192.0.2.1")
    for key in ("192.0.2.0/24", "192.0.2.2"):
        bans.put(key, BAN.value, BAN.end)
        bans.learn(key, BAN)
    bans.learn("192.0.2.1", None)
    assert peaks.of_limit(LIMIT) == {ACCEPTED: {}, REFUSED: {0: 1}, BANNED: {}}
    bans.learn("192.0.2.1", BAN)
    assert peaks.of_limit(LIMIT) == {ACCEPTED: {}, REFUSED: {}, BANNED: {0: 1}}


@pytest.mark.parametrize(
    ("change", "begins_anew"),
    [
        ({"message_rate": Rate(5, 60)}, True),
        ({"connection_rate": Rate(5, 60)}, False),
        ({"connection_rate": Rate(60, 61)}, True),
        ({"max_connections_per_client": 0}, True),
        ({"ipv6_client_prefix": 56}, True),
        ({"max_errors": 7}, False),
        ({"dry_run": {"connection_rate"}}, False),
    ],
)
def test_peaks_begin_anew_where_those_from_before_would_mean_something_else(
    change: dict[str, object], begins_anew: bool
) -> None:
    clock = Clock()
    peaks = ClientPeaks(LIMITS, clock.seconds)
    peaks.accepted("192.0.2.1")
    clock.advance(5)
    peaks.set_limits(attrs.evolve(LIMITS, **change))  # type: ignore[arg-type]
    assert (peaks.since, peaks.sizes()["peaks_accepted"]) == ((5, 0) if begins_anew else (0, 1))


def test_memory_is_bounded() -> None:
    tracemalloc.start()
    try:
        peaks = made()
        for client in range(2 * MAX_CLIENTS):
            for word, happened in (("1234", peaks.accepted), ("5678", peaks.refused)):
                key = f"2001:db8:{client:x}:{word}::/64"
                happened(key)
                for limit in NOTED_LIMITS:
                    peaks.note(key, limit, client + 2)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peaks.sizes() == {"peaks_accepted": MAX_CLIENTS, "peaks_others": MAX_CLIENTS}
    assert 3_000_000 < size < 6_000_000
