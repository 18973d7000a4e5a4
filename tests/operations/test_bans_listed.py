"""`bans`, `unban` and what `why` says of a ban."""

from __future__ import annotations

from typing import Any

import pytest
from logbook import logbook
from operated import Operated
from twisted.internet.defer import Deferred

ADDRESS = "192.0.2.1"


def guarded(**limits: Any) -> Operated:
    return Operated(**{"ban_after": 3, "max_invalid_commands": 0, "ipv4_networks": (24,), **limits})


def errs(guard: Operated, host: str = ADDRESS, times: int = 3) -> None:
    guard.greeted(host).say(*["XYZZY"] * times)


def asked(guard: Operated, host: str = ADDRESS) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []
    guard.operator.why(host).addCallback(answers.append)
    (answer,) = answers
    return answer


def listed(guard: Operated) -> list[dict[str, Any]]:
    return list(guard.operator.carry_out("bans", {}))


ROW = {
    "banned": ADDRESS,
    "until": "1970-01-01T00:10:00Z",
    "times": 1,
    "points": 3,
    "because": "unrecognized_command:3",
    "dry_run": False,
}


def test_the_bans_are_listed_until_their_end() -> None:
    guard = guarded()
    assert (listed(guard), guard.operator.status()["bans"]) == ([], 0)
    errs(guard)
    assert (listed(guard), guard.operator.status()["bans"]) == ([ROW], 1)
    for host in range(2, 6):
        errs(guard, f"192.0.2.{host}")
    network = {**ROW, "banned": "192.0.2.0/24", "points": None, "because": "5 of its clients are banned"}
    assert network in listed(guard)
    guard.clock.advance(600)
    assert listed(guard) == []


def test_why_shows_points_ban_and_what_lifts_it_and_counts_nothing() -> None:
    guard = guarded()
    errs(guard, times=2)
    answer = asked(guard)
    (row,) = [row for row in answer["counts"] if row["limit"] == "ban-after"]
    assert row == {
        "limit": "ban-after",
        "of": "this client",
        "allowed": 3,
        "count": 2,
        "dry_run": False,
        "clears": "1970-01-01T00:10:00Z",
    }
    assert (answer["outcome"], answer["bans"]) == ("accepted", [])
    errs(guard, times=1)
    for _ in range(2):
        answer = asked(guard)
        assert (answer["outcome"], answer["reason"], answer["value"]) == ("refused", "ban_after", 3)
        assert answer["bans"] == [ROW]
        assert answer["would_help"] == [f"smtpguardctl unban {ADDRESS}"]
    assert guard.tries() == 421
    guard.operator.unban(ADDRESS)
    answer = asked(guard)
    assert (answer["outcome"], answer["bans"], answer["would_help"]) == ("accepted", [], [])


def test_in_dry_run_why_says_that_it_would_be_refused() -> None:
    guard = guarded(dry_run={"ban_after"})
    errs(guard)
    answer = asked(guard)
    assert (answer["outcome"], answer["bans"]) == ("accepted", [{**ROW, "dry_run": True}])
    assert [each["reason"] for each in answer["in_dry_run"]] == ["ban_after"]


def test_who_is_unbanned_begins_anew_and_the_log_says_by_whom() -> None:
    guard = guarded()
    errs(guard, times=5)
    with logbook() as log:
        assert guard.operator.carry_out("unban", {"address": ADDRESS}, "uid:7") == {"lifted": [ADDRESS]}
        assert log.take("operator") == [f"operator by=uid:7 verb=unban what={ADDRESS}"]
    assert guard.tries() == 220
    errs(guard, times=2)
    assert guard.tries() == 220
    errs(guard, times=1)
    assert [row["times"] for row in listed(guard)] == [1]


def test_a_network_is_unbanned_by_its_name_or_by_an_address_of_it() -> None:
    for text, left in (("192.0.2.0/24", 5), ("192.0.2.99", 5), ("192.0.2.1", 4)):
        guard = guarded()
        for host in range(1, 6):
            errs(guard, f"192.0.2.{host}")
        assert guard.tries("192.0.2.99") == 421
        assert "192.0.2.0/24" in guard.operator.unban(text)["lifted"]
        assert guard.tries("192.0.2.99") == 220
        assert len(listed(guard)) == left


def test_unban_lifts_what_an_operator_has_denied_and_the_ban_together() -> None:
    guard = guarded()
    errs(guard)
    guard.operator.deny(ADDRESS)
    answer = guard.operator.unban(ADDRESS)
    assert (answer["rule"], answer["lifted"]) == ("deny", [ADDRESS])
    assert guard.tries() == 220


@pytest.mark.parametrize("text", [ADDRESS, "2001:db8::1", "192.0.2.0/24"])
def test_who_is_not_banned_cannot_be_unbanned(text: str) -> None:
    with pytest.raises(ValueError, match="no ban holds for it, and no operator has denied"):
        guarded().operator.unban(text)


@pytest.mark.parametrize("text", ["x", "", "192.0.2.0/24/1", "192.0.2.1/x", "/", "\n"])
def test_what_is_no_address_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|address|must have a number"):
        guarded().operator.unban(text)


def test_in_a_worker_that_has_learnt_of_it_before_unban_is_done_all_the_same() -> None:
    guard = guarded()
    guard.operator.told_elsewhere = True
    assert guard.operator.unban(ADDRESS) == {"lifted": []}


def test_points_are_forgiven_by_a_store_that_answers_later() -> None:
    guard = guarded()
    errs(guard)
    given: list[Any] = []
    looked: Deferred[Any] = Deferred()
    counting: Any = guard.factory.counting
    counting.look = lambda *_: looked
    counting.give_back = given.append
    guard.operator.unban(ADDRESS)
    assert given == []
    looked.callback([(3, 1.0)])
    assert [(each.client, each.events) for (each,) in given] == [(ADDRESS, 3)]
