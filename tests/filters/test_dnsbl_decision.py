"""What follows from the answers of lists in the DNS."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address

import pytest

from twisted_smtpguard.filters.dnsbldecision import (
    ERROR,
    TIMEOUT,
    Answer,
    KnownShare,
    codes_of,
    counted,
    decide,
    is_asked_about,
    judge_test,
    question,
    shown,
)
from twisted_smtpguard.filters.dnsblsettings import DnsList, parse_codes


def code(text: str) -> int:
    return int(IPv4Address(text))


def answer(*addresses: str) -> Answer:
    return Answer(tuple(map(code, addresses)), 60)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.99", "99.2.0.192.bl.example"),
        (
            "2001:db8:1:2:3:4:567:89ab",
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.bl.example",
        ),
        (
            "::ffff:127.0.0.2",
            "2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.bl.example",
        ),
    ],
)
def test_a_client_is_asked_for_backwards(address: str, name: str) -> None:
    """The second is the example of RFC 5782 2.4."""
    assert question(ip_address(address), "bl.example") == name


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("192.0.2.1", True),
        ("2001:db8::1", True),
        ("127.0.0.2", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("172.32.0.1", True),
        ("192.168.1.1", False),
        ("169.254.0.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
    ],
)
def test_no_list_is_asked_about_an_address_that_means_nothing_elsewhere(address: str, asked: bool) -> None:
    assert is_asked_about(ip_address(address)) is asked


@pytest.mark.parametrize(
    ("said", "codes", "problem"),
    [
        (answer("127.0.0.2", "127.0.0.11"), ["127.0.0.2", "127.0.0.11"], ""),
        (answer(), [], ""),
        (answer("127.0.0.1"), ["127.0.0.1"], ""),
        (answer("127.255.254.255"), ["127.255.254.255"], ""),
        (answer("127.255.255.254"), [], "it answers 127.255.255.254, which is an error"),
        (answer("127.0.0.2", "127.255.255.0"), [], "it answers 127.255.255.0, which is an error"),
        (answer("203.0.113.7"), [], "it answers 203.0.113.7, which is no listing"),
        (answer("127.0.0.2", "126.255.255.255"), [], "it answers 126.255.255.255, which is no listing"),
        (Answer(problem="no answer in time", outcome=TIMEOUT), [], "no answer in time"),
    ],
)
def test_an_error_code_and_what_is_not_in_127_is_no_listing(
    said: Answer, codes: list[str], problem: str
) -> None:
    found, why = codes_of(said)
    assert (list(map(str, map(IPv4Address, found))), why.partition(":")[0]) == (codes, problem)


def test_the_filter_says_which_codes_count() -> None:
    found = [code("127.0.0.2"), code("127.0.0.12")]
    assert counted(found, DnsList("a", "a")) == tuple(found)
    assert counted(found, DnsList("a", "a", codes=parse_codes("127.0.0.[2..11]"))) == (found[0],)


@pytest.mark.parametrize(
    ("weights", "pending", "threshold", "decision"),
    [
        ([], [], 1, False),
        ([1], [], 1, True),
        ([1], [], 2, False),
        ([1, 1], [], 2, True),
        ([2, -1], [], 2, False),
        ([3, -1], [], 2, True),
        ([], [1], 1, None),
        ([1], [1], 1, True),
        ([1], [-1], 1, None),
        ([1], [-1, 1], 2, None),
        ([2], [-1], 1, True),
        ([], [1], 2, False),
        ([-5], [2, 2], 1, False),
        ([1], [-3, 1], 3, False),
    ],
)
def test_the_weights_decide_as_soon_as_no_answer_can_change_it(
    weights: Sequence[int], pending: Sequence[int], threshold: int, decision: bool | None
) -> None:
    assert decide(weights, pending, threshold) is decision


def test_every_order_of_answers_comes_to_the_same_decision() -> None:
    weights = [3, -2, 1, -1]
    for listing in range(16):
        whole = [weight for i, weight in enumerate(weights) if listing >> i & 1]
        for threshold in (1, 2, 3, 4):
            end = decide(whole, [], threshold)
            for known in range(16):
                so_far = [weight for i, weight in enumerate(weights) if listing >> i & 1 and known >> i & 1]
                pending = [weight for i, weight in enumerate(weights) if not known >> i & 1]
                assert decide(so_far, pending, threshold) in (end, None)


def test_the_rule_names_lists_and_codes() -> None:
    many = [code(f"127.0.0.{i}") for i in range(2, 102)]
    assert shown({"zen": many[:2], "ok": many[2:3]}) == "zen:127.0.0.2+127.0.0.3,ok:127.0.0.4"
    assert shown({"zen": many}) == ("zen:127.0.0.2+127.0.0.3+127.0.0.4+127.0.0.5+127.0.0.6+95_more")


# The test of a list.

NONE, TWO = answer(), answer("127.0.0.2")
SILENT = Answer(problem="no answer in time", outcome=TIMEOUT)
FAILED = Answer(problem="the resolver answers SERVFAIL", outcome=ERROR)


@pytest.mark.parametrize(
    ("v4", "v6", "problem", "works"),
    [
        ((NONE, TWO), (NONE, TWO), "", [4, 6]),
        ((NONE, TWO), (NONE, NONE), "", [4]),
        ((NONE, NONE), (NONE, TWO), "", [6]),
        ((NONE, answer("127.0.0.10")), (NONE, NONE), "", [4]),
        ((NONE, TWO), (SILENT, SILENT), "", [4]),
        ((TWO, TWO), (NONE, NONE), "it lists 127.0.0.1, and so may list everybody", []),
        ((NONE, TWO), (TWO, TWO), "it lists ::ffff:7f00:1, and so may list everybody", []),
        (
            (NONE, NONE),
            (NONE, NONE),
            "it does not list 127.0.0.2, which every list does: it may be empty",
            [],
        ),
        ((SILENT, SILENT), (SILENT, SILENT), "it does not answer: no answer in time", []),
        ((NONE, SILENT), (NONE, NONE), "it does not answer: no answer in time", []),
        ((FAILED, TWO), (NONE, NONE), "it does not answer: the resolver answers SERVFAIL", []),
        (
            (NONE, answer("127.255.255.254")),
            (NONE, NONE),
            "it answers 127.255.255.254, which is an error: it may not serve this resolver",
            [],
        ),
        (
            (answer("203.0.113.7"), answer("203.0.113.7")),
            (NONE, NONE),
            "it answers 203.0.113.7, which is no listing: the zone may have another owner",
            [],
        ),
    ],
)
def test_a_list_has_127_0_0_2_and_not_127_0_0_1(
    v4: tuple[Answer, Answer], v6: tuple[Answer, Answer], problem: str, works: list[int]
) -> None:
    answers = {
        (version, bool(i)): each for version, both in ((4, v4), (6, v6)) for i, each in enumerate(both)
    }
    found = judge_test(answers)
    assert (found[0], list(found[1])) == (
        problem.replace("::ffff:7f00:1", str(ip_address("::ffff:7f00:1"))),
        works,
    )


# Known clients.


def clients(number: int) -> list[str]:
    return [str(IPv4Address(0xC0000200 + i)) for i in range(number)]


def test_three_known_clients_that_are_more_than_a_twentieth_are_too_many() -> None:
    share = KnownShare()
    for client in clients(57):
        share.add(client, False, 0)
    refused = [str(IPv4Address(i)) for i in range(10)]
    assert [share.add(each, True, 1) for each in refused[:3]] == [False, False, False]
    assert not share.exceeded  # 3 of 60 are a twentieth.
    assert share.add(refused[3], True, 1)
    assert share.exceeded
    assert str(share) == "4 of 61 known clients"
    assert not share.add(refused[4], True, 1)


def test_two_known_clients_may_well_have_a_virus() -> None:
    share = KnownShare()
    for client in clients(2):
        assert not share.add(client, True, 0)
    assert share.add("0.0.0.1", True, 0)


def test_one_client_that_comes_again_counts_once() -> None:
    share = KnownShare()
    for i in range(1000):
        assert not share.add(clients(1)[0], i % 2 == 0, i)
    assert str(share) == "1 of 1 known clients"


def test_an_hour_begins_anew_and_a_good_one_ends_it() -> None:
    share = KnownShare()
    for client in clients(3):
        share.add(client, True, 0)
    assert share.exceeded
    # A bad hour, and one with too few, change nothing.
    for client in clients(3):
        assert not share.add(client, True, 3600)
    assert not share.add(clients(1)[0], False, 7200)
    assert not share.add(clients(1)[0], False, 10800)
    for client in clients(10):
        assert not share.add(client, False, 10800)
    assert share.add(clients(1)[0], False, 14400)
    assert not share.exceeded


def test_a_clock_that_was_set_back_begins_anew() -> None:
    share = KnownShare()
    for client in clients(2):
        share.add(client, True, 10_000)
    assert not share.add("0.0.0.1", True, 5)


def test_no_more_clients_are_counted_than_the_bound() -> None:
    share = KnownShare(most=100)
    for client in clients(1000):
        share.add(client, False, 0)
    assert str(share) == "0 of 100 known clients"
    # Those that are counted still are.
    assert [share.add(client, True, 0) for client in clients(6)] == [False] * 5 + [True]
