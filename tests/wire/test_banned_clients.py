"""Bans on the wire: at their points and not before, of the client and of nobody else."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from fakes import Conversation, FakeFilter, Guard, SlowFilter, codes, delivery_without_nobody, refusal
from logbook import Logbook, logbook
from logins import Checker, plain
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twisted_smtpguard.admission.bans import CLIENTS_OF_NETWORK
from twisted_smtpguard.admission.offences import _MAX_TOLD, points_of
from twisted_smtpguard.interfaces import PASS, TRUST, CheckerUnavailable, Refused
from twisted_smtpguard.values import Record

CLIENT = "192.0.2.1"
NOW = 1_800_000_000.0
BANNED = "421 4.7.0 Too many offences, try again later\r\n"
GREETING = "220 guard.example ESMTP ready\r\n"
MAIL = ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA", "x", ".")


@pytest.fixture(autouse=True)
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def guarded(*args: Any, **limits: Any) -> Guard:
    clock = Clock()
    clock.rightNow = NOW
    unlimited = dict.fromkeys(("max_invalid_commands", "max_log_lines", "max_log_lines_per_client"), 0)
    limits = {"ban_after": 20, **unlimited, **limits}
    return Guard(*args, clock=clock, **limits)


def errs(guard: Guard, times: int, host: str = CLIENT) -> None:
    """So many invalid commands, which cost a point each."""
    client = guard.greeted(host)
    for _ in range(times):
        client.say("XYZZY")
    client.say("QUIT")


def banned(guard: Guard, host: str = CLIENT) -> bool:
    heard = guard.connect(host).heard()
    assert heard in (BANNED, GREETING)
    return heard == BANNED


def test_a_client_is_banned_at_its_points_and_not_before(log: Logbook) -> None:
    guard = guarded()
    errs(guard, 19)
    assert not banned(guard)
    errs(guard, 1)
    assert banned(guard)
    assert not banned(guard, "192.0.2.2")
    assert log.take("banned") == [
        f"banned peer={CLIENT} client={CLIENT} points=20 offences=unrecognized_command:20 times=1 "
        "until=2027-01-15T08:10:00Z"
    ]
    refused = [line for line in log.take("reject") if "ban_after" in line]
    assert refused == [f"reject peer={CLIENT} reason=ban_after limit=20 value=20 code=421 port=4711"]


def test_a_ban_ends_at_its_end_and_the_next_one_takes_twice_as_long() -> None:
    guard = guarded()
    errs(guard, 20)
    guard.clock.advance(599)
    assert banned(guard)
    guard.clock.advance(1)
    assert not banned(guard)
    errs(guard, 19)
    assert not banned(guard)
    errs(guard, 1)
    guard.clock.advance(1199)
    assert banned(guard)
    guard.clock.advance(1)
    assert not banned(guard)


def test_points_are_forgotten_ten_minutes_after_the_first_of_them() -> None:
    guard = guarded()
    errs(guard, 19)
    guard.clock.advance(600)
    errs(guard, 19)
    assert not banned(guard)
    errs(guard, 1)
    assert banned(guard)


def test_who_is_refused_since_it_is_banned_does_not_make_its_ban_longer() -> None:
    guard = guarded(ban_points={"connection_rate": 1, "early_talker": 20}, early_talker="refuse")
    errs(guard, 20)
    for _ in range(300):
        client = guard.connect(CLIENT)
        client.say("EHLO early")
        guard.clock.advance(2)
    assert not banned(guard)
    errs(guard, 19)
    assert not banned(guard)


def test_sessions_that_are_open_go_on_and_give_no_points_while_their_client_is_banned() -> None:
    guard = guarded()
    other = guard.greeted(CLIENT)
    errs(guard, 20)
    for _ in range(100):
        assert codes(other.say("XYZZY")) == [500]
    assert guard.factory.counting.look([points_of(CLIENT)]) == [(20, 600)]
    assert codes(other.say(*MAIL)) == [250, 250, 354, 250]


def test_more_points_than_needed_are_one_ban(log: Logbook) -> None:
    guard = guarded(ban_points={"unrecognized_command": 7})
    errs(guard, 5)
    (line,) = log.take("banned")
    assert " points=21 offences=unrecognized_command:21 times=1 " in line


def auth_fails(client: Conversation) -> None:
    client.say(f"AUTH PLAIN {plain(b'wrong')}")


def test_the_offences_of_all_sessions_count_and_are_told(log: Logbook) -> None:
    guard = guarded(checkers=[Checker(UnauthorizedLogin())])
    for _ in range(3):
        auth_fails(guard.greeted(CLIENT))
    errs(guard, 4)
    assert not banned(guard)
    errs(guard, 1)
    assert banned(guard)
    (line,) = log.take("banned")
    assert "offences=auth_failed:15,unrecognized_command:5" in line


def test_a_rejected_recipient_is_one_whoever_refuses_it_and_a_deferred_one_is_none() -> None:
    guard = guarded(delivery_without_nobody())
    client = guard.greeted(CLIENT)
    client.say("MAIL FROM:<a@b.example>", *["RCPT TO:<nobody@d.example>"] * 19)
    assert not banned(guard)
    client.say("RCPT TO:<nobody@d.example>")
    assert banned(guard)


def refuses(code: int, enhanced: str) -> Callable[..., None]:
    def hook(*_: object) -> None:
        raise Refused(refusal(code, "No", enhanced))

    return hook


def test_what_the_delivery_refuses_otherwise_and_what_fails_here_is_no_offence() -> None:
    guard = guarded(checkers=[Checker(CheckerUnavailable("the database is down"))])
    for _ in range(30):
        client = guard.greeted(CLIENT)
        client.say(f"AUTH PLAIN {plain()}")
        for hook, code, lines in (("begin", 550, 1), ("recipient", 450, 2), ("finish", 554, 5)):
            guard.delivery.answers = {hook: refuses(code, f"{code // 100}.1.1")}
            client.say("RSET", *MAIL[:lines])
    assert not banned(guard)
    assert guard.factory.counting.look([points_of(CLIENT)]) == [(0, 0.0)]


def test_the_table_can_be_changed_and_0_takes_an_offence_out() -> None:
    guard = guarded(ban_points={"unrecognized_command": 10, "bad_sequence": 0})
    client = guard.greeted(CLIENT)
    client.say(*["DATA"] * 50)
    assert not banned(guard)
    errs(guard, 2)
    assert banned(guard)


def test_without_the_limit_nobody_is_banned_and_bans_that_there_are_refuse_nobody() -> None:
    guard = guarded(ban_after=0)
    errs(guard, 100)
    guard.factory.records["ban"].put(CLIENT, "1 20 x", NOW + 600)
    assert not banned(guard)
    guard.factory.set_limits(attrs.evolve(guard.factory.limits, ban_after=20))
    assert banned(guard)
    guard.factory.set_limits(attrs.evolve(guard.factory.limits, ban_after=0))
    assert not banned(guard)


# Networks.


def errs_in_network(guard: Guard, hosts: range) -> None:
    for host in hosts:
        errs(guard, 20, f"192.0.2.{host}")


def test_a_network_is_banned_with_its_fifth_client(log: Logbook) -> None:
    guard = guarded(ipv4_networks=(24,))
    errs_in_network(guard, range(1, CLIENTS_OF_NETWORK))
    assert not banned(guard, "192.0.2.99")
    errs_in_network(guard, range(CLIENTS_OF_NETWORK, CLIENTS_OF_NETWORK + 1))
    assert banned(guard, "192.0.2.99")
    assert not banned(guard, "192.0.3.1")
    assert log.take("banned")[-1] == (
        "banned peer=192.0.2.5 client=192.0.2.0/24 points=5 offences=clients times=1 until=2027-01-15T08:10:00Z"
    )
    refused = log.take("reject")[-1]
    assert "peer=192.0.2.99 reason=ban_after network=192.0.2.0/24 limit=20 value=5" in refused


def test_a_million_addresses_of_one_ipv6_client_are_one() -> None:
    guard = guarded()
    for number in range(20):
        errs(guard, 1, f"2001:db8::{number:x}")
    assert banned(guard, "2001:db8::ffff")
    assert not banned(guard, "2001:db8:0:1::1")


# Who is never banned.


def test_a_trusted_client_is_never_banned_nor_its_network_for_it() -> None:
    trusts = FakeFilter(lambda peer: TRUST if str(peer.address) in ("192.0.2.1", "192.0.2.99") else PASS)
    guard = guarded(ip_filters=[trusts], ipv4_networks=(24,), max_errors=0)
    errs(guard, 100)
    assert not banned(guard)
    errs_in_network(guard, range(2, 7))
    assert banned(guard, "192.0.2.50")
    assert not banned(guard, "192.0.2.99")


def test_a_filter_that_answers_later_may_trust_a_client_of_a_network_that_is_banned() -> None:
    slow = SlowFilter()
    guard = guarded(ip_filters=[slow], ipv4_networks=(24,))
    for host in range(1, 6):
        guard.factory.bans.ban(f"192.0.2.{host}", 20, "x", dry_run=False)
    client, stranger = guard.connect("192.0.2.99"), guard.connect("192.0.2.98")
    offender = guard.connect("192.0.2.1")
    assert offender.heard() == BANNED
    assert slow.cancelled == 1
    for asked, verdict in zip(slow.asked, (TRUST, PASS), strict=False):
        asked.callback(verdict)
    assert (client.heard(), stranger.heard()) == (GREETING, BANNED)


def test_a_known_client_is_never_banned() -> None:
    guard = guarded(ipv4_networks=(24,))
    assert guard.greeted(CLIENT).codes(*MAIL)[-1] == 250
    errs(guard, 100)
    assert not banned(guard)
    errs_in_network(guard, range(2, 7))
    assert banned(guard, "192.0.2.50")
    assert not banned(guard)


def test_what_others_have_a_known_server_send_bans_it_only_once_its_latest_mail_was_refused_as_junk() -> None:
    guard = guarded(delivery_without_nobody())
    server = guard.greeted(CLIENT)
    unknown_recipients = ("MAIL FROM:<>", *["RCPT TO:<nobody@d.example>"] * 20, "RSET")
    assert server.codes(*MAIL)[-1] == 250
    server.say(*unknown_recipients)
    assert not banned(guard)
    guard.delivery.answers["finish"] = refuses(550, "5.7.1")
    assert server.codes(*MAIL)[-1] == 550
    del guard.delivery.answers["finish"]
    assert server.codes(*MAIL)[-1] == 250
    server.say(*unknown_recipients)
    assert not banned(guard)
    guard.delivery.answers["finish"] = refuses(550, "5.7.1")
    assert server.codes(*MAIL)[-1] == 550
    server.say(*unknown_recipients)
    assert banned(guard)


def test_all_peers_on_unix_sockets_are_never_banned() -> None:
    guard = guarded()
    guard.factory.offences.committed(Unix(), "not_smtp")  # type: ignore[arg-type]
    guard.factory.offences.committed(Unix(), "not_smtp")  # type: ignore[arg-type]
    assert len(guard.factory.bans) == 0


class Unix:
    """A connection to a UNIX socket."""

    key = peer_name = "unix"
    trusted = is_known = False
    names_client = True


PROXY = "10.0.0.1"
LOCAL = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"


def through(guard: Guard, header: bytes, *commands: str) -> str:
    """What a client that comes through the proxy is told, before and after its commands."""
    client = guard.connect(PROXY)
    return client.send(header) + (client.say(*commands) if commands else "")


def v1(host: str) -> bytes:
    return f"PROXY TCP4 {host} 198.51.100.1 4711 25\r\n".encode()


def test_behind_a_proxy_the_client_is_banned_and_never_the_proxy() -> None:
    guard = guarded(proxy_protocol_from=[PROXY])
    through(guard, v1(CLIENT), "EHLO x", *["XYZZY"] * 20)
    assert through(guard, v1(CLIENT)) == BANNED
    assert through(guard, v1("192.0.2.2")) == GREETING


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"])
def test_a_proxy_that_names_no_client_has_no_points_and_is_in_no_banned_network(header: bytes) -> None:
    guard = guarded(proxy_protocol_from=[PROXY], ipv4_networks=(24,))
    through(guard, header, "EHLO x", *["XYZZY"] * 50)
    assert through(guard, header) == GREETING
    for host in range(2, 7):
        guard.factory.bans.ban(f"10.0.0.{host}", 20, "x", dry_run=False)
    assert banned(guard, "10.0.0.99")
    assert through(guard, header) == GREETING


def test_a_proxy_whose_header_is_missing_wrong_or_late_has_no_points() -> None:
    guard = guarded(proxy_protocol_from=[PROXY], ban_after=1)
    for _ in range(5):
        guard.connect(PROXY).send(b"EHLO no header\r\n")
        guard.connect(PROXY).send(b"PROXY TCP4 x\r\n")
        guard.connect(PROXY)
        guard.clock.advance(10)
    assert len(guard.factory.bans) == 0


def test_a_stranger_cannot_have_others_banned_by_a_header_that_names_them() -> None:
    """It is no proxy of the guard's, so its header is a misconfiguration, which is no offence, and names nobody."""
    guard = guarded(proxy_protocol_from=[PROXY], ban_after=1)
    for _ in range(5):
        stranger = guard.connect("203.0.113.9")
        stranger.send(v1(CLIENT))
    assert len(guard.factory.bans) == 0
    client = guard.greeted("203.0.113.9")
    client.say("XYZZY")
    assert banned(guard, "203.0.113.9")
    assert not banned(guard, CLIENT)


