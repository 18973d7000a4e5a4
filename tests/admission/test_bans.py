"""The list of bans: exact ends, doubling, forgetting, networks, and what it costs at its bound."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from twisted.internet.task import Clock

from twisted_smtpguard import Limits
from twisted_smtpguard.admission import bans
from twisted_smtpguard.admission.bans import CLIENTS_OF_NETWORK, FORGOTTEN_SECONDS, BanList
from twisted_smtpguard.records.recordtables import BAN, FORMER_BAN, RecordTables
from twisted_smtpguard.values import Record

NOW = 1_800_000_000.0
DAY = 86_400.0
CLIENT = "192.0.2.1"


class Listed:
    """A list of bans with a clock."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.tables = RecordTables(self.clock.seconds)
        limits = {"ipv4_networks": (24,), "ipv6_networks": (56, 48), **limits}
        self.bans = BanList(Limits(**limits), self.tables[BAN], self.tables[FORMER_BAN], self.clock.seconds)

    def ban(self, key: str = CLIENT, *, dry_run: bool = False) -> list[tuple[str, float, int]]:
        """The bans that are made: of whom, for how long, and the number of its bans with this one."""
        made = self.bans.ban(key, 25, "early_talker:25", dry_run=dry_run)
        return [(each.key, each.until - self.clock.seconds(), each.times) for each in made]

    def banned(self, key: str = CLIENT) -> bool:
        return (self.bans.of(key) or self.bans.of_networks(key)) is not None


def test_a_ban_holds_for_ten_minutes_and_not_a_moment_longer() -> None:
    it = Listed()
    assert not it.bans.may_hold(CLIENT)
    assert it.ban() == [(CLIENT, 600, 1)]
    assert it.bans.of(CLIENT) == (CLIENT, NOW + 600, 1, 25, "early_talker:25", False)
    assert not it.bans.may_hold("192.0.2.2")
    it.clock.advance(599.999)
    assert it.banned()
    assert it.bans.may_hold(CLIENT)
    assert len(it.bans) == 1
    it.clock.advance(0.001)
    assert not it.banned()
    assert (len(it.bans), [*it.bans.rows()], it.bans.may_hold(CLIENT)) == (0, [], False)


def test_each_return_doubles_it_up_to_a_day() -> None:
    it = Listed()
    lengths = []
    for times in range(1, 13):
        ((_, seconds, number),) = it.ban()
        assert number == times
        lengths.append(seconds)
        it.clock.advance(seconds)
    assert lengths == [600, 1200, 2400, 4800, 9600, 19_200, 38_400, 76_800, DAY, DAY, DAY, DAY]


@pytest.mark.parametrize(("seconds", "times"), [(FORGOTTEN_SECONDS - 1, 3), (FORGOTTEN_SECONDS, 1)])
def test_it_is_forgotten_a_week_after_its_end(seconds: float, times: int) -> None:
    it = Listed()
    it.ban()
    it.clock.advance(600)
    it.ban()
    it.clock.advance(1200 + seconds)
    assert it.ban() == [(CLIENT, 600 * 2 ** (times - 1), times)]


def test_who_is_forgiven_begins_anew_and_its_networks_are_free_too() -> None:
    it = Listed()
    for host in range(1, CLIENTS_OF_NETWORK + 1):
        it.ban(f"192.0.2.{host}")
    assert sorted(it.bans.lift("192.0.2.1")) == ["192.0.2.0/24", "192.0.2.1"]
    assert not it.banned("192.0.2.1")
    assert not it.banned("192.0.2.99")
    assert it.banned("192.0.2.2")
    assert it.bans.lift("192.0.2.1") == []
    it.clock.advance(601)
    assert it.ban("192.0.2.1") == [("192.0.2.1", 600, 1)]


def test_a_network_is_banned_with_the_fifth_of_its_clients_and_not_by_one_that_returns() -> None:
    it = Listed()
    for _ in range(10):
        it.clock.advance(it.ban()[0][1])
    for host in range(10, 14):
        assert it.ban(f"192.0.2.{host}") == [(f"192.0.2.{host}", 600, 1)]
        it.ban(f"198.51.{host}.1")
    assert not it.banned("192.0.2.99")
    assert not it.bans.may_hold("192.0.2.99")
    assert it.ban("192.0.2.14") == [("192.0.2.14", 600, 1), ("192.0.2.0/24", 600, 1)]
    assert it.bans.may_hold("192.0.2.99")
    assert it.banned("192.0.2.99")
    assert it.bans.of_networks("192.0.2.99") == (
        "192.0.2.0/24",
        NOW + it.clock.seconds() - NOW + 600,
        1,
        5,
        "clients",
        False,
    )
    assert not it.banned("192.0.3.1")
    # Its next client is banned, and it is not banned again meanwhile.
    assert it.ban("192.0.2.15") == [("192.0.2.15", 600, 1)]


def test_only_bans_that_hold_at_the_time_count_for_a_network() -> None:
    it = Listed()
    for host in range(1, 5):
        it.ban(f"192.0.2.{host}")
    it.clock.advance(600)
    for host in range(5, 9):
        assert len(it.ban(f"192.0.2.{host}")) == 1
    assert len(it.ban("192.0.2.9")) == 2


