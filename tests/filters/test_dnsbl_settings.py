"""The argument of `dnsbl:`: what it means, and what is said about mistakes."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from twisted_smtpguard.filters.dnsblsettings import (
    MAX_LISTS,
    DnsblSettings,
    DnsList,
    parse_codes,
    parse_dnsbl,
)
from twisted_smtpguard.replies import Reply


def codes(text: str) -> list[str]:
    """Those of 127.0.0.0/24, 127.0.1.0/24 and 128.0.0.0/24 that match."""
    pattern = parse_codes(text)
    near = [base << 8 | last for base in (0x7F0000, 0x7F0001, 0x800000) for last in range(256)]
    return [str(IPv4Address(code)) for code in near if pattern.has(code)]


def test_a_list_needs_no_more_than_its_zone() -> None:
    assert parse_dnsbl("bl.example") == DnsblSettings(lists=(DnsList("bl.example", "bl.example"),))


def test_lists_have_filters_weights_and_names_and_there_are_options() -> None:
    found = parse_dnsbl(
        "KEY.zen.example.=127.0.0.[2;4..11]*2, list.example*-3 ;name=zen,ok; threshold=2;timeout=1.5;"
        "resolver=[::1]:5353;ttl=1m-1d;refuse=421;text=Listed by {lists}, see https://x.example/?a=b"
    )
    assert [(each.zone, each.name, each.weight) for each in found.lists] == [
        ("key.zen.example", "zen", 2),
        ("list.example", "ok", -3),
    ]
    assert found.lists[0].codes == parse_codes("127.0.0.[2;4..11]")
    assert found.lists[1].codes is None
    assert (found.threshold, found.timeout, found.resolver) == (2, 1.5, ("::1", 5353))
    assert (found.ttl, found.code) == ((60, 86400), 421)
    assert found.reply(["zen", "ok"]) == Reply(
        421, "4.7.1", ("Listed by zen, ok, see https://x.example/?a=b",)
    )


def test_the_defaults_refuse_for_good_and_name_the_lists() -> None:
    found = parse_dnsbl("bl.example")
    assert found.reply(["bl.example"]) == Reply(521, "5.7.1", ("Your address is listed by bl.example",))
    assert (found.threshold, found.timeout, found.resolver, found.ttl) == (1, 2, None, (60, 3600))


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("bl", ["bl"]),
        ("geheim.zen.dq.bl.example", ["bl.example"]),
        ("geheim.bl.example,other.bl.example,x.org", ["bl.example-1", "bl.example-2", "x.org"]),
    ],
)
def test_without_a_name_a_list_is_called_by_what_has_no_key_in_it(argument: str, names: list[str]) -> None:
    assert [each.name for each in parse_dnsbl(argument).lists] == names


@pytest.mark.parametrize(
    ("text", "matching"),
    [
        ("127.0.0.2", ["127.0.0.2"]),
        ("127.0.0.[2..4]", ["127.0.0.2", "127.0.0.3", "127.0.0.4"]),
        ("127.0.0.[2;9..10]", ["127.0.0.2", "127.0.0.9", "127.0.0.10"]),
        ("127.0.[0;1].3", ["127.0.0.3", "127.0.1.3"]),
        ("[127..128].0.0.255", ["127.0.0.255", "128.0.0.255"]),
        ("127.0.[0..255].[0..255]", [f"127.0.{i}.{j}" for i in (0, 1) for j in range(256)]),
    ],
)
def test_a_filter_has_numbers_and_ranges_as_postfix_writes_them(text: str, matching: list[str]) -> None:
    assert codes(text) == matching


NO_FILTER = "an answer such as 127.0.0.2 or 127.0.0.[2;4..11]"


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("", "dnsbl needs a list"),
        (";threshold=2", "dnsbl needs a list"),
        ("a.example,,b.example", "list 2: ZONE, ZONE=FILTER"),
        ("-bad-.example", "list 1: a zone such as"),
        ("a..example", "list 1: a zone such as"),
        ("a b.example", "list 1: a zone such as"),
        ("ä.example", "list 1: a zone such as"),
        ("x" * 64 + ".example", "list 1: a zone such as"),
        (".".join(["x" * 60] * 4), "list 1: a zone such as"),
        ("a.example=127.0.0", f"list 1: {NO_FILTER}"),
        ("a.example=127.0.0.256", f"list 1: {NO_FILTER}"),
        ("a.example=127.0.0.[4..2]", f"list 1: {NO_FILTER}"),
        ("a.example=127.0.0.[]", f"list 1: {NO_FILTER}"),
        ("a.example=127.0.0.[2", f"list 1: {NO_FILTER}"),
        ("a.example=127.0.0.2]", f"list 1: {NO_FILTER}"),
        ("a.example=", f"list 1: {NO_FILTER}"),
        ("a.example=10.0.0.2", "list 1: only an answer that begins with 127 is a listing"),
        ("a.example=127.255.255.[0..255]", "list 1: an answer that begins with 127.255.255 is an error"),
        ("a.example*0", "list 1: a whole number from -1000 to 1000 other than 0"),
        ("a.example*1.5", "list 1: a whole number"),
        ("a.example*", "list 1: a whole number"),
        ("a.example*1001", "list 1: a whole number"),
        ("a.example,A.example.", "list 2 has the zone of another"),
        (",".join(f"a{i}.example" for i in range(MAX_LISTS + 1)), "at most 16 lists are expected"),
        ("a.example;threshold=2", "the weights of all lists together are 1, so that none is refused"),
        ("a.example*-1", "the weights of all lists together are 0"),
        ("a.example;threshold=0", "threshold=: a whole number from 1 on is expected, not '0'"),
        ("a.example;threshold=1;threshold=1", "threshold= is given twice"),
        ("a.example;thresh=1", "one of threshold=, timeout="),
        ("a.example;b.example", "one of threshold=, timeout="),
        ("a.example;timeout=0", "timeout=: a time of at most 9 s is expected, not '0'"),
        ("a.example;timeout=10", "timeout=: a time of at most 9 s"),
        ("a.example;timeout=x", "timeout=: a time such as"),
        ("a.example;ttl=60", "ttl=: the shortest and the longest time"),
        ("a.example;ttl=0-60", "ttl=: the shortest and the longest time"),
        ("a.example;ttl=61-60", "ttl=: the shortest and the longest time"),
        ("a.example;ttl=60-8d", "ttl=: the shortest and the longest time"),
        ("a.example;refuse=550", "refuse=: 421 or 521 is expected, not '550'"),
        ("a.example;text=", "text=: a text of at most 300 ASCII characters"),
        ("a.example;text=nö", "text=: a text of at most 300 ASCII characters"),
        ("a.example;text=a\r\n250 b", "text=: a text of at most 300 ASCII characters"),
        ("a.example;text=" + "x" * 301, "text=: a text of at most 300 ASCII characters"),
        ("a.example;name=a,b", "name=: 1 names are expected, one for each list, not 2"),
        ("a.example,b.example;name=a,a", "name=: different names"),
        ("a.example;name=a b", "name=: different names"),
        ("a.example;resolver=", "resolver=: a host such as"),
        ("a.example;resolver=127.0.0.1:", "resolver=: a host such as"),
        ("a.example;resolver=127.0.0.1:0", "resolver=: a host such as"),
        ("a.example;resolver=127.0.0.1:65536", "resolver=: a host such as"),
        ("a.example;resolver=[127.0.0.1]:53", "resolver=: a host such as"),
        ("a.example;resolver=::1::2:53", "resolver=: a host such as"),
        ("a.example;resolver=a b", "resolver=: a host such as"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(argument: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r"^.*$") as caught:
        parse_dnsbl(argument)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    "argument",
    [
        "geheim.bl.example=1",
        "geheim.bl.example*x",
        "geheim..example",
        "geheim.bl.example;threshold=9",
        "geheim.bl.example,geheim.bl.example",
        "a.example;geheim.bl.example",
        "geheim.bl.example;name=a,b",
    ],
)
def test_no_mistake_shows_the_zone_which_may_have_a_key_in_it(argument: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_dnsbl(argument)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]", ("::1", 53)),
        ("[2001:db8::1]:54", ("2001:db8::1", 54)),
        ("unbound:54", ("unbound", 54)),
    ],
)
def test_a_resolver_is_an_address_or_a_host_with_a_port_or_without(text: str, host: tuple[str, int]) -> None:
    assert parse_dnsbl(f"a.example;resolver={text}").resolver == host