def test_wrong_passwords_for_a_user_ban_who_sends_them_and_not_the_user() -> None:
    guard = guarded(checkers=[Checker(UnauthorizedLogin())])
    for _ in range(4):
        auth_fails(guard.greeted("203.0.113.9"))
    assert banned(guard, "203.0.113.9")
    assert not banned(guard, CLIENT)


# Dry run.


def test_in_dry_run_it_is_told_who_would_have_been_banned_and_nobody_is_refused(log: Logbook) -> None:
    guard = guarded(dry_run={"ban_after"})
    errs(guard, 20)
    assert log.take("banned") == [
        f"banned peer={CLIENT} dry_run=true client={CLIENT} points=20 offences=unrecognized_command:20 times=1 "
        "until=2027-01-15T08:10:00Z"
    ]
    log.take("reject")
    errs(guard, 30)
    (line,) = [line for line in log.take("reject") if "ban_after" in line]
    assert line.startswith(f"reject peer={CLIENT} reason=ban_after dry_run=true limit=20 value=20")
    assert log.take("banned") == []
    guard.clock.advance(600)
    errs(guard, 20)
    assert "times=2 until=2027-01-15T08:30:00Z" in log.take("banned")[0]
    assert guard.factory.statistics.dry_run_refusals["ban_after"] == 1