def test_a_network_that_is_banned_again_is_for_twice_as_long() -> None:
    it = Listed()
    for host in range(1, 6):
        it.ban(f"192.0.2.{host}")
    it.clock.advance(600)
    for host in range(11, 15):
        it.ban(f"192.0.2.{host}")
    assert it.ban("192.0.2.15")[1] == ("192.0.2.0/24", 1200, 2)


def test_a_wider_network_is_banned_when_narrower_ones_have_offenders_and_not_for_one_of_them() -> None:
    it = Listed()
    for number in range(8):
        it.ban(f"2001:db8:1:{number:x}::/64")
    assert it.banned("2001:db8:1:ff::/64")
    assert not it.banned("2001:db8:1:100::/64")
    made = []
    for number in range(1, 5):
        assert len(made) <= 1
        made = it.ban(f"2001:db8:1:{number:x}00::/64")
    assert made[1:] == [("2001:db8:1::/48", 600, 1)]
    assert it.banned("2001:db8:1:ffff::/64")
    assert not it.banned("2001:db8:2::/64")


def test_without_networks_and_on_unix_sockets_only_the_client_is_banned() -> None:
    it = Listed(ipv4_networks=())
    for host in range(1, 20):
        assert len(it.ban(f"192.0.2.{host}")) == 1
    assert it.bans.lift("unix") == []
    assert not it.banned("192.0.2.99")


def test_what_others_have_banned_counts_and_what_they_have_lifted_does_not() -> None:
    it = Listed()
    for host in range(1, 6):
        it.tables[BAN].learn(f"192.0.2.{host}", Record("1 20 early_talker:20", NOW + 600))
    it.tables[BAN].learn("192.0.2.1", None)
    assert len(it.ban("192.0.2.5")) == 1
    assert len(it.ban("192.0.2.6")) == 2
    it.tables[BAN].learn("198.51.100.0/24", Record("3 5 clients", NOW + 600))
    assert it.banned("198.51.100.7")
    it.tables[BAN].learn("198.51.100.0/24", None)
    assert not it.banned("198.51.100.7")


@pytest.mark.parametrize("value", ["", "x", "-1", "1e9 1e9", "9" * 150, "1 2 3 4 5 6", "\u0663 1 x"])
def test_what_another_program_has_written_is_a_ban_that_ends(value: str) -> None:
    it = Listed()
    it.tables[BAN].learn(CLIENT, Record(value, NOW + 5))
    it.tables[FORMER_BAN].learn(CLIENT, Record(value, NOW + 5))
    ban = it.bans.of(CLIENT)
    assert ban is not None
    assert (ban.times, ban.dry_run) == (1, False)
    assert [*it.bans.rows()] == [ban]
    assert it.ban()[0][1] <= DAY
    it.clock.advance(DAY)
    assert not it.banned()


@pytest.mark.parametrize("key", ["x", "192.0.2.1/x", "192.0.2.300", "/", ":", "192.0.2.0/99999"])
def test_a_ban_of_nobody_that_another_program_has_written_hits_nobody(key: str) -> None:
    it = Listed()
    it.tables[BAN].learn(key, Record("1 20 x", NOW + 5))
    it.tables[BAN].learn(key, Record("1 5 clients", NOW + 5))
    assert not it.banned()
    assert [each.key for each in it.bans.rows()] == [key]


def test_dry_run_leaves_later_bans_as_long_as_if_it_had_not_been() -> None:
    it = Listed()
    assert [it.ban(dry_run=True)[0][1:] for _ in range(3)] == [(600, 1), (1200, 2), (2400, 3)]
    assert it.ban()[0][1:] == (600, 1)
    assert it.ban()[0][1:] == (1200, 2)
    assert it.ban(dry_run=True)[0][1:] == (2400, 3)


def test_dry_run_bans_no_network_in_earnest() -> None:
    it = Listed()
    for host in range(1, 5):
        it.ban(f"192.0.2.{host}", dry_run=True)
    assert len(it.ban("192.0.2.5")) == 1
    assert it.ban("192.0.2.6", dry_run=True)[1][0] == "192.0.2.0/24"
    for host in range(7, 11):
        it.ban(f"192.0.2.{host}")
    assert it.ban("192.0.2.11")[1] == ("192.0.2.0/24", 600, 1)


def test_the_memory_of_networks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bans, "_MAX_NETWORKS", 100)
    it = Listed()
    for number in range(1000):
        for _ in range(2):
            it.ban(f"10.{number >> 8}.{number & 255}.1")
    assert len(it.bans._banned_of) == 100


MOST, OCTETS = 10_000, 1300


def test_a_ban_at_the_bound_costs_no_more_than_is_said() -> None:
    """Of clients with the longest keys, none of which shares a network with another: with its record, that of how
    often it was, and what is remembered of its two networks."""
    it = Listed()
    tracemalloc.start()
    try:
        for number in range(MOST):
            it.bans.ban(f"2001:db8:{number:x}:100::/64", 25, "early_talker:20,auth_failed:5", dry_run=False)
            it.clock.advance(0.001)
        octets, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(it.bans) == MOST
    assert octets / MOST <= OCTETS
