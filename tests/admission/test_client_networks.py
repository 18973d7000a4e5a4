"""The limits per client hold for its networks too, each wider one with a multiple of what the next narrower one has."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, ip_network
from typing import Any

import attrs
import pytest
from fakes import Conversation, FakeFilter, Guard
from hypothesis import given
from hypothesis import strategies as st
from logbook import Logbook, logbook

from twisted_smtpguard.admission.clients import Place, client_key, networks_of
from twisted_smtpguard.counters.decision import fits
from twisted_smtpguard.interfaces import TRUST
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.values import Wanted

WIDE = {"ipv4_networks": (24, 16), "ipv6_networks": (56, 48), "network_factor": 3}
MAIL, RCPT = "MAIL FROM:<a@b>", "RCPT TO:<c@d>"
RATES = ("connection_rate", "message_rate", "recipient_rate")
LIMITS = ("max_connections_per_client", *RATES)
each_limit = pytest.mark.parametrize("limit", LIMITS)
each_rate = pytest.mark.parametrize("limit", RATES)
GREETED = ("EHLO x", MAIL)


@pytest.fixture
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def guard_with(limit: str, most: int = 1, **more: Any) -> Guard:
    """A guard with one limit: so many connections at once of each client, or so many events of it in 60 s."""
    return Guard(**{**WIDE, limit: Rate(most, 60) if limit in RATES else most, **more})


def does(guard: Guard, limit: str, host: str) -> bool:
    """Whether a client may do once more what the limit counts. It stays connected."""
    client = guard.connect(host)
    steps = {"message_rate": GREETED, "recipient_rate": (*GREETED, RCPT)}.get(limit, ())
    return client.codes(*steps)[-1] in (220, 250)


def addresses(of: Callable[[int], str], number: int) -> list[str]:
    return [of(each) for each in range(number)]


# The keys of networks.


@pytest.mark.parametrize(
    ("key", "networks"),
    [
        ("unix", []),
        ("192.0.2.1", ["192.0.2.0/24", "192.0.0.0/16"]),
        ("192.0.2.0/24", ["192.0.0.0/16"]),
        ("192.0.0.0/16", []),
        ("2001:db8:1:ff12::/64", ["2001:db8:1:ff00::/56", "2001:db8:1::/48"]),
        ("2001:db8:1:ff12::1", ["2001:db8:1:ff00::/56", "2001:db8:1::/48"]),
        ("2001:db8:1::/52", ["2001:db8:1::/48"]),
        ("::/64", ["::/56", "::/48"]),
    ],
)
def test_a_client_is_in_each_network_that_is_wider_than_itself(key: str, networks: list[str]) -> None:
    assert networks_of(key, (24, 16), (56, 48)) == tuple(networks)


@given(st.integers(2**48, 2**128 - 1), st.integers(2, 128), st.integers(1, 127))
def test_the_network_of_a_client_is_that_of_its_address(number: int, own: int, bits: int) -> None:
    address = IPv6Address(number)
    networks = networks_of(client_key(address, 32, own), (), (bits,))
    assert networks == ((client_key(address, 32, bits),) if bits < own else ())
    assert all(address in ip_network(network) for network in networks)


# How much a network may hold and do.


@each_limit
@pytest.mark.parametrize(
    ("of", "allowed"),
    [
        (lambda n: f"2001:db8::{n + 1:x}", 1),
        (lambda n: f"2001:db8:0:{n:x}::1", 3),
        (lambda n: f"2001:db8:0:{n:x}00::1", 9),
        (lambda n: f"2001:db8:{n + 1:x}::1", 40),
        (lambda n: "192.0.2.1", 1),
        (lambda n: f"192.0.2.{n}", 3),
        (lambda n: f"::ffff:192.0.{n}.2", 9),
        (lambda n: f"192.{n}.0.2", 40),
    ],
)
def test_a_crowd_has_the_allowance_of_the_network_in_which_it_is(
    limit: str, of: Callable[[int], str], allowed: int
) -> None:
    guard = guard_with(limit)
    assert [does(guard, limit, host) for host in addresses(of, 40)] == [True] * allowed + [False] * (
        40 - allowed
    )
    assert guard.factory.statistics.refusals == ({limit: 40 - allowed} if allowed < 40 else {})


@each_limit
def test_with_the_factor_1_a_network_may_do_what_one_client_may(limit: str) -> None:
    guard = guard_with(limit, 2, network_factor=1)
    assert [does(guard, limit, f"192.0.2.{number}") for number in range(4)] == [True, True, False, False]


@each_limit
@pytest.mark.parametrize(("bits", "allowed"), [(64, 7), (56, 21), (48, 63)])
def test_twenty_thousand_addresses_spread_over_a_network_have_its_allowance(
    limit: str, bits: int, allowed: int
) -> None:
    """The store is asked as a connection asks it. The table is smaller than the crowd."""
    clients = guard_with(limit, 7, max_tracked_clients=100).factory.clients
    held = clients.limit(limit)
    assert held is not None
    base, taken = int(IPv6Address("2001:db8::")), 0
    for number in range(20_000):
        spread = number * 0x9E3779B97F4A7C15 % 2 ** (128 - bits)
        wanted = held.wanted(clients.key_of(IPv6Address(base | spread)))
        taken += fits(wanted, clients.counting.take(wanted))  # type: ignore[arg-type]
    assert taken == allowed


@each_limit
def test_on_unix_sockets_there_is_no_network(limit: str) -> None:
    guard = guard_with(limit, 2)
    assert [each.client for each in guard.factory.clients.limit(limit).wanted("unix")] == ["unix"]  # type: ignore[union-attr]


@each_limit
def test_a_trusted_client_takes_nothing_from_its_network(limit: str) -> None:
    guard = guard_with(limit, ip_filters=[FakeFilter(lambda peer: TRUST)])
    assert [does(guard, limit, "192.0.2.1") for _ in range(20)] == [True] * 20
    assert sum(guard.factory.own_counters.sizes().values()) == 0


# All or nothing.


def look(guard: Guard, limit: str, *clients: str) -> list[int]:
    seconds = 60 if limit in RATES else 0
    seen: Any = guard.factory.counting.look([Wanted(limit, each, 0, seconds) for each in clients])
    return [count for count, _ in seen]


@each_limit
def test_what_the_client_is_refused_for_is_counted_in_no_network(limit: str) -> None:
    guard = guard_with(limit)
    assert [does(guard, limit, "192.0.2.1") for _ in range(30)] == [True] + [False] * 29
    assert look(guard, limit, "192.0.2.1", "192.0.2.0/24", "192.0.0.0/16") == [1, 1, 1]


@each_limit
def test_what_a_network_is_refused_for_is_counted_for_no_client_and_no_other_network(limit: str) -> None:
    guard = guard_with(limit)
    for number in range(30):
        does(guard, limit, f"192.0.2.{number}")
    assert look(guard, limit, "192.0.2.2", "192.0.2.3", "192.0.2.0/24", "192.0.0.0/16") == [1, 0, 3, 3]
    assert does(guard, limit, "192.0.3.1")


def test_a_connection_that_its_network_may_not_have_counts_against_no_rate() -> None:
    guard = guard_with("max_connections_per_client", connection_rate=Rate(100, 60))
    for number in range(30):
        does(guard, "max_connections_per_client", f"192.0.2.{number}")
    assert look(guard, "connection_rate", "192.0.2.3", "192.0.2.0/24") == [0, 3]


def test_a_place_is_given_back_in_every_network_once() -> None:
    guard = guard_with("max_connections_per_client")
    clients: list[Conversation] = [guard.connect(f"192.0.2.{number}") for number in range(3)]
    for client in clients:
        client.say("QUIT")
        client.disconnect()
    assert guard.factory.own_counters.sizes() == {"max_connections_per_client": 0}


def test_a_window_of_a_network_ends_as_that_of_a_client_does() -> None:
    guard = guard_with("message_rate")
    assert [does(guard, "message_rate", f"192.0.2.{number}") for number in range(4)] == [True] * 3 + [False]
    guard.clock.advance(59.9)
    assert not does(guard, "message_rate", "192.0.2.9")
    guard.clock.advance(0.1)
    assert [does(guard, "message_rate", f"192.0.2.{number}") for number in range(4)] == [True] * 3 + [False]


# The log.


@pytest.mark.parametrize(
    ("limit", "line"),
    [
        ("max_connections_per_client", "limit=3 value=4 code=421 port=4711"),
        ("connection_rate", "limit=3/60 value=4 code=421 port=4711"),
        ("message_rate", "limit=3/60 value=4 code=450 command=MAIL sender=a@b helo=x"),
        ("recipient_rate", "limit=3/60 value=4 code=450 command=RCPT sender=a@b recipient=c@d helo=x"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_refusal_names_the_network_with_its_limit_and_what_it_had(
    log: Logbook, limit: str, line: str, dry_run: bool
) -> None:
    guard = guard_with(limit, dry_run={limit} if dry_run else ())
    assert [does(guard, limit, f"192.0.2.{number}") for number in range(4)] == [True] * 3 + [dry_run]
    (logged,) = log.take("reject")
    dry = " dry_run=true" if dry_run else ""
    session = "".join(f" {word}" for word in logged.split() if word.startswith("session="))
    line = line.replace("code=421 ", "").replace("code=450 ", "") if dry_run else line
    assert logged == f"reject peer=192.0.2.3 reason={limit}{dry}{session} network=192.0.2.0/24 {line}"
    (row,) = guard.factory.context.events.history.refusals.of("192.0.2.3")
    assert (row["network"], row["limit"], row["value"]) == (
        "192.0.2.0/24",
        3 if "max" in limit else "3/60",
        4,
    )


@each_limit
def test_where_the_client_itself_has_too_much_no_network_is_named(limit: str, log: Logbook) -> None:
    guard = guard_with(limit, network_factor=1)
    for _ in range(2):
        does(guard, limit, "192.0.2.1")
    (line,) = log.take("reject")
    assert "network=" not in line


def test_the_network_of_one_refusal_is_not_told_with_the_next(log: Logbook) -> None:
    guard = guard_with("message_rate")
    client = [guard.greeted(f"192.0.2.{number}") for number in range(4)]
    assert [each.codes(MAIL) for each in client] == [[250]] * 3 + [[450]]
    client[3].say("FROB", "MAIL")
    assert ["network=" in line for line in log.take("reject")] == [True, False, False]


@each_limit
def test_in_dry_run_everything_is_counted_at_every_width(limit: str) -> None:
    guard = guard_with(limit, dry_run={limit})
    assert all(does(guard, limit, f"192.0.2.{number}") for number in range(20))
    assert look(guard, limit, "192.0.2.1", "192.0.2.0/24", "192.0.0.0/16") == [1, 20, 20]
    assert guard.factory.statistics.dry_run_refusals == {limit: 17}
    assert guard.factory.statistics.refusals == {}


# Memory.


@each_limit
def test_what_is_kept_ready_for_a_crowd_of_addresses_is_bounded(limit: str) -> None:
    """The most that may be: four networks of addresses that are long to write."""
    held = guard_with(limit, ipv6_networks=(60, 56, 52, 48)).factory.clients.limit(limit)
    assert held is not None
    keys = [f"2001:db8:{number:x}:ffff::/64" for number in range(1, 20_001)]
    tracemalloc.start()
    try:
        for key in keys:
            # A new text, as each connection has its own.
            held.wanted("".join([key[:1], key[1:]]))
        octets, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert octets < 2_000_000


def test_a_place_takes_no_memory_for_its_networks() -> None:
    """They are found again when it is given back."""
    guard = guard_with("max_connections_per_client")
    held = guard.factory.clients.limit("max_connections_per_client")
    counting = guard.factory.counting
    for each in range(5000):
        held.wanted(f"192.0.{each >> 8}.{each & 255}")  # type: ignore[union-attr]
    tracemalloc.start()
    try:
        places = [Place(counting, "192.0.2.1", (), held) for _ in range(1000)]
        octets, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(places) == 1000
    assert octets < 100_000


def test_whatever_networks_are_set_meanwhile_a_connection_gives_back_all_that_it_holds() -> None:
    limit = "max_connections_per_client"
    guard = guard_with(limit, 50)
    held = [guard.connect("192.0.2.1"), guard.connect("2001:db8::1")]

    def counts(*clients: str) -> list[int]:
        return look(guard, limit, *clients)

    def change(**limits: Any) -> None:
        guard.factory.set_limits(attrs.evolve(guard.factory.limits, **limits))

    change(ipv4_networks=(28, 24), ipv6_networks=(40,))
    assert counts("192.0.2.1", "192.0.2.0/28", "192.0.2.0/24", "192.0.0.0/16") == [1, 1, 1, 0]
    assert counts("2001:db8::/64", "2001:db8::/56", "2001:db8::/48", "2001:db8::/40") == [1, 0, 0, 1]
    change(ipv4_networks=())
    held.append(guard.connect("192.0.2.1"))
    assert counts("192.0.2.1", "192.0.2.0/28", "192.0.2.0/24") == [2, 0, 0]
    change(ipv4_client_prefix=26, ipv4_networks=(24,))
    held.append(guard.connect("192.0.2.1"))
    assert counts("192.0.2.1", "192.0.2.0/26", "192.0.2.0/24") == [2, 1, 3]
    # Without the limit nothing new is taken, and what is held stays counted.
    change(max_connections_per_client=0)
    held.append(guard.connect("192.0.2.1"))
    change(max_connections_per_client=5, ipv6_networks=(56,))
    assert counts("192.0.2.1", "192.0.2.0/26", "192.0.2.0/24") == [2, 2, 4]
    assert counts("2001:db8::/64", "2001:db8::/56", "2001:db8::/40") == [1, 1, 0]
    for client in held:
        client.disconnect()
    assert guard.factory.own_counters.sizes() == {limit: 0}