def test_when_the_dry_run_is_over_its_bans_refuse_nobody() -> None:
    guard = guarded(dry_run={"ban_after"})
    errs(guard, 20)
    guard.factory.set_limits(attrs.evolve(guard.factory.limits, dry_run=frozenset()))
    assert not banned(guard)
    errs(guard, 20)
    assert banned(guard)


def test_a_ban_in_dry_run_hides_none_in_earnest_of_the_network() -> None:
    guard = guarded(dry_run={"ban_after"}, ipv4_networks=(24,))
    errs(guard, 20)
    guard.factory.set_limits(attrs.evolve(guard.factory.limits, dry_run=frozenset()))
    errs_in_network(guard, range(2, 7))
    assert banned(guard)


def test_which_offences_clients_have_committed_is_told_for_a_bounded_number_of_them() -> None:
    guard = guarded(ban_after=1_000_000)
    offences = guard.factory.offences
    tracemalloc.start()
    try:
        for number in range(_MAX_TOLD + 5000):
            offences._note(f"2001:db8:ffff:{number:x}::/64", "unrecognized_command", 1)
        octets, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(offences._told) == _MAX_TOLD
    assert octets / _MAX_TOLD <= 700


# The counter store.


def test_points_that_a_store_counts_later_lead_to_a_ban_too() -> None:
    class Later:
        lease_seconds = 0.0

        def __init__(self) -> None:
            self.answers: list[Deferred[Any]] = []

        def take(self, *_: Any) -> Deferred[Any]:
            self.answers.append(Deferred())
            return self.answers[-1]

        give_back = look = renew = lambda *_: None

    from zope.interface import directlyProvides

    from twisted_smtpguard.interfaces import ICounterStore

    store = Later()
    directlyProvides(store, ICounterStore)
    guard = guarded(counters=store)
    client = guard.greeted(CLIENT)
    assert codes(client.say("XYZZY", "QUIT")) == [500, 221]
    assert len(guard.factory.bans) == 0
    store.answers[0].callback([20])
    assert banned(guard)
    assert guard.factory.records["ban"].get(CLIENT) == Record("1 20 unrecognized_command:1", NOW + 600)
