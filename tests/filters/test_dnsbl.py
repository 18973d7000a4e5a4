"""The filter of lists in the DNS, with a client of name servers that the test answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from fakes import Guard
from logbook import Logbook, logbook
from nameserver import name_of
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from twisted_smtpguard.filters.dnsbl import DnsblFactory, DnsblFilter
from twisted_smtpguard.filters.dnsbldecision import ERROR, TIMEOUT, Answer
from twisted_smtpguard.filters.dnsblsettings import parse_dnsbl
from twisted_smtpguard.hooks.promise import Promise
from twisted_smtpguard.interfaces import (
    PASS,
    IAsksForKnownClients,
    IExplainingFilter,
    IIPFilterFactory,
    IMeasuredFilter,
    IReloadable,
    ISelfTestingFilter,
    Peer,
    Verdict,
    refuse,
)
from twisted_smtpguard.replies import Reply

NONE = Answer((), 300)
SILENT = Answer(problem="no answer in time", outcome=TIMEOUT)
FAILED = Answer(problem="the resolver answers SERVFAIL", outcome=ERROR)


def answer(*addresses: str) -> Answer:
    return Answer(tuple(int(IPv4Address(each)) for each in addresses), 300)


def peer(address: str | None) -> Peer:
    return Peer(address and ip_address(address), 40000, None, None)  # type: ignore[arg-type]


class Names:
    """A client of name servers. `known` has the answers by name; a zone in `silent` gives none until `answer_all`."""

    def __init__(self, *zones: str) -> None:
        self.known: dict[str, Answer] = {}
        for zone in zones:
            self.known[name_of("127.0.0.2", zone)] = answer("127.0.0.2")
        self.silent: set[str] = set()
        self.pending: dict[str, Callable[[Answer], object]] = {}
        self.asked: list[str] = []
        self.found: Callable[[], Any] = lambda: None

    def find_servers(self) -> Deferred[None]:
        try:
            return succeed(self.found())
        except ValueError as error:
            return fail(error)

    def ask(self, name: str, seconds: float, answered: Callable[[Answer], object]) -> Names:
        self.asked.append(name)
        if any(name.endswith(f".{zone}") for zone in self.silent):
            self.pending[name] = answered
        else:
            answered(self.known.get(name, NONE))
        return self

    def cancel(self) -> None:
        pass

    def tell(self, name: str, said: Answer) -> None:
        self.pending.pop(name)(said)


class Lists:
    """A filter that was started, with its clock and its names."""

    def __init__(
        self,
        argument: str = "bl.example",
        entries: Mapping[str, Mapping[str, Answer]] | None = None,
        *,
        start: bool = True,
    ) -> None:
        settings = parse_dnsbl(argument)
        self.clock = Clock()
        self.names = Names(*(each.zone for each in settings.lists))
        for zone, known in (entries or {}).items():
            for address, said in known.items():
                self.put(zone, address, said)
        self.ip_filter = DnsblFilter(settings, self.clock, self.names)
        if start:
            self.ip_filter.startService()

    def put(self, zone: str, address: str, said: Answer) -> None:
        self.names.known[name_of(address, zone)] = said

    def check(self, address: str | None = "192.0.2.1") -> Any:
        """The verdict; or if there is none yet a list that will have it."""
        found = self.ip_filter.check(peer(address))
        if not isinstance(found, Promise):
            return found
        told: list[Any] = []
        found.when_answered(lambda verdict, error: told.append(error or verdict))
        return told[0] if told else told

    def asked(self, since: int) -> list[str]:
        return self.names.asked[since:]

    def why(self, address: str | None = "192.0.2.1") -> str:
        return self.ip_filter.explain(peer(address))

    def metrics(self) -> dict[tuple[str, ...], float]:
        answers, counts = self.ip_filter.metrics
        return {**answers.values, **counts.values}


@pytest.fixture
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def refused(rule: str, *lists: str, code: int = 521) -> tuple[Verdict, str]:
    text = f"Your address is listed by {', '.join(lists)}"
    return refuse(Reply(code, f"{code // 100}.7.1", (text,))), rule


def outcome(verdict: Verdict) -> tuple[Verdict, str]:
    return verdict, verdict.rule


def test_it_has_all_the_interfaces_that_it_names() -> None:
    lists = Lists()
    for interface in (
        IExplainingFilter,
        IReloadable,
        IMeasuredFilter,
        IAsksForKnownClients,
        ISelfTestingFilter,
    ):
        verifyObject(interface, lists.ip_filter)
    verifyObject(IIPFilterFactory, DnsblFactory())
    with pytest.raises(ValueError, match=r"^dnsbl needs a list"):
        DnsblFactory().make_filter("", None)


# Verdicts.


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_a_listed_client_is_refused_and_the_lists_and_codes_are_told(address: str) -> None:
    lists = Lists("bl.example", {"bl.example": {address: answer("127.0.0.2", "127.0.0.4")}})
    lists.put("bl.example", "::ffff:127.0.0.2", answer("127.0.0.2"))
    lists.ip_filter.reload()
    assert outcome(lists.check(address)) == refused("bl.example:127.0.0.2+127.0.0.4", "bl.example")
    assert lists.check(f"{address[:-1]}9") is PASS


THREE = "zen.example*2,bl.example,ok.example*-2;name=zen,bl,ok;threshold=3;refuse=421"


@pytest.mark.parametrize(
    ("listing", "rule", "named"),
    [
        ("zen bl", "zen:127.0.0.2,bl:127.0.0.2", "zen, bl"),
        ("zen", "", ""),
        ("bl", "", ""),
        ("zen bl ok", "", ""),
        ("ok", "", ""),
    ],
)
def test_weights_are_added_and_an_allow_list_wins(listing: str, rule: str, named: str) -> None:
    entries = {f"{each}.example": {"192.0.2.1": answer("127.0.0.2")} for each in listing.split()}
    lists = Lists(THREE, entries)
    expected = refused(rule, *named.split(", "), code=421) if rule else (PASS, "")
    assert outcome(lists.check()) == expected


def test_all_lists_are_asked_at_once_and_the_last_that_matters_decides() -> None:
    lists = Lists(THREE)
    lists.names.silent |= {"zen.example", "bl.example", "ok.example"}
    before = len(lists.names.asked)
    told = lists.check()
    assert lists.asked(before) == [f"1.2.0.192.{each}.example" for each in ("zen", "bl", "ok")]
    lists.names.tell("1.2.0.192.zen.example", answer("127.0.0.2"))
    lists.names.tell("1.2.0.192.bl.example", answer("127.0.0.2"))
    assert told == []
    lists.names.tell("1.2.0.192.ok.example", NONE)
    assert outcome(told[0])[1] == "zen:127.0.0.2,bl:127.0.0.2"
    assert [each for each in lists.clock.getDelayedCalls() if each.getTime() < 60] == []


def test_it_is_decided_as_soon_as_nothing_can_change_it() -> None:
    lists = Lists(THREE)
    lists.names.silent |= {"zen.example", "ok.example"}
    # The weight of zen alone is too little.
    assert lists.check() is PASS


@pytest.mark.parametrize(
    "said",
    [
        SILENT,
        FAILED,
        answer("127.255.255.254"),
        answer("127.0.0.2", "127.255.255.255"),
        answer("203.0.113.1"),
        answer("128.0.0.2"),
    ],
)
def test_what_is_no_listing_counts_nothing(said: Answer) -> None:
    lists = Lists("bl.example", {"bl.example": {"192.0.2.1": said}})
    assert lists.check() is PASS


def test_a_code_that_the_filter_leaves_out_counts_nothing() -> None:
    entries = {
        "bl.example": {"192.0.2.1": answer("127.0.0.12"), "192.0.2.2": answer("127.0.0.12", "127.0.0.3")}
    }
    lists = Lists("bl.example=127.0.0.[2..11]", entries)
    assert lists.check() is PASS
    assert lists.check("192.0.2.2").rule == "bl.example:127.0.0.3"


@pytest.mark.parametrize("address", [None, "127.0.0.2", "10.1.2.3", "::1", "fe80::1"])
def test_no_list_is_asked_about_whom_it_cannot_know(address: str | None) -> None:
    lists = Lists()
    before = len(lists.names.asked)
    assert lists.check(address) is PASS
    assert lists.asked(before) == []
    assert lists.why(address) == "no list is asked about this address"


def test_what_does_not_answer_in_time_counts_nothing() -> None:
    lists = Lists("zen.example,bl.example*2;threshold=2;timeout=1.5")
    lists.put("zen.example", "192.0.2.1", answer("127.0.0.2"))
    lists.names.silent |= {"bl.example"}
    told = lists.check()
    lists.clock.advance(1.4)
    assert told == []
    lists.clock.advance(0.2)
    assert told == [PASS]
    # The answer is kept all the same.
    lists.names.tell("1.2.0.192.bl.example", answer("127.0.0.2"))
    assert lists.check().rule == "zen.example:127.0.0.2,bl.example:127.0.0.2"


def test_a_late_allow_list_does_not_save_a_client() -> None:
    lists = Lists(
        "zen.example,ok.example*-1;name=zen,ok", {"zen.example": {"192.0.2.1": answer("127.0.0.2")}}
    )
    lists.names.silent |= {"ok.example"}
    told = lists.check()
    lists.clock.advance(2)
    assert told[0].rule == "zen:127.0.0.2"


def test_a_client_that_leaves_leaves_nothing() -> None:
    lists = Lists()
    lists.names.silent |= {"bl.example"}
    waiting = [lists.ip_filter.check(peer(f"192.0.2.{i}")) for i in range(100)]
    for each in waiting:
        each.cancel()  # type: ignore[union-attr]
    assert [each for each in lists.clock.getDelayedCalls() if each.getTime() < 60] == []
    asker = lists.ip_filter.lists[0].asker
    assert asker.in_flight == 100
    assert all(not each.listeners for each in asker._questions.values())


def test_an_answer_that_is_known_costs_no_question_and_no_promise() -> None:
    lists = Lists("bl.example", {"bl.example": {"192.0.2.1": answer("127.0.0.2")}})
    lists.check()
    before = len(lists.names.asked)
    assert isinstance(lists.ip_filter.check(peer("192.0.2.1")), Verdict)
    assert lists.asked(before) == []


def test_the_text_is_the_operators() -> None:
    lists = Lists(
        "bl.example;text=Blocked, see x.example", {"bl.example": {"192.0.2.1": answer("127.0.0.2")}}
    )
    assert lists.check().reply == Reply(521, "5.7.1", ("Blocked, see x.example",))


# The tests of lists.


def left_out(problem: str, name: str = "bl.example") -> list[str]:
    return [f"dnsbl_left_out list={name} {problem}"]


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"127.0.0.1": answer("127.0.0.2")}, "it lists 127.0.0.1, and so may list everybody"),
        ({"127.0.0.2": NONE}, "it does not list 127.0.0.2, which every list does: it may be empty"),
        ({"127.0.0.2": SILENT}, "it does not answer: no answer in time"),
        ({"127.0.0.2": FAILED}, "it does not answer: the resolver answers SERVFAIL"),
        (
            {"127.0.0.2": answer("127.255.255.254")},
            "it answers 127.255.255.254, which is an error: it may not serve this resolver",
        ),
        (
            {"127.0.0.1": answer("203.0.113.1"), "127.0.0.2": answer("203.0.113.1")},
            "it answers 203.0.113.1, which is no listing: the zone may have another owner",
        ),
    ],
)
def test_a_list_that_fails_its_test_is_left_out_loudly_and_comes_back_by_itself(
    log: Logbook, entries: Mapping[str, Answer], problem: str
) -> None:
    lists = Lists("bl.example", {"bl.example": {"192.0.2.1": answer("127.0.0.2"), **entries}})
    assert log.take("dnsbl_left_out") == left_out(problem)
    assert lists.check() is PASS
    assert lists.why() == f"no list has it [bl.example is left out: {problem}]"
    assert lists.metrics()["bl.example",] == 0
    lists.clock.pump([60] * 3)
    assert log.take("dnsbl_left_out") == []
    lists.put("bl.example", "127.0.0.1", NONE)
    lists.put("bl.example", "127.0.0.2", answer("127.0.0.2"))
    lists.clock.advance(60)
    assert log.take("dnsbl_back") == ["dnsbl_back list=bl.example"]
    assert lists.check().rule == "bl.example:127.0.0.2"
    assert lists.metrics()["bl.example",] == 1


def test_a_list_that_works_is_tested_every_ten_minutes(log: Logbook) -> None:
    lists = Lists()
    tests = len(lists.names.asked)
    assert tests == 4
    lists.clock.pump([60] * 9 + [59.9])
    assert len(lists.names.asked) == tests
    lists.put("bl.example", "127.0.0.1", answer("127.0.0.2"))
    lists.clock.advance(0.1)
    assert len(lists.names.asked) == 2 * tests
    assert log.take("dnsbl_left_out") == left_out("it lists 127.0.0.1, and so may list everybody")


def test_a_list_that_fails_takes_no_other_with_it(log: Logbook) -> None:
    entries = {"a.example": {"127.0.0.2": NONE}, "b.example": {"192.0.2.1": answer("127.0.0.2")}}
    lists = Lists("a.example*5,b.example;name=a,b", entries)
    assert len(log.take("dnsbl_left_out")) == 1
    assert lists.check().rule == "b:127.0.0.2"


def test_a_list_without_ipv6_is_not_asked_about_ipv6_clients_and_nothing_is_said(log: Logbook) -> None:
    lists = Lists("bl.example", {"bl.example": {"2001:db8::1": answer("127.0.0.2")}})
    before = len(lists.names.asked)
    assert lists.check("2001:db8::1") is PASS
    assert lists.asked(before) == []
    assert lists.why("2001:db8::1") == "no list has it [bl.example has no IPv6 addresses]"
    assert log.take("dnsbl_left_out") == []


def test_a_list_that_answers_nothing_any_more_is_tested_at_once(log: Logbook) -> None:
    lists = Lists()
    lists.names.silent |= {"bl.example"}
    for i in range(20):
        lists.check(f"192.0.2.{i}")
    for name in list(lists.names.pending):
        lists.names.tell(name, SILENT)
    assert sorted(lists.names.pending) == sorted(
        name_of(each, "bl.example")
        for each in ("127.0.0.1", "127.0.0.2", "::ffff:127.0.0.1", "::ffff:127.0.0.2")
    )
    for name in list(lists.names.pending):
        lists.names.tell(name, SILENT)
    assert log.take("dnsbl_left_out") == left_out("it does not answer: no answer in time")


def test_one_test_of_a_list_goes_on_at_a_time() -> None:
    lists = Lists(start=False)
    lists.names.silent |= {"bl.example"}
    lists.ip_filter.startService()
    for _ in range(10):
        lists.ip_filter.reload()
    assert len(lists.names.asked) == 4


def test_clients_that_come_during_the_first_test_wait_for_it() -> None:
    lists = Lists(start=False)
    lists.put("bl.example", "192.0.2.1", answer("127.0.0.2"))
    lists.names.silent |= {"bl.example"}
    lists.ip_filter.startService()
    told, leaving = lists.check(), lists.ip_filter.check(peer("192.0.2.9"))
    leaving.cancel()  # type: ignore[union-attr]
    lists.names.silent.clear()
    for name in list(lists.names.pending):
        lists.names.tell(name, lists.names.known.get(name, NONE))
    assert told[0].rule == "bl.example:127.0.0.2"
    assert not [name for name in lists.names.asked if name.startswith("9.")]


def test_nobody_waits_for_the_first_test_of_a_list_that_changes_nothing() -> None:
    lists = Lists("bl.example*2,b2.example;threshold=2;name=bl,b2", start=False)
    lists.put("bl.example", "192.0.2.1", answer("127.0.0.2"))
    lists.names.silent |= {"b2.example"}
    lists.ip_filter.startService()
    assert lists.check("192.0.2.9") is PASS
    assert lists.check().rule == "bl:127.0.0.2"


def test_a_list_that_fails_a_test_while_it_is_asked_counts_nothing(log: Logbook) -> None:
    lists = Lists("bl.example,slow.example;name=bl,slow", start=False)
    lists.names.silent |= {"slow.example"}
    lists.ip_filter.startService()
    lists.names.silent |= {"bl.example"}
    told = lists.check()
    lists.put("bl.example", "127.0.0.2", NONE)
    lists.names.silent.remove("bl.example")
    lists.ip_filter.reload()
    lists.names.tell("1.2.0.192.bl.example", answer("127.0.0.2"))
    assert told == []
    for name in list(lists.names.pending):
        lists.names.tell(name, NONE)
    assert told == [PASS]
    assert len(log.take("dnsbl_left_out")) == 2


def test_nobody_waits_longer_than_the_time_limit_for_the_first_test(log: Logbook) -> None:
    lists = Lists(start=False)
    lists.names.silent |= {"bl.example"}
    lists.ip_filter.startService()
    told = lists.check()
    lists.clock.advance(2)
    assert told == [PASS]


def test_before_the_start_and_after_the_stop_everybody_passes_and_nothing_is_left() -> None:
    lists = Lists("bl.example", {"bl.example": {"192.0.2.1": answer("127.0.0.2")}}, start=False)
    assert lists.check() is PASS
    lists.ip_filter.startService()
    assert lists.check().kind == "refuse"
    lists.ip_filter.stopService()
    assert lists.check() is PASS
    assert lists.clock.getDelayedCalls() == []
    lists.ip_filter.startService()
    assert lists.check().kind == "refuse"


# Known clients.


def known_share(lists: Lists, number: int, *, first: int = 0) -> list[Any]:
    return [lists.check(f"198.51.{(first + i) >> 8}.{(first + i) & 255}") for i in range(number)]


def test_a_list_that_would_refuse_many_known_clients_goes_to_dry_run_with_one_warning(log: Logbook) -> None:
    lists = Lists("bl.example,other.example*2;name=bl,other")
    lists.ip_filter.ask_for_known(lambda address: str(address) if address in known else "")
    known = {ip_address(f"198.51.0.{i}") for i in range(100)}
    for i in range(50, 256):
        lists.put("bl.example", f"198.51.0.{i}", answer("127.0.0.2"))
    # Strangers never count.
    assert {each.kind for each in known_share(lists, 100, first=120)} == {"refuse"}
    assert log.take("dnsbl_dry_run") == []
    verdicts = known_share(lists, 60)
    (line,) = log.take("dnsbl_dry_run")
    assert line == "dnsbl_dry_run list=bl in this hour it would have refused 3 of 53 known clients"
    assert [(each.kind, each.dry_run) for each in verdicts[50:]] == [("refuse", False)] * 3 + [
        ("refuse", True)
    ] * 7
    assert verdicts[-1].rule == "bl:127.0.0.2"
    assert lists.why("198.51.0.51") == (
        "its listing by bl (127.0.0.2, weight 1, in dry run: it would refuse too many known clients) "
        "[other has not answered]"
    )
    assert lists.metrics()["bl",] == 0
    # The others refuse as before.
    lists.put("other.example", "198.51.0.99", answer("127.0.0.3"))
    assert [(each.rule, each.dry_run) for each in [lists.check("198.51.0.99")]] == [
        ("bl:127.0.0.2,other:127.0.0.3", False)
    ]


def test_a_list_in_dry_run_is_enforced_again_after_a_good_hour(log: Logbook) -> None:
    lists = Lists("bl.example;name=bl")
    lists.ip_filter.ask_for_known(str)
    for i in range(3):
        lists.put("bl.example", f"198.51.0.{i}", answer("127.0.0.2"))
    known_share(lists, 3)
    assert len(log.take("dnsbl_dry_run")) == 1
    lists.clock.advance(3600)
    known_share(lists, 10, first=100)
    lists.clock.advance(3600)
    known_share(lists, 1, first=100)
    assert log.take("dnsbl_enforced") == ["dnsbl_enforced list=bl"]
    assert [(each.kind, each.dry_run) for each in known_share(lists, 1)] == [("refuse", False)]


def test_one_known_client_with_many_addresses_sends_no_list_to_dry_run(log: Logbook) -> None:
    lists = Lists("bl.example;name=bl", {"bl.example": {"::ffff:127.0.0.2": answer("127.0.0.2")}})
    lists.ip_filter.ask_for_known(lambda address: "2001:db8:0:1::/64" if address.version == 6 else "")
    for i in range(20):
        lists.put("bl.example", f"2001:db8:0:1::{i:x}", answer("127.0.0.2"))
        verdict = lists.check(f"2001:db8:0:1::{i:x}")
        assert (verdict.kind, verdict.dry_run) == ("refuse", False)
    assert log.take("dnsbl_dry_run") == []


def test_an_allow_list_never_goes_to_dry_run(log: Logbook) -> None:
    # It is asked first, since it would not be waited for.
    lists = Lists("ok.example*-1,bl.example*2;name=ok,bl")
    lists.ip_filter.ask_for_known(str)
    for i in range(10):
        lists.put("bl.example", f"198.51.0.{i}", answer("127.0.0.2"))
        lists.put("ok.example", f"198.51.0.{i}", answer("127.0.0.2"))
    known_share(lists, 10)
    assert [line.partition(" in")[0] for line in log.take("dnsbl_dry_run")] == ["dnsbl_dry_run list=bl"]


def test_a_listing_that_refuses_nobody_is_no_reason(log: Logbook) -> None:
    lists = Lists("bl.example,b2.example;threshold=2;name=bl,b2")
    lists.ip_filter.ask_for_known(str)
    for i in range(10):
        lists.put("bl.example", f"198.51.0.{i}", answer("127.0.0.2"))
    known_share(lists, 10)
    assert log.take("dnsbl_dry_run") == []


# What an operator sees.


def test_an_operator_is_told_what_is_known_of_each_list() -> None:
    lists = Lists(THREE, {"zen.example": {"192.0.2.1": answer("127.0.0.2", "127.0.0.4")}})
    lists.put("bl.example", "192.0.2.1", answer("127.0.0.9"))
    lists.put("ok.example", "192.0.2.1", SILENT)
    assert lists.check().kind == "refuse"
    assert lists.why() == (
        "its listing by zen (127.0.0.2+127.0.0.4, weight 2), bl (127.0.0.9, weight 1) [ok has not answered]"
    )


def test_no_key_in_a_zone_is_shown_anywhere(log: Logbook) -> None:
    zone = "geheim.bl.example"
    lists = Lists(zone, {zone: {"192.0.2.1": answer("127.0.0.2")}})
    shown = [str(lists.check()), lists.why(), str(lists.metrics())]
    lists.put(zone, "127.0.0.1", answer("127.0.0.2"))
    lists.ip_filter.reload()
    shown += [lists.why(), *log.take("dnsbl_left_out"), str(lists.metrics())]
    assert len(shown) == 6
    assert "geheim" not in " ".join(shown)


def test_each_question_is_counted_by_list_and_outcome() -> None:
    lists = Lists("a.example,b.example;name=a,b", {"a.example": {"192.0.2.1": answer("127.0.0.2")}})
    lists.check()
    lists.check("192.0.2.2")
    lists.check("192.0.2.2")
    found = lists.metrics()
    assert {key: number for key, number in found.items() if number} == {
        ("a", "listed"): 1,
        ("a", "not_listed"): 1,
        ("b", "not_listed"): 1,
        ("a",): 1,
        ("b",): 1,
    }
    assert len(found) == 2 * 5 + 2


def test_a_reload_forgets_the_answers_and_tests_the_lists(log: Logbook) -> None:
    lists = Lists("bl.example", {"bl.example": {"192.0.2.1": answer("127.0.0.2")}})
    assert lists.check().kind == "refuse"
    lists.put("bl.example", "192.0.2.1", NONE)
    assert lists.check().kind == "refuse"
    done: list[None] = []
    lists.ip_filter.reload().addCallback(done.append)
    assert done == [None]
    assert lists.check() is PASS
    lists.put("bl.example", "127.0.0.2", NONE)
    lists.ip_filter.reload()
    assert len(log.take("dnsbl_left_out")) == 1


def test_a_reload_that_finds_no_resolver_says_so_and_the_lists_go_on() -> None:
    lists = Lists("bl.example", {"bl.example": {"192.0.2.1": answer("127.0.0.2")}})

    def nothing() -> None:
        raise ValueError("the resolver unbound is not found: no address")

    lists.names.found = nothing
    failed: list[Any] = []
    lists.ip_filter.reload().addErrback(lambda failure: failed.append(failure.getErrorMessage()))
    assert failed == ["the resolver unbound is not found: no address"]
    lists.clock.pump([60] * 11)
    assert lists.check().kind == "refuse"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, ""),
        (
            {"a.example": {"127.0.0.2": NONE}},
            "the list a: it does not list 127.0.0.2, which every list does: it may be empty",
        ),
        (
            {"a.example": {"127.0.0.2": SILENT}, "b.example": {"127.0.0.1": answer("127.0.0.2")}},
            "the list a: it does not answer: no answer in time; "
            "the list b: it lists 127.0.0.1, and so may list everybody",
        ),
    ],
)
def test_check_tests_the_lists(log: Logbook, entries: Mapping[str, Mapping[str, Answer]], said: str) -> None:
    lists = Lists("a.example,b.example;name=a,b", entries, start=False)
    told: list[str] = []
    Deferred.fromCoroutine(lists.ip_filter.self_test()).addCallback(told.append)
    assert told == [said]


def test_check_says_that_there_is_no_resolver() -> None:
    lists = Lists(start=False)

    def nothing() -> None:
        raise ValueError("the resolver unbound is not found: no address")

    lists.names.found = nothing
    told: list[str] = []
    Deferred.fromCoroutine(lists.ip_filter.self_test()).addCallback(told.append)
    assert told == ["the resolver unbound is not found: no address"]


def test_a_guard_refuses_by_it_and_logs_lists_and_codes(log: Logbook) -> None:
    lists = Lists("bl.example;name=bl", {"bl.example": {"192.0.2.1": answer("127.0.0.2")}})
    guard = Guard(ip_filters=[lists.ip_filter])
    assert guard.connect("192.0.2.1").heard() == "521 5.7.1 Your address is listed by bl\r\n"
    assert guard.connect("192.0.2.2").heard().startswith("220 ")
    (line,) = log.take("reject")
    assert " reason=ip_filter filter=DnsblFilter rule=bl:127.0.0.2 code=521 " in line


def test_strangers_make_no_series() -> None:
    lists = Lists()
    before = sorted(lists.metrics())
    for i in range(1000):
        lists.check(str(IPv4Address(0x08080000 + i)))
    assert sorted(lists.metrics()) == before
